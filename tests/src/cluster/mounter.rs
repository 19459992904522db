//! A cluster's mount as one more way to mount an image.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, ensure};

use super::Cluster;
use crate::opfuzz::volumes::{Mounted, Mounter};

const OSLETS: usize = 2;

/// An image that a cluster serves, as one of its OSlets sees it. Dropped the cluster ends.
pub struct InOslet {
    cluster: Cluster,
    dir: PathBuf,
}

impl InOslet {
    /// A cluster of two over that image, and the mount of the OSlet with that number: 0 is the
    /// owner.
    ///
    /// # Errors
    /// It does not start.
    pub fn new(image: &Path, number: usize) -> Result<Self> {
        let cluster = Cluster::new()?;
        ensure!(image.is_absolute(), "{}: a path from here", image.display());
        cluster.configure(OSLETS, crate::kernel::arg(image))?;
        cluster.ok(&["up", "-d"])?;
        let dir = cluster.inside(number, "/global")?;
        Ok(Self { cluster, dir })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

impl Mounted for InOslet {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn unmount(self: Box<Self>) -> Result<()> {
        let connections = self.cluster.connections(OSLETS)?;
        self.cluster.ok(&["down"])?;
        self.cluster.assert_gone(&connections)
    }
}

/// Mounts images as the OSlet with that number sees them in a cluster of two, where 0 is the owner:
/// the directory becomes a link to where that is.
#[must_use]
pub fn oslet(number: usize) -> Mounter {
    Rc::new(move |image, dir| {
        let mounted = InOslet::new(image, number)?;
        if std::fs::symlink_metadata(dir).is_ok() {
            std::fs::remove_file(dir)?;
        }
        std::os::unix::fs::symlink(mounted.dir(), dir)?;
        Ok(Box::new(mounted))
    })
}
