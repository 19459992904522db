//! Extended attributes in inodes and in blocks, their names, and ACLs.
#![no_main]

use cfs::disk::acl;
use cfs::disk::xattr::{self, NameIndex, Value};
use cfs::id::Block;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for entries in [xattr::parse_inode(data), xattr::parse_block(data)].into_iter().flatten() {
        for entry in entries {
            entry.index.prefix();
            if let Value::Bytes(bytes) = entry.value {
                assert!(bytes.len() <= data.len());
                value(bytes);
            }
            xattr::entry_hash(entry.name, entry.hash, true);
        }
    }
    xattr::checksum(data, Block(7), 7);
    if let Some((_, rest)) = NameIndex::split(data) {
        assert!(rest.len() < data.len());
    }
    value(data);
});

fn value(bytes: &[u8]) {
    xattr::value_hash(bytes, 7);
    if let Ok(attribute) = acl::to_attribute(bytes) {
        assert!(attribute.len() <= 2 * bytes.len());
    }
}
