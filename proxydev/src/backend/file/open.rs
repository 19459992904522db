//! Opening a file as a disk: what it is, how large, and in what units it may be used.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use oslet::limits::FRAME_SIZE;
use oslet::sys::disk::Buffer;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;

use super::{FileOptions, at};
use crate::device::{DeviceInfo, Extent};
use crate::{Error, Result, limits};

pub(super) struct Geometry {
    pub(super) info: DeviceInfo,
    pub(super) direct: bool,
}

pub(super) fn open(path: &Path, read_only: bool) -> Result<File> {
    // Opening a FIFO must not wait for its other end.
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(at(path, "open"))?;
    Ok(File::from(file))
}

pub(super) fn probe(file: &File, path: &Path, options: &FileOptions) -> Result<Geometry> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted);
    let stat = stat.map_err(at(path, "statx"))?;
    let block_device = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        other => {
            return Err(Error::Invalid(format!(
                "{}: {other:?} cannot be a disk; give a regular file or a block device",
                path.display()
            )));
        }
    };
    let flags = rustix::fs::fcntl_getfl(file).map_err(at(path, "fcntl"))?;
    let writable = flags & OFlags::RWMODE != OFlags::RDONLY;
    if !options.read_only && !writable {
        return Err(Error::Open {
            path: path.into(),
            what: "open for writing",
            errno: Errno::BADF,
        });
    }
    let logical = match block_device {
        true => rustix::fs::ioctl_blksszget(file).map_err(at(path, "BLKSSZGET"))?,
        false => limits::MIN_BLOCK_SIZE,
    };
    let optimal = match block_device {
        true => rustix::fs::ioctl_blkpbszget(file).map_err(at(path, "BLKPBSZGET"))?,
        false => stat.stx_blksize,
    };
    let cached = Alignment { block: logical.max(limits::MIN_BLOCK_SIZE), memory: 1 };
    // The flag belongs to the description: it is set as this use needs it, whoever opened it.
    let direct = match options.direct {
        true => make_direct(file, path, &stat, cached.block)?,
        false => None,
    };
    if direct.is_none() {
        set_direct(file, false).map_err(at(path, "fcntl"))?;
    }
    let Alignment { block, memory } = direct.unwrap_or(cached);
    let usable = block.is_power_of_two() && block as usize <= FRAME_SIZE * 16;
    if !usable || block > limits::MAX_TRANSFER || memory as usize > FRAME_SIZE {
        return Err(Error::Invalid(format!(
            "{}: blocks of {block} bytes, memory aligned to {memory}: not supported",
            path.display()
        )));
    }
    let size = match block_device {
        true => rustix::fs::seek(file, SeekFrom::End(0)).map_err(at(path, "size"))?,
        false => stat.stx_size,
    };
    let info = DeviceInfo {
        // What does not fill a block at the end is no part of the disk.
        size: size - size % u64::from(block),
        block_size: block,
        optimal_size: optimal.clamp(block.max(FRAME_SIZE as u32), limits::MAX_TRANSFER),
        memory_alignment: memory,
        max_transfer: limits::MAX_TRANSFER,
        read_only: options.read_only,
        discard: !options.read_only && (!block_device || discards(&stat)),
    };
    Ok(Geometry { info, direct: direct.is_some() })
}

#[derive(Clone, Copy)]
struct Alignment {
    block: u32,
    memory: u32,
}

/// Switches the page cache off, if the file allows it, and finds out in what units it may then be
/// used: the kernel's answer where it gives one, and a read that proves it.
fn make_direct(file: &File, path: &Path, stat: &Statx, logical: u32) -> Result<Option<Alignment>> {
    let mut told = None;
    if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) {
        if stat.stx_dio_offset_align == 0 || stat.stx_dio_mem_align == 0 {
            return Ok(None);
        }
        told = Some((stat.stx_dio_offset_align, stat.stx_dio_mem_align));
    }
    if set_direct(file, true).is_err() {
        return Ok(None);
    }
    let candidates = match told {
        Some((block, memory)) => vec![(block.max(logical), memory)],
        None => vec![(logical, logical), (4096, 4096)],
    };
    for (block, memory) in candidates {
        let mut buffer = Buffer::zeroed(block as usize)?;
        match rustix::io::pread(file, &mut buffer[..], 0) {
            Ok(_) => return Ok(Some(Alignment { block, memory })),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(at(path, "read the first block")(errno)),
        }
    }
    Ok(None)
}

/// Where a file has holes, as far as its filesystem tells. Within the disk's size.
pub(super) fn extents(file: &File, offset: u64, len: u64, most: usize) -> Vec<Extent> {
    let end = offset + len;
    let mut found = Vec::new();
    let mut at = offset;
    while at < end && found.len() < most.max(1) {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, end),
            // Nothing but a hole up to the end of the file.
            Err(Errno::NXIO) => end,
            Err(_) => at,
        };
        let hole = data > at;
        let next = match hole {
            true => data,
            // A filesystem that does not know has none before the end.
            false => rustix::fs::seek(file, SeekFrom::Hole(at)).map_or(end, |to| to.min(end)),
        };
        // What changes under the search must not make it stand still.
        let next = if next > at { next } else { end };
        found.push(Extent { len: next - at, hole, zero: hole });
        at = next;
    }
    found
}

fn set_direct(file: impl AsFd, on: bool) -> rustix::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(&file)?;
    flags.set(OFlags::DIRECT, on);
    // With it io_uring would give up instead of waiting.
    flags.remove(OFlags::NONBLOCK);
    rustix::fs::fcntl_setfl(file, flags)
}

/// Whether a block device does anything with a discard, as far as sysfs tells.
fn discards(stat: &Statx) -> bool {
    let device = format!("/sys/dev/block/{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor);
    // A partition's queue is its disk's.
    ["queue", "../queue"].iter().any(|queue| {
        let limit = std::fs::read_to_string(format!("{device}/{queue}/discard_max_bytes"));
        limit.is_ok_and(|bytes| bytes.trim() != "0")
    })
}
