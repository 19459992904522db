//! Changes of extended attributes and ACLs: what was read from any bytes, with one more, one less
//! or another value, is written and read again. The input is a name, a value and a block or the
//! space of an inode.
#![no_main]

use cfs::disk::acl::edit::Acl;
use cfs::disk::xattr::edit::{self, Attribute, Stored};
use cfs::disk::xattr::{self, Entry, NameIndex, parse_block, parse_inode};
use cfs::id::Block;
use fuzz::Input;
use libfuzzer_sys::fuzz_target;

const PLACE: Block = Block(77);

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.byte();
    let room = usize::from(input.half()) % 5000;
    let (index, name) = (NameIndex(input.byte()), {
        let len = usize::from(input.byte());
        input.bytes(len)
    });
    let value = {
        let len = usize::from(input.half()) % 2000;
        input.bytes(len)
    };
    lists(value, flags);
    let in_block = flags & 1 != 0;
    let read = if in_block { parse_block(input.0) } else { parse_inode(input.0) };
    let Ok(read) = read else { return };
    let mut attributes: Vec<Attribute> = read.iter().map(Attribute::from).collect();
    attributes.retain(|attribute| !attribute.is(index, name));
    if flags & 2 == 0 {
        attributes.push(Attribute { index, name: name.into(), value: Stored::Bytes(value.into()) });
    }
    if let Some(space) = edit::inode_space(&attributes, room) {
        assert_eq!(space.len(), room);
        same(parse_inode(&space), attributes.clone());
    }
    for size in [1024, 4096] {
        if let Some(mut block) = edit::block(&attributes, size) {
            edit::seal(&mut block, PLACE, 5);
            let (found, computed) = xattr::checksum(&block, PLACE, 5).expect("a head");
            assert_eq!((found, edit::users(&block)), (computed, 1));
            same(parse_block(&block), attributes.clone());
        }
    }
});

/// What was read is what was written, in any order.
fn same(read: Result<Vec<Entry<'_>>, impl std::fmt::Debug>, mut expected: Vec<Attribute>) {
    let read = read.expect("what was written can be read");
    let mut found: Vec<Attribute> = read.iter().map(Attribute::from).collect();
    let key = |a: &Attribute| {
        let value = match &a.value {
            Stored::Bytes(bytes) => (bytes.to_vec(), 0, 0),
            // Its hash is the entry's, which inodes do not keep.
            Stored::Inode { ino, size, .. } => (Vec::new(), ino.0, *size),
        };
        (a.index.0, a.name.clone(), value)
    };
    found.sort_by_key(key);
    expected.sort_by_key(key);
    let keys = |list: &[Attribute]| list.iter().map(key).collect::<Vec<_>>();
    assert_eq!(keys(&found), keys(&expected));
}

/// A list that was taken from a program or a disk keeps its meaning on the way to the other.
fn lists(value: &[u8], flags: u8) {
    for acl in [Acl::parse(value).ok().flatten(), Acl::from_disk(value).ok().flatten()] {
        let Some(mut acl) = acl else { continue };
        if acl.check().is_err() {
            continue;
        }
        let again = Acl::from_disk(&acl.to_disk()).expect("it was written");
        assert_eq!(again.map(|again| again.to_disk()), Some(acl.to_disk()));
        let mode = u16::from(flags) << 1;
        let (inherited, rights) = acl.inherit(mode);
        assert_eq!(rights & 0o777 & !(mode & 0o777), 0, "more than was asked for");
        assert!(inherited.is_none_or(|acl| acl.check().is_ok()));
        acl.set_mode(mode);
        assert_eq!(acl.mode().0, mode & 0o777);
    }
}
