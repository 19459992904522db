use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::fs::FileType;
use zerocopy::IntoBytes;

use super::super::ops::{Attr, DirEntry, Entry, Features, FileFlags};
use super::super::reply::{
    Attributes, Data, Directory, DirectoryPlus, Lookup, Piece, Statistics, Value,
};
use super::*;

/// Answers what it was asked, and remembers what has no answer.
#[derive(Default)]
struct Echo {
    forgotten: Mutex<Vec<(u64, u64)>>,
    interrupted: Mutex<Vec<u64>>,
}

impl Filesystem for Echo {
    fn features(&self) -> Features {
        Features { readdirplus: true, ..Features::default() }
    }

    fn lookup(&self, _: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>) {
        assert!(!name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0));
        let attr = Attr { size: name.len() as u64, ..Default::default() };
        let ttl = Duration::from_millis(1500);
        let (node, generation) = (NodeId(parent.0.wrapping_add(1)), 9);
        reply.entry(&Entry { node, generation, attr, entry_ttl: ttl, attr_ttl: ttl });
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.forgotten.lock().push((node.0, count));
    }

    fn getattr(&self, _: &Request, _: NodeId, reply: Reply<Attributes>) {
        drop(reply);
    }

    fn readlink(&self, _: &Request, _: NodeId, reply: Reply<Data>) {
        reply.data(&[Piece::Bytes(b"tar"), Piece::Bytes(b"get")]);
    }

    fn read(&self, _: &Request, _: NodeId, _: Handle, range: ReadRange, reply: Reply<Data>) {
        let extra = usize::from(range.offset == 13);
        reply.data(&[Piece::Zeros(range.size as usize + extra)]);
    }

    fn readdir(&self, _: &Request, _: NodeId, _: Handle, from: u64, reply: Reply<Directory>) {
        let mut listing = reply.listing();
        let mut next = from;
        loop {
            next = next.wrapping_add(1);
            let entry = DirEntry { ino: 5, next, kind: FileType::Directory, name: b"name12345" };
            if !listing.push(&entry) {
                return listing.finish();
            }
        }
    }

    fn readdirplus(&self, _: &Request, _: NodeId, _: Handle, _: u64, reply: Reply<DirectoryPlus>) {
        let mut listing = reply.listing();
        let entry = DirEntry { ino: 5, next: 1, kind: FileType::RegularFile, name: b"x" };
        let _ = listing.push(&entry, None);
        listing.finish();
    }

    fn getxattr(&self, _: &Request, _: NodeId, name: &[u8], reply: Reply<Value>) {
        reply.bytes(name);
    }

    fn flags(&self, _: &Request, _: NodeId, reply: FlagsReply) {
        reply.flags(&FileFlags { flags: 0x30, generation: 7, project: 9 });
    }

    fn statfs(&self, _: &Request, _: NodeId, _reply: Reply<Statistics>) {
        panic!("a bug of the filesystem");
    }

    fn interrupt(&self, unique: u64) {
        self.interrupted.lock().push(unique);
    }
}

const MAX: usize = 1 << 16;

/// The answers to one request: error and bytes.
fn ask(fs: &Echo, opcode: u32, body: Body<'_>) -> Vec<(i32, Vec<u8>)> {
    let (kept, answers) = mpsc::channel();
    let header = abi::InHeader { opcode, unique: 7, nodeid: 3, ..Default::default() };
    dispatch(fs, &header, body, || Channel::Kept(kept, Vec::new()), MAX);
    answers.iter().collect()
}

fn one(opcode: u32, body: &[u8]) -> (i32, Vec<u8>) {
    let answers = ask(&Echo::default(), opcode, Body::joined(body));
    assert_eq!(answers.len(), 1, "opcode {opcode}");
    answers.into_iter().next().unwrap()
}

fn error(opcode: u32, body: &[u8]) -> Errno {
    let (error, bytes) = one(opcode, body);
    assert!(bytes.is_empty());
    Errno::from_raw_os_error(-error)
}

