//! Where things lie in the control page and in a segment. docs/region-layout.md draws this file.
//!
//! Everything is little-endian-agnostic words in the machine's own order: the region never leaves
//! the machine. Offsets are bytes from the start of the page or segment (R2).

use crate::limits;

/// The one version of all that participants must agree about in shared memory: this file, rings and
/// their descriptors, pin counters, references, words of the control page, published tables and
/// where they put what, requests. Whoever changes any of them raises it. What can be told from
/// numbers is held to it by `FINGERPRINT`, published tables by a test of theirs.
pub const LAYOUT_VERSION: u32 = 8;

/// Of [`LAYOUT_VERSION`] and the numbers below: both change, or neither.
const FINGERPRINT: u64 = 7_206_558_480_507_590_597;

/// FNV-1a over all numbers that make the layout.
const fn fingerprint(numbers: &[usize]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut index = 0;
    while index < numbers.len() {
        let bytes = (numbers[index] as u64).to_le_bytes();
        let mut byte = 0;
        while byte < bytes.len() {
            hash = (hash ^ bytes[byte] as u64).wrapping_mul(0x0100_0000_01b3);
            byte += 1;
        }
        index += 1;
    }
    hash
}

const FOUND: u64 = {
    use crate::hazard;
    use crate::ring::layout as ring;
    use control as ctl;
    use segment as seg;
    let limits = [
        LAYOUT_VERSION as usize,
        limits::MAX_OSLETS,
        limits::SLOTS_PER_OSLET,
        limits::MAX_OWNED_OBJECTS,
        limits::FRAME_SIZE,
        limits::FRAME_BITS as usize,
        limits::GENERATION_BITS as usize,
        limits::PARTICIPANT_BITS as usize,
        limits::LINE,
        limits::RING_CAPACITY,
        limits::RING_BODY_BYTES,
        limits::MAX_BODY,
        hazard::MAX_PINS_PER_FRAME as usize,
        hazard::CLOCK_TICKS as usize,
    ];
    let places = [
        ctl::LEN,
        ctl::MAGIC,
        ctl::VERSION,
        ctl::CLUSTER,
        ctl::OSLETS,
        ctl::NAME,
        ctl::MEMBERS,
        ctl::OWNERS,
        seg::MAGIC,
        seg::VERSION,
        seg::CLUSTER,
        seg::PARTICIPANT,
        seg::LENGTH,
        seg::FRAMES,
        seg::FRAMES_OFFSET,
        seg::FRAME_TABLE,
        seg::FRAME_ENTRY,
        seg::SPACE_OFFSET,
        seg::SPACE_LENGTH,
        seg::HEARTBEAT,
        seg::PID,
        seg::CLOCK,
        seg::TABLE_DIRECTORY,
        seg::TABLES,
        seg::TABLE_ENTRY,
        seg::PIN_DIRECTORY,
        seg::PIN_ENTRY,
    ];
    let rings = [
        ring::LINE_WORDS,
        ring::ENTRY_WORDS,
        ring::TAIL,
        ring::PRODUCER_CPU,
        ring::ENTRIES,
        ring::HEAD,
        ring::CONSUMER_WORDS,
        ring::PARKED,
        ring::CONSUMER_CPU,
        ring::PARK_WORDS,
        ring::producer_words(limits::RING_CAPACITY),
    ];
    let all = [
        fingerprint(&limits) as usize,
        fingerprint(&places) as usize,
        fingerprint(&rings) as usize,
    ];
    fingerprint(&all)
};

// Where it does not hold, the index in the error is the fingerprint to record.
const _: () = assert!(
    FOUND == FINGERPRINT,
    "the layout has changed: raise LAYOUT_VERSION and record the new FINGERPRINT"
);
const _: [(); 0] = [(); if FOUND == FINGERPRINT { 0 } else { FOUND as usize }];

/// First word of a control page ("OSLETCTL").
pub const CONTROL_MAGIC: u64 = u64::from_le_bytes(*b"OSLETCTL");
/// First word of a segment ("OSLETSEG").
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"OSLETSEG");

