//! Answers. A request must be answered exactly once: [`Reply`] is consumed by its answer, and one
//! that is dropped (a forgotten branch, a panic) answers EIO.

use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

mod buffers;
mod change;
pub(super) mod flags;

pub(super) use buffers::{Buffers, Loan};
pub use change::{Controlled, Created, Trimmed, Written};
pub use flags::FlagsReply;
pub(super) use flags::Question;
pub use oslet::sys::vectored::Piece;
use oslet::sys::{uring::Slot, vectored};
use rustix::fs::{FileType, RawMode};
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::abi;
use super::ops::{Attr, DirEntry, Entry, Handle, StatFs, Statx, Time};

/// The obligation to answer one request, with an answer of kind `K`.
pub struct Reply<K> {
    pending: Option<Pending>,
    /// Bytes that the caller takes.
    limit: usize,
    kind: PhantomData<fn(K)>,
}

/// Kind of an answer: an entry or "no such name".
pub enum Lookup {}
/// Kind of an answer: attributes.
pub enum Attributes {}
/// Kind of an answer: attributes with birth time.
pub enum StatxAttributes {}
/// Kind of an answer: an open file or directory.
pub enum Opened {}
/// Kind of an answer: bytes.
pub enum Data {}
/// Kind of an answer: names of a directory.
pub enum Directory {}
/// Kind of an answer: names of a directory, looked up.
pub enum DirectoryPlus {}
/// Kind of an answer: an extended attribute's value, or the list of their names.
pub enum Value {}
/// Kind of an answer: statfs.
pub enum Statistics {}
/// Kind of an answer: a file offset.
pub enum Position {}
/// Kind of an answer: success alone.
pub enum Done {}

bitflags::bitflags! {
    /// How the kernel is to cache an open file (`FOPEN_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct OpenCache: u32 {
        /// Reads go to the filesystem, not through the kernel's page cache.
        const DIRECT_IO = 1 << 0;
        /// Pages cached before this open stay.
        const KEEP_CACHE = 1 << 1;
        /// The listing of this directory is cached.
        const CACHE_DIR = 1 << 3;
        /// Closing a descriptor is not told ([`super::Filesystem::flush`]), from Linux 5.16 on.
        const NO_FLUSH = 1 << 5;
    }
}

impl<K> Reply<K> {
    pub(super) fn new(channel: Option<Channel>, unique: u64, limit: usize) -> Self {
        let pending = channel.map(|channel| Pending { channel, unique });
        Self { pending, limit, kind: PhantomData }
    }

    /// Refuses.
    pub fn error(mut self, errno: Errno) {
        if let Some(pending) = self.pending.take() {
            pending.error(errno);
        }
    }

    /// Answers ENOSYS: most operations are then never asked for again.
    pub fn unsupported(self) {
        self.error(Errno::NOSYS);
    }

    fn pieces(mut self, pieces: &[Piece<'_>]) {
        if let Some(pending) = self.pending.take() {
            pending.send(pieces);
        }
    }

    fn value(self, value: &(impl IntoBytes + Immutable)) {
        self.pieces(&[Piece::Bytes(value.as_bytes())]);
    }
}

impl<K> Drop for Reply<K> {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.error(Errno::IO);
        }
    }
}

impl Reply<Lookup> {
    /// The name leads there.
    pub fn entry(self, entry: &Entry) {
        self.value(&entry_out(entry));
    }

    /// There is no such name, and for so long the kernel need not ask again.
    pub fn absent(self, ttl: Duration) {
        if ttl.is_zero() {
            return self.error(Errno::NOENT);
        }
        let (secs, nanos) = timeout(ttl);
        self.value(&abi::EntryOut {
            entry_valid: secs,
            entry_valid_nsec: nanos,
            ..Default::default()
        });
    }
}

impl Reply<Attributes> {
    /// The attributes, and how long the kernel may believe them.
    pub fn attributes(self, attr: &Attr, ttl: Duration) {
        let (attr_valid, attr_valid_nsec) = timeout(ttl);
        self.value(&abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr_out(attr) });
    }
}

impl Reply<StatxAttributes> {
    /// The attributes, and how long the kernel may believe them.
    pub fn attributes(self, statx: &Statx, ttl: Duration) {
        let (attr_valid, attr_valid_nsec) = timeout(ttl);
        let stat = statx_out(statx);
        self.value(&abi::StatxOut { attr_valid, attr_valid_nsec, stat, ..Default::default() });
    }
}

impl Reply<Opened> {
    /// Open.
    pub fn opened(self, handle: Handle, cache: OpenCache) {
        self.value(&abi::OpenOut { fh: handle.0, open_flags: cache.bits(), backing_id: 0 });
    }
}

