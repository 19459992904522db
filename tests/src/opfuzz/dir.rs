//! A directory of a mounted filesystem as a subject.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, FileType, Gid, IFlags, Mode, OFlags, RenameFlags, SeekFrom,
    Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Subject;
use super::op::{ACLS, Allocate, FLAGS, How, NewTime, Op, Outcome, SLOTS, Shown, Stat};
use super::op::{acl_bytes, acl_name, pattern};

/// Mounts a filesystem again; what was synced is there afterwards.
pub type Remount = Box<dyn FnMut() -> anyhow::Result<()>>;

/// A directory of a mounted filesystem.
pub struct DirSubject {
    name: String,
    root: PathBuf,
    slots: [Option<File>; SLOTS],
    /// Inode and times of modification and change as last seen, by path.
    seen: HashMap<String, (u64, [Time; 2])>,
    /// When this began: later times are of this run.
    began: i64,
    remount: Option<Remount>,
    ways: Ways,
}

/// What a mount does otherwise than the kernel's own filesystems.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ways {
    /// Two changes within one tick of the kernel's clock may have one time.
    pub ticks: bool,
    /// syncfs(2) does nothing, as through FUSE: everything is synced by itself.
    pub sync_each: bool,
}

/// Seconds and nanoseconds.
type Time = (i64, i64);
type Result<T> = std::result::Result<T, Errno>;

impl DirSubject {
    /// The empty directory `root`. Without a way to mount again that is left out.
    pub fn new(name: &str, root: &Path, remount: Option<Remount>) -> anyhow::Result<Self> {
        // As the model has it.
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(Self {
            name: name.to_owned(),
            root: root.to_owned(),
            slots: [const { None }; SLOTS],
            seen: HashMap::new(),
            began: now.as_secs() as i64 - 1,
            remount,
            ways: Ways::default(),
        })
    }

    /// The same for a mount with ways of its own.
    #[must_use]
    pub fn with(self, ways: Ways) -> Self {
        Self { ways, ..self }
    }

