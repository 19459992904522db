//! Attributes as they are written: all entries of an inode's space or of a block at once.

use zerocopy::IntoBytes;

use super::{ENTRY, Entry, HEADER, MAGIC, NameIndex, RawEntry, RawHeader, Value, checksum};
use crate::id::{Block, Ino};

/// An attribute to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attribute {
    /// The namespace.
    pub index: NameIndex,
    /// The name without its prefix: at most 255 bytes.
    pub name: Box<[u8]>,
    /// The value or its place.
    pub value: Stored,
}

/// Where a value is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    /// With the entry.
    Bytes(Box<[u8]>),
    /// In an inode of its own.
    Inode {
        /// Which.
        ino: Ino,
        /// Bytes.
        size: u32,
        /// What the entry's hash is.
        hash: u32,
    },
}

impl From<&Entry<'_>> for Attribute {
    fn from(entry: &Entry<'_>) -> Self {
        let value = match entry.value {
            Value::Bytes(bytes) => Stored::Bytes(bytes.into()),
            Value::Inode { ino, size } => Stored::Inode { ino, size, hash: entry.hash },
        };
        Self { index: entry.index, name: entry.name.into(), value }
    }
}

impl Attribute {
    /// Whether it is called this.
    pub fn is(&self, index: NameIndex, name: &[u8]) -> bool {
        self.index == index && *self.name == *name
    }

