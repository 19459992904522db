//! Every bound of this crate in one place, with the relations between them asserted.

/// The smallest block of the format.
pub const MIN_BLOCK_SIZE: u32 = 1024;
/// The largest block of the format.
pub const MAX_BLOCK_SIZE: u32 = 65536;
/// The smallest inode of the format.
pub const MIN_INODE_SIZE: u32 = 128;
/// Bytes of a name.
pub const MAX_NAME: usize = 255;
/// Groups of one volume, whose descriptors are kept in memory: 512 TiB in groups of 128 MiB.
pub const MAX_GROUPS: u32 = 1 << 22;
/// Names of an inode other than a directory, and directories that one counts.
pub const MAX_LINKS: u16 = 65_000;
/// Levels of an extent tree below its root.
pub const MAX_EXTENT_DEPTH: u16 = 5;
/// Levels of a hashed directory below its root: two with `large_dir`.
pub const MAX_HTREE_LEVELS: u8 = 2;
/// Bytes of one extended attribute's value (the kernel's `XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 65536;
/// Bytes that the memory layer over a read-only source may hold: the largest journal is replayed
/// into it.
pub const MAX_OVERLAY: u64 = 1 << 30;
/// Bytes of metadata blocks that a volume keeps in memory by default.
pub const METADATA_CACHE: usize = 64 << 20;

/// Bytes of the largest block of a volume that can be written.
pub const MAX_WRITE_BLOCK: u32 = 4096;
/// Bits of the bitmaps of volumes that can be written.
pub const MAX_BITMAP_BITS: u32 = 8 * MAX_WRITE_BLOCK;
/// Bitmaps that the allocator keeps in memory; more only while none of the others can be let go.
pub const MAX_BITMAPS: u32 = 4096;
/// Files that blocks are kept for as they grow.
pub const MAX_WINDOWS: usize = 4096;
/// Corrupt groups that are remembered until somebody asks for them.
pub const MAX_PROBLEMS: usize = 64;
/// Frames that a device's writes of metadata wait in: 1 MiB.
pub const STAGING_FRAMES: usize = 256;
/// Bytes of committed metadata blocks above which they are brought home although the log has room.
pub const MAX_DIRTY: usize = METADATA_CACHE / 2;
/// How long a change may wait for its commit by default.
pub const COMMIT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
/// Blocks of a file mapped by extents; the last number that 32 bits have is none.
pub const MAX_FILE_BLOCKS: u64 = u32::MAX as u64;
/// Inodes that a writer keeps in memory by default while nobody uses them.
pub const LIVE_INODES: usize = 32 << 10;

const _: () = {
    assert!(MIN_BLOCK_SIZE.is_power_of_two() && MAX_BLOCK_SIZE.is_power_of_two());
    assert!(METADATA_CACHE >= 16 * MAX_BLOCK_SIZE as usize);
};

/// How long an operation waits for a volume to have an owner again before it fails with EIO.
pub const OWNER_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
/// How often it looks.
pub const OWNER_POLL: std::time::Duration = std::time::Duration::from_millis(5);
/// How long a volume that was taken over keeps what has no names, for those who had it open to ask
/// for it.
pub const RENEWAL_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a request to an owner may take: longer than a slow disk needs.
pub const REQUEST_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
/// Symbolic links followed in one path, as in the kernel.
pub const MAX_SYMLINKS: usize = 40;