    /// Makes everything durable, one object after the other.
    fn sync_each(&self) -> Result<()> {
        let mut pending = vec![self.root.clone()];
        while let Some(path) = pending.pop() {
            match open_any(&path) {
                Ok(fd) => rustix::fs::fsync(fd)?,
                // No file and no directory: its name is its directory's.
                Err(Errno::LOOP | Errno::ACCESS | Errno::NXIO | Errno::NODEV) => continue,
                Err(error) => return Err(error),
            }
            match list(&path) {
                Ok(names) => pending.extend(names.iter().map(|(name, _)| path.join(name))),
                Err(Errno::NOTDIR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn slot(&self, slot: usize) -> Result<&File> {
        self.slots[slot].as_ref().ok_or(Errno::BADF)
    }

    fn execute(&mut self, op: &Op) -> Result<Outcome> {
        let done = |()| Outcome::Done;
        match op {
            Op::Open { slot, path, how } => {
                self.slots[*slot] = None;
                self.slots[*slot] = Some(open(&self.path(path), how)?);
                Ok(Outcome::Done)
            }
            Op::Close { slot } => {
                let file = self.slots[*slot].take();
                file.map(|_| Outcome::Done).ok_or(Errno::BADF)
            }
            Op::Write { .. }
            | Op::Read { .. }
            | Op::Allocate { .. }
            | Op::Copy { .. }
            | Op::Seek { .. }
            | Op::TruncateOpen { .. }
            | Op::Fsync { .. } => self.file(op),
            Op::Stat { path } => {
                let found = rustix::fs::lstat(self.path(path))?;
                self.stat(path, found)
            }
            Op::StatOpen { slot } => {
                let found = rustix::fs::fstat(self.slot(*slot)?)?;
                let unnamed = format!("slot {slot}");
                self.seen.remove(&unnamed);
                self.stat(&unnamed, found)
            }
            Op::FsyncPath { path } => rustix::fs::fsync(open_any(&self.path(path))?).map(done),
            Op::Sync if self.ways.sync_each => self.sync_each().map(done),
            Op::Sync => {
                let fd = rustix::fs::open(&self.root, OFlags::RDONLY, Mode::empty())?;
                rustix::fs::syncfs(fd).map(done)
            }
            Op::Remount => {
                self.slots = [const { None }; SLOTS];
                if let Some(remount) = &mut self.remount
                    && let Err(error) = remount()
                {
                    eprintln!("{}: mounting again: {error:#}", self.name);
                    return Err(Errno::IO);
                }
                Ok(Outcome::Done)
            }
            Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::ListXattr { .. }
            | Op::SetAcl { .. }
            | Op::SetFlags { .. }
            | Op::GetFlags { .. } => self.attributes(op),
            _ => self.names(op),
        }
    }

    /// Operations on names.
    fn names(&mut self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Mknod { path, mode, device } => {
                let kind = FileType::from_raw_mode(*mode);
                let device = rustix::fs::makedev(device.0, device.1);
                rustix::fs::mknodat(
                    CWD,
                    self.path(path),
                    kind,
                    Mode::from_raw_mode(*mode),
                    device,
                )?;
            }
            Op::Mkdir { path, mode } => {
                rustix::fs::mkdir(self.path(path), Mode::from_raw_mode((*mode).into()))?;
            }
            Op::Rmdir { path } => rustix::fs::rmdir(self.path(path))?,
            Op::Link { from, to } => {
                rustix::fs::linkat(CWD, self.path(from), CWD, self.path(to), AtFlags::empty())?;
            }
            Op::Symlink { target, path } => rustix::fs::symlink(target, self.path(path))?,
            Op::Readlink { path } => {
                let target = rustix::fs::readlink(self.path(path), Vec::new())?;
                return Ok(Outcome::Bytes(target.into_bytes()));
            }
            Op::Unlink { path } => rustix::fs::unlink(self.path(path))?,
            Op::Rename { from, to, noreplace, exchange } => {
                let mut flags = RenameFlags::empty();
                flags.set(RenameFlags::NOREPLACE, *noreplace);
                flags.set(RenameFlags::EXCHANGE, *exchange);
                rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), flags)?;
            }
            Op::Truncate { path, size } => {
                let how = How { write: true, ..How::default() };
                rustix::fs::ftruncate(open(&self.path(path), &how)?, *size)?;
            }
            Op::Chmod { path, mode } => {
                rustix::fs::chmod(self.path(path), Mode::from_raw_mode((*mode).into()))?;
            }
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(CWD, self.path(path), uid, gid, nofollow)?;
            }
            Op::Utimens { path, atime, mtime } => {
                let times = Timestamps {
                    last_access: timespec(*atime),
                    last_modification: timespec(*mtime),
                };
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, self.path(path), &times, nofollow)?;
            }
            Op::List { path } => return list(&self.path(path)).map(Outcome::Names),
            other => unreachable!("{other} is dealt with elsewhere"),
        }
        Ok(Outcome::Done)
    }

    /// Operations on open files.
    fn file(&self, op: &Op) -> Result<Outcome> {
        match op {
            Op::Write { slot, offset, len, seed } => {
                let mut data = Aligned::new(*len as usize);
                data.bytes().copy_from_slice(&pattern(*seed, *offset, *len as usize));
                let count = rustix::io::pwrite(self.slot(*slot)?, data.bytes(), *offset)?;
                Ok(Outcome::Number(count as u64))
            }
            Op::Read { slot, offset, len } => {
                let mut data = Aligned::new(*len as usize);
                let count = rustix::io::pread(self.slot(*slot)?, data.bytes(), *offset)?;
                Ok(Outcome::Bytes(data.bytes()[..count].to_vec()))
            }
            Op::Allocate { slot, what, offset, len } => {
                rustix::fs::fallocate(self.slot(*slot)?, allocate_mode(*what), *offset, *len)?;
                Ok(Outcome::Done)
            }
            Op::Copy { from, to, len } => {
                let (mut at, mut put) = (from.1, to.1);
                let (source, target) = (self.slot(from.0)?, self.slot(to.0)?);
                let (source, target) = (source, target);
                let count = rustix::fs::copy_file_range(
                    source,
                    Some(&mut at),
                    target,
                    Some(&mut put),
                    *len as usize,
                )?;
                Ok(Outcome::Number(count as u64))
            }
            Op::Seek { slot, offset, data } => {
                let to = if *data { SeekFrom::Data(*offset) } else { SeekFrom::Hole(*offset) };
                rustix::fs::seek(self.slot(*slot)?, to).map(Outcome::Number)
            }
            Op::TruncateOpen { slot, size } => {
                rustix::fs::ftruncate(self.slot(*slot)?, *size).map(|()| Outcome::Done)
            }
            Op::Fsync { slot } => rustix::fs::fsync(self.slot(*slot)?).map(|()| Outcome::Done),
            other => unreachable!("{other} is not of an open file"),
        }
    }

    /// Operations on extended attributes and flags.
    fn attributes(&self, op: &Op) -> Result<Outcome> {
        match op {
            Op::SetXattr { path, name, len, seed, flags } => {
                let (value, flags) =
                    (pattern(*seed, 0, *len), XattrFlags::from_bits_retain(*flags));
                rustix::fs::lsetxattr(self.path(path), name.as_str(), &value, flags)?;
                Ok(Outcome::Done)
            }
            Op::SetAcl { path, acl, which } => {
                let (value, flags) = (acl_bytes(ACLS[*which]), XattrFlags::empty());
                rustix::fs::lsetxattr(self.path(path), acl_name(*acl), &value, flags)?;
                Ok(Outcome::Done)
            }
            Op::GetXattr { path, name } => {
                let mut value = vec![0; 65536];
                let len = rustix::fs::lgetxattr(self.path(path), name.as_str(), &mut value[..])?;
                value.truncate(len);
                Ok(Outcome::Bytes(value))
            }
            Op::RemoveXattr { path, name } => {
                rustix::fs::lremovexattr(self.path(path), name.as_str()).map(|()| Outcome::Done)
            }
            Op::ListXattr { path } => {
                let mut names = vec![0; 65536];
                let len = rustix::fs::llistxattr(self.path(path), &mut names[..])?;
                let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
                let name = |name: &[u8]| (String::from_utf8_lossy(name).into_owned(), 0);
                let mut names: Vec<_> = names.map(name).collect();
                names.sort();
                Ok(Outcome::Names(names))
            }
            Op::SetFlags { path, flags } => {
                let fd = open_any(&self.path(path))?;
                let before = rustix::fs::ioctl_getflags(&fd)?.bits();
                let after = IFlags::from_bits_retain(before & !FLAGS | flags);
                rustix::fs::ioctl_setflags(&fd, after).map(|()| Outcome::Done)
            }
            Op::GetFlags { path } => {
                let flags = rustix::fs::ioctl_getflags(open_any(&self.path(path))?)?;
                Ok(Outcome::Number((flags.bits() & FLAGS).into()))
            }
            other => unreachable!("{other} is not of attributes"),
        }
    }

    fn stat(&mut self, path: &str, found: rustix::fs::Stat) -> Result<Outcome> {
        let kind = found.st_mode & 0o170_000;
        let show = |seconds: i64, nanoseconds: i64| match seconds >= self.began {
            // What is set to a time of the future is far away.
            true if seconds < self.began + 100_000 => Shown::Recent,
            _ => Shown::At(seconds, nanoseconds as u32),
        };
        let device = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
        let now = [
            (found.st_mtime, found.st_mtime_nsec as i64),
            (found.st_ctime, found.st_ctime_nsec as i64),
        ];
        let times = [
            show(found.st_atime, found.st_atime_nsec as i64),
            show(found.st_mtime, found.st_mtime_nsec as i64),
        ];
        let before = self.seen.insert(path.to_owned(), (found.st_ino, now));
        // Two inodes may have been made within one tick of the kernel's clock.
        let before = before.filter(|(ino, _)| *ino == found.st_ino);
        let changed = |index: usize| {
            let changed = before.map(|(_, before)| before[index] != now[index]);
            changed.filter(|changed| *changed || !self.ways.ticks)
        };
        Ok(Outcome::Stat(Box::new(Stat {
            mode: found.st_mode,
            links: found.st_nlink as u32,
            owner: (found.st_uid, found.st_gid),
            size: matches!(kind, 0o100_000 | 0o120_000).then_some(found.st_size as u64),
            device,
            times,
            changed: [changed(0), changed(1)],
        })))
    }
}

