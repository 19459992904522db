//! Every bound of the shared memory in one place, with the relations between them asserted.

/// OSlets in one cluster.
pub const MAX_OSLETS: usize = 64;
/// Participants in one OSlet: its runtime and up to 15 native clients.
pub const SLOTS_PER_OSLET: usize = 16;
/// Segments that can be named.
pub const MAX_PARTICIPANTS: usize = MAX_OSLETS * SLOTS_PER_OSLET;
/// Objects (volumes and devices) whose owner the control page records.
pub const MAX_OWNED_OBJECTS: usize = 256;

/// Bytes of a frame, the unit of data memory: the smallest page of every supported machine.
pub const FRAME_SIZE: usize = 4096;
/// log2 of [`FRAME_SIZE`].
pub const FRAME_SHIFT: u32 = 12;
/// Bits of a frame number: 2^26 frames are 256 GiB in one segment.
pub const FRAME_BITS: u32 = 26;
/// Bits of a generation.
pub const GENERATION_BITS: u32 = 24;
/// Bits of a participant's index.
pub const PARTICIPANT_BITS: u32 = 10;
/// Frames of one segment.
pub const MAX_FRAMES: usize = 1 << FRAME_BITS;

/// Bytes of a cache line; control words that different participants write are this far apart.
pub const LINE: usize = 64;

/// Descriptors of one ring, a power of two; also the requests in flight on one channel.
pub const RING_CAPACITY: usize = 128;
/// Bytes for the bodies of one ring's messages.
pub const RING_BODY_BYTES: usize = 64 << 10;
/// Bytes of one message's body.
pub const MAX_BODY: usize = 16 << 10;
/// Rings that one thread can wait for: the kernel takes 128 futexes at a time, one is ours.
pub const RINGS_PER_THREAD: usize = 127;
/// Bytes of a message on a control socket.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Descriptors that come with one such message; the kernel's own bound is 253.
pub const MAX_DESCRIPTORS: usize = 64;
/// Files whose locks prove that a runtime's I/O has ended.
pub const MAX_IO_FILES: usize = MAX_DESCRIPTORS - 1;
/// FUSE connections of one runtime.
pub const MAX_FUSE_CONNECTIONS: usize = 64;
/// Connections to one runtime at a time.
pub const MAX_CONNECTIONS: usize = 512;

/// A participant may keep one part in so many of a segment's frames in limbo; more costs its life.
pub const LIMBO_PART: usize = 8;
/// Channels that a client may open to one incarnation of a runtime: its rings are of that segment.
pub const CLIENT_CHANNELS: u32 = 4;

/// Bytes of an OSlet's or a cluster's name.
pub const MAX_NAME: usize = 32;

/// Bytes of the smallest segment that a runtime can work with.
pub const MIN_SEGMENT: u64 = 4 << 20;

const _: () = {
    assert!(1 << FRAME_SHIFT == FRAME_SIZE);
    assert!(MAX_PARTICIPANTS == 1 << PARTICIPANT_BITS);
    assert!(GENERATION_BITS + FRAME_BITS + PARTICIPANT_BITS <= 60);
    assert!(RING_CAPACITY.is_power_of_two() && MAX_BODY * 4 <= RING_BODY_BYTES);
    assert!(MAX_OSLETS <= 64 && SLOTS_PER_OSLET <= 256);
};
