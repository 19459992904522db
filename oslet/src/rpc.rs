//! Requests and replies between a participant and a runtime, over a pair of rings.
//!
//! A *channel* is the caller's request ring and the server's reply ring. It is opened by exchanging
//! a [`ChannelOffer`] and a [`ChannelAnswer`] over the control sockets. Every wait ends (R4): with
//! the reply, at its time limit, or when membership says that the peer is gone.

mod channel;
pub mod golden;
mod server;

use rkyv::api::high::HighValidator;
use rkyv::util::AlignedVec;

pub use channel::{Channel, Done, PendingChannel, Reply};
pub use server::{Handler, Replier, Request, Server};

use crate::{Error, Result};

/// What a caller tells a server to open a channel: places in the caller's segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ChannelOffer {
    /// Producer's half of the request ring.
    pub requests: u64,
    /// Consumer's half of the reply ring.
    pub replies_head: u64,
    /// The parking line of the thread that consumes replies.
    pub replies_park: u64,
}

/// What the server answers: places in the server's segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ChannelAnswer {
    /// Producer's half of the reply ring.
    pub replies: u64,
    /// Consumer's half of the request ring.
    pub requests_head: u64,
    /// The parking line of the thread that consumes requests.
    pub requests_park: u64,
}

/// Archives a message body.
pub fn encode<T>(value: &T) -> Result<AlignedVec>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<
                AlignedVec,
                rkyv::ser::allocator::ArenaHandle<'a>,
                rkyv::rancor::Error,
            >,
        >,
{
    rkyv::to_bytes::<rkyv::rancor::Error>(value)
        .map_err(|e| Error::Invalid(format!("message cannot be archived: {e}")))
}

/// Validates a body that a peer sent (a copy of it) and gives access to the archive in it.
pub fn access<'b, T>(body: &'b [u8], peer: &str) -> Result<&'b T>
where
    T: rkyv::Portable + for<'a> rkyv::bytecheck::CheckBytes<HighValidator<'a, rkyv::rancor::Error>>,
{
    rkyv::access::<T, rkyv::rancor::Error>(body).map_err(|error| Error::Corrupt {
        peer: peer.to_owned(),
        what: format!("a message that does not validate: {error}"),
    })
}

#[cfg(test)]
mod tests;
