//! Every bound of this crate in one place, with the relations between them asserted.

use oslet::limits::FRAME_SIZE;
use oslet::sys::disk::MAX_VECTORS;

/// The smallest block of a device, in bytes.
pub const MIN_BLOCK_SIZE: u32 = 512;
/// Bytes of one read or write.
pub const MAX_TRANSFER: u32 = 2 << 20;
/// Pieces of memory that one read or write may be scattered over.
pub const MAX_SLICES: usize = 1000;
/// Requests that one device has in hand at a time; more are refused as busy.
pub const MAX_QUEUED: usize = 65536;
/// Operations that an engine gives to the kernel at a time, by default.
pub const ENGINE_DEPTH: usize = 256;
/// Threads that do the work where io_uring is not to be had.
pub const ENGINE_THREADS: usize = 8;
/// Zeros written at a time where a file cannot be zeroed otherwise.
pub const ZERO_CHUNK: u64 = 1 << 20;
/// Frames that a RAM device has beyond its size, to fill while old contents are still pinned.
pub const RAM_SPARE_FRAMES: usize = 64;
/// Bytes of data that a record of changes holds.
pub const MAX_RECORD: u64 = 2 << 30;
/// Bytes of a device's name.
pub const MAX_NAME: usize = 64;

/// Milliseconds that a request to another OSlet's device may take, by default.
pub const PROXY_MS: u64 = 30_000;
/// Requests that one participant may have in hand at an owner; more are refused as busy.
pub const MAX_PEER_REQUESTS: usize = 256;
/// Frames lent to one participant that it has not reported as pinned; beyond it the oldest loans
/// end.
pub const MAX_LOANED_PAGES: usize = 16384;
/// Milliseconds that a loan lasts at most.
pub const LOAN_MS: u64 = 2000;
/// Loans reported in one message when requests do not carry them along.
pub const RELEASE_BATCH: usize = 32;
/// How often a read is repeated whose frames were reused before they were pinned.
pub const STALE_RETRIES: u8 = 3;

const _: () = {
    assert!(MIN_BLOCK_SIZE as usize <= FRAME_SIZE);
    // One more where the first byte is not at a frame's start.
    assert!(MAX_TRANSFER as usize / FRAME_SIZE < MAX_SLICES);
    assert!(MAX_SLICES <= MAX_VECTORS);
    // Each takes 16 bytes of a message.
    assert!(MAX_SLICES * 16 + 64 <= oslet::limits::MAX_BODY);
    assert!(MAX_PEER_REQUESTS >= oslet::limits::RING_CAPACITY);
    assert!(MAX_LOANED_PAGES >= MAX_TRANSFER as usize / FRAME_SIZE);
};
