//! Extended attributes: the entries in inodes and in blocks of their own.

pub mod edit;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::checksum::crc32c;
use crate::id::{Block, Ino};

/// The head of a block of attributes, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawHeader {
    pub(crate) magic: U32,
    pub(crate) refcount: U32,
    pub(crate) blocks: U32,
    pub(crate) hash: U32,
    pub(crate) checksum: U32,
    pub(crate) reserved: [U32; 3],
}

/// The head of an entry, as it lies on disk; the name follows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawEntry {
    pub(crate) name_len: u8,
    pub(crate) name_index: u8,
    pub(crate) value_offset: U16,
    pub(crate) value_inode: U32,
    pub(crate) value_size: U32,
    pub(crate) hash: U32,
}

assert_layout!(RawHeader, HEADER, {
    0 magic, 4 refcount, 8 blocks, 12 hash, 16 checksum, 20 reserved,
});
assert_layout!(RawEntry, ENTRY, {
    0 name_len, 1 name_index, 2 value_offset, 4 value_inode, 8 value_size, 12 hash,
});

const MAGIC: u32 = 0xea02_0000;
const HEADER: usize = 32;
const ENTRY: usize = 16;
const CHECKSUM: usize = 16;

/// The namespace of an attribute, as entries abbreviate it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NameIndex(pub u8);

impl NameIndex {
    /// `system.posix_acl_access`.
    pub const ACL_ACCESS: Self = Self(2);
    /// `system.posix_acl_default`.
    pub const ACL_DEFAULT: Self = Self(3);
    /// `system.`: of which `system.data` alone is in use, for inline contents.
    pub const SYSTEM: Self = Self(7);
    /// What is visible of these, with its prefix.
    const VISIBLE: [(u8, &'static [u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];

    /// The prefix of the names that listxattr(2) shows for it; `None` for what is hidden.
    pub fn prefix(self) -> Option<&'static [u8]> {
        Self::VISIBLE.iter().find(|(index, _)| *index == self.0).map(|(_, prefix)| *prefix)
    }

    /// The namespace of a name, and the rest of the name; `None` for a namespace that ext4 does
    /// not have.
    pub fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        Self::VISIBLE.iter().find_map(|(index, prefix)| {
            let rest = name.strip_prefix(*prefix)?;
            let index = Self(*index);
            // ACLs have nothing after the prefix, all others something.
            (rest.is_empty() == index.is_acl()).then_some((index, rest))
        })
    }

    /// Whether it holds a POSIX ACL.
    pub fn is_acl(self) -> bool {
        self == Self::ACL_ACCESS || self == Self::ACL_DEFAULT
    }
}

/// Where a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    /// Here.
    Bytes(&'a [u8]),
    /// In the contents of an inode.
    Inode {
        /// Which.
        ino: Ino,
        /// Bytes; not checked against anything.
        size: u32,
    },
}

/// An attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The namespace.
    pub index: NameIndex,
    /// The name without its prefix.
    pub name: &'a [u8],
    /// The value or its place.
    pub value: Value<'a>,
    /// The hash of name and value: checked for values in inodes.
    pub hash: u32,
}

/// The attributes in what follows an inode's fields; none without the magic number. The error
/// says what is wrong.
pub fn parse_inode(extra: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    match extra.split_first_chunk() {
        Some((magic, space)) if u32::from_le_bytes(*magic) == MAGIC => parse(space, 0),
        _ => Ok(Vec::new()),
    }
}

/// Whether there are attributes in what follows an inode's fields.
pub fn has_attributes(extra: &[u8]) -> bool {
    extra.first_chunk().is_some_and(|magic| u32::from_le_bytes(*magic) == MAGIC)
}

/// The attributes in a block.
pub fn parse_block(block: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let (header, _) = RawHeader::ref_from_prefix(block)
        .map_err(|_| format!("attribute block of {} bytes", block.len()))?;
    if header.magic.get() != MAGIC || header.blocks.get() != 1 {
        let (magic, blocks) = (header.magic.get(), header.blocks.get());
        return Err(format!("attribute block with magic {magic:#x} of {blocks} blocks"));
    }
    parse(block, HEADER)
}

/// The entries from `start` on; the places of values count from the beginning of `space`.
fn parse(space: &[u8], start: usize) -> Result<Vec<Entry<'_>>, String> {
    let mut heads = Vec::new();
    let mut at = start;
    loop {
        let rest = space.get(at..).unwrap_or_default();
        match rest.first_chunk() {
            Some([0, 0, 0, 0]) => break,
            Some(_) => {}
            None => return Err("attributes without an end".into()),
        }
        let head = RawEntry::ref_from_prefix(rest).ok();
        let name = head.and_then(|(head, rest)| rest.get(..usize::from(head.name_len)));
        let (Some((head, _)), Some(name)) = (head, name) else {
            return Err(format!("attribute at byte {at} is cut off"));
        };
        heads.push((head, name));
        at += ENTRY + name.len().next_multiple_of(4);
    }
    let values = at + 4;
    heads.into_iter().map(|(head, name)| entry(head, name, space, values)).collect()
}