fn read(offset: u64, size: u32) -> Vec<u8> {
    abi::ReadIn { offset, size, ..Default::default() }.as_bytes().to_vec()
}

#[test]
fn a_name_is_looked_up_in_either_form() {
    let fs = Echo::default();
    for body in [Body::joined(b"name\0"), Body::apart(&[0xff; 128], b"name\0")] {
        let (error, bytes) = ask(&fs, op::LOOKUP, body).remove(0);
        let entry = abi::EntryOut::read_from_bytes(&bytes).unwrap();
        assert_eq!((error, entry.nodeid, entry.generation, entry.attr.size), (0, 4, 9, 4));
        assert_eq!((entry.entry_valid, entry.attr_valid_nsec), (1, 500_000_000));
    }
}

#[test]
fn an_extended_attribute_is_asked_for_its_size_first() {
    let get = |size: u32| {
        let mut body = abi::GetxattrIn { size, padding: 0 }.as_bytes().to_vec();
        body.extend_from_slice(b"user.x\0");
        one(op::GETXATTR, &body)
    };
    assert_eq!(get(0), (0, abi::GetxattrOut { size: 6, padding: 0 }.as_bytes().to_vec()));
    assert_eq!(get(6), (0, b"user.x".to_vec()));
    assert_eq!(get(5).0, -Errno::RANGE.raw_os_error());
}

#[test]
fn names_too_long_are_refused_before_anything_else() {
    let long = [[b'n'; 256].as_slice(), b"\0"].concat();
    let with =
        |arguments: usize, names: &[&[u8]]| [&vec![0; arguments][..], &names.concat()].concat();
    assert_eq!(error(op::LOOKUP, &long), Errno::NAMETOOLONG);
    for (opcode, arguments) in
        [(op::UNLINK, 0), (op::RMDIR, 0), (op::MKDIR, 8), (op::MKNOD, 16), (op::CREATE, 16)]
    {
        assert_eq!(error(opcode, &with(arguments, &[&long])), Errno::NAMETOOLONG);
        assert_eq!(error(opcode, &with(arguments, &[b"short\0"])), Errno::ROFS);
    }
    for (opcode, arguments) in [(op::RENAME, 8), (op::RENAME2, 16)] {
        assert_eq!(error(opcode, &with(arguments, &[b"a\0", &long])), Errno::NAMETOOLONG);
        assert_eq!(error(opcode, &with(arguments, &[b"a\0", b"b\0"])), Errno::ROFS);
    }
    assert_eq!(error(op::WRITE, &[]), Errno::ROFS);
    assert_eq!(error(op::SETATTR, &[]), Errno::ROFS);
}

#[test]
fn unknown_requests_are_unsupported_and_broken_ones_fail() {
    assert_eq!(error(12345, b"whatever"), Errno::NOSYS);
    assert_eq!(error(op::LOOKUP, b"no end"), Errno::IO);
    assert_eq!(error(op::LOOKUP, b"\0"), Errno::IO);
    assert_eq!(error(op::READ, &[0; 39]), Errno::IO);
    assert_eq!(error(op::READ, &read(u64::MAX, 1)), Errno::INVAL);
    assert_eq!(error(op::OPEN, abi::OpenIn { flags: 1, open_flags: 0 }.as_bytes()), Errno::ROFS);
    assert_eq!(error(op::OPEN, abi::OpenIn::default().as_bytes()), Errno::NOSYS);
}

#[test]
fn a_forgotten_answer_is_an_error_and_so_is_one_too_long() {
    assert_eq!(error(op::GETATTR, &[]), Errno::IO);
    assert_eq!(one(op::READ, &read(0, 10)), (0, vec![0; 10]));
    assert_eq!(error(op::READ, &read(13, 10)), Errno::IO);
    assert_eq!(one(op::READLINK, &[]), (0, b"target".to_vec()));
}

