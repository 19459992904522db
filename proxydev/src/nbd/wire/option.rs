//! Options and the answers to them.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ExportFlags, OPTION_MAGIC, OPTION_REPLY_MAGIC, Parts, bad, info, rep, text};
use crate::{Result, limits};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawOption {
    magic: U64,
    option: U32,
    len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawOptionReply {
    magic: U64,
    option: U32,
    kind: U32,
    len: U32,
}

const _: () = assert!(size_of::<RawOption>() == 16 && size_of::<RawOptionReply>() == 20);

/// Which option, and how many bytes of data it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// One of [`super::opt`], or unknown.
    pub option: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Bytes of it.
    pub const LEN: usize = size_of::<RawOption>();

    /// From bytes.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self> {
        let raw = RawOption::read_from_bytes(bytes).map_err(|_| bad("a short option".into()))?;
        if raw.magic.get() != OPTION_MAGIC {
            return Err(bad(format!("an option that begins with {:#x}", raw.magic.get())));
        }
        Ok(Self { option: raw.option.get(), len: raw.len.get() })
    }

    /// An option with its data, to be sent.
    pub fn encode(option: u32, data: &[u8]) -> Vec<u8> {
        let raw = RawOption {
            magic: OPTION_MAGIC.into(),
            option: option.into(),
            len: (data.len() as u32).into(),
        };
        [raw.as_bytes(), data].concat()
    }
}

/// What an answer answers, its kind, and how many bytes of data it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReplyHeader {
    /// The option.
    pub option: u32,
    /// One of [`super::rep`], or unknown.
    pub kind: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Bytes of it.
    pub const LEN: usize = size_of::<RawOptionReply>();

    /// From bytes.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self> {
        let raw = RawOptionReply::read_from_bytes(bytes);
        let raw = raw.map_err(|_| bad("a short answer to an option".into()))?;
        if raw.magic.get() != OPTION_REPLY_MAGIC {
            return Err(bad(format!("an answer that begins with {:#x}", raw.magic.get())));
        }
        Ok(Self { option: raw.option.get(), kind: raw.kind.get(), len: raw.len.get() })
    }
}

/// An answer to an option with its data, to be sent.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let raw = RawOptionReply {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        len: (data.len() as u32).into(),
    };
    [raw.as_bytes(), data].concat()
}

/// The name in EXPORT_NAME.
pub fn decode_export(data: &[u8]) -> Option<&str> {
    text(data)
}

/// Data of INFO and GO.
pub fn encode_go(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = Vec::with_capacity(6 + name.len() + 2 * requests.len());
    push_string(&mut data, name);
    data.extend((requests.len() as u16).to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

/// The name in INFO or GO and what is asked of the export.
pub fn decode_go(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut parts = Parts(data);
    let name = parts.string()?;
    let count = parts.u16()?;
    let requests = (0..count).map(|_| parts.u16()).collect::<Option<Vec<_>>>()?;
    parts.is_empty().then_some((name, requests))
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(PartialEq, Eq, Debug)]
pub struct MetaQuery<'a> {
    /// Of which export.
    pub export: &'a str,
    /// Names, or beginnings of names.
    pub queries: Vec<&'a str>,
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn encode_meta(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    push_string(&mut data, export);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| push_string(&mut data, query));
    data
}

/// What is asked with LIST_META_CONTEXT or SET_META_CONTEXT.
pub fn decode_meta(data: &[u8]) -> Option<MetaQuery<'_>> {
    let mut parts = Parts(data);
    let export = parts.string()?;
    let count = parts.u32()? as usize;
    // Each takes four bytes at least, so that this is no more than the data are long.
    if count > parts.0.len() / 4 {
        return None;
    }
    let queries = (0..count).map(|_| parts.string()).collect::<Option<Vec<_>>>()?;
    parts.is_empty().then_some(MetaQuery { export, queries })
}

/// Data of an answer to LIST: an export's name and description.
pub fn encode_server(name: &str, description: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(4 + name.len() + description.len());
    push_string(&mut data, name);
    data.extend(description.as_bytes());
    data
}

/// Data of an answer to LIST_META_CONTEXT or SET_META_CONTEXT: a context's number and name.
pub fn encode_reply_meta(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// The export's name and description in an answer to LIST.
pub fn decode_server(data: &[u8]) -> Option<(&str, &str)> {
    let mut parts = Parts(data);
    let name = parts.string()?;
    Some((name, text(parts.0)?))
}

/// The context's number and name in an answer to SET_META_CONTEXT.
pub fn decode_reply_meta(data: &[u8]) -> Option<(u32, &str)> {
    let mut parts = Parts(data);
    let id = parts.u32()?;
    Some((id, text(parts.0)?))
}

/// One thing about an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Info<'a> {
    /// Size and flags.
    Export(u64, ExportFlags),
    /// Its name.
    Name(&'a str),
    /// What it is.
    Description(&'a str),
    /// Smallest, best and largest request, in bytes.
    BlockSize(u32, u32, u32),
    /// Something else.
    Other(u16),
}

impl Info<'_> {
    /// The whole answer.
    pub fn encode(&self, option: u32) -> Vec<u8> {
        let mut data = Vec::new();
        match self {
            Self::Export(size, flags) => {
                data.extend(info::EXPORT.to_be_bytes());
                data.extend(super::export_answer(*size, *flags));
            }
            Self::Name(name) => {
                data.extend(info::NAME.to_be_bytes());
                data.extend(name.as_bytes());
            }
            Self::Description(what) => {
                data.extend(info::DESCRIPTION.to_be_bytes());
                data.extend(what.as_bytes());
            }
            Self::BlockSize(min, best, max) => {
                data.extend(info::BLOCK_SIZE.to_be_bytes());
                data.extend([min, best, max].into_iter().flat_map(|size| size.to_be_bytes()));
            }
            Self::Other(kind) => data.extend(kind.to_be_bytes()),
        }
        option_reply(option, rep::INFO, &data)
    }
}

/// From the data of an answer of the kind INFO.
pub fn decode_reply_info(data: &[u8]) -> Option<Info<'_>> {
    let mut parts = Parts(data);
    let info = match parts.u16()? {
        info::EXPORT => {
            let (size, flags) = (parts.u64()?, parts.u16()?);
            Info::Export(size, ExportFlags::from_bits_retain(flags))
        }
        info::NAME => return Some(Info::Name(text(parts.0)?)),
        info::DESCRIPTION => return Some(Info::Description(text(parts.0)?)),
        info::BLOCK_SIZE => Info::BlockSize(parts.u32()?, parts.u32()?, parts.u32()?),
        other => return Some(Info::Other(other)),
    };
    parts.is_empty().then_some(info)
}

fn push_string(data: &mut Vec<u8>, string: &str) {
    debug_assert!(string.len() <= limits::NBD_MAX_STRING);
    data.extend((string.len() as u32).to_be_bytes());
    data.extend(string.as_bytes());
}
