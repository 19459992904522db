//! Multi-mount protection: a block of the volume that whoever writes to it keeps changing.
//!
//! It is the only protection against another machine, and is kept as the kernel does
//! (fs/ext4/mmp.c): read the sequence number, wait longer than its holder may take to change it,
//! look again, put a number of one's own there, wait and look once more; then change it every few
//! seconds, and leave "clean" at the end. Readers only look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::assert_layout;
use crate::disk::checksum::crc32c;
use crate::disk::superblock::Superblock;
use crate::engine::store::BlockSource;
use crate::{Error, Result};

/// The block as it lies on disk; it uses 1024 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawMmp {
    pub(crate) magic: U32,
    pub(crate) sequence: U32,
    pub(crate) time: U64,
    pub(crate) node: [u8; 64],
    pub(crate) device: [u8; 32],
    pub(crate) check_interval: U16,
    pub(crate) pad1: U16,
    pub(crate) pad2: [U32; 226],
    pub(crate) checksum: U32,
}

assert_layout!(RawMmp, SIZE, {
    0 magic, 4 sequence, 8 time, 16 node, 80 device, 112 check_interval, 1020 checksum,
});

const SIZE: usize = 1024;
const MAGIC: u32 = 0x004d_4d50;
/// Nobody uses the volume.
const CLEAN: u32 = 0xff4d_4d50;
/// e2fsck works on it.
const FSCK: u32 = 0xe24d_4d50;
/// The largest number of a holder.
const MAX: u32 = 0xe24d_4d4f;
/// Bounds of the seconds between two changes.
const MIN_INTERVAL: u64 = 5;
const MAX_INTERVAL: u64 = 300;

/// How to take a volume.
#[derive(Clone, Debug)]
pub struct Options {
    /// The holder's name for itself, for others to read: host and cluster.
    pub node: String,
    /// The volume's name on this machine, for others to read.
    pub device: String,
    /// Whoever holds the volume is known to be gone: do not wait. For a successor in the same
    /// cluster, which has waited for its predecessor's I/O by [`crate::guard`].
    pub take_over: bool,
    /// How long a second of the protocol takes; tests have shorter ones.
    pub second: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { node: String::new(), device: String::new(), take_over: false, second }
    }
}

/// Looks whether somebody writes to the volume, and writes nothing. May take some seconds.
pub fn check(source: &dyn BlockSource, sb: &Superblock, options: &Options) -> Result<()> {
    match Block::new(sb) {
        Some(block) => block.wait_for_others(source, options).map(drop),
        None => Ok(()),
    }
}

/// Takes the volume; `None` when it has no such protection. May take some seconds.
pub fn hold(
    source: &Arc<dyn BlockSource>,
    sb: &Superblock,
    options: &Options,
) -> Result<Option<Held>> {
    let Some(block) = Block::new(sb) else { return Ok(None) };
    let wait = block.wait_for_others(&**source, options)?;
    let mut raw = block.read(&**source)?;
    raw.sequence = new_sequence()?.into();
    fill(&mut raw.node, &options.node);
    fill(&mut raw.device, &options.device);
    block.write(&**source, &mut raw)?;
    std::thread::sleep(wait);
    let found = block.read(&**source)?;
    if found.sequence != raw.sequence {
        return Err(busy(&found, "took it at the same time"));
    }
    let keeper = Arc::new(Keeper {
        source: source.clone(),
        block,
        interval: options.second * u32::from(block.interval),
        raw: Mutex::new(raw),
        stop: Mutex::new(false),
        stopped: Condvar::new(),
        lost: AtomicBool::new(false),
    });
    let thread = {
        let keeper = keeper.clone();
        let name = "mmp".to_owned();
        let spawned = std::thread::Builder::new().name(name).spawn(move || keeper.run());
        spawned.map_err(Error::io("mmp: thread"))?
    };
    Ok(Some(Held { keeper, thread: Some(thread) }))
}

/// A volume that is ours, and whose block is kept changing, until this is dropped.
pub struct Held {
    keeper: Arc<Keeper>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// True once somebody else has written to the block, or it cannot be written: the volume must
    /// not be written to any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.keeper.lost.load(Ordering::Acquire)
    }

    /// Leaves the volume to others.
    pub fn release(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        *self.keeper.stop.lock() = true;
        self.keeper.stopped.notify_all();
        let died = thread.join().is_err();
        if died || self.is_lost() {
            return Err(Error::Busy("mmp: the volume was taken by another machine".into()));
        }
        let mut raw = self.keeper.raw.lock();
        raw.sequence = CLEAN.into();
        self.keeper.block.write(&*self.keeper.source, &mut raw)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Who wants to know whether it went well calls `release`. Without "clean" the next holder
        // only waits longer.
        let _ = self.end();
    }
}

struct Keeper {
    source: Arc<dyn BlockSource>,
    block: Block,
    interval: Duration,
    /// What we wrote last.
    raw: Mutex<RawMmp>,
    stop: Mutex<bool>,
    stopped: Condvar,
    lost: AtomicBool,
}

