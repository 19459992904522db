//! The server's side of requests: which are carried out, which are refused and how, and what
//! replies look like. No I/O.

use rustix::io::Errno;

use super::export::Geometry;
use super::handshake::ALLOCATION_ID;
use super::wire::{
    self, BlockDescriptor, Chunk, ChunkFlags, Command, CommandFlags, ExportFlags, Mode, Request,
    chunk,
};
use crate::{Result, limits};

/// What is done with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is carried out.
    Do,
    /// Nothing is left to do: success.
    Nothing,
    /// Its payload is passed over, then it is answered.
    Refuse(Errno, &'static str),
    /// No more requests are read.
    Disconnect,
}

/// What one connection agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Of the export.
    pub geometry: Geometry,
    /// How requests and replies look.
    pub mode: Mode,
    /// Whether BLOCK_STATUS reports allocation.
    pub allocation: bool,
}

impl Rules {
    /// What is done with a request, of which the header has been read.
    ///
    /// # Errors
    /// When its payload is too long to be passed over: the connection has to end.
    pub fn judge(&self, request: &Request) -> Result<Verdict> {
        let payload = request.payload_len(self.mode);
        if payload > limits::NBD_MAX_PAYLOAD.into() {
            return Err(wire::bad(format!("{:?} with {payload} bytes", request.command)));
        }
        Ok(self.verdict(request))
    }

    fn verdict(&self, request: &Request) -> Verdict {
        let Request { command, flags, offset, len, .. } = *request;
        let Some(allowed) = self.allowed(command) else {
            return Verdict::Refuse(Errno::INVAL, "no such command");
        };
        if command == Command::Disconnect {
            return Verdict::Disconnect;
        }
        if !allowed.contains(flags) {
            return Verdict::Refuse(Errno::INVAL, "unknown or unfit flags");
        }
        if command == Command::Flush {
            return match (offset, len) {
                (0, 0) => Verdict::Do,
                _ => Verdict::Refuse(Errno::INVAL, "a flush has neither offset nor length"),
            };
        }
        let changes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && self.geometry.flags.contains(ExportFlags::READ_ONLY) {
            return Verdict::Refuse(Errno::PERM, "the export is read-only");
        }
        if command == Command::Read && len > limits::NBD_MAX_PAYLOAD.into() {
            return Verdict::Refuse(Errno::OVERFLOW, "longer than the advertised maximum");
        }
        if (offset | len) & u64::from(self.geometry.block - 1) != 0 {
            return Verdict::Refuse(Errno::INVAL, "not in whole blocks");
        }
        if offset.checked_add(len).is_none_or(|end| end > self.geometry.size) {
            let grows = matches!(command, Command::Write | Command::WriteZeroes);
            let errno = if grows { Errno::NOSPC } else { Errno::INVAL };
            return Verdict::Refuse(errno, "beyond the end");
        }
        match (command, len) {
            (Command::BlockStatus, 0) => Verdict::Refuse(Errno::INVAL, "of no bytes"),
            // What is cached is the device's business.
            (Command::Cache, _) | (_, 0) => Verdict::Nothing,
            _ => Verdict::Do,
        }
    }

    /// The flags that a command may have; `None` if there is no such command here.
    fn allowed(&self, command: Command) -> Option<CommandFlags> {
        let fua = CommandFlags::FUA;
        let flags = match command {
            Command::Read if self.mode == Mode::Simple => fua,
            Command::Read => fua | CommandFlags::DF,
            Command::Write if self.mode == Mode::Extended => fua | CommandFlags::PAYLOAD_LEN,
            Command::Write | Command::Flush | Command::Trim | Command::Cache => fua,
            Command::WriteZeroes => fua | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Command::BlockStatus if self.allocation => fua | CommandFlags::REQ_ONE,
            Command::Disconnect => CommandFlags::all(),
            Command::BlockStatus | Command::Other(_) => return None,
        };
        Some(flags)
    }

    /// A reply that says: done.
    pub fn done(&self, request: &Request) -> Vec<u8> {
        match self.mode {
            // Only reads and status must be answered in chunks.
            Mode::Simple => wire::simple_header(request.cookie, 0).to_vec(),
            Mode::Structured if !in_chunks(request.command) => {
                wire::simple_header(request.cookie, 0).to_vec()
            }
            _ => self.chunk(request, chunk::NONE, 0),
        }
    }

    /// What comes before the bytes of a read.
    pub fn data(&self, request: &Request) -> Vec<u8> {
        if self.mode == Mode::Simple {
            return wire::simple_header(request.cookie, 0).to_vec();
        }
        let mut head = self.chunk(request, chunk::OFFSET_DATA, request.len + 8);
        head.extend(request.offset.to_be_bytes());
        head
    }

    /// A reply that says: failed.
    pub fn failed(&self, request: &Request, errno: Errno, message: &str) -> Vec<u8> {
        let error = self.error(request, errno);
        if self.mode == Mode::Simple {
            return wire::simple_header(request.cookie, error).to_vec();
        }
        let mut payload = Vec::new();
        wire::error_payload(error, message, &mut payload);
        let mut head = self.chunk(request, chunk::ERROR, payload.len() as u64);
        head.extend(payload);
        head
    }

    fn error(&self, request: &Request, errno: Errno) -> u32 {
        let fast = request.flags.contains(CommandFlags::FAST_ZERO);
        match wire::error_to_wire(errno) {
            // It says something of fast zeros alone.
            wire::error_value::NOTSUP if !fast => wire::error_value::INVAL,
            error => error,
        }
    }

    /// A reply to BLOCK_STATUS. At least one block; together they may be less than was asked for.
    pub fn status(&self, request: &Request, blocks: &[BlockDescriptor]) -> Vec<u8> {
        let mut payload = Vec::new();
        wire::block_status(self.mode, ALLOCATION_ID, blocks, &mut payload);
        let kind = match self.mode {
            Mode::Extended => chunk::BLOCK_STATUS_EXT,
            Mode::Simple | Mode::Structured => chunk::BLOCK_STATUS,
        };
        let mut head = self.chunk(request, kind, payload.len() as u64);
        head.extend(payload);
        head
    }

    fn chunk(&self, request: &Request, kind: u16, len: u64) -> Vec<u8> {
        let mut head = Vec::with_capacity(48);
        let chunk = Chunk { flags: ChunkFlags::DONE, kind, cookie: request.cookie, len };
        wire::chunk_header(self.mode, chunk, request.offset, &mut head);
        head
    }
}

fn in_chunks(command: Command) -> bool {
    matches!(command, Command::Read | Command::BlockStatus)
}

#[cfg(test)]
mod tests;
