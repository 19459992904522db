//! The NBD protocol as bytes: every structure of both phases, in both directions.
//!
//! Source: *The NBD protocol*, `doc/proto.md` of the NBD project. All numbers are big-endian.
//! Nothing here does I/O or keeps state; what is decoded is bounded by [`crate::limits`].

mod option;
mod reply;
mod request;

pub use option::{
    Info, MetaQuery, OptionHeader, OptionReplyHeader, decode_export, decode_go, decode_meta,
    decode_reply_info, decode_reply_meta, decode_server, encode_go, encode_meta, encode_reply_meta,
    encode_server, option_reply,
};
pub use reply::{
    BlockDescriptor, Chunk, Header, HeaderKind, Payload, block_status, chunk_header,
    decode_payload, error_payload, simple_header,
};
pub use request::{Command, Request};

use bitflags::bitflags;
use rustix::io::Errno;

use crate::{Error, Result};

/// "NBDMAGIC", the first word of a server's greeting.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", the second word of a greeting and the first of an option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second word of the greeting of servers from before the fixed newstyle.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The first word of an answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The first word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The first word of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// The first word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The first word of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// The first word of a chunk with an extended header.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Zeros at the end of the answer to EXPORT_NAME, unless NO_ZEROES was agreed on.
pub const EXPORT_PADDING: usize = 124;
/// The metadata context of allocation.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Options of a client.
pub mod opt {
    /// Take this export, without a proper answer.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Go on inside TLS.
    pub const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub const INFO: u32 = 6;
    /// Take this export.
    pub const GO: u32 = 7;
    /// Reply in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose the metadata contexts that BLOCK_STATUS reports.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Lengths of 64 bits.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Answers to options.
pub mod rep {
    /// Done, or the end of a list.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// What errors have in common.
    pub const ERROR: u32 = 1 << 31;
    /// No such option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Not allowed.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data are wrong.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// TLS has to be begun first.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is about to end.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// Too much data.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    /// Extended headers were agreed on, which leave no choice in this.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Its canonical name.
    pub const NAME: u16 = 1;
    /// For people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, best and largest size of a request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Kinds of chunks.
pub mod chunk {
    /// Nothing but an end.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Block descriptors.
    pub const BLOCK_STATUS: u16 = 5;
    /// Block descriptors of 64 bits.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// What errors have in common.
    pub const IS_ERROR: u16 = 1 << 15;
    /// An error.
    pub const ERROR: u16 = IS_ERROR | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = IS_ERROR | 2;
}

bitflags! {
    /// What both ends say of themselves before the options.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct HandshakeFlags: u32 {
        /// Options are answered.
        const FIXED_NEWSTYLE = 1;
        /// No zeros behind the answer to EXPORT_NAME.
        const NO_ZEROES = 2;
    }

    /// What an export can do.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ExportFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Changes are refused.
        const READ_ONLY = 2;
        /// FLUSH.
        const SEND_FLUSH = 4;
        /// FUA.
        const SEND_FUA = 8;
        /// Seeks are expensive.
        const ROTATIONAL = 16;
        /// TRIM.
        const SEND_TRIM = 32;
        /// WRITE_ZEROES and NO_HOLE.
        const SEND_WRITE_ZEROES = 64;
        /// DF.
        const SEND_DF = 128;
        /// A flush covers what was done through other connections.
        const CAN_MULTI_CONN = 256;
        /// RESIZE (an experiment of the protocol's).
        const SEND_RESIZE = 512;
        /// CACHE.
        const SEND_CACHE = 1024;
        /// FAST_ZERO.
        const SEND_FAST_ZERO = 2048;
        /// BLOCK_STATUS with a payload.
        const BLOCK_STATUS_PAYLOAD = 4096;
    }

