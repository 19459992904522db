//! The native interface in processes of their own.

use std::path::Path;
use std::sync::Arc;

use oslet::client::ClientHandle;
use oslet::id::{Epoch, OsletId};
use oslet::rpc::Channel;

use super::{Client, Connect};
use crate::Result;
use crate::owner::Owner;

/// A volume of a running cluster, for a process that joins as a native client of an OSlet: the
/// cluster's runtime files are in `directory`, volumes are numbered in the order of the
/// configuration. A child of `fork` must not use the parent's: see [`oslet::client::ClientHandle`].
///
/// ```no_run
/// # fn main() -> cfs::Result<()> {
/// let root = cfs::client::join("/run/oslet/main".as_ref(), "o1", 0)?;
/// let file = root.open(b"/README")?;
/// if let Some(page) = file.read_ref(0)? {
///     println!("{:?}", page.word(0));
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`oslet::client::join`]; and when there can be no volume of that number.
pub fn join(directory: &Path, oslet: &str, object: u64) -> Result<Arc<Client>> {
    let handle = oslet::client::join(directory, oslet)?;
    let region = Arc::clone(handle.region());
    Client::new(&region, object, Arc::new(Way(handle)))
}

/// Through the OSlet's runtime.
struct Way(ClientHandle);

impl Connect for Way {
    fn local(&self, _: u64) -> Option<Arc<Owner>> {
        None
    }

    fn channel(&self, oslet: OsletId, _: Epoch) -> oslet::Result<Arc<Channel>> {
        self.0.channel(oslet)
    }
}