    /// Bytes of its head and name.
    fn head(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    /// Bytes of its value beside the entries.
    fn tail(&self) -> usize {
        match &self.value {
            Stored::Bytes(bytes) => bytes.len().next_multiple_of(4),
            Stored::Inode { .. } => 0,
        }
    }
}

/// Bytes that the values of these take beside the entries.
pub fn values_len(attributes: &[Attribute]) -> usize {
    attributes.iter().map(Attribute::tail).sum()
}

/// What follows an inode's fields, with these attributes; `None` if they need more than `room`
/// bytes.
pub fn inode_space(attributes: &[Attribute], room: usize) -> Option<Box<[u8]>> {
    let mut space = vec![0; room].into_boxed_slice();
    if attributes.is_empty() {
        return Some(space);
    }
    let (magic, entries) = space.split_at_mut_checked(4)?;
    magic.copy_from_slice(&MAGIC.to_le_bytes());
    fill(attributes, entries, 0, false)?;
    Some(space)
}

/// A block of these attributes that one inode uses, its checksum still to be [`seal`]ed; `None` if
/// they need more.
pub fn block(attributes: &[Attribute], block_size: usize) -> Option<Box<[u8]>> {
    let mut block = vec![0; block_size].into_boxed_slice();
    let mut sorted = attributes.to_vec();
    // The order that look-ups rely on.
    sorted.sort_by(|a, b| {
        let key = |attribute: &Attribute| (attribute.index.0, attribute.name.len());
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    let hash = fill(&sorted, &mut block, HEADER, true)?;
    let header = RawHeader {
        magic: MAGIC.into(),
        refcount: 1.into(),
        blocks: 1.into(),
        hash: hash.into(),
        checksum: 0.into(),
        reserved: [0.into(); 3],
    };
    block[..HEADER].copy_from_slice(header.as_bytes());
    Some(block)
}

/// Writes the entries from `start` on and the values from the end back; returns the hash of all.
fn fill(attributes: &[Attribute], space: &mut [u8], start: usize, hashed: bool) -> Option<u32> {
    let heads: usize = attributes.iter().map(Attribute::head).sum();
    let tails: usize = attributes.iter().map(Attribute::tail).sum();
    // Four bytes of zeros end the entries.
    if start + heads + 4 + tails > space.len() {
        return None;
    }
    let (mut at, mut end) = (start, space.len());
    let (mut total, mut shared) = (0u32, true);
    for attribute in attributes {
        end -= attribute.tail();
        let (place, ino, size, hash) = match &attribute.value {
            Stored::Bytes(bytes) => {
                space[end..end + bytes.len()].copy_from_slice(bytes);
                let words = &space[end..end + attribute.tail()];
                let hash = if hashed { bytes_hash(&attribute.name, words) } else { 0 };
                (if bytes.is_empty() { 0 } else { end }, 0, bytes.len() as u32, hash)
            }
            Stored::Inode { ino, size, hash } => (0, ino.0, *size, *hash),
        };
        // Of an attribute without a name the place alone says that it is not the end.
        let nameless = attribute.index.0 == 0 && attribute.name.is_empty();
        let place = if nameless && place == 0 { ENTRY } else { place };
        let head = RawEntry {
            name_len: attribute.name.len() as u8,
            name_index: attribute.index.0,
            value_offset: (place as u16).into(),
            value_inode: ino.into(),
            value_size: size.into(),
            hash: hash.into(),
        };
        space[at..at + ENTRY].copy_from_slice(head.as_bytes());
        space[at + ENTRY..][..attribute.name.len()].copy_from_slice(&attribute.name);
        at += attribute.head();
        total = total.rotate_left(16) ^ hash;
        shared &= hash != 0;
    }
    Some(if shared { total } else { 0 })
}

/// The hash of an entry whose value lies in a block: of the name, and of the value's words.
pub fn bytes_hash(name: &[u8], words: &[u8]) -> u32 {
    let name = name.iter().fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
    words
        .as_chunks::<4>()
        .0
        .iter()
        .fold(name, |hash, word| hash.rotate_left(16) ^ u32::from_le_bytes(*word))
}

/// How many inodes use a block of attributes.
pub fn users(block: &[u8]) -> u32 {
    block.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

/// The same block with another count of users, still to be sealed.
pub fn with_users(block: &[u8], users: u32) -> Box<[u8]> {
    let mut block: Box<[u8]> = block.into();
    block[4..8].copy_from_slice(&users.to_le_bytes());
    block
}

/// Sets the checksum of a block that lies at `place`.
pub fn seal(block: &mut [u8], place: Block, volume_seed: u32) {
    if let Some((_, computed)) = checksum(block, place, volume_seed) {
        block[super::CHECKSUM..super::CHECKSUM + 4].copy_from_slice(&computed.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{parse_block, parse_inode};
    use super::*;

    fn attribute() -> impl Strategy<Value = Attribute> {
        let value = prop_oneof![
            9 => proptest::collection::vec(any::<u8>(), 0..80)
                .prop_map(|bytes| Stored::Bytes(bytes.into())),
            1 => (1u32..99, 1u32..99, 1u32..99)
                .prop_map(|(ino, size, hash)| Stored::Inode { ino: Ino(ino), size, hash }),
        ];
        (0u8..7, proptest::collection::vec(b'a'..=b'z', 0..40), value).prop_map(
            |(index, name, value)| Attribute { index: NameIndex(index), name: name.into(), value },
        )
    }

    fn sorted(mut attributes: Vec<Attribute>) -> Vec<Attribute> {
        attributes.sort_by(|a, b| {
            (a.index.0, a.name.len(), &a.name).cmp(&(b.index.0, b.name.len(), &b.name))
        });
        attributes
    }

    #[test]
    fn hashes_are_the_kernels() {
        // user.a = "value" in a block that Linux wrote.
        assert_eq!(bytes_hash(b"a", b"valu\x65\0\0\0"), {
            let first = 0x61u32.rotate_left(16) ^ u32::from_le_bytes(*b"valu");
            first.rotate_left(16) ^ 0x65
        });
        let attributes = [Attribute {
            index: NameIndex(1),
            name: (*b"a").into(),
            value: Stored::Bytes((*b"value").into()),
        }];
        let block = block(&attributes, 1024).unwrap();
        assert_eq!(users(&block), 1);
        assert_eq!(users(&with_users(&block, 7)), 7);
    }

    /// No program makes one, but what another says must not end there.
    #[test]
    fn an_attribute_without_a_name_is_not_the_end() {
        let plain = |index, value| Attribute {
            index: NameIndex(index),
            name: Box::default(),
            value: Stored::Bytes(value),
        };
        let attributes = [plain(0, Box::default()), plain(2, (*b"acl").into())];
        let space = inode_space(&attributes, 100).unwrap();
        assert_eq!(parse_inode(&space).unwrap().len(), 2);
        let block = block(&attributes, 1024).unwrap();
        assert_eq!(parse_block(&block).unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            attributes in proptest::collection::vec(attribute(), 0..12),
            room in 4usize..900,
        ) {
            let needed: usize = attributes.iter().map(|a| a.head() + a.tail()).sum();
            let space = inode_space(&attributes, room);
            prop_assert_eq!(space.is_some(), attributes.is_empty() || needed + 8 <= room);
            if let Some(space) = space {
                let read: Vec<_> =
                    parse_inode(&space).unwrap().iter().map(Attribute::from).collect();
                let plain = |list: &[Attribute]| -> Vec<_> {
                    list.iter().map(|a| (a.index, a.name.clone(), match &a.value {
                        Stored::Bytes(bytes) => (bytes.to_vec(), 0),
                        Stored::Inode { ino, size, .. } => (Vec::new(), ino.0 + size),
                    })).collect()
                };
                prop_assert_eq!(plain(&read), plain(&attributes));
            }
            let made = block(&attributes, 1024);
            prop_assert_eq!(made.is_some(), needed + HEADER + 4 <= 1024);
            if let Some(mut made) = made {
                seal(&mut made, Block(77), 5);
                let (found, computed) = checksum(&made, Block(77), 5).unwrap();
                prop_assert_eq!(found, computed);
                let read: Vec<_> =
                    parse_block(&made).unwrap().iter().map(Attribute::from).collect();
                prop_assert_eq!(read, sorted(attributes));
            }
        }
    }
}