/// The control page: an immutable header, then words changed by compare-and-swap only.
pub mod control {
    use super::limits;

    /// Bytes of the control page.
    pub const LEN: usize = 4096;
    /// u64: [`super::CONTROL_MAGIC`], stored last when the page is made.
    pub const MAGIC: usize = 0;
    /// u64: low half layout version, high half frame size.
    pub const VERSION: usize = 8;
    /// Two u64: the cluster's random identity.
    pub const CLUSTER: usize = 16;
    /// u64: OSlets of this cluster.
    pub const OSLETS: usize = 32;
    /// 32 bytes: the cluster's name, padded with zeros.
    pub const NAME: usize = 64;
    /// [`limits::MAX_OSLETS`] membership words.
    pub const MEMBERS: usize = 128;
    /// [`limits::MAX_OWNED_OBJECTS`] ownership words.
    pub const OWNERS: usize = MEMBERS + 8 * limits::MAX_OSLETS;

    const _: () = {
        assert!(NAME + limits::MAX_NAME <= MEMBERS);
        assert!(OWNERS + 8 * limits::MAX_OWNED_OBJECTS <= LEN);
    };
}

/// A segment: header, table directory, pin directory, frame table, table space, frames.
pub mod segment {
    use super::limits;

    /// u64: [`super::SEGMENT_MAGIC`], stored last when the segment is made.
    pub const MAGIC: usize = 0;
    /// u64: low half layout version, high half frame size.
    pub const VERSION: usize = 8;
    /// Two u64: the cluster's identity.
    pub const CLUSTER: usize = 16;
    /// u64: low half participant index, high half epoch.
    pub const PARTICIPANT: usize = 32;
    /// u64: bytes of the whole segment.
    pub const LENGTH: usize = 40;
    /// u64: number of frames.
    pub const FRAMES: usize = 48;
    /// u64: offset of the first frame, a multiple of the frame size.
    pub const FRAMES_OFFSET: usize = 56;
    /// u64: offset of the frame table: for each frame a u32 (bits 0-23 its generation).
    pub const FRAME_TABLE: usize = 64;
    /// Bytes of an entry of the frame table.
    pub const FRAME_ENTRY: usize = 4;
    /// u64: offset of the table space.
    pub const SPACE_OFFSET: usize = 72;
    /// u64: bytes of the table space.
    pub const SPACE_LENGTH: usize = 80;
    /// u64 in a line of its own: the heartbeat counter.
    pub const HEARTBEAT: usize = 128;
    /// u64 in a line of its own: the process id (in the runtimes' PID namespace).
    pub const PID: usize = 192;
    /// u64 in a line of its own: the clock by which readers date their use of frames.
    pub const CLOCK: usize = 256;

    /// The table directory: [`TABLES`] entries of four words, (kind, offset, length, argument).
    /// A kind of zero is an empty entry; the kind is stored last and cleared first.
    pub const TABLE_DIRECTORY: usize = 1024;
    /// Entries of the table directory.
    pub const TABLES: usize = 64;
    /// Bytes of an entry.
    pub const TABLE_ENTRY: usize = 32;

    /// The pin directory: for each participant index two words, (home epoch in the high half and
    /// frames in the low half, offset of the counters). The first is stored last, cleared first.
    pub const PIN_DIRECTORY: usize = 4096;
    /// Bytes of an entry.
    pub const PIN_ENTRY: usize = 16;

    /// First byte behind the fixed part.
    pub const FIXED_LEN: usize = PIN_DIRECTORY + PIN_ENTRY * limits::MAX_PARTICIPANTS;

    const _: () = {
        assert!(TABLE_DIRECTORY + TABLES * TABLE_ENTRY <= PIN_DIRECTORY);
        assert!(FIXED_LEN.is_multiple_of(limits::FRAME_SIZE));
        assert!(HEARTBEAT.is_multiple_of(limits::LINE) && PID.is_multiple_of(limits::LINE));
    };
}

/// The word that says version and frame size.
pub const fn version_word() -> u64 {
    LAYOUT_VERSION as u64 | (limits::FRAME_SIZE as u64) << 32
}