    /// Flags of a request.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct CommandFlags: u16 {
        /// Durable at its end.
        const FUA = 1;
        /// Storage stays allocated.
        const NO_HOLE = 2;
        /// One chunk of data.
        const DF = 4;
        /// One block descriptor.
        const REQ_ONE = 8;
        /// At once or not at all.
        const FAST_ZERO = 16;
        /// The length is that of a payload.
        const PAYLOAD_LEN = 32;
    }

    /// Flags of a chunk.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ChunkFlags: u16 {
        /// The last of its reply.
        const DONE = 1;
    }

    /// What `base:allocation` says of a range.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Allocation: u32 {
        /// No storage is allocated.
        const HOLE = 1;
        /// It reads as zeros.
        const ZERO = 2;
    }
}

/// How requests and replies of one connection look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Simple replies.
    #[default]
    Simple,
    /// Structured replies, but for those to nobody.
    Structured,
    /// Extended headers.
    Extended,
}

/// The errors that exist on the wire.
pub mod error_value {
    /// Not permitted.
    pub const PERM: u32 = 1;
    /// Input or output failed.
    pub const IO: u32 = 5;
    /// No memory.
    pub const NOMEM: u32 = 12;
    /// The request makes no sense.
    pub const INVAL: u32 = 22;
    /// No space.
    pub const NOSPC: u32 = 28;
    /// Too long.
    pub const OVERFLOW: u32 = 75;
    /// Not that fast.
    pub const NOTSUP: u32 = 95;
    /// The server is about to end.
    pub const SHUTDOWN: u32 = 108;
}

/// The number on the wire for an error.
pub fn error_to_wire(errno: Errno) -> u32 {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::ROFS => error_value::PERM,
        Errno::NOMEM => error_value::NOMEM,
        Errno::INVAL => error_value::INVAL,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => error_value::NOSPC,
        Errno::OVERFLOW => error_value::OVERFLOW,
        Errno::OPNOTSUPP => error_value::NOTSUP,
        Errno::SHUTDOWN => error_value::SHUTDOWN,
        _ => error_value::IO,
    }
}

/// The error that a number on the wire stands for. One that is not among the eight counts as
/// EINVAL, as the protocol has it.
pub fn error_from_wire(value: u32) -> Errno {
    match value {
        error_value::PERM => Errno::PERM,
        error_value::IO => Errno::IO,
        error_value::NOMEM => Errno::NOMEM,
        error_value::NOSPC => Errno::NOSPC,
        error_value::OVERFLOW => Errno::OVERFLOW,
        error_value::NOTSUP => Errno::OPNOTSUPP,
        error_value::SHUTDOWN => Errno::SHUTDOWN,
        _ => Errno::INVAL,
    }
}

/// A server's greeting.
pub fn greeting() -> [u8; 18] {
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(flags.bits() as u16).to_be_bytes());
    bytes
}

/// The flags of a greeting.
pub fn decode_greeting(bytes: &[u8; 18]) -> Result<HandshakeFlags> {
    let mut parts = Parts(bytes);
    let (magic, second) = (parts.u64().unwrap_or(0), parts.u64().unwrap_or(0));
    if magic != MAGIC {
        return Err(bad(format!("a greeting of {magic:#x}: no NBD server")));
    }
    if second == OLDSTYLE_MAGIC {
        return Err(bad("an oldstyle server, which has one nameless export".into()));
    }
    if second != OPTION_MAGIC {
        return Err(bad(format!("a greeting with {second:#x}")));
    }
    Ok(HandshakeFlags::from_bits_retain(parts.u16().unwrap_or(0).into()))
}

/// The answer to EXPORT_NAME, but for the zeros behind it.
pub fn export_answer(size: u64, flags: ExportFlags) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&size.to_be_bytes());
    bytes[8..].copy_from_slice(&flags.bits().to_be_bytes());
    bytes
}

/// Takes numbers and strings off the front of a structure.
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl<'a> Parts<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length before it.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        text(self.bytes(len)?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A string of the protocol's: UTF-8, and no longer than strings may be.
fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > crate::limits::NBD_MAX_STRING {
        return None;
    }
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

pub(crate) fn bad(what: String) -> Error {
    Error::Protocol(what)
}

#[cfg(test)]
mod tests;
