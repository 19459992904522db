//! Requests that change something: what arrives at a filesystem is what the kernel asked for.

use std::fmt::Debug;
use std::sync::mpsc;

use parking_lot::Mutex;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::super::{Body, dispatch};
use super::MAX;
use crate::mount::abi::{self, fattr, ioctl, op};
use crate::mount::ops::{
    Allocation, Changes, CopyRange, Features, Filesystem, Handle, NewFlags, NewNode, NodeId,
    Opening, ReadRange, RenameFlags, Request, TrimRange, WriteRange, XattrFlags,
};
use crate::mount::reply::{
    Attributes, Channel, Controlled, Created, Data, Directory, Done, Lookup, OpenCache, Reply,
    Statistics, Trimmed, Written,
};
use crate::mount::{Attr, Entry};

/// Notes what it was asked, and does as if it had been done.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note(&self, what: impl Debug) {
        self.0.lock().push(format!("{what:?}"));
    }
}

fn entry() -> Entry {
    let ttl = std::time::Duration::ZERO;
    let attr = Attr::default();
    Entry { node: NodeId(77), generation: 1, attr, entry_ttl: ttl, attr_ttl: ttl }
}

impl Filesystem for Notes {
    fn features(&self) -> Features {
        Features { posix_acl: true, writable: true, ..Features::default() }
    }
    fn lookup(&self, _: &Request, _: NodeId, _: &[u8], _: Reply<Lookup>) {}
    fn getattr(&self, _: &Request, _: NodeId, _: Reply<Attributes>) {}
    fn readlink(&self, _: &Request, _: NodeId, _: Reply<Data>) {}
    fn read(&self, _: &Request, _: NodeId, _: Handle, _: ReadRange, _: Reply<Data>) {}
    fn readdir(&self, _: &Request, _: NodeId, _: Handle, _: u64, _: Reply<Directory>) {}
    fn statfs(&self, _: &Request, _: NodeId, _: Reply<Statistics>) {}
    fn setattr(&self, _: &Request, node: NodeId, changes: &Changes, reply: Reply<Attributes>) {
        self.note((node, changes));
        reply.attributes(&Attr::default(), std::time::Duration::ZERO);
    }
    fn mknod(&self, _: &Request, dir: NodeId, name: &[u8], new: &NewNode, reply: Reply<Lookup>) {
        self.note(("mknod", dir, name, new));
        reply.entry(&entry());
    }
    fn mkdir(&self, _: &Request, dir: NodeId, name: &[u8], new: &NewNode, reply: Reply<Lookup>) {
        self.note(("mkdir", dir, name, new));
        reply.entry(&entry());
    }
    fn symlink(&self, _: &Request, dir: NodeId, name: &[u8], to: &[u8], reply: Reply<Lookup>) {
        self.note(("symlink", dir, name, to));
        reply.entry(&entry());
    }
    fn link(&self, _: &Request, node: NodeId, dir: NodeId, name: &[u8], reply: Reply<Lookup>) {
        self.note(("link", node, dir, name));
        reply.entry(&entry());
    }
    fn unlink(&self, _: &Request, dir: NodeId, name: &[u8], reply: Reply<Done>) {
        self.note(("unlink", dir, name));
        reply.done();
    }
    fn rmdir(&self, _: &Request, dir: NodeId, name: &[u8], reply: Reply<Done>) {
        self.note(("rmdir", dir, name));
        reply.done();
    }
    fn rename(
        &self,
        _: &Request,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
        reply: Reply<Done>,
    ) {
        self.note(("rename", from, to, flags.bits()));
        reply.done();
    }
    fn create(
        &self,
        _: &Request,
        dir: NodeId,
        name: &[u8],
        new: &NewNode,
        how: Opening,
        reply: Reply<Created>,
    ) {
        self.note(("create", dir, name, new, how.flags.bits(), how.kill_privileges));
        reply.created(&entry(), Handle(5), OpenCache::KEEP_CACHE);
    }
    fn write(&self, _: &Request, _: NodeId, at: Handle, range: &WriteRange, reply: Reply<Written>) {
        self.note((at, range, reply.data()));
        let len = reply.data().len() as u32;
        reply.written(len);
    }
    fn fallocate(&self, _: &Request, _: NodeId, _: Handle, what: &Allocation, reply: Reply<Done>) {
        self.note(what);
        reply.done();
    }
    fn copy(&self, _: &Request, from: NodeId, to: NodeId, what: &CopyRange, reply: Reply<Written>) {
        self.note((from, to, what));
        reply.written(9);
    }
    fn setxattr(
        &self,
        _: &Request,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        how: (XattrFlags, bool),
        reply: Reply<Done>,
    ) {
        self.note((node, name, value, how.0.bits(), how.1));
        reply.done();
    }
    fn removexattr(&self, _: &Request, node: NodeId, name: &[u8], reply: Reply<Done>) {
        self.note(("removexattr", node, name));
        reply.done();
    }
    fn set_flags(&self, _: &Request, node: NodeId, new: &NewFlags, reply: Reply<Controlled>) {
        self.note((node, new));
        reply.done();
    }
    fn trim(&self, _: &Request, range: &TrimRange, reply: Reply<Trimmed>) {
        self.note(range);
        reply.trimmed(range, 4096);
    }
}