impl Reply<Data> {
    /// The bytes, in pieces that are copied once: by the kernel, or into its buffer. They have
    /// been when this returns. More than was asked for is a fault of the filesystem: EIO.
    pub fn data(self, pieces: &[Piece<'_>]) {
        let len = pieces.iter().try_fold(0usize, |len, piece| len.checked_add(piece.len()));
        if len.is_none_or(|len| len > self.limit) {
            return self.error(Errno::IO);
        }
        self.pieces(pieces);
    }
}

impl Directory {
    /// Bytes of an entry with a name of so many.
    pub(super) const fn size(name: usize) -> usize {
        abi::dirent_len(name)
    }
}

impl DirectoryPlus {
    /// Bytes of an entry beside those that it has in a plain listing.
    pub(super) const ENTRY: usize = size_of::<abi::EntryOut>();
}

impl Reply<Directory> {
    /// Bytes that a listing may have.
    pub fn room(&self) -> usize {
        self.limit
    }

    /// Begins a listing.
    pub fn listing(self) -> Listing<Directory> {
        Listing { bytes: Vec::with_capacity(self.limit.min(LISTING_START)), reply: self }
    }
}

impl Reply<DirectoryPlus> {
    /// Bytes that a listing may have.
    pub fn room(&self) -> usize {
        self.limit
    }

    /// Begins a listing.
    pub fn listing(self) -> Listing<DirectoryPlus> {
        Listing { bytes: Vec::with_capacity(self.limit.min(LISTING_START)), reply: self }
    }
}

const LISTING_START: usize = 4096;

/// Names on their way to the kernel.
pub struct Listing<K> {
    reply: Reply<K>,
    bytes: Vec<u8>,
}

impl Listing<Directory> {
    /// Adds a name. False: it has no more room, the listing goes as it is, and the next request
    /// begins with this name.
    #[must_use]
    pub fn push(&mut self, entry: &DirEntry<'_>) -> bool {
        self.add(None, entry)
    }
}

impl Listing<DirectoryPlus> {
    /// Adds a name with what it leads to; `None` where it was not looked up (`.` and `..` must not
    /// be). False as above, and then there was no lookup.
    #[must_use]
    pub fn push(&mut self, entry: &DirEntry<'_>, looked_up: Option<&Entry>) -> bool {
        let none = abi::EntryOut {
            attr: abi::Attr {
                ino: entry.ino,
                mode: entry.kind.as_raw_mode(),
                ..Default::default()
            },
            ..Default::default()
        };
        self.add(Some(looked_up.map_or(none, entry_out)), entry)
    }
}

impl<K> Listing<K> {
    fn add(&mut self, plus: Option<abi::EntryOut>, entry: &DirEntry<'_>) -> bool {
        let plus = plus.as_ref().map_or(&[][..], IntoBytes::as_bytes);
        let len = plus.len() + abi::dirent_len(entry.name.len());
        if self.bytes.len() + len > self.reply.limit {
            return false;
        }
        let end = self.bytes.len() + len;
        let dirent = abi::Dirent {
            ino: entry.ino,
            off: entry.next,
            namelen: entry.name.len() as u32,
            kind: u32::from(dirent_type(entry.kind)),
        };
        self.bytes.extend_from_slice(plus);
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(end, 0);
        true
    }

    /// Sends what there is; an empty listing is the directory's end.
    pub fn finish(self) {
        self.reply.pieces(&[Piece::Bytes(&self.bytes)]);
    }

    /// Refuses instead. Lookups that were pushed do not count.
    pub fn error(self, errno: Errno) {
        self.reply.error(errno);
    }
}

impl Reply<Value> {
    /// The value. The caller who asked for the size gets that, and one with too small a buffer
    /// ERANGE.
    pub fn bytes(self, value: &[u8]) {
        if self.limit == 0 {
            self.value(&abi::GetxattrOut { size: value.len() as u32, padding: 0 });
        } else if value.len() > self.limit {
            self.error(Errno::RANGE);
        } else {
            self.pieces(&[Piece::Bytes(value)]);
        }
    }
}

impl Reply<Statistics> {
    /// The figures.
    pub fn statistics(self, fs: &StatFs) {
        self.value(&abi::Kstatfs {
            blocks: fs.blocks,
            bfree: fs.bfree,
            bavail: fs.bavail,
            files: fs.files,
            ffree: fs.ffree,
            bsize: fs.bsize,
            namelen: fs.namelen,
            frsize: fs.frsize,
            ..Default::default()
        });
    }
}

impl Reply<Position> {
    /// Found there.
    pub fn position(self, offset: u64) {
        self.value(&abi::LseekOut { offset });
    }
}

impl Reply<Done> {
    /// Done.
    pub fn done(self) {
        self.pieces(&[]);
    }
}

/// How an answer gets to the kernel.
pub(super) enum Channel {
    /// Written to the descriptor that the request was read from.
    Device(Arc<OwnedFd>),
    /// The same, with the data of a write.
    DeviceData(Arc<OwnedFd>, Loan),
    /// Left in the ring's buffers.
    Ring(Slot),
    /// Kept for a test to look at; with the data of a write.
    #[cfg(any(test, fuzzing))]
    Kept(std::sync::mpsc::Sender<(i32, Vec<u8>)>, Vec<u8>),
}

impl Channel {
    /// What came with a request to write.
    pub(super) fn data(&self) -> &[u8] {
        match self {
            Self::Device(_) => &[],
            Self::DeviceData(_, loan) => loan.data(),
            Self::Ring(slot) => slot.payload(),
            #[cfg(any(test, fuzzing))]
            Self::Kept(_, data) => data,
        }
    }
}

/// Bytes of an answer that is written in one piece: more than any without data or names has.
const SHORT: usize = 512;

struct Pending {
    channel: Channel,
    unique: u64,
}

impl Pending {
    fn error(self, errno: Errno) {
        let header = self.header(0, -errno.raw_os_error());
        match self.channel {
            // Failing to refuse means that nobody waits for it any more.
            Channel::Device(device) | Channel::DeviceData(device, _) => {
                let _ = rustix::io::write(&device, header.as_bytes());
            }
            Channel::Ring(slot) => slot.commit(&zerocopy::transmute!(header), 0),
            #[cfg(any(test, fuzzing))]
            Channel::Kept(kept, _) => kept.send((header.error, Vec::new())).unwrap(),
        }
    }