impl Subject for DirSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        match self.execute(op) {
            Ok(outcome) => outcome,
            Err(errno) => Outcome::Error(errno.raw_os_error()),
        }
    }

    fn contents(&mut self, path: &str) -> anyhow::Result<super::Contents> {
        let file = File::open(self.path(path)).with_context(|| path.to_owned())?;
        let size = file.metadata()?.size();
        let mut contents = super::Contents { size, ..super::Contents::default() };
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                Ok(_) => break,
                // ext4 says ENOENT where contents in an inode end.
                Err(Errno::NXIO | Errno::NOENT) => break,
                Err(error) => return Err(error).with_context(|| format!("{path}: data")),
            };
            let end = rustix::fs::seek(&file, SeekFrom::Hole(start))?.min(size);
            anyhow::ensure!(start >= at && end >= start, "{path}: data {start}..{end} after {at}");
            if start == end {
                // Where a zeroed range ends that is still in its cache the kernel may say both.
                at = (start + 1).next_multiple_of(1024);
                continue;
            }
            let mut bytes = vec![0; (end - start) as usize];
            file.read_exact_at(&mut bytes, start)?;
            contents.add(start, &bytes);
            at = end;
        }
        Ok(contents)
    }

    fn close_all(&mut self) {
        self.slots = [const { None }; SLOTS];
    }
}