/// What the filesystem was asked, and the answer.
fn asked(opcode: u32, arguments: &[u8], rest: &[u8], data: &[u8]) -> (String, i32, Vec<u8>) {
    let joined = [arguments, rest].concat();
    let mut seen = Vec::new();
    for body in [Body::joined(&joined), Body::apart(arguments, rest)] {
        let fs = Notes::default();
        let (kept, answers) = mpsc::channel();
        let header = abi::InHeader { opcode, unique: 7, nodeid: 3, ..Default::default() };
        dispatch(&fs, &header, body, || Channel::Kept(kept, data.to_vec()), MAX);
        let (error, bytes) = answers.recv().unwrap();
        assert!(answers.recv().is_err(), "two answers");
        seen.push((fs.0.lock().join(" "), error, bytes));
    }
    assert_eq!(seen[0], seen[1], "the two forms of opcode {opcode}");
    seen.remove(0)
}

fn debug(what: impl Debug) -> String {
    format!("{what:?}")
}

#[test]
fn names_are_made_moved_and_removed() {
    let (parent, name) = (NodeId(3), &b"n\xff"[..]);
    let node = NewNode { mode: 0o20644, umask: 0o22, rdev: (0x123, 0x45678) };
    let rdev = 0x4561_2378;
    let make = abi::MknodIn { mode: 0o20644, rdev, umask: 0o22, padding: 0 };
    let (what, error, bytes) = asked(op::MKNOD, make.as_bytes(), b"n\xff\0", b"");
    assert_eq!((what, error), (debug(("mknod", parent, name, &node)), 0));
    assert_eq!(abi::EntryOut::read_from_bytes(&bytes).unwrap().nodeid, 77);
    let node = NewNode { mode: 0o750, umask: 0o27, rdev: (0, 0) };
    let make = abi::MkdirIn { mode: 0o750, umask: 0o27 };
    let (what, ..) = asked(op::MKDIR, make.as_bytes(), b"n\xff\0", b"");
    assert_eq!(what, debug(("mkdir", parent, name, &node)));
    let (what, ..) = asked(op::SYMLINK, b"", b"n\xff\0to/it\0", b"");
    assert_eq!(what, debug(("symlink", parent, name, b"to/it".as_slice())));
    let link = abi::LinkIn { oldnodeid: 9 };
    let (what, ..) = asked(op::LINK, link.as_bytes(), b"n\xff\0", b"");
    assert_eq!(what, debug(("link", NodeId(9), parent, name)));
    assert_eq!(asked(op::UNLINK, b"", b"n\xff\0", b"").0, debug(("unlink", parent, name)));
    assert_eq!(asked(op::RMDIR, b"", b"n\xff\0", b"").0, debug(("rmdir", parent, name)));
    let rename = abi::Rename2In { newdir: 8, flags: 1, padding: 0 };
    let (what, ..) = asked(op::RENAME2, rename.as_bytes(), b"n\xff\0m\0", b"");
    assert_eq!(what, debug(("rename", (parent, name), (NodeId(8), b"m".as_slice()), 1)));
    let rename = abi::RenameIn { newdir: 8 };
    let (what, ..) = asked(op::RENAME, rename.as_bytes(), b"n\xff\0m\0", b"");
    assert_eq!(what, debug(("rename", (parent, name), (NodeId(8), b"m".as_slice()), 0)));
}