    fn send(self, pieces: &[Piece<'_>]) {
        let len = pieces.iter().map(Piece::len).sum();
        let header = self.header(len, 0);
        let Self { channel, unique } = self;
        match channel {
            Channel::Device(device) | Channel::DeviceData(device, _) => {
                match write(&device, header.as_bytes(), pieces, len) {
                    Ok(()) => {}
                    Err(error) if nobody_waits(&error) => {}
                    // The kernel did not take it, and the caller must not wait for ever.
                    Err(_) => Self { channel: Channel::Device(device), unique }.error(Errno::IO),
                }
            }
            Channel::Ring(mut slot) => match slot.payload_mut().get_mut(..len) {
                Some(payload) => {
                    copy(pieces, payload);
                    slot.commit(&zerocopy::transmute!(header), len);
                }
                None => Self { channel: Channel::Ring(slot), unique }.error(Errno::IO),
            },
            #[cfg(any(test, fuzzing))]
            Channel::Kept(kept, _) => {
                let mut all = vec![0; len];
                copy(pieces, &mut all);
                kept.send((0, all)).unwrap();
            }
        }
    }

    fn header(&self, len: usize, error: i32) -> abi::OutHeader {
        let len = (size_of::<abi::OutHeader>() + len) as u32;
        abi::OutHeader { len, error, unique: self.unique }
    }
}

/// What is short goes in one piece: the kernel looks up the page of each.
fn write(device: &OwnedFd, header: &[u8], pieces: &[Piece<'_>], len: usize) -> std::io::Result<()> {
    let mut short = [0; SHORT];
    let all = header.len() + len;
    if all > SHORT {
        return vectored::write(device, header, pieces).map(drop);
    }
    short[..header.len()].copy_from_slice(header);
    copy(pieces, &mut short[header.len()..all]);
    Ok(rustix::io::write(device, &short[..all]).map(drop)?)
}

/// Copies all pieces; `to` is as long as they are together.
fn copy(pieces: &[Piece<'_>], mut to: &mut [u8]) {
    for piece in pieces {
        let (part, rest) = to.split_at_mut(piece.len());
        piece.copy_to(part);
        to = rest;
    }
}

/// The request was interrupted, or the connection has ended.
fn nobody_waits(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::CONNABORTED))
}

/// Seconds and nanoseconds; more than a century is for ever.
fn timeout(ttl: Duration) -> (u64, u32) {
    (ttl.as_secs().min(u64::from(u32::MAX)), ttl.subsec_nanos())
}

fn entry_out(entry: &Entry) -> abi::EntryOut {
    let (entry_valid, entry_valid_nsec) = timeout(entry.entry_ttl);
    let (attr_valid, attr_valid_nsec) = timeout(entry.attr_ttl);
    abi::EntryOut {
        nodeid: entry.node.0,
        generation: entry.generation,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr_out(&entry.attr),
    }
}

fn attr_out(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.secs,
        mtime: attr.mtime.secs,
        ctime: attr.ctime.secs,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

fn statx_out(statx: &Statx) -> abi::Statx {
    const BASIC: u32 = 0x7ff;
    const BTIME: u32 = 0x800;
    let attr = &statx.attr;
    abi::Statx {
        mask: BASIC | if statx.btime.is_some() { BTIME } else { 0 },
        blksize: attr.blksize,
        attributes: statx.attributes,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        attributes_mask: statx.attributes_mask,
        atime: time_out(attr.atime),
        btime: time_out(statx.btime.unwrap_or_default()),
        ctime: time_out(attr.ctime),
        mtime: time_out(attr.mtime),
        rdev_major: attr.rdev.0,
        rdev_minor: attr.rdev.1,
        ..Default::default()
    }
}

fn time_out(time: Time) -> abi::SxTime {
    abi::SxTime { sec: time.secs, nsec: time.nanos, reserved: 0 }
}

/// The kernel's 32-bit form: 12 bits of major within 20 bits of minor.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn dirent_type(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        kind => ((kind.as_raw_mode() & RawMode::from(0o170_000u16)) >> 12) as u8,
    }
}