/// An entry with its value, which lies behind all entries.
fn entry<'a>(
    head: &RawEntry,
    name: &'a [u8],
    space: &'a [u8],
    values: usize,
) -> Result<Entry<'a>, String> {
    let (offset, size) = (usize::from(head.value_offset.get()), head.value_size.get());
    let value = match head.value_inode.get() {
        0 if size == 0 => Value::Bytes(&[]),
        0 => {
            let bytes = space.get(offset..).and_then(|rest| rest.get(..size as usize));
            Value::Bytes(bytes.filter(|_| offset >= values).ok_or_else(|| {
                format!("attribute value of {size} bytes at byte {offset} of {}", space.len())
            })?)
        }
        ino => Value::Inode { ino: Ino(ino), size },
    };
    Ok(Entry { index: NameIndex(head.name_index), name, value, hash: head.hash.get() })
}

/// The checksum of an attribute block, and what it must be.
pub fn checksum(bytes: &[u8], block: Block, volume_seed: u32) -> Option<(u32, u32)> {
    let found = bytes.get(CHECKSUM..)?.first_chunk()?;
    let crc = crc32c(volume_seed, &block.0.to_le_bytes());
    let crc = crc32c(crc32c(crc, &bytes[..CHECKSUM]), &[0; 4]);
    Some((u32::from_le_bytes(*found), crc32c(crc, &bytes[CHECKSUM + 4..])))
}

/// The hash of a value in an inode, which the inode keeps in the place of its access time.
pub fn value_hash(value: &[u8], volume_seed: u32) -> u32 {
    crc32c(volume_seed, value)
}

/// The hash in the entry of a value in an inode: of the name, and of the value's hash. Bytes of
/// the name count as signed or as unsigned numbers: kernels have done both.
pub fn entry_hash(name: &[u8], value_hash: u32, signed: bool) -> u32 {
    let hash = name.iter().fold(0u32, |hash, &byte| {
        let byte = if signed { byte as i8 as u32 } else { u32::from(byte) };
        hash.rotate_left(5) ^ byte
    });
    hash.rotate_left(16) ^ value_hash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(entries: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8] = 1;
        let (mut at, mut end) = (HEADER, 1024);
        for (index, name, value) in entries {
            end -= value.len().next_multiple_of(4);
            let head = RawEntry {
                name_len: name.len() as u8,
                name_index: *index,
                value_offset: (end as u16).into(),
                value_inode: 0.into(),
                value_size: (value.len() as u32).into(),
                hash: 0.into(),
            };
            bytes[at..at + ENTRY].copy_from_slice(head.as_bytes());
            bytes[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
            bytes[end..end + value.len()].copy_from_slice(value);
            at += ENTRY + name.len().next_multiple_of(4);
        }
        bytes
    }

    #[test]
    fn entries_are_read() {
        let bytes = block(&[(1, b"a", b"value"), (6, b"selinux", b""), (2, b"", b"acl")]);
        let entries = parse_block(&bytes).unwrap();
        let names: Vec<_> = entries.iter().map(|entry| (entry.index.0, entry.name)).collect();
        assert_eq!(names, [(1, &b"a"[..]), (6, b"selinux"), (2, b"")]);
        assert_eq!(entries[0].value, Value::Bytes(b"value"));
        assert_eq!(entries[1].value, Value::Bytes(b""));
    }

    #[test]
    fn a_value_among_the_entries_is_refused() {
        let mut bytes = block(&[(1, b"a", b"value")]);
        bytes[HEADER + 2..HEADER + 4].copy_from_slice(&(HEADER as u16).to_le_bytes());
        assert!(parse_block(&bytes).is_err());
    }

    #[test]
    fn names_are_split_at_their_namespace() {
        assert_eq!(NameIndex::split(b"user.a"), Some((NameIndex(1), &b"a"[..])));
        assert_eq!(
            NameIndex::split(b"system.posix_acl_access"),
            Some((NameIndex::ACL_ACCESS, &b""[..]))
        );
        for name in [&b"user."[..], b"system.data", b"system.posix_acl_accessx", b"nothing"] {
            assert_eq!(NameIndex::split(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in proptest::collection::vec(0u8..80, 0..300),
        ) {
            let _ = parse(&bytes, 0);
            if bytes.len() >= HEADER {
                bytes[..12].copy_from_slice(&block(&[])[..12]);
                let _ = parse_block(&bytes);
            }
            checksum(&bytes, Block(7), 0);
        }
    }
}