#[test]
fn a_created_file_is_open_too() {
    let create = abi::CreateIn { flags: 0o1102, mode: 0o100_640, umask: 0, open_flags: 1 };
    let (what, error, bytes) = asked(op::CREATE, create.as_bytes(), b"n\0", b"");
    let node = NewNode { mode: 0o100_640, umask: 0, rdev: (0, 0) };
    let expected = debug(("create", NodeId(3), b"n".as_slice(), &node, 0o1102, true));
    assert_eq!((what, error), (expected, 0));
    let (entry, open) = abi::EntryOut::read_from_prefix(&bytes).unwrap();
    let open = abi::OpenOut::read_from_bytes(open).unwrap();
    assert_eq!((entry.nodeid, open.fh, open.open_flags), (77, 5, 2));
}

#[test]
fn attributes_are_changed_as_far_as_they_are_named() {
    let valid = fattr::MODE | fattr::SIZE | fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME;
    let set = abi::SetattrIn {
        valid: valid | fattr::KILL_SUIDGID,
        size: 1 << 40,
        mode: 0o100_600,
        uid: 4,
        atime: 3,
        mtime: -5,
        mtimensec: 7,
        ..Default::default()
    };
    let (what, error, _) = asked(op::SETATTR, set.as_bytes(), b"", b"");
    let now = crate::mount::SetTime::Now;
    let then = crate::mount::SetTime::At(crate::mount::Time { secs: -5, nanos: 7 });
    let expected = Changes {
        mode: Some(0o100_600),
        size: Some(1 << 40),
        atime: Some(now),
        mtime: Some(then),
        kill_privileges: true,
        ..Changes::default()
    };
    assert_eq!((what, error), (debug((NodeId(3), &expected)), 0));
}

#[test]
fn a_write_has_the_data_that_came_with_it() {
    let write = |offset, size, flags, write_flags| {
        let fh = 6;
        abi::WriteIn { fh, offset, size, flags, write_flags, ..Default::default() }
    };
    let (what, error, bytes) = asked(op::WRITE, write(9, 4, 0o2000, 4).as_bytes(), b"", b"data!");
    let range = WriteRange {
        offset: 9,
        size: 4,
        append: true,
        sync: None,
        write_back: false,
        kill_privileges: true,
    };
    assert_eq!((what, error), (debug((Handle(6), &range, b"data".as_slice())), 0));
    assert_eq!(abi::WriteOut::read_from_bytes(&bytes).unwrap().size, 4);
    let sync = asked(op::WRITE, write(0, 1, 0o4_010_000, 1).as_bytes(), b"", b"d").0;
    assert!(sync.contains("sync: Some(false), write_back: true"), "{sync}");
    let data_sync = asked(op::WRITE, write(0, 1, 0o10000, 0).as_bytes(), b"", b"d").0;
    assert!(data_sync.contains("sync: Some(true)"), "{data_sync}");
    // Fewer bytes than announced, and a range beyond any file.
    let errors = [(write(0, 6, 0, 0), Errno::IO), (write(u64::MAX, 1, 0, 0), Errno::INVAL)];
    for (write, errno) in errors {
        let (what, error, _) = asked(op::WRITE, write.as_bytes(), b"", b"data!");
        assert_eq!((what.as_str(), error), ("", -errno.raw_os_error()));
    }
}

