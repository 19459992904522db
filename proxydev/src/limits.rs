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

/// Bytes of a string of NBD: names, descriptions, metadata contexts.
pub const NBD_MAX_STRING: usize = 4096;
/// Bytes of an error's text, for people.
pub const NBD_MAX_MESSAGE: usize = 256;
/// Bytes of an option's data that are looked at, and of an answer to one.
pub const NBD_MAX_OPTION: usize = 64 << 10;
/// Bytes of an option's data that are skipped; the connection ends for more.
pub const NBD_MAX_SKIPPED: u32 = 1 << 20;
/// Options of one handshake.
pub const NBD_MAX_OPTIONS: u32 = 32;
/// Milliseconds that a handshake may take, TLS included.
pub const NBD_HANDSHAKE_MS: u64 = 10_000;
/// Bytes of one request's data: what every client may ask for, and the most that is taken.
pub const NBD_MAX_PAYLOAD: u32 = 32 << 20;
/// Block descriptors in one reply.
pub const NBD_MAX_EXTENTS: usize = 4096;
/// Bytes of a reply's chunk that is not data, which a client takes in.
pub const NBD_MAX_CHUNK: usize = 32 + NBD_MAX_EXTENTS * 16;
/// Connections of one server.
pub const NBD_MAX_CONNECTIONS: usize = 64;
/// Requests of one connection that are in hand.
pub const NBD_MAX_REQUESTS: usize = 256;
/// Bytes that these read or write together.
pub const NBD_MAX_BYTES: usize = 64 << 20;
/// Bytes of a connection's buffer for headers.
pub const NBD_INBOX: usize = 4096;
/// Messages that are sent by one system call at most.
pub const NBD_BATCH: usize = 64;
/// Milliseconds in which a client takes the answers to what it asked before it said farewell.
pub const NBD_FINISH_MS: u64 = 60_000;
/// Milliseconds that a server waits for its connections when it ends.
pub const NBD_SHUTDOWN_MS: u64 = 5000;
/// Connections of one client to one export.
pub const NBD_CLIENT_CONNECTIONS: usize = 4;
/// Milliseconds that requests wait for a server that is gone, by default.
pub const NBD_RECONNECT_MS: u64 = 30_000;

const _: () = {
    // A name and the number of what is asked of it; a list of contexts.
    assert!(NBD_MAX_STRING * 4 <= NBD_MAX_OPTION && NBD_MAX_OPTION < NBD_MAX_SKIPPED as usize);
    assert!(NBD_MAX_PAYLOAD as usize <= NBD_MAX_BYTES && NBD_MAX_PAYLOAD > MAX_TRANSFER);
    assert!(NBD_MAX_CONNECTIONS * NBD_MAX_REQUESTS <= MAX_QUEUED);
    assert!(NBD_MAX_MESSAGE <= u16::MAX as usize);
    assert!(MIN_BLOCK_SIZE as usize <= FRAME_SIZE);
    // One more where the first byte is not at a frame's start.
    assert!(MAX_TRANSFER as usize / FRAME_SIZE < MAX_SLICES);
    assert!(MAX_SLICES <= MAX_VECTORS);
    // Each takes 16 bytes of a message.
    assert!(MAX_SLICES * 16 + 64 <= oslet::limits::MAX_BODY);
    assert!(MAX_PEER_REQUESTS >= oslet::limits::RING_CAPACITY);
    assert!(MAX_LOANED_PAGES >= MAX_TRANSFER as usize / FRAME_SIZE);
};
