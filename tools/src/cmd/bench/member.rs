//! One OSlet of a measurement, in this process or in a partner's: the region, a volume that it
//! serves or reads. It is put together by hand, so that nothing else runs beside what is measured.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bench::corpus;
use cfs::client::{Client, Connect};
use cfs::engine::write::WriterOptions;
use cfs::open::{Image, OpenOptions};
use cfs::owner::Owner;
use cfs::service::Volumes;
use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{
    Backing, ControlPage, OwnSegment, Ownership, Paging, PeerSegment, Region, SegmentSpec,
};
use oslet::rpc::{
    Channel, ChannelAnswer, ChannelOffer, Handler, PendingChannel, Replier, Request, Server,
};
use parking_lot::Mutex;
use proxydev::backend::engine::{Engine, EngineOptions};

/// All OSlets of a measurement are in their first incarnation.
const EPOCH: Epoch = Epoch(1);
/// The OSlet that owns the volume.
pub(super) const OWNER: usize = 0;
/// The number of the one volume.
const VOLUME: u64 = 0;
/// Threads that read the device.
const WORKERS: usize = 2;

/// How much memory an OSlet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Data frames.
    pub(super) frames: usize,
    /// Bytes for rings, pins and tables.
    pub(super) space: usize,
    /// Huge pages.
    pub(super) huge: bool,
}

pub(super) struct Member {
    region: Arc<Region>,
    arena: Arc<Arena>,
    serving: Option<Serving>,
    channel: Arc<Mutex<Option<Arc<Channel>>>>,
}

/// What an owner runs.
struct Serving {
    server: Arc<Server>,
    owner: Arc<Owner>,
    _image: Image,
    _engine: Arc<Engine>,
}

pub(super) fn id(index: usize) -> Result<ParticipantId> {
    Ok(ParticipantId::runtime(OsletId::new(index).context("too many OSlets")?))
}

impl Member {
    pub(super) fn join(control: ControlPage, index: usize, shape: Shape) -> Result<Self> {
        let paging = Paging { huge: shape.huge, prefault: true };
        let spec = SegmentSpec {
            participant: id(index)?,
            epoch: EPOCH,
            frames: shape.frames,
            space: shape.space,
            paging,
        };
        let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec)?;
        let region = Region::new(control, own, paging)?;
        let arena = Arena::new(&region);
        Ok(Self { region, arena, serving: None, channel: Arc::default() })
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Maps another OSlet's segment, from the descriptor that `path` leads to.
    pub(super) fn map(&self, index: usize, path: &Path) -> Result<()> {
        let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        Ok(self.region.map(&file, id(index)?, EPOCH)?)
    }

    pub(super) fn peer(&self, index: usize) -> Result<&PeerSegment> {
        self.region.segment(id(index)?).with_context(|| format!("OSlet {index} is not mapped"))
    }

    /// Serves the volume of an image with a cache of `frames` frames.
    pub(super) fn serve(&mut self, image: &Path, frames: usize, writable: bool) -> Result<()> {
        let engine = Engine::new(&self.region, EngineOptions::default())?;
        let writer = writable.then(WriterOptions::default);
        let options = OpenOptions { read_only: !writable, writer, ..OpenOptions::default() };
        let mut opened = Image::open(image, &engine, &self.arena, &options)?;
        let (owner, why) = opened.serve(&self.arena, VOLUME, frames)?;
        ensure!(owner.is_writable() == writable, "{}", why.unwrap_or_default());
        let volumes = Volumes::new(WORKERS);
        volumes.add(Arc::clone(&owner))?;
        let server = Server::new(&self.region, Arc::new(Answers(volumes)));
        let control = self.region.control();
        let before = control.owner(VOLUME as usize)?;
        let me = self.region.own().participant().oslet;
        let now = Ownership { owner: Some((me, EPOCH)), ..Ownership::default() };
        ensure!(control.change_owner(VOLUME as usize, before, now)?.is_ok(), "it has an owner");
        self.serving = Some(Serving { server, owner, _image: opened, _engine: engine });
        Ok(())
    }

    /// Opens the serving end of a channel.
    pub(super) fn accept(&self, from: usize, offer: ChannelOffer) -> Result<ChannelAnswer> {
        let serving = self.serving.as_ref().context("this OSlet serves nothing")?;
        Ok(serving.server.accept(id(from)?, EPOCH, offer)?)
    }

    /// Offers a channel to the owner.
    pub(super) fn offer(&self) -> Result<PendingChannel> {
        Ok(PendingChannel::new(&self.region, id(OWNER)?, EPOCH)?)
    }

    /// The owner has answered.
    pub(super) fn connected(&self, channel: Arc<Channel>) {
        *self.channel.lock() = Some(channel);
    }

    /// The volume, as this OSlet sees it.
    pub(super) fn client(&self) -> Result<Arc<Client>> {
        let owner = self.serving.as_ref().map(|serving| Arc::clone(&serving.owner));
        let (channel, arena) = (Arc::clone(&self.channel), Arc::clone(&self.arena));
        let way = Way { owner, channel, arena };
        Ok(Client::new(&self.region, VOLUME, Arc::new(way))?)
    }

    /// Reads the whole file that [`corpus::write_pages`] wrote, by reference, and checks a word of
    /// each page. Returns how many there are.
    pub(super) fn read_through(&self, name: &str) -> Result<u64> {
        let client = self.client()?;
        let file = client.open(name.as_bytes())?;
        let pages = client.stat(file.ino())?.size / corpus::PAGE as u64;
        for page in 0..pages {
            let found = file.read_ref_of(page, pages)?.context("the file ends too early")?;
            let word = page as usize % corpus::WORDS;
            if found.word(word * 8) != Some(corpus::expected(page, word)) {
                bail!("page {page} holds something else");
            }
        }
        Ok(pages)
    }
}

struct Answers(Arc<Volumes>);

impl Handler for Answers {
    fn handle(&self, request: Request, replier: Replier) {
        self.0.handle(request, replier);
    }

    fn broken(&self, peer: ParticipantId, _: Epoch, error: oslet::Error) {
        eprintln!("{peer:?}: {error}");
    }
}

struct Way {
    owner: Option<Arc<Owner>>,
    channel: Arc<Mutex<Option<Arc<Channel>>>>,
    arena: Arc<Arena>,
}

impl Connect for Way {
    fn local(&self, _: u64) -> Option<Arc<Owner>> {
        self.owner.clone()
    }

    fn channel(&self, oslet: OsletId, _: Epoch) -> oslet::Result<Arc<Channel>> {
        let channel = self.channel.lock().clone();
        channel.ok_or_else(|| oslet::Error::Gone(format!("no channel to {oslet:?}")))
    }

    fn arena(&self) -> Option<&Arc<Arena>> {
        Some(&self.arena)
    }
}
