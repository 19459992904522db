//! Replies: simple ones, and chunks of structured ones.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    CHUNK_MAGIC, ChunkFlags, EXTENDED_CHUNK_MAGIC, Mode, Parts, SIMPLE_REPLY_MAGIC, bad, chunk,
};
use crate::{Result, limits};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawSimple {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawChunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawExtendedChunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    len: U64,
}

const _: () = {
    assert!(size_of::<RawSimple>() == 16);
    assert!(size_of::<RawChunk>() == 20 && size_of::<RawExtendedChunk>() == 32);
};

/// A simple reply's header.
pub fn simple_header(cookie: u64, error: u32) -> [u8; 16] {
    let raw =
        RawSimple { magic: SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: cookie.into() };
    zerocopy::transmute!(raw)
}

/// A chunk, but for its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Whether it is the last of its reply.
    pub flags: ChunkFlags,
    /// One of [`super::chunk`], or unknown.
    pub kind: u16,
    /// Of the request.
    pub cookie: u64,
    /// Bytes of payload.
    pub len: u64,
}

/// Appends a chunk's header; `offset` is the request's.
pub fn chunk_header(mode: Mode, chunk: Chunk, offset: u64, out: &mut Vec<u8>) {
    let (flags, kind) = (chunk.flags.bits().into(), chunk.kind.into());
    let cookie = chunk.cookie.into();
    match mode {
        Mode::Simple | Mode::Structured => {
            debug_assert!(chunk.len <= u32::MAX.into());
            let (magic, len) = (CHUNK_MAGIC.into(), (chunk.len as u32).into());
            out.extend(RawChunk { magic, flags, kind, cookie, len }.as_bytes());
        }
        Mode::Extended => {
            let (magic, len) = (EXTENDED_CHUNK_MAGIC.into(), chunk.len.into());
            let raw = RawExtendedChunk { magic, flags, kind, cookie, offset: offset.into(), len };
            out.extend(raw.as_bytes());
        }
    }
}

/// Appends the payload of an error.
pub fn error_payload(error: u32, message: &str, out: &mut Vec<u8>) {
    let mut end = message.len().min(limits::NBD_MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    out.extend(error.to_be_bytes());
    out.extend((end as u16).to_be_bytes());
    out.extend(&message.as_bytes()[..end]);
}

/// A part of a range with one status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockDescriptor {
    /// Bytes.
    pub len: u64,
    /// What the context says of them.
    pub status: u64,
}

/// Appends the payload of a block status: of 64 bits where headers are extended. Descriptors of 32
/// bits have lengths and status below 2^32.
pub fn block_status(mode: Mode, context: u32, blocks: &[BlockDescriptor], out: &mut Vec<u8>) {
    out.extend(context.to_be_bytes());
    match mode {
        Mode::Simple | Mode::Structured => blocks.iter().for_each(|block| {
            debug_assert!((block.len | block.status) <= u32::MAX.into());
            out.extend((block.len as u32).to_be_bytes());
            out.extend((block.status as u32).to_be_bytes());
        }),
        Mode::Extended => {
            out.extend((blocks.len() as u32).to_be_bytes());
            blocks.iter().for_each(|block| {
                out.extend(block.len.to_be_bytes());
                out.extend(block.status.to_be_bytes());
            });
        }
    }
}

/// The beginning of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// Of a simple one.
    Simple {
        /// Of the request.
        cookie: u64,
        /// 0: none.
        error: u32,
    },
    /// Of a chunk.
    Chunk(Chunk),
}

/// Which headers there are, by their first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderKind {
    /// Of a simple reply.
    Simple,
    /// Of a chunk.
    Structured,
    /// Of an extended chunk.
    Extended,
}

impl HeaderKind {
    /// By the first four bytes; `None` if fewer are there.
    ///
    /// # Errors
    /// Where a connection of this mode has no such reply.
    pub fn of(mode: Mode, bytes: &[u8]) -> Result<Option<Self>> {
        let Some(magic) = Parts(bytes).u32() else { return Ok(None) };
        match (mode, magic) {
            (Mode::Simple | Mode::Structured, SIMPLE_REPLY_MAGIC) => Ok(Some(Self::Simple)),
            (Mode::Structured, CHUNK_MAGIC) => Ok(Some(Self::Structured)),
            (Mode::Extended, EXTENDED_CHUNK_MAGIC) => Ok(Some(Self::Extended)),
            _ => Err(bad(format!("a reply that begins with {magic:#x}"))),
        }
    }

