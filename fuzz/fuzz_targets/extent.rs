//! Maps of files: extent trees and indirect blocks, their nodes by themselves and through a small
//! volume whose unused blocks hold the input.
#![no_main]

use cfs::disk::extent::{self, Node, Place};
use cfs::disk::inode::{InodeFlags, Kind};
use cfs::id::Ino;
use fuzz::{Input, image, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let image = image::choose(image::volumes(), input.byte());
    let flags = input.byte();
    let root: [u8; 60] = input.array();
    let blocks = input.0;

    node(&root, &Place::ROOT);
    for (depth, block) in blocks.chunks(1024).enumerate() {
        let start = u64::from(flags >> 4);
        node(block, &Place { depth: Some(depth as u16), logical: start..start + (1 << 20) });
    }
    let (volume, _) = image::with_scratch(image, blocks);
    let mut inode = volume.any_inode(Ino::ROOT).expect("the root directory");
    inode.kind = Kind::Regular;
    // Not one of the volume's own, which may name more blocks.
    inode.ino = Ino(if flags & 2 == 0 { 12 } else { 8 });
    inode.flags = if flags & 1 == 0 { InodeFlags::EXTENTS } else { InodeFlags::empty() };
    inode.size = if flags & 4 == 0 { 100_000 } else { 1 << 50 };
    inode.block = root;
    walk::inode(&volume, &inode);
});

fn node(bytes: &[u8], place: &Place) {
    extent::checksum(bytes, 7);
    let Ok(node) = Node::parse(bytes, place, |start, len| start.0 + len <= 1 << 48) else { return };
    assert_eq!(node.is_empty(), node.len() == 0);
    for i in 0..node.len() {
        if node.depth == 0 {
            let extent = node.extent(i);
            assert!(extent.end() <= place.logical.end);
        } else {
            node.child(i);
        }
        assert_eq!(node.find(node.key(i)), Some(i));
    }
}
