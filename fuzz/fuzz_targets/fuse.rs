//! Requests as the kernel writes them to /dev/fuse and into its rings, answered by a filesystem
//! that says something to everything.
#![no_main]

use std::time::Duration;

use cfs::mount::fuzzing::{answers, negotiated};
use cfs::mount::{
    Attr, Attributes, Data, DirEntry, Directory, DirectoryPlus, Entry, Features, Filesystem,
    Handle, Lookup, NodeId, Piece, ReadRange, Reply, Request, StatFs, Statistics, Value,
};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use rustix::fs::FileType;

const MAX: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let arguments = input.byte();
    negotiated(&Echo, input.0);
    // Behind the header in one piece, or apart as in a ring.
    let apart = (arguments & 1 == 1).then_some(usize::from(arguments >> 1));
    let answers = answers(&Echo, input.0, apart, MAX);
    assert!(answers.len() <= 1);
    for (error, bytes) in answers {
        assert!(error <= 0 && bytes.len() <= MAX && (error == 0 || bytes.is_empty()));
    }
});

struct Echo;

const TTL: Duration = Duration::from_millis(1500);

fn entry(node: u64) -> Entry {
    let attr = Attr { ino: node, mode: 0o100_644, ..Attr::default() };
    Entry { node: NodeId(node | 1), generation: 1, attr, entry_ttl: TTL, attr_ttl: TTL }
}

impl Filesystem for Echo {
    fn features(&self) -> Features {
        Features { readdirplus: true, posix_acl: true, export: true, ..Features::default() }
    }

    fn lookup(&self, _: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>) {
        assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&0));
        if name.len() > 5 { reply.absent(TTL) } else { reply.entry(&entry(parent.0)) }
    }

    fn getattr(&self, _: &Request, node: NodeId, reply: Reply<Attributes>) {
        reply.attributes(&entry(node.0).attr, TTL);
    }

    fn readlink(&self, _: &Request, _: NodeId, reply: Reply<Data>) {
        reply.data(&[Piece::Bytes(b"target")]);
    }

    fn read(&self, _: &Request, _: NodeId, _: Handle, range: ReadRange, reply: Reply<Data>) {
        assert!(
            range.size as usize <= MAX && range.offset.checked_add(range.size.into()).is_some()
        );
        reply.data(&[Piece::Bytes(b"x"), Piece::Zeros((range.size as usize).saturating_sub(1))]);
    }

    fn readdir(&self, _: &Request, _: NodeId, _: Handle, from: u64, reply: Reply<Directory>) {
        let mut listing = reply.listing();
        let next = from.wrapping_add(1);
        let entry = DirEntry { ino: 5, next, kind: FileType::Directory, name: b"name12345" };
        while listing.push(&entry) {}
        listing.finish();
    }

    fn readdirplus(&self, _: &Request, _: NodeId, _: Handle, _: u64, reply: Reply<DirectoryPlus>) {
        let mut listing = reply.listing();
        let shown = DirEntry { ino: 5, next: 1, kind: FileType::RegularFile, name: b"x" };
        while listing.push(&shown, Some(&entry(5))) {}
        listing.finish();
    }

    fn getxattr(&self, _: &Request, _: NodeId, name: &[u8], reply: Reply<Value>) {
        reply.bytes(name);
    }

    fn listxattr(&self, _: &Request, _: NodeId, reply: Reply<Value>) {
        reply.bytes(b"user.a\0user.b\0");
    }

    fn statfs(&self, _: &Request, _: NodeId, reply: Reply<Statistics>) {
        reply.statistics(&StatFs { blocks: 1, bsize: 4096, frsize: 4096, ..StatFs::default() });
    }
}
