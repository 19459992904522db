//! Membership: who takes part, who has gone, and making sure of it.
//!
//! The truth is one word an OSlet in the control page ([`word`]); sockets only carry descriptors
//! and hints to look at the words again. [`table`] turns changes of the words into [`Event`]s,
//! [`heartbeat`] suspects those that stand still, and [`fence`] makes sure that a suspect can no
//! longer write.

#[cfg(not(loom))]
pub mod fence;
pub mod heartbeat;
#[cfg(not(loom))]
pub mod record;
pub mod table;
pub mod word;

use crate::id::{Epoch, OsletId, ParticipantId};

/// What a runtime tells its services about the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It takes part, and each has mapped the other's segment.
    Joined(OsletId, Epoch),
    /// It is being fenced: requests to it fail from now on, but what it owned must not be taken
    /// over yet.
    Fencing(OsletId, Epoch),
    /// The fence does not come to an end, since its I/O did not: what it owned cannot be had.
    Stuck(OsletId, Epoch),
    /// It is fenced; nothing of it can reach memory or a disk any more.
    Dead(OsletId, Epoch),
    /// It has left cleanly.
    Left(OsletId, Epoch),
    /// A native client takes part, and this process has mapped its segment.
    ClientJoined(ParticipantId, Epoch),
    /// This runtime pins so many frames of that OSlet that are in limbo: it is fenced if it does
    /// not let go within seconds.
    LetGo(OsletId, Epoch, u64),
    /// A native client has ended, in whatever way.
    ClientGone(ParticipantId, Epoch),
}
