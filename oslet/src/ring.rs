//! Single-producer single-consumer rings of 64-byte descriptors between two participants.
//!
//! Entries, tail and bodies lie in the producer's segment, head and parking word in the
//! consumer's, so that each byte has one writer (R1). docs/region-layout.md draws both halves.
//!
//! The consumer polls the sequence number inside the next descriptor; the tail serves only to
//! park on: the consumer says that it parks, looks once more, and waits (futex) for the tail to
//! change; the producer moves the tail behind the descriptors, and wakes when it sees the consumer
//! parked. One of the two sees the other.

#[cfg(not(loom))]
pub(crate) mod body;
#[cfg(not(loom))]
pub mod doorbell;
mod spsc;

#[cfg(not(loom))]
pub(crate) use body::{HalfOut, OwnLine};
#[cfg(not(loom))]
pub use body::{Incoming, Outgoing, RingPlace, SendError};
pub use spsc::{Consumer, Descriptor, Full, Producer, RingError, layout};

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
