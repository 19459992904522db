//! What a volume's owner has cached, published in its segment for every OSlet to read without a
//! message, a lock or a copy. docs/region-layout.md draws the tables.
//!
//! Each table is set-associative: a key may lie in few places, so that a reader looks at few
//! lines. What does not fit replaces something else: the tables are caches, and a miss only costs a
//! request to the owner.

mod inode_table;
mod name_index;
mod page_index;
mod record;
#[cfg(test)]
mod version;

pub use inode_table::InodeTable;
pub use name_index::{Name, NameIndex};
pub use page_index::{FileKey, Found, Key, PageIndex};
pub use record::{Head, InodeRecord, RECORD_VALUES, has_target};

/// Kinds of tables in a segment's directory; the argument is the volume's object number.
pub mod kind {
    /// [`super::PageIndex`].
    pub const PAGES: u64 = 0x1001;
    /// [`super::InodeTable`].
    pub const INODES: u64 = 0x1002;
    /// [`super::NameIndex`] for names of up to 47 bytes.
    pub const SHORT_NAMES: u64 = 0x1003;
    /// [`super::NameIndex`] for longer ones.
    pub const LONG_NAMES: u64 = 0x1004;
}

/// How large the tables of a volume are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Frames that the volume may use.
    pub frames: usize,
    /// Bytes of the page index.
    pub pages: usize,
    /// Bytes of the inode table.
    pub inodes: usize,
    /// Bytes of the index of short names.
    pub short_names: usize,
    /// Bytes of the index of long names.
    pub long_names: usize,
}

impl Sizes {
    /// For a cache of that many frames: together 1 to 1.5 % of their bytes, and a few hundred KiB.
    pub fn of(frames: usize) -> Self {
        let share = |part: usize, least: usize| (frames / part).clamp(least, 1 << 20);
        // A small cache is of more use with more small files in it.
        let small = |part: usize, most: usize, least: usize| (frames / part).clamp(least, most);
        Self {
            frames,
            pages: PageIndex::<()>::bytes(frames),
            inodes: InodeTable::<()>::bytes(share(16, small(8, 8192, 1024))),
            short_names: NameIndex::<()>::bytes(share(12, small(4, 16384, 2048)), false),
            long_names: NameIndex::<()>::bytes(share(256, 64), true),
        }
    }

    /// All tables together, as the segment has to reserve them.
    pub fn total(&self) -> usize {
        // Each is rounded up to a cache line.
        self.pages + self.inodes + self.short_names + self.long_names + 4 * 64
    }
}

/// A 64-bit mix of a key: the finalizer of splitmix64 (Steele, Lea, Flood 2014). Not secret: who
/// crafts colliding keys only makes entries replace one another.
#[inline(always)]
fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A 64-bit mix by one multiplication, both halves of whose product are used.
#[inline(always)]
pub(crate) fn fold(word: u64) -> u64 {
    let product = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    product as u64 ^ (product >> 64) as u64
}

/// Maps 32 bits of a hash evenly to `0..count`.
#[inline(always)]
fn reduce(hash: u32, count: usize) -> usize {
    ((u64::from(hash) * count as u64) >> 32) as usize
}
