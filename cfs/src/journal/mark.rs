//! What the superblock says of a volume that is open for writing.
//!
//! Written in place, outside of any transaction: before the first one, after the last one, and when
//! the journal is given up.

use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::{FromBytes, IntoBytes};

use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::superblock::{OFFSET, RawSuperblock, SIZE, STATE_CLEAN, STATE_ERRORS};
use crate::engine::Volume;
use crate::id::{Block, Ino};
use crate::{Error, Result};

/// Mounts after which a check is due where nobody said.
const DEFAULT_MAX_MOUNTS: u16 = 20;

/// Reads the superblock at its home.
pub(super) fn read(volume: &Volume) -> Result<RawSuperblock> {
    let mut bytes = [0; SIZE];
    volume.source().read_at(OFFSET, &mut bytes)?;
    RawSuperblock::read_from_bytes(&bytes)
        .map_err(|_| Error::corrupt("superblock", "is not of 1024 bytes"))
}

/// Changes the superblock at its home, durably. Nobody may have a newer version of it.
fn update(volume: &Volume, change: impl FnOnce(&mut RawSuperblock)) -> Result<()> {
    let mut raw = read(volume)?;
    change(&mut raw);
    raw.update_checksum();
    volume.source().write_at(OFFSET, raw.as_bytes())?;
    volume.source().flush()?;
    volume.cache().invalidate(Block(OFFSET >> volume.superblock().block_bits));
    Ok(())
}

/// The volume is open for writing: its journal is needed or, without one, it is not clean.
/// `failed` is whether the journal was given up when it was used last.
pub(super) fn opened(volume: &Volume, mount_point: Option<&str>, failed: bool) -> Result<()> {
    update(volume, |raw| {
        if failed {
            raw.state = (raw.state.get() | STATE_ERRORS).into();
        }
        if has_journal(raw) {
            raw.feature_incompat = (raw.feature_incompat.get() | Incompat::RECOVER.bits()).into();
        } else {
            raw.state = (raw.state.get() & !STATE_CLEAN).into();
        }
        if raw.features().compat.contains(Compat::ORPHAN_FILE) {
            let present = RoCompat::ORPHAN_PRESENT.bits();
            raw.feature_ro_compat = (raw.feature_ro_compat.get() | present).into();
        }
        if raw.max_mnt_count.get() == 0 {
            raw.max_mnt_count = DEFAULT_MAX_MOUNTS.into();
        }
        raw.mnt_count = raw.mnt_count.get().wrapping_add(1).into();
        let (low, high) = now();
        (raw.mtime, raw.mtime_hi) = (low.into(), high);
        if let Some(path) = mount_point {
            let len = path.len().min(raw.last_mounted.len());
            raw.last_mounted.fill(0);
            raw.last_mounted[..len].copy_from_slice(&path.as_bytes()[..len]);
        }
    })
}

/// All is at home. `clean` is what the volume's state said when it was opened; `written` the bytes
/// written since.
pub(super) fn closed(volume: &Volume, clean: bool, written: u64) -> Result<()> {
    update(volume, |raw| {
        raw.feature_incompat = (raw.feature_incompat.get() & !Incompat::RECOVER.bits()).into();
        let present = RoCompat::ORPHAN_PRESENT.bits();
        raw.feature_ro_compat = (raw.feature_ro_compat.get() & !present).into();
        if clean && raw.state.get() & STATE_ERRORS == 0 {
            raw.state = (raw.state.get() | STATE_CLEAN).into();
        }
        count_written(raw, written);
    })
}

/// The journal was given up. The rest of the superblock stays as the last checkpoint left it.
pub(super) fn failed(volume: &Volume, error: &Error, ino: Option<Ino>, written: u64) -> Result<()> {
    update(volume, |raw| {
        note_error(raw, error, ino);
        if has_journal(raw) {
            // Closing may have taken it away. The journal has the error too, and only who recovers
            // looks for it there: `e2fsck -n` cannot take it out and stumbles over it.
            raw.feature_incompat = (raw.feature_incompat.get() | Incompat::RECOVER.bits()).into();
        }
        count_written(raw, written);
    })
}

/// Notes an error where `dumpe2fs` and e2fsck look for it: the first one, the last one, how many.
pub(crate) fn note_error(raw: &mut RawSuperblock, error: &Error, ino: Option<Ino>) {
    raw.state = (raw.state.get() | STATE_ERRORS).into();
    let (low, high) = now();
    let code = error_code(error.errno());
    let found = if ino.is_some() { IN_METADATA } else { IN_JOURNAL };
    let ino = ino.map_or(0, |ino| ino.0);
    if raw.first_error_time.get() == 0 && raw.first_error_time_hi == 0 {
        (raw.first_error_time, raw.first_error_time_hi) = (low.into(), high);
        (raw.first_error_ino, raw.first_error_block) = (ino.into(), 0.into());
        (raw.first_error_func, raw.first_error_line) = (found, 0.into());
        raw.first_error_errcode = code;
    }
    (raw.last_error_time, raw.last_error_time_hi) = (low.into(), high);
    (raw.last_error_ino, raw.last_error_block) = (ino.into(), 0.into());
    (raw.last_error_func, raw.last_error_line) = (found, 0.into());
    raw.last_error_errcode = code;
    raw.error_count = raw.error_count.get().saturating_add(1).into();
}

/// Where errors are found, for `dumpe2fs`.
const IN_JOURNAL: [u8; 32] = *b"oslet journal\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const IN_METADATA: [u8; 32] = *b"oslet metadata\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn has_journal(raw: &RawSuperblock) -> bool {
    raw.features().compat.contains(Compat::HAS_JOURNAL)
}

fn count_written(raw: &mut RawSuperblock, written: u64) {
    let (low, high) = now();
    (raw.wtime, raw.wtime_hi) = (low.into(), high);
    raw.kbytes_written = raw.kbytes_written.get().wrapping_add(written >> 10).into();
}

/// Seconds since 1970: 32 bits and 8 above.
fn now() -> (u32, u8) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (seconds as u32, (seconds >> 32) as u8)
}

/// The format's number for an errno.
fn error_code(errno: i32) -> u8 {
    use rustix::io::Errno;
    const CODES: [(Errno, u8); 16] = [
        (Errno::IO, 2),
        (Errno::NOMEM, 3),
        (Errno::BADMSG, 4),
        (Errno::UCLEAN, 5),
        (Errno::NOSPC, 6),
        (Errno::NOKEY, 7),
        (Errno::ROFS, 8),
        (Errno::FBIG, 9),
        (Errno::EXIST, 10),
        (Errno::RANGE, 11),
        (Errno::OVERFLOW, 12),
        (Errno::BUSY, 13),
        (Errno::NOTDIR, 14),
        (Errno::NOTEMPTY, 15),
        (Errno::SHUTDOWN, 16),
        (Errno::FAULT, 17),
    ];
    let known = CODES.iter().find(|(known, _)| known.raw_os_error() == errno);
    known.map_or(UNKNOWN, |(_, code)| *code)
}

const UNKNOWN: u8 = 1;