#[test]
fn ranges_are_allocated_and_copied() {
    let ask = abi::FallocateIn { fh: 1, offset: 5, length: 6, mode: 3, padding: 0 };
    let (what, error, _) = asked(op::FALLOCATE, ask.as_bytes(), b"", b"");
    assert_eq!((what, error), (debug(Allocation { offset: 5, len: 6, mode: 3 }), 0));
    let ask = abi::FallocateIn { offset: i64::MAX as u64, length: 1, ..ask };
    assert_eq!(asked(op::FALLOCATE, ask.as_bytes(), b"", b"").1, -Errno::INVAL.raw_os_error());
    let copy = abi::CopyFileRangeIn {
        off_in: 1,
        nodeid_out: 8,
        off_out: 2,
        len: 1 << 40,
        ..Default::default()
    };
    let (what, error, bytes) = asked(op::COPY_FILE_RANGE, copy.as_bytes(), b"", b"");
    let range = CopyRange { from: 1, to: 2, len: 1 << 30 };
    assert_eq!((what, error), (debug((NodeId(3), NodeId(8), range)), 0));
    assert_eq!(bytes, [9, 0, 0, 0, 0, 0, 0, 0]);
    let newer = asked(op::COPY_FILE_RANGE_64, copy.as_bytes(), b"", b"");
    assert_eq!(newer.1, -Errno::NOSYS.raw_os_error());
}

#[test]
fn attributes_by_name_are_set_and_removed() {
    let set = abi::SetxattrIn { size: 3, flags: 2, setxattr_flags: 1, padding: 0 };
    let (what, error, _) = asked(op::SETXATTR, set.as_bytes(), b"user.a\0v\0w", b"");
    let (name, value) = (b"user.a".as_slice(), b"v\0w".as_slice());
    assert_eq!((what, error), (debug((NodeId(3), name, value, 2, true)), 0));
    let (_, error, _) = asked(op::SETXATTR, set.as_bytes(), b"user.a\0v\0", b"");
    assert_eq!(error, -Errno::IO.raw_os_error(), "a value shorter than announced");
    let (what, ..) = asked(op::REMOVEXATTR, b"", b"user.a\0", b"");
    assert_eq!(what, debug(("removexattr", NodeId(3), name)));
}

#[test]
fn flags_are_set_and_space_is_trimmed() {
    let ask = |cmd| abi::IoctlIn { cmd, in_size: 28, out_size: 28, ..Default::default() };
    let (what, error, bytes) =
        asked(op::IOCTL, ask(ioctl::SETFLAGS).as_bytes(), &0x30u32.to_ne_bytes(), b"");
    let new = NewFlags { flags: 0x30, known: u32::MAX, project: None };
    assert_eq!((what, error), (debug((NodeId(3), &new)), 0));
    assert_eq!(bytes, [0; 16], "the kernel takes nothing else for an answer");
    let extended = abi::FsXattr { xflags: 0x8 | 0x80, projid: 42, ..Default::default() };
    let (what, ..) = asked(op::IOCTL, ask(ioctl::FSSETXATTR).as_bytes(), extended.as_bytes(), b"");
    assert!(what.contains("flags: 80,") && what.contains("project: Some(42)"), "{what}");
    let range = abi::TrimRange { start: 1, len: 2, minlen: 3 };
    let (what, _, bytes) = asked(op::IOCTL, ask(ioctl::FITRIM).as_bytes(), range.as_bytes(), b"");
    assert_eq!(what, debug(TrimRange { start: 1, len: 2, min_len: 3 }));
    assert_eq!(bytes[16 + 8..16 + 16], 4096u64.to_ne_bytes());
}