/// Bytes that begin with a page, as O_DIRECT wants them.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        const PAGE: usize = 4096;
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Opens a regular file; anything else that could be opened is answered with ENODEV.
fn open(path: &Path, how: &How) -> Result<File> {
    let mut flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= if how.write { OFlags::RDWR } else { OFlags::RDONLY };
    flags.set(OFlags::CREATE, how.create.is_some());
    flags.set(OFlags::EXCL, how.exclusive);
    flags.set(OFlags::TRUNC, how.truncate);
    flags.set(OFlags::APPEND, how.append);
    flags.set(OFlags::NOFOLLOW, how.nofollow);
    flags.set(OFlags::DIRECT, how.direct);
    let mode = Mode::from_raw_mode(how.create.unwrap_or(0).into());
    let file = rustix::fs::open(path, flags, mode)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(File::from(file)),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::NODEV),
    }
}

/// Opens a file or directory to ask for flags.
fn open_any(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile | FileType::Directory => Ok(fd),
        _ => Err(Errno::NODEV),
    }
}

fn list(path: &Path) -> Result<Vec<(String, u32)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = Dir::new(rustix::fs::open(path, flags, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in dir {
        let entry = entry?;
        let name = std::ffi::OsString::from_vec(entry.file_name().to_bytes().to_vec());
        if name != OsStr::new(".") && name != OsStr::new("..") {
            names.push((name.to_string_lossy().into_owned(), entry.file_type().as_raw_mode()));
        }
    }
    names.sort();
    Ok(names)
}

fn timespec(time: NewTime) -> Timespec {
    match time {
        NewTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        NewTime::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        NewTime::At(seconds, nanoseconds) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    }
}

/// What an allocation is by the mode of fallocate(2).
pub fn allocate_mode(what: Allocate) -> FallocateFlags {
    let keep = FallocateFlags::KEEP_SIZE;
    match what {
        Allocate::Grow => FallocateFlags::empty(),
        Allocate::KeepSize => keep,
        Allocate::Punch => FallocateFlags::PUNCH_HOLE | keep,
        Allocate::Zero => FallocateFlags::ZERO_RANGE,
        Allocate::ZeroKeepSize => FallocateFlags::ZERO_RANGE | keep,
        Allocate::Collapse => FallocateFlags::COLLAPSE_RANGE,
        Allocate::Insert => FallocateFlags::INSERT_RANGE,
    }
}