    /// Bytes of it.
    pub const fn len(self) -> usize {
        match self {
            Self::Simple => size_of::<RawSimple>(),
            Self::Structured => size_of::<RawChunk>(),
            Self::Extended => size_of::<RawExtendedChunk>(),
        }
    }

    /// Whether it has none, which no header is like.
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl Header {
    /// From the first bytes of `bytes`; `None` if more are needed.
    ///
    /// # Errors
    /// As of [`HeaderKind::of`].
    pub fn decode(mode: Mode, bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(kind) = HeaderKind::of(mode, bytes)? else { return Ok(None) };
        let header = match kind {
            HeaderKind::Simple => RawSimple::ref_from_prefix(bytes)
                .ok()
                .map(|(raw, _)| Self::Simple { cookie: raw.cookie.get(), error: raw.error.get() }),
            HeaderKind::Structured => RawChunk::ref_from_prefix(bytes).ok().map(|(raw, _)| {
                Self::Chunk(Chunk {
                    flags: ChunkFlags::from_bits_retain(raw.flags.get()),
                    kind: raw.kind.get(),
                    cookie: raw.cookie.get(),
                    len: raw.len.get().into(),
                })
            }),
            HeaderKind::Extended => {
                RawExtendedChunk::ref_from_prefix(bytes).ok().map(|(raw, _)| {
                    Self::Chunk(Chunk {
                        flags: ChunkFlags::from_bits_retain(raw.flags.get()),
                        kind: raw.kind.get(),
                        cookie: raw.cookie.get(),
                        len: raw.len.get(),
                    })
                })
            }
        };
        Ok(header.map(|header| (header, kind.len())))
    }
}

/// The payload of a chunk that is not data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// Zeros.
    Hole {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Block descriptors.
    Status {
        /// Of which context.
        context: u32,
        /// In order.
        blocks: Vec<BlockDescriptor>,
    },
    /// An error.
    Error {
        /// One of [`super::error_value`], if the server keeps to the protocol.
        error: u32,
        /// For people.
        message: String,
        /// Where, if it says so.
        offset: Option<u64>,
    },
}

/// The payload of a chunk of this kind, which is not [`chunk::OFFSET_DATA`].
///
/// # Errors
/// Where its parts do not fit its length, and where the kind is unknown and no error.
pub fn decode_payload(kind: u16, bytes: &[u8]) -> Result<Payload> {
    let broken = || bad(format!("a chunk of kind {kind:#x} with {} bytes", bytes.len()));
    let mut parts = Parts(bytes);
    let payload = match kind {
        chunk::NONE => Some(Payload::None),
        chunk::OFFSET_HOLE => {
            parts.u64().zip(parts.u32()).map(|(offset, len)| Payload::Hole { offset, len })
        }
        chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
            let context = parts.u32();
            let blocks = descriptors(kind, &mut parts);
            context.zip(blocks).map(|(context, blocks)| Payload::Status { context, blocks })
        }
        // Of unknown errors the first parts are known.
        kind if kind & chunk::IS_ERROR != 0 => {
            let (error, len) = parts.u32().zip(parts.u16()).ok_or_else(broken)?;
            let message = parts.bytes(len.into()).ok_or_else(broken)?;
            let message = String::from_utf8_lossy(message).into_owned();
            let offset = (kind == chunk::ERROR_OFFSET).then(|| parts.u64()).flatten();
            return Ok(Payload::Error { error, message, offset });
        }
        _ => None,
    };
    payload.filter(|_| parts.is_empty()).ok_or_else(broken)
}

/// Block descriptors up to the end of a payload.
pub(crate) fn descriptors(kind: u16, parts: &mut Parts<'_>) -> Option<Vec<BlockDescriptor>> {
    let wide = kind == chunk::BLOCK_STATUS_EXT;
    let count = match wide {
        true => Some(parts.u32()? as usize),
        false => None,
    };
    let size = if wide { 16 } else { 8 };
    let fits = parts.0.len().is_multiple_of(size);
    let held = parts.0.len() / size;
    if !fits || held == 0 || count.is_some_and(|count| count != held) {
        return None;
    }
    let mut blocks = Vec::with_capacity(held);
    for _ in 0..held {
        let (len, status) = match wide {
            true => (parts.u64()?, parts.u64()?),
            false => (parts.u32()?.into(), parts.u32()?.into()),
        };
        if len == 0 {
            return None;
        }
        blocks.push(BlockDescriptor { len, status });
    }
    Some(blocks)
}
