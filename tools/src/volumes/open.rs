//! How a volume's image is opened: to be written, unless something forbids that.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use cfs::engine::write::WriterOptions;
use cfs::journal::JournalOptions;
use cfs::open::{Image, OpenOptions};
use cfs::owner::Owner;
use oslet::id::Epoch;
use oslet::plan::VolumePlan;
use oslet::runtime::Handle;
use proxydev::backend::engine::Engine;
use rustix::io::Errno;

/// An image that is served.
pub(super) struct Opened {
    pub(super) image: Image,
    pub(super) owner: Arc<Owner>,
    /// Why it is only read, if it is.
    pub(super) read_only: Option<String>,
}

/// Opens the image of a volume and begins to serve it. `only_read` says that an earlier incarnation
/// has served it to be read alone: others believe for ever what they have seen of it.
pub(super) fn open(
    volume: &VolumePlan,
    path: &Path,
    object: usize,
    handle: &Handle,
    engine: &Arc<Engine>,
    frames: usize,
    only_read: bool,
) -> Result<Opened> {
    let named = || format!("volume \"{}\"", volume.name);
    let wanted = match (volume.read_only, only_read) {
        (true, _) => Some("the configuration wants it so".to_owned()),
        (_, true) => Some("it was so before its owner was started again".to_owned()),
        _ => None,
    };
    let arena = handle.arena();
    let (image, forbidden) = match wanted {
        Some(why) => (Image::open(path, engine, arena, &options(volume, handle, true)), Some(why)),
        None => match Image::open(path, engine, arena, &options(volume, handle, false)) {
            Err(error) if is_forbidden(&error) => {
                let why = format!("this user, or its device, cannot write: {error}");
                let opened = Image::open(path, engine, arena, &options(volume, handle, true));
                (opened, Some(why))
            }
            opened => (opened, None),
        },
    };
    let mut image = image.with_context(named)?;
    let (owner, refused) = image.serve(arena, object as u64, frames).with_context(named)?;
    Ok(Opened { image, owner, read_only: forbidden.or(refused) })
}

fn options(volume: &VolumePlan, handle: &Handle, read_only: bool) -> OpenOptions {
    let journal =
        JournalOptions { mount_point: Some(volume.mount.clone()), ..JournalOptions::default() };
    let writer = WriterOptions { journal, ..WriterOptions::default() };
    OpenOptions {
        read_only,
        // Its lock proves to a successor that nothing is in flight any more.
        alone: true,
        // Another incarnation of this OSlet was fenced before this one could join.
        take_over: handle.epoch() > Epoch(1),
        holder: holder(handle.region().control().name()),
        writer: (!read_only).then_some(writer),
    }
}

/// Whether the file or device may be read but not written.
fn is_forbidden(error: &cfs::Error) -> bool {
    let forbidden = [Errno::ACCESS, Errno::PERM, Errno::ROFS].map(Errno::raw_os_error);
    matches!(error, cfs::Error::Io { source, .. }
        if source.raw_os_error().is_some_and(|errno| forbidden.contains(&errno)))
}

/// Who holds a volume, for other machines to read: this one, and the cluster on it.
fn holder(cluster: &str) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host} oslet {cluster}")
}
