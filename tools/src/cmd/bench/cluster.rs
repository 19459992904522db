//! Several OSlets of a measurement, each in a process of its own, over one region.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use oslet::limits::{FRAME_SIZE, LINE};
use oslet::region::{Backing, ControlPage};
use oslet::rpc::ChannelOffer;

use super::member::{Member, OWNER, Shape};
use super::partner::{Ask, Partner, Told, descriptor, from_words, unexpected};

/// Frames beside a volume's cache: of one that is only read all show pages, for one that is written
/// some are in flight.
const SPARE_READING: usize = 0;
const SPARE_WRITING: usize = 512;
/// Frames of an OSlet that owns nothing, and of one that sends data to the owner by reference: some
/// requests' worth.
const FEW_FRAMES: usize = 16;
const SENDING_FRAMES: usize = 1024;
/// Bytes for one participant's halves of the two rings of a channel, and what belongs to them.
const CHANNEL_SPACE: usize = 74 << 10;

/// OSlets in processes of their own: the first owns the volume, the others read it.
pub(super) struct Partners {
    partners: Vec<Partner>,
    segments: Vec<PathBuf>,
    /// Partners reach the control page through this process's descriptor of it.
    control: ControlPage,
    shape: Shape,
}

/// This process as an OSlet that reads the volume of a partner.
pub(super) struct Reader {
    // First: nothing of the region is used when the partner ends.
    pub(super) member: Member,
    _partners: Partners,
}

impl Partners {
    /// Starts the first `count` of so many OSlets, which all map one another and only read.
    pub(super) fn start(count: usize, oslets: usize, bytes: u64, huge: bool) -> Result<Self> {
        Self::with_frames(count, oslets, (FEW_FRAMES, SPARE_READING), bytes, huge)
    }

    /// The same, where an OSlet that owns nothing has `own` frames, and the owner `spare` beside
    /// those for `bytes` of the volume's data.
    fn with_frames(
        count: usize,
        oslets: usize,
        (own, spare): (usize, usize),
        bytes: u64,
        huge: bool,
    ) -> Result<Self> {
        let control = ControlPage::create(&Backing::Memfd, "bench", oslets)?;
        let cache = usize::try_from(bytes)? / FRAME_SIZE;
        // Beside the data: the page of zeros, and what small files take.
        let cache = cache + 64;
        let frames = cache + spare;
        let tables = cfs::cache::Sizes::of(cache).total();
        let counters = |frames: usize| (2 * frames).next_multiple_of(LINE);
        let readers = (oslets - 1) * counters(own);
        // The owner reads its own frames too.
        let counters = counters(frames) + readers;
        let space = tables + counters + (oslets - 1) * CHANNEL_SPACE;
        let reader_space = counters + CHANNEL_SPACE;
        let shape = Shape { frames: cache, space: reader_space, huge };
        let mut all = Self { partners: Vec::new(), segments: Vec::new(), control, shape };
        for index in 0..count {
            let mut partner = Partner::start()?;
            let (frames, space) = match index == OWNER {
                true => (frames, space),
                false => (own, reader_space),
            };
            let control = descriptor(all.control.file());
            let join = Ask::Join { control, index, frames, space, huge };
            match partner.ask(&join)? {
                Told::Segment(path) => all.segments.push(path),
                told => return Err(unexpected(&told)),
            }
            all.partners.push(partner);
        }
        for index in 0..count {
            for other in (0..count).filter(|&other| other != index) {
                let segment = all.segments[other].clone();
                all.ask(index, &Ask::Map { index: other, segment })?;
            }
        }
        Ok(all)
    }

    /// Lets the first serve the volume of an image, and the others open channels to it.
    pub(super) fn serve(&mut self, image: &Path) -> Result<()> {
        let image = image.to_owned();
        self.ask(OWNER, &Ask::Serve { image, frames: self.shape.frames, writable: false })?;
        for index in 1..self.partners.len() {
            let Told::Channel(offer) = self.ask(index, &Ask::Offer)? else { continue };
            let answer = self.ask(OWNER, &Ask::Accept { from: index, offer })?;
            let Told::Channel(answer) = answer else { return Err(unexpected(&answer)) };
            self.ask(index, &Ask::Open { answer })?;
        }
        Ok(())
    }

    /// Makes each read a whole file.
    pub(super) fn read_all(&mut self, name: &str, bytes: u64) -> Result<()> {
        for index in 0..self.partners.len() {
            match self.ask(index, &Ask::Read { name: name.to_owned() })? {
                Told::Pages(pages) => {
                    let right = pages * FRAME_SIZE as u64 == bytes;
                    ensure!(right, "OSlet {index} has read {pages} pages of {bytes} bytes");
                }
                told => return Err(unexpected(&told)),
            }
        }
        Ok(())
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.partners.iter().map(Partner::pid).collect()
    }

    pub(super) fn ask(&mut self, index: usize, ask: &Ask) -> Result<Told> {
        let partner = self.partners.get_mut(index).context("no such partner")?;
        partner.ask(ask).with_context(|| format!("OSlet {index}"))
    }
}

impl Reader {
    /// Starts one OSlet beside this process, which becomes the second.
    pub(super) fn beside(bytes: u64, huge: bool) -> Result<Self> {
        Self::with_frames((FEW_FRAMES, SPARE_READING), bytes, huge)
    }

    fn with_frames((own, spare): (usize, usize), bytes: u64, huge: bool) -> Result<Self> {
        let mut partners = Partners::with_frames(1, 2, (own, spare), bytes, huge)?;
        let control = ControlPage::open(partners.control.file().try_clone()?)?;
        let shape = Shape { frames: own, ..partners.shape };
        let member = Member::join(control, 1, shape)?;
        let reader = member.region().own().reader()?;
        let segment = descriptor(&reader);
        partners.ask(OWNER, &Ask::Map { index: 1, segment })?;
        member.map(OWNER, &partners.segments[OWNER])?;
        Ok(Self { member, _partners: partners })
    }

    /// Lets the partner serve the volume of an image to this process.
    pub(super) fn of(image: &Path, bytes: u64, huge: bool) -> Result<Self> {
        Self::beside(bytes, huge)?.served(image, false)
    }

    /// The same with the volume open for writing.
    pub(super) fn writing(image: &Path, bytes: u64) -> Result<Self> {
        Self::with_frames((SENDING_FRAMES, SPARE_WRITING), bytes, false)?.served(image, true)
    }

    fn served(mut self, image: &Path, writable: bool) -> Result<Self> {
        let reader = &mut self;
        let partners = &mut reader._partners;
        let (image, frames) = (image.to_owned(), partners.shape.frames);
        partners.ask(OWNER, &Ask::Serve { image, frames, writable })?;
        let pending = reader.member.offer()?;
        let ChannelOffer { requests, replies_head, replies_park } = pending.offer();
        let offer = [requests, replies_head, replies_park];
        let answer = partners.ask(OWNER, &Ask::Accept { from: 1, offer })?;
        let Told::Channel(answer) = answer else { return Err(unexpected(&answer)) };
        reader.member.connected(pending.open(from_words(answer))?);
        Ok(self)
    }

    /// Tells the partner to do something.
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Told> {
        self._partners.ask(OWNER, ask)
    }
}
