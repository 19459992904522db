//! One volume in one process, without a cluster: `oslet mount`, tests and benchmarks.

use std::path::Path;
use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{
    Backing, ClusterId, ControlPage, OwnSegment, Ownership, Paging, Region, SegmentSpec,
};
use oslet::rpc::Channel;
use proxydev::backend::engine::{Engine, EngineOptions};

use crate::cache::Sizes;
use crate::client::{Client, Connect};
use crate::engine::Volume;
use crate::engine::write::Writer;
use crate::open::{Image, OpenOptions};
use crate::owner::Owner;
use crate::{Error, Result};

/// Frames kept out of the cache's budget, for requests in flight.
const SPARE_FRAMES: usize = 1024;
/// Bytes of table space beside the published tables: the pin counters are added to it.
const SPARE_SPACE: usize = 256 << 10;

/// A volume that this process alone serves.
pub struct LocalVolume {
    client: Arc<Client>,
    owner: Arc<Owner>,
    image: Option<Image>,
    _engine: Option<Arc<Engine>>,
    warnings: Vec<String>,
}

impl LocalVolume {
    /// Opens the image at `path` with a page cache of about `cache` bytes.
    pub fn open(path: &Path, cache: u64, options: &OpenOptions) -> Result<Self> {
        let (arena, frames) = memory(cache)?;
        let engine = Engine::new(arena.region(), EngineOptions::default())?;
        let mut image = Image::open(path, &engine, &arena, options)?;
        let (owner, read_only) = image.serve(&arena, 0, frames)?;
        let mut warnings = engine.warnings().to_vec();
        warnings.extend(read_only.map(|why| format!("{}: read-only, for {why}", path.display())));
        Ok(Self { image: Some(image), _engine: Some(engine), warnings, ..Self::of(&arena, owner)? })
    }

    /// Serves a volume that has been opened already, whatever it lies on.
    pub fn serve(volume: Volume, cache: u64) -> Result<Self> {
        let (arena, frames) = memory(cache)?;
        Self::of(&arena, Owner::new(&arena, 0, volume, frames)?)
    }

    /// Serves a volume that has been opened for writing, whatever it lies on.
    pub fn write(writer: Arc<Writer>, cache: u64) -> Result<Self> {
        let (arena, frames) = memory(cache)?;
        Self::of(&arena, Owner::writable(&arena, 0, writer, frames)?)
    }

    fn of(arena: &Arc<Arena>, owner: Arc<Owner>) -> Result<Self> {
        let region = arena.region();
        let control = region.control();
        let before = control.owner(0)?;
        let me = region.own().participant().oslet;
        let serving = Ownership { owner: Some((me, region.own().epoch())), ..Ownership::default() };
        // Nobody else has this control page.
        let _ = control.change_owner(0, before, serving)?;
        let client = Client::new(region, 0, Arc::new(Here(Arc::clone(&owner))))?;
        Ok(Self { client, owner, image: None, _engine: None, warnings: Vec::new() })
    }

    /// The native interface to it.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The serving side.
    pub fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// Whether it may be changed.
    pub fn is_writable(&self) -> bool {
        self.owner.is_writable()
    }

    /// The image underneath; none where a volume was given.
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// What the user should know of how disks are used here, and of what cannot be written.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Brings everything home that was changed and gives the image up, as an unmount does. Nothing
    /// may be asked of the volume any more. Dropped without it the image is as after a crash.
    ///
    /// # Errors
    /// When the storage fails, or the protection against other hosts could not be taken off.
    pub fn close(self) -> Result<()> {
        let stopped = self.owner.stop();
        self.image.map_or(Ok(()), Image::close).and(stopped)
    }
}

/// Memory for a page cache of about `cache` bytes, and how many frames that is.
fn memory(cache: u64) -> Result<(Arc<Arena>, usize)> {
    let frames = usize::try_from(cache / oslet::limits::FRAME_SIZE as u64).unwrap_or(usize::MAX);
    let frames = frames.clamp(256, oslet::limits::MAX_FRAMES - SPARE_FRAMES);
    let region = region(frames + SPARE_FRAMES, Sizes::of(frames).total())?;
    Ok((Arena::new(&region), frames))
}

/// A region of one OSlet.
fn region(frames: usize, tables: usize) -> Result<Arc<Region>> {
    let me = ParticipantId::runtime(OsletId::new(0).ok_or(Error::NotFound)?);
    let control = ControlPage::create(&Backing::Memfd, "local", 1)?;
    let cluster: ClusterId = control.cluster();
    let spec = SegmentSpec {
        participant: me,
        epoch: Epoch(1),
        frames,
        space: tables + 2 * frames + SPARE_SPACE,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, cluster, &spec)?;
    Ok(Region::new(control, own, Paging::default())?)
}

/// The way to an owner in this process.
struct Here(Arc<Owner>);

impl Connect for Here {
    fn local(&self, object: u64) -> Option<Arc<Owner>> {
        (object == self.0.object()).then(|| Arc::clone(&self.0))
    }

    fn channel(&self, oslet: OsletId, _: Epoch) -> oslet::Result<Arc<Channel>> {
        Err(oslet::Error::Gone(format!("{oslet:?}")))
    }
}
