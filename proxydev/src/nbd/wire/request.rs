//! Requests.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CommandFlags, EXTENDED_REQUEST_MAGIC, Mode, REQUEST_MAGIC, bad};
use crate::Result;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawExtendedRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    len: U64,
}

const _: () = assert!(size_of::<RawRequest>() == 28 && size_of::<RawExtendedRequest>() == 32);

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bytes.
    Read,
    /// Put bytes there.
    Write,
    /// No more requests come.
    Disconnect,
    /// Make durable what was answered.
    Flush,
    /// Not used any more.
    Trim,
    /// Will be read soon.
    Cache,
    /// Put zeros there.
    WriteZeroes,
    /// How a range is allocated.
    BlockStatus,
    /// Something else.
    Other(u16),
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Other(other),
        }
    }
}

impl From<Command> for u16 {
    fn from(command: Command) -> Self {
        match command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Other(number) => number,
        }
    }
}

/// A request, but for its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What.
    pub command: Command,
    /// How; unknown ones are kept.
    pub flags: CommandFlags,
    /// Comes back with the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes of the export, or of the payload.
    pub len: u64,
}

impl Request {
    /// Bytes of a request's header.
    pub const fn header_len(mode: Mode) -> usize {
        match mode {
            Mode::Simple | Mode::Structured => size_of::<RawRequest>(),
            Mode::Extended => size_of::<RawExtendedRequest>(),
        }
    }

    /// From the first bytes of `bytes`, which are [`Self::header_len`] at least.
    ///
    /// # Errors
    /// Where it does not begin as requests do: nothing behind it can be made sense of.
    pub fn decode(mode: Mode, bytes: &[u8]) -> Result<Self> {
        let short = || bad("a request is cut off".into());
        let (magic, expected, request) = match mode {
            Mode::Simple | Mode::Structured => {
                let (raw, _) = RawRequest::ref_from_prefix(bytes).map_err(|_| short())?;
                let request = Self::new(raw.command, raw.flags, raw.cookie, raw.offset);
                let len = raw.len.get().into();
                (raw.magic.get(), REQUEST_MAGIC, Self { len, ..request })
            }
            Mode::Extended => {
                let (raw, _) = RawExtendedRequest::ref_from_prefix(bytes).map_err(|_| short())?;
                let request = Self::new(raw.command, raw.flags, raw.cookie, raw.offset);
                let len = raw.len.get();
                (raw.magic.get(), EXTENDED_REQUEST_MAGIC, Self { len, ..request })
            }
        };
        if magic != expected {
            return Err(bad(format!("a request that begins with {magic:#x}")));
        }
        Ok(request)
    }

    fn new(command: U16, flags: U16, cookie: U64, offset: U64) -> Self {
        Self {
            command: command.get().into(),
            flags: CommandFlags::from_bits_retain(flags.get()),
            cookie: cookie.get(),
            offset: offset.get(),
            len: 0,
        }
    }

    /// Bytes that follow this header.
    pub fn payload_len(&self, mode: Mode) -> u64 {
        // With extended headers any request may have one, and says so; a write has one whether it
        // says so or not.
        let said = mode == Mode::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if said || self.command == Command::Write { self.len } else { 0 }
    }

    /// Appends it. The length fits 32 bits unless headers are extended.
    pub fn encode(&self, mode: Mode, out: &mut Vec<u8>) {
        let (flags, command) = (self.flags.bits().into(), u16::from(self.command).into());
        let (cookie, offset) = (self.cookie.into(), self.offset.into());
        match mode {
            Mode::Simple | Mode::Structured => {
                debug_assert!(self.len <= u32::MAX.into());
                let (magic, len) = (REQUEST_MAGIC.into(), (self.len as u32).into());
                let raw = RawRequest { magic, flags, command, cookie, offset, len };
                out.extend(raw.as_bytes());
            }
            Mode::Extended => {
                let (magic, len) = (EXTENDED_REQUEST_MAGIC.into(), self.len.into());
                let raw = RawExtendedRequest { magic, flags, command, cookie, offset, len };
                out.extend(raw.as_bytes());
            }
        }
    }
}
