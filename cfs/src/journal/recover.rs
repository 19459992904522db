//! Brings a volume whose journal was not emptied to the state that the journal promises.
//!
//! The order of writes is the kernel's: home blocks, flush, an empty journal, flush, the
//! superblock without `needs_recovery`, flush. Until the journal is empty everything can be done
//! again from it; once it is, the orphans are cleared by one transaction that goes through the
//! journal in its turn, and then only the mark remains to be cleared. So recovery may be cut short
//! at any write and started over. On a device that is only read, the caller puts an
//! [`Overlay`] over it and recovers that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::{FromBytes, IntoBytes};

use super::format::{Incompat, SUPERBLOCK_SIZE, Superblock, Tid};
use super::locate::{LogFile, LogPlace};
use super::replay::{self, Plan};
use super::{commit, fast_commit};
use crate::disk::features;
use crate::disk::superblock::Superblock as VolumeSuperblock;
use crate::disk::superblock::{OFFSET, RawSuperblock, SIZE, STATE_ERRORS};
use crate::engine::store::{BlockSource, Overlay};
use crate::engine::{Options, Volume};
use crate::orphan::{self, Orphans};
use crate::{Error, Result};

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Transactions replayed.
    pub transactions: u32,
    /// Blocks put in place.
    pub blocks: u64,
    /// Copies that were void because a later transaction freed their block.
    pub revoked: u64,
    /// What was done about orphans.
    pub orphans: Orphans,
    /// The error (a negative errno, 0 for none) with which the kernel gave up the journal. The
    /// volume is marked as having errors.
    pub aborted: i32,
}

/// Replays the journal of the volume in `source`, which must be writable; `None` when there is
/// nothing to replay. When this fails before the first write, nothing has changed.
pub fn recover(source: &Arc<dyn BlockSource>) -> Result<Option<Report>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    recover_at(source, now)
}

/// As [`recover`], with the time that inodes removed now were removed, in seconds since 1970.
pub fn recover_at(source: &Arc<dyn BlockSource>, now: u64) -> Result<Option<Report>> {
    recover_with(source, now, false)
}

/// As [`recover`], for who takes a volume over from an owner that has died: inodes without names
/// stay as orphans, since others may have them open.
pub fn take_over(source: &Arc<dyn BlockSource>) -> Result<Option<Report>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    recover_with(source, now, true)
}

fn recover_with(source: &Arc<dyn BlockSource>, now: u64, keep: bool) -> Result<Option<Report>> {
    let raw = read_superblock(source)?;
    let options = Options { ignore_journal: true, ..Options::default() };
    let volume = Volume::open(source.clone(), &options)?;
    if !raw.features().incompat.contains(features::Incompat::RECOVER) {
        return refuse_forgotten(&volume, &raw).map(|()| None);
    }
    let (sb, log) = open_log(&volume, &raw)?;
    let block_size = sb.block_size;
    let plan = replay::plan(&sb, source.size() / u64::from(block_size), &log)?;
    if sb.start != 0 && sb.incompat.contains(Incompat::FAST_COMMIT) {
        fast_commit::refuse_pending(&sb, plan.end, &log)?;
    }
    Replay { source, log: &log, sb: &sb, before: &raw, block_size, now, keep }.run(&plan).map(Some)
}

fn open_log(volume: &Volume, raw: &RawSuperblock) -> Result<(Superblock, LogFile)> {
    let place = LogPlace::find(volume, raw)?;
    let block_size = volume.superblock().block_size;
    let log = LogFile { source: volume.source().clone(), place, block_size };
    let mut first = vec![0; block_size as usize];
    log.read(0, &mut first)?;
    let sb = Superblock::parse(&first, block_size, log.place.blocks())?;
    Ok((sb, log))
}

