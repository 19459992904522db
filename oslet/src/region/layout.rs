//! Where things lie in the control page and in a segment. docs/region-layout.md draws this file.
//!
//! Everything is little-endian-agnostic words in the machine's own order: the region never leaves
//! the machine. Offsets are bytes from the start of the page or segment (R2).

use crate::limits;

/// Changes whenever anything in this file, in a ring's descriptor or in a published table does.
pub const LAYOUT_VERSION: u32 = 1;

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
    /// u64: offset of the first frame, a multiple of the frame size (2 MiB where there are many).
    pub const FRAMES_OFFSET: usize = 56;
    /// u64: offset of the frame table, one word a frame (bits 0-23 its generation).
    pub const FRAME_TABLE: usize = 64;
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
