//! Directory entries in blocks.

pub mod edit;

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::checksum::crc32c;
use super::inode::Kind;

/// The head of an entry, as it lies on disk; the name follows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawEntry {
    pub(crate) inode: U32,
    pub(crate) rec_len: U16,
    pub(crate) name_len: u8,
    pub(crate) file_type: u8,
}

/// The tail of a block under `metadata_csum`: an unused entry to those who do not know it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub struct RawTail {
    pub(crate) inode: U32,
    pub(crate) rec_len: U16,
    pub(crate) name_len: u8,
    pub(crate) file_type: u8,
    pub(crate) checksum: U32,
}

assert_layout!(RawEntry, HEAD, { 0 inode, 4 rec_len, 6 name_len, 7 file_type });
assert_layout!(RawTail, TAIL, { 0 inode, 4 rec_len, 6 name_len, 7 file_type, 8 checksum });

const HEAD: usize = 8;
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xde;
/// The shortest entry: a name of one byte, rounded up to four.
const SHORTEST: usize = 12;

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Where the entry begins in its block.
    pub offset: usize,
    /// Where the next one does.
    pub next: usize,
    /// The inode that it names: 1 to the volume's count.
    pub ino: u32,
    /// 1 to 255 bytes without a slash.
    pub name: &'a [u8],
    /// What the entry says of the inode's type; `None` without `filetype`.
    pub kind: Option<Kind>,
}

/// The used entries of a block in order, until the first that is wrong.
pub struct Entries<'a> {
    bytes: &'a [u8],
    offset: usize,
    inodes_count: u32,
}

impl<'a> Entries<'a> {
    /// The entries of a directory's block (or of the space of an inline directory) on a volume
    /// with so many inodes.
    pub fn new(bytes: &'a [u8], inodes_count: u32) -> Self {
        Self { bytes, offset: 0, inodes_count }
    }

    fn parse(&self) -> Result<Entry<'a>, String> {
        let (offset, size) = (self.offset, self.bytes.len());
        let bad = |why: String| Err(format!("entry at byte {offset}: {why}"));
        let Ok((head, rest)) = RawEntry::ref_from_prefix(&self.bytes[offset..]) else {
            return bad("cut off".into());
        };
        let record = record_len(head.rec_len.get(), size);
        let name_len = usize::from(head.name_len);
        let next = offset + record;
        if record < SHORTEST || !record.is_multiple_of(4) || record < HEAD + name_len {
            return bad(format!("record of {record} bytes for a name of {name_len}"));
        }
        if next > size || (next != size && next > size.saturating_sub(SHORTEST)) {
            return bad(format!("record ends at {next} of {size}"));
        }
        let ino = head.inode.get();
        if ino > self.inodes_count {
            return bad(format!("inode {ino} of {}", self.inodes_count));
        }
        let name = &rest[..name_len];
        if ino != 0 && (name.is_empty() || name.contains(&b'/')) {
            return bad(format!("name {:?}", String::from_utf8_lossy(name)));
        }
        Ok(Entry { offset, next, ino, name, kind: kind(head.file_type) })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.offset < self.bytes.len() {
            match self.parse() {
                Ok(entry) => {
                    self.offset = entry.next;
                    if entry.ino != 0 {
                        return Some(Ok(entry));
                    }
                }
                Err(why) => {
                    self.offset = self.bytes.len();
                    return Some(Err(why));
                }
            }
        }
        None
    }
}

/// Lengths of 64 KiB do not fit into the field: there the two low bits count for more, and 0 and
/// 65535 stand for the whole block.
pub(super) fn record_len(field: u16, block_size: usize) -> usize {
    let field = usize::from(field);
    if block_size < 65536 {
        field
    } else if field == 0 || field == 65535 {
        65536
    } else {
        (field & 0xfffc) | ((field & 3) << 16)
    }
}

fn kind(file_type: u8) -> Option<Kind> {
    Some(match file_type {
        1 => Kind::Regular,
        2 => Kind::Directory,
        3 => Kind::CharDevice,
        4 => Kind::BlockDevice,
        5 => Kind::Fifo,
        6 => Kind::Socket,
        7 => Kind::Symlink,
        _ => return None,
    })
}

/// The checksum in the tail of a block of entries, and what it must be; `None` without a tail.
pub fn checksum(block: &[u8], inode_seed: u32) -> Option<(u32, u32)> {
    let (entries, tail) = block.split_at_checked(block.len().checked_sub(TAIL)?)?;
    let tail = RawTail::ref_from_bytes(tail).ok()?;
    let is_tail = tail.inode.get() == 0
        && usize::from(tail.rec_len.get()) == TAIL
        && tail.name_len == 0
        && tail.file_type == TAIL_TYPE;
    is_tail.then(|| (tail.checksum.get(), crc32c(inode_seed, entries)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(ino: u32, record: u16, name: &[u8]) -> Vec<u8> {
        let head = RawEntry {
            inode: ino.into(),
            rec_len: record.into(),
            name_len: name.len() as u8,
            file_type: 1,
        };
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(name);
        bytes.resize(usize::from(record).max(8 + name.len()), 0);
        bytes
    }

    fn names(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        Entries::new(bytes, 100).map(|entry| Ok(entry?.name.to_vec())).collect()
    }

    #[test]
    fn unused_entries_are_skipped() {
        let block = [entry(11, 12, b"a"), entry(0, 16, b"gone"), entry(12, 36, b"last")].concat();
        assert_eq!(names(&block).unwrap(), [b"a".to_vec(), b"last".to_vec()]);
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        for (why, block) in [
            ("record too short", entry(11, 8, b"")),
            ("record not of fours", entry(11, 14, b"a")),
            ("name over the record", entry(11, 12, b"abcdefgh")),
            ("record over the block", entry(11, 16, b"a")[..12].to_vec()),
            ("rest too short", [entry(11, 12, b"a"), vec![0; 8]].concat()),
            ("inode out of range", entry(101, 12, b"a")),
            ("no name", entry(11, 12, b"")),
            ("a slash", entry(11, 12, b"a/b")),
        ] {
            assert!(names(&block).is_err(), "{why}");
        }
    }

    #[test]
    fn records_of_64_kib_blocks() {
        assert_eq!(record_len(65535, 65536), 65536);
        assert_eq!(record_len(0, 65536), 65536);
        assert_eq!(record_len(65532, 65536), 65532);
        assert_eq!(record_len(12, 65536), 12);
        assert_eq!(record_len(32768, 32768), 32768);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0u8..40, 0..300)) {
            let entries = Entries::new(&bytes, u32::MAX).count();
            prop_assert!(entries <= bytes.len() / SHORTEST + 1);
            checksum(&bytes, 0);
        }
    }
}
