//! A cluster's mount as one more way to mount an image.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, ensure};

use super::Cluster;
use crate::opfuzz::volumes::{Mounted, Mounter};

const OSLETS: usize = 2;

/// An image that a cluster serves, as one of its OSlets sees it. Dropped the cluster ends.
struct InOslet {
    cluster: Cluster,
    dir: PathBuf,
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

/// Mounts images as the OSlet with that number sees them in a cluster of two, where 0 is the owner.
#[must_use]
pub fn oslet(number: usize) -> Mounter {
    Rc::new(move |image, _| {
        let cluster = Cluster::new()?;
        ensure!(image.is_absolute(), "{}: a path from here", image.display());
        cluster.configure(OSLETS, crate::kernel::arg(image))?;
        cluster.ok(&["up", "-d"])?;
        let dir = cluster.inside(number, "/global")?;
        Ok(Box::new(InOslet { cluster, dir }))
    })
}