impl Keeper {
    fn run(&self) {
        let mut stop = self.stop.lock();
        while !*stop {
            if !self.stopped.wait_for(&mut stop, self.interval).timed_out() {
                continue;
            }
            if self.change().is_err() {
                self.lost.store(true, Ordering::Release);
                return;
            }
        }
    }

    fn change(&self) -> Result<()> {
        let mut raw = self.raw.lock();
        let found = self.block.read(&*self.source)?;
        if found.sequence != raw.sequence || found.node != raw.node {
            return Err(busy(&found, "took it"));
        }
        let next = raw.sequence.get() + 1;
        raw.sequence = if next > MAX { 1 } else { next }.into();
        self.block.write(&*self.source, &mut raw)
    }
}

/// Where the block is, and how it is kept.
#[derive(Clone, Copy)]
struct Block {
    offset: u64,
    seed: Option<u32>,
    /// Seconds between two changes.
    interval: u16,
}

impl Block {
    fn new(sb: &Superblock) -> Option<Self> {
        let block = sb.mmp_block?;
        let interval = u64::from(sb.mmp_interval).clamp(MIN_INTERVAL, MAX_INTERVAL) as u16;
        let seed = sb.features.metadata_csum().then_some(sb.checksum_seed);
        Some(Self { offset: block.0 << sb.block_bits, seed, interval })
    }

    fn sum(&self, raw: &RawMmp) -> Option<u32> {
        self.seed.map(|seed| crc32c(seed, &raw.as_bytes()[..SIZE - 4]))
    }

    fn read(&self, source: &dyn BlockSource) -> Result<RawMmp> {
        let mut bytes = [0; SIZE];
        source.read_at(self.offset, &mut bytes)?;
        let raw = RawMmp::read_from_bytes(&bytes)
            .map_err(|_| Error::corrupt("mmp block", "is not of 1024 bytes"))?;
        let magic = raw.magic.get();
        if magic != MAGIC {
            return Err(Error::corrupt("mmp block", format!("magic number {magic:#010x}")));
        }
        match self.sum(&raw) {
            Some(sum) if sum != raw.checksum.get() => {
                let found = raw.checksum.get();
                let why = format!("checksum {found:#010x}, computed {sum:#010x}");
                Err(Error::corrupt("mmp block", why))
            }
            _ => Ok(raw),
        }
    }

    fn write(&self, source: &dyn BlockSource, raw: &mut RawMmp) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        raw.time = now.into();
        raw.check_interval = self.check_interval().into();
        raw.checksum = self.sum(raw).unwrap_or(0).into();
        source.write_at(self.offset, raw.as_bytes())?;
        source.flush()
    }

    /// How long others wait between two looks: a holder may be late once.
    fn check_interval(&self) -> u16 {
        (2 * self.interval).min(MAX_INTERVAL as u16)
    }

    /// Returns how long to wait after writing.
    fn wait_for_others(&self, source: &dyn BlockSource, options: &Options) -> Result<Duration> {
        let before = self.read(source)?;
        let sequence = before.sequence.get();
        if sequence == FSCK {
            return Err(Error::Busy(format!(
                "mmp: e2fsck works on the volume, on {}",
                node(&before)
            )));
        }
        let mine = options.take_over && !options.node.is_empty() && {
            let mut node = before.node;
            fill(&mut node, &options.node);
            node == before.node
        };
        if sequence == CLEAN || mine {
            return Ok(Duration::ZERO);
        }
        if sequence > MAX {
            let why = format!("sequence number {sequence:#010x}");
            return Err(Error::corrupt("mmp block", why));
        }
        let interval = u64::from(before.check_interval.get().max(self.interval)).min(MAX_INTERVAL);
        let seconds = (2 * interval + 1).min(interval + 60);
        let wait = options.second * seconds as u32;
        std::thread::sleep(wait);
        let after = self.read(source)?;
        if after.sequence != before.sequence {
            return Err(busy(&after, "uses it"));
        }
        Ok(wait)
    }
}

fn busy(raw: &RawMmp, what: &str) -> Error {
    let device = text(&raw.device);
    Error::Busy(format!("mmp: {} {what} as {device}: unmount it there", node(raw)))
}

fn node(raw: &RawMmp) -> String {
    let name = text(&raw.node);
    if name.is_empty() { "another machine".into() } else { name }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).escape_default().to_string()
}

/// Cuts a name to what there is room for, with a zero at its end.
fn fill(bytes: &mut [u8], name: &str) {
    bytes.fill(0);
    for (byte, letter) in bytes.iter_mut().zip(name.bytes()) {
        *byte = letter;
    }
    if let Some(last) = bytes.last_mut() {
        *last = 0;
    }
}

fn new_sequence() -> Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(Error::io("mmp: getrandom"))?;
    Ok(u32::from_le_bytes(bytes) % MAX + 1)
}

#[cfg(test)]
mod tests;