/// Refuses a volume whose journal holds transactions although the superblock does not ask for their
/// replay. What is in place may lack them (the superblock came from a copy of it, which never asks)
/// or be newer than they are: the kernel discards them, e2fsck asks, and so nobody here decides.
fn refuse_forgotten(volume: &Volume, raw: &RawSuperblock) -> Result<()> {
    if volume.superblock().journal_inode.is_none() {
        return Ok(());
    }
    match open_log(volume, raw) {
        Ok((sb, _)) if sb.start != 0 => {
            let why = format!(
                "holds transactions from {} on, but needs_recovery is not set; e2fsck asks whether \
                 to replay them, the kernel would drop them",
                sb.sequence
            );
            Err(Error::corrupt("journal", why))
        }
        // Who does not need the journal does not need a sound one.
        Ok(_) | Err(Error::Corrupt { .. } | Error::Refused { .. } | Error::Stale(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

struct Replay<'a> {
    source: &'a Arc<dyn BlockSource>,
    log: &'a LogFile,
    sb: &'a Superblock,
    /// The volume's superblock before the replay.
    before: &'a RawSuperblock,
    block_size: u32,
    now: u64,
    /// Whether inodes without names stay.
    keep: bool,
}

impl Replay<'_> {
    fn run(&self, plan: &Plan) -> Result<Report> {
        self.check(plan)?;
        let mut block = vec![0; self.block_size as usize];
        for (&home, copied) in &plan.copies {
            copied.read(self.log, &mut block)?;
            if home == self.superblock_block() {
                self.merge_superblock(&mut block)?;
            }
            self.source.write_at(home * u64::from(self.block_size), &block)?;
        }
        self.source.flush()?;
        let errno = self.sb.raw.errno.get();
        let next = if self.sb.start == 0 { plan.end } else { plan.end.next() };
        self.write_log_superblock(0, next, errno)?;
        self.source.flush()?;
        let (orphans, next) = self.clear_orphans(next)?;
        self.finish_superblock()?;
        self.source.flush()?;
        if errno != 0 {
            // Kept until the volume's own superblock has the mark.
            self.write_log_superblock(0, next, 0)?;
            self.source.flush()?;
        }
        Ok(Report {
            transactions: plan.transactions,
            blocks: plan.copies.len() as u64,
            revoked: plan.revoked,
            orphans,
            aborted: errno,
        })
    }

    /// Removes and cuts the orphans in one transaction of its own, in the log that is empty now.
    /// Returns the next transaction's number.
    fn clear_orphans(&self, tid: Tid) -> Result<(Orphans, Tid)> {
        let left = |why: String| Ok((Orphans { left: Some(why), ..Orphans::default() }, tid));
        let now = self.now;
        let layer = Arc::new(Overlay::new(self.source.clone()));
        let edited: Arc<dyn BlockSource> = layer.clone();
        let done = match orphan::clear(&edited, u32::try_from(now).unwrap_or(u32::MAX), self.keep) {
            Ok(done) => done,
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => return left(error.to_string()),
        };
        let block_size = u64::from(self.block_size);
        // A piece of the layer may be smaller or larger than a block.
        let homes: BTreeSet<u64> = layer
            .pieces()
            .iter()
            .flat_map(|(offset, bytes)| {
                offset / block_size..(offset + bytes.len() as u64).div_ceil(block_size)
            })
            .collect();
        let (mut old, mut new) = (vec![0; block_size as usize], vec![0; block_size as usize]);
        let mut writes = Vec::new();
        for home in homes {
            self.source.read_at(home * block_size, &mut old)?;
            layer.read_at(home * block_size, &mut new)?;
            if old != new {
                writes.push((home, new.clone()));
            }
        }
        if writes.is_empty() {
            return Ok((done, tid));
        }
        let shape = commit::Shape::new(self.sb);
        if shape.blocks(writes.len(), 0) >= (self.sb.last - self.sb.first) as usize {
            return left(format!("{} blocks do not fit the journal", writes.len()));
        }
        let borrowed: Vec<_> = writes.iter().map(|(home, block)| (*home, &block[..])).collect();
        let mut blocks = shape.body(tid, &borrowed, &[]);
        blocks.extend(shape.commit(tid, (now, 0)));
        for (position, block) in (self.sb.first..).zip(blocks.chunks_exact(block_size as usize)) {
            self.source.write_at(self.log.place.block(position)? * block_size, block)?;
        }
        self.source.flush()?;
        self.write_log_superblock(self.sb.first, tid, self.sb.raw.errno.get())?;
        self.source.flush()?;
        for (home, block) in &writes {
            self.source.write_at(home * block_size, block)?;
        }
        self.source.flush()?;
        self.write_log_superblock(0, tid.next(), self.sb.raw.errno.get())?;
        self.source.flush()?;
        Ok((done, tid.next()))
    }

    /// What can be known to be wrong before the first write.
    fn check(&self, plan: &Plan) -> Result<()> {
        for run in self.log.place.runs() {
            if let Some((home, _)) = plan.copies.range(run.start..run.start + run.len).next() {
                let why =
                    format!("a transaction would overwrite block {home} of the journal itself");
                return Err(Error::corrupt("journal", why));
            }
        }
        if let Some(copied) = plan.copies.get(&self.superblock_block()) {
            let mut block = vec![0; self.block_size as usize];
            copied.read(self.log, &mut block)?;
            self.merge_superblock(&mut block)?;
        }
        Ok(())
    }

    fn superblock_block(&self) -> u64 {
        OFFSET / u64::from(self.block_size)
    }

    /// Completes a copy of the volume's superblock: errors recorded since the copy was logged stay,
    /// and the journal is needed until all of it is in place.
    fn merge_superblock(&self, block: &mut [u8]) -> Result<()> {
        let at = (OFFSET % u64::from(self.block_size)) as usize;
        let (raw, _) = RawSuperblock::mut_from_prefix(&mut block[at..])
            .map_err(|_| Error::corrupt("superblock", "does not fit its block"))?;
        let parsed = VolumeSuperblock::try_from(&*raw)
            .map_err(|error| Error::corrupt("superblock in the journal", error.to_string()))?;
        if parsed.block_size != self.block_size || raw.uuid != self.before.uuid {
            return Err(Error::corrupt("superblock in the journal", "is another volume's"));
        }
        raw.as_mut_bytes()[ERROR_FIELDS].copy_from_slice(&self.before.as_bytes()[ERROR_FIELDS]);
        let errors = self.before.state.get() & STATE_ERRORS;
        raw.state = (raw.state.get() | errors).into();
        let needs = features::Incompat::RECOVER.bits();
        raw.feature_incompat = (raw.feature_incompat.get() | needs).into();
        raw.update_checksum();
        Ok(())
    }

    fn write_log_superblock(&self, start: u32, sequence: Tid, errno: i32) -> Result<()> {
        let raw = self.sb.restarted(start, sequence, errno);
        let place = self.log.place.block(0)?;
        self.source.write_at(place * u64::from(self.block_size), &raw.as_bytes()[..SUPERBLOCK_SIZE])
    }

    fn finish_superblock(&self) -> Result<()> {
        let mut raw = read_superblock(self.source)?;
        let volume = VolumeSuperblock::try_from(&raw)?;
        if let Some((clusters, inodes)) = count_free(self.source, &volume)? {
            let blocks = clusters * u64::from(volume.cluster_ratio);
            raw.free_blocks_count_lo = (blocks as u32).into();
            if volume.features.incompat.contains(features::Incompat::BITS64) {
                raw.free_blocks_count_hi = ((blocks >> 32) as u32).into();
            }
            raw.free_inodes_count = inodes.into();
        }
        if self.sb.raw.errno.get() != 0 {
            raw.state = (raw.state.get() | STATE_ERRORS).into();
        }
        let needs = features::Incompat::RECOVER.bits();
        raw.feature_incompat = (raw.feature_incompat.get() & !needs).into();
        raw.update_checksum();
        self.source.write_at(OFFSET, raw.as_bytes())
    }
}

/// From `error_count` to before `mount_opts`: what the kernel, too, carries over a replay.
const ERROR_FIELDS: std::ops::Range<usize> = std::mem::offset_of!(RawSuperblock, error_count)
    ..std::mem::offset_of!(RawSuperblock, mount_opts);

fn read_superblock(source: &Arc<dyn BlockSource>) -> Result<RawSuperblock> {
    // Checks what can be checked; the raw one is what is written back.
    crate::engine::read_superblock(&**source)?;
    let mut bytes = [0; SIZE];
    source.read_at(OFFSET, &mut bytes)?;
    RawSuperblock::read_from_bytes(&bytes)
        .map_err(|_| Error::corrupt("superblock", "is not of 1024 bytes"))
}

/// Free clusters and inodes over all groups: the superblock's own counts are current only after a
/// clean unmount. `None` when a descriptor is corrupt.
fn count_free(
    source: &Arc<dyn BlockSource>,
    volume: &VolumeSuperblock,
) -> Result<Option<(u64, u32)>> {
    let mut block = vec![0; volume.block_size as usize];
    let (mut clusters, mut inodes, mut number) = (0_u64, 0_u32, 0);
    for index in 0..volume.desc_blocks() {
        let place = volume.desc_block(index);
        if place.0 >= volume.blocks_count {
            return Ok(None);
        }
        source.read_at(place.0 << volume.block_bits, &mut block)?;
        for bytes in block.chunks_exact(volume.desc_size as usize) {
            if number == volume.groups {
                break;
            }
            let Ok(group) = crate::disk::group::Group::parse(bytes, number, volume) else {
                return Ok(None);
            };
            clusters += u64::from(group.free_clusters);
            inodes = inodes.saturating_add(group.free_inodes);
            number += 1;
        }
    }
    let fits = clusters <= volume.blocks_count && inodes <= volume.inodes_count;
    Ok(fits.then_some((clusters, inodes)))
}
