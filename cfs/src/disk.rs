//! Codecs of the on-disk format: no I/O, no locks, no trust.
//!
//! The source of every layout is the kernel's document "ext4 Data Structures and Algorithms".
//! Everything on disk is little-endian (the journal apart). Raw types are the bytes; checked types
//! are made from them by `TryFrom` or `parse`, and no other way.

pub mod acl;
pub mod bitmap;
pub mod checksum;
pub mod dirent;
pub mod extent;
pub mod features;
pub mod group;
pub mod htree;
pub mod indirect;
pub mod inode;
pub mod superblock;
pub mod time;
pub mod xattr;

/// Asserts the size of a raw type and the offset of each of its fields.
macro_rules! assert_layout {
    ($type:ty, $size:expr, { $($offset:literal $field:ident),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}
pub(crate) use assert_layout;