#[test]
fn a_panic_answers_too() {
    let (kept, answers) = mpsc::channel();
    let header = abi::InHeader { opcode: op::STATFS, ..Default::default() };
    let fs = Echo::default();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        dispatch(&fs, &header, Body::joined(&[]), || Channel::Kept(kept, Vec::new()), MAX);
    }));
    assert!(result.is_err());
    assert_eq!(answers.recv().unwrap(), (-Errno::IO.raw_os_error(), vec![]));
}

#[test]
fn a_listing_fills_what_the_kernel_takes() {
    let (error, bytes) = one(op::READDIR, &read(41, 100));
    assert_eq!((error, bytes.len()), (0, 80), "two records of 24 + 9, padded to 40");
    let (first, name) = abi::Dirent::read_from_prefix(&bytes).unwrap();
    assert_eq!((first.ino, first.off, first.namelen, first.kind), (5, 42, 9, 4));
    assert_eq!(&name[..16], b"name12345\0\0\0\0\0\0\0");
    assert_eq!(one(op::READDIR, &read(0, 39)), (0, vec![]));
    let (_, plus) = one(op::READDIRPLUS, &read(0, 4096));
    assert_eq!(plus.len(), 128 + 32);
}

#[test]
fn forgets_and_interrupts_have_no_answer() {
    let fs = Echo::default();
    assert!(ask(&fs, op::FORGET, Body::joined(&5u64.to_ne_bytes())).is_empty());
    let words = [2u64, 10, 1, 11, 2].map(u64::to_ne_bytes).concat();
    assert!(ask(&fs, op::BATCH_FORGET, Body::joined(&words)).is_empty());
    // The count lies: as many as there are.
    let words = [u64::from(u32::MAX), 12, 3].map(u64::to_ne_bytes).concat();
    assert!(ask(&fs, op::BATCH_FORGET, Body::joined(&words)).is_empty());
    assert_eq!(*fs.forgotten.lock(), [(3, 5), (10, 1), (11, 2), (12, 3)]);
    assert!(ask(&fs, op::INTERRUPT, Body::joined(&99u64.to_ne_bytes())).is_empty());
    assert_eq!(*fs.interrupted.lock(), [99]);
}

proptest! {
    #[test]
    fn any_bytes_get_one_bounded_answer(
        opcode in 0u32..60,
        body in prop::collection::vec(any::<u8>(), 0..600),
        apart: bool,
    ) {
        prop_assume!(opcode != op::STATFS);
        let fs = Echo::default();
        let body = if apart { Body::apart(&[0; 128], &body) } else { Body::joined(&body) };
        let answers = ask(&fs, opcode, body);
        let silent =
            [op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::NOTIFY_REPLY].contains(&opcode);
        prop_assert_eq!(answers.len(), usize::from(!silent));
        prop_assert!(answers.iter().all(|(_, bytes)| bytes.len() <= MAX));
    }
}

mod change;

#[test]
fn flags_are_asked_for_in_three_ways() {
    let asked = |cmd: u32, out_size: u32| {
        one(op::IOCTL, abi::IoctlIn { cmd, out_size, ..Default::default() }.as_bytes())
    };
    let answer = |value: &[u8]| (0, [&[0; 16][..], value].concat());
    assert_eq!(asked(abi::ioctl::GETFLAGS, 4), answer(&0x30u32.to_ne_bytes()));
    assert_eq!(asked(abi::ioctl::GETVERSION, 8), answer(&7u32.to_ne_bytes()));
    let mut extended = [0; 28];
    extended[0] = 0x18;
    extended[12] = 9;
    assert_eq!(asked(abi::ioctl::FSGETXATTR, 28), answer(&extended));
    // No room, and a question about something else (TCGETS).
    assert_eq!(asked(abi::ioctl::FSGETXATTR, 27).0, -Errno::FAULT.raw_os_error());
    assert_eq!(asked(0x5401, 64).0, -Errno::NOTTY.raw_os_error());
    assert_eq!(error(op::IOCTL, &[0; 31]), Errno::IO);
}
