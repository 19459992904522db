//! The server's side of a handshake: bytes in, bytes out, no I/O.

use std::sync::Arc;

use super::export::{Export, Exports};
use super::wire::{self, HandshakeFlags, Info, Mode, OptionHeader, info, opt, rep};
use crate::{Result, limits};

/// The number under which `base:allocation` is reported.
pub const ALLOCATION_ID: u32 = 1;

/// Whether there is TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsPolicy {
    /// It is refused.
    Off,
    /// Whoever wants it gets it.
    Selective,
    /// Nothing is told or done without it.
    Forced,
}

/// What a handshake has led to.
#[derive(Debug)]
pub struct Agreed {
    /// Which export.
    pub export: Export,
    /// How requests and replies look.
    pub mode: Mode,
    /// Whether BLOCK_STATUS reports allocation.
    pub allocation: bool,
}

/// What comes behind the bytes that were taken.
#[derive(Debug)]
pub enum Step {
    /// More bytes.
    More,
    /// A TLS handshake, then the options anew. Bytes that were sent before it count for nothing,
    /// and there must be none.
    StartTls,
    /// Requests.
    Done(Box<Agreed>),
    /// The end of the connection, once the answers are sent.
    End,
}

/// A handshake under way.
pub struct Handshake {
    exports: Arc<dyn Exports>,
    policy: TlsPolicy,
    secure: bool,
    state: State,
    padding: bool,
    mode: Mode,
    /// The export that allocation was asked for.
    allocation: Option<String>,
    options: u32,
    stopping: bool,
}

enum State {
    Flags,
    Option,
    Data(OptionHeader),
    /// So many bytes are passed over, then the option is answered like this.
    Skip(OptionHeader, u32, u32),
}

impl Handshake {
    /// A handshake that has not begun; the [`wire::greeting`] is sent by the caller.
    pub fn new(exports: Arc<dyn Exports>, policy: TlsPolicy) -> Self {
        Self {
            exports,
            policy,
            secure: false,
            state: State::Flags,
            padding: true,
            mode: Mode::Simple,
            allocation: None,
            options: 0,
            stopping: false,
        }
    }

    /// From now on options are refused, as the server is about to end.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// TLS is in place: what was agreed on before counts for nothing.
    pub fn secured(&mut self) {
        self.secure = true;
        self.mode = Mode::Simple;
        self.allocation = None;
    }

    /// Takes bytes from the front of `input`: returns how many, none if more are needed. Answers
    /// are appended to `out`.
    ///
    /// # Errors
    /// When the other side does not keep to the protocol so far that the connection has to end.
    pub fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Step)> {
        match self.state {
            State::Flags => {
                let Some(bytes) = input.first_chunk() else { return Ok((0, Step::More)) };
                let flags = HandshakeFlags::from_bits_retain(u32::from_be_bytes(*bytes));
                if !flags.contains(HandshakeFlags::FIXED_NEWSTYLE)
                    || !HandshakeFlags::all().contains(flags)
                {
                    return Err(wire::bad(format!("client flags {:#x}", flags.bits())));
                }
                self.padding = !flags.contains(HandshakeFlags::NO_ZEROES);
                self.state = State::Option;
                Ok((bytes.len(), Step::More))
            }
            State::Option => {
                let Some(bytes) = input.first_chunk() else { return Ok((0, Step::More)) };
                let header = OptionHeader::decode(bytes)?;
                self.options += 1;
                if self.options > limits::NBD_MAX_OPTIONS || header.len > limits::NBD_MAX_SKIPPED {
                    return Err(wire::bad(format!(
                        "option {} of this client, {} bytes",
                        self.options, header.len
                    )));
                }
                self.state = match self.refusal(header) {
                    Some(kind) if header.option == opt::EXPORT_NAME => {
                        return Err(wire::bad(format!("EXPORT_NAME refused with {kind:#x}")));
                    }
                    Some(kind) => State::Skip(header, header.len, kind),
                    None => State::Data(header),
                };
                let (more, step) = self.rest_of_option(&input[bytes.len()..], out)?;
                Ok((bytes.len() + more, step))
            }
            State::Data(_) | State::Skip(..) => self.rest_of_option(input, out),
        }
    }

    /// Why an option is refused whatever its data are.
    fn refusal(&self, header: OptionHeader) -> Option<u32> {
        let known = matches!(header.option, 1..=3 | 5..=11);
        let tls = matches!(header.option, opt::STARTTLS | opt::ABORT);
        if self.policy == TlsPolicy::Forced && !self.secure && !tls {
            Some(rep::ERR_TLS_REQD)
        } else if self.stopping && header.option != opt::ABORT {
            Some(rep::ERR_SHUTDOWN)
        } else if !known {
            Some(rep::ERR_UNSUP)
        } else if header.len as usize > limits::NBD_MAX_OPTION {
            Some(rep::ERR_TOO_BIG)
        } else {
            None
        }
    }

    fn rest_of_option(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Step)> {
        match self.state {
            State::Data(header) => {
                let Some(data) = input.get(..header.len as usize) else {
                    return Ok((0, Step::More));
                };
                self.state = State::Option;
                Ok((data.len(), self.option(header.option, data, out)?))
            }
            State::Skip(header, left, kind) => {
                let taken = input.len().min(left as usize);
                let left = left - taken as u32;
                if left > 0 {
                    self.state = State::Skip(header, left, kind);
                } else {
                    self.state = State::Option;
                    out.extend(wire::option_reply(header.option, kind, b""));
                }
                Ok((taken, Step::More))
            }
            State::Flags | State::Option => Ok((0, Step::More)),
        }
    }

    fn option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Step> {
        let mut reply = |kind| out.extend(wire::option_reply(option, kind, b""));
        match option {
            opt::EXPORT_NAME => return self.export_name(data, out),
            opt::ABORT => {
                reply(rep::ACK);
                return Ok(Step::End);
            }
            opt::INFO | opt::GO => return Ok(self.go(option, data, out)),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta(option, data, out),
            // The others have no data.
            _ if !data.is_empty() => reply(rep::ERR_INVALID),
            opt::LIST => {
                for (name, description) in self.exports.list() {
                    let data = wire::encode_server(&name, &description);
                    out.extend(wire::option_reply(option, rep::SERVER, &data));
                }
                out.extend(wire::option_reply(option, rep::ACK, b""));
            }
            opt::STARTTLS if self.secure => reply(rep::ERR_INVALID),
            opt::STARTTLS if self.policy == TlsPolicy::Off => reply(rep::ERR_POLICY),
            opt::STARTTLS => {
                reply(rep::ACK);
                return Ok(Step::StartTls);
            }
            opt::STRUCTURED_REPLY if self.mode == Mode::Extended => {
                reply(rep::ERR_EXT_HEADER_REQD);
            }
            opt::STRUCTURED_REPLY => {
                self.mode = Mode::Structured;
                reply(rep::ACK);
            }
            opt::EXTENDED_HEADERS => {
                self.mode = Mode::Extended;
                reply(rep::ACK);
            }
            _ => reply(rep::ERR_UNSUP),
        }
        Ok(Step::More)
    }

    /// There is no way to answer that there is no such export.
    fn export_name(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<Step> {
        let name = wire::decode_export(data);
        let Some(export) = name.and_then(|name| self.exports.open(name)) else {
            return Err(wire::bad(format!("no export {:?}", String::from_utf8_lossy(data))));
        };
        let geometry = export.geometry(self.mode);
        out.extend(wire::export_answer(geometry.size, geometry.flags));
        if self.padding {
            out.extend([0; wire::EXPORT_PADDING]);
        }
        Ok(Step::Done(self.agree(export, name.unwrap_or_default())))
    }

    fn go(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        let mut reply = |kind| out.extend(wire::option_reply(option, kind, b""));
        let Some((name, requests)) = wire::decode_go(data) else {
            reply(rep::ERR_INVALID);
            return Step::More;
        };
        let Some(export) = self.exports.open(name) else {
            reply(rep::ERR_UNKNOWN);
            return Step::More;
        };
        let geometry = export.geometry(self.mode);
        let mut tell = |info: Info<'_>| out.extend(info.encode(option));
        tell(Info::Export(geometry.size, geometry.flags));
        tell(Info::BlockSize(geometry.block, geometry.best, limits::NBD_MAX_PAYLOAD));
        if requests.contains(&info::NAME) {
            tell(Info::Name(&export.name));
        }
        if requests.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            tell(Info::Description(&export.description));
        }
        out.extend(wire::option_reply(option, rep::ACK, b""));
        match option {
            opt::GO => Step::Done(self.agree(export, name)),
            _ => Step::More,
        }
    }

    fn meta(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let mut reply = |kind, data: &[u8]| out.extend(wire::option_reply(option, kind, data));
        let set = option == opt::SET_META_CONTEXT;
        if set {
            // Whatever comes of it, what was chosen before is void.
            self.allocation = None;
        }
        let Some(meta) = wire::decode_meta(data).filter(|_| self.mode != Mode::Simple) else {
            return reply(rep::ERR_INVALID, b"");
        };
        if self.exports.open(meta.export).is_none() {
            return reply(rep::ERR_UNKNOWN, b"");
        }
        let asked = match set {
            true => meta.queries.contains(&wire::BASE_ALLOCATION),
            false => {
                let matches = |query: &&str| matches!(*query, "base:" | wire::BASE_ALLOCATION);
                meta.queries.is_empty() || meta.queries.iter().any(matches)
            }
        };
        if asked {
            let id = if set { ALLOCATION_ID } else { 0 };
            let context = wire::encode_reply_meta(id, wire::BASE_ALLOCATION);
            reply(rep::META_CONTEXT, &context);
            if set {
                self.allocation = Some(meta.export.to_owned());
            }
        }
        reply(rep::ACK, b"");
    }

    fn agree(&self, export: Export, name: &str) -> Box<Agreed> {
        // What was chosen for another name does not count.
        let allocation = self.allocation.as_deref() == Some(name);
        Box::new(Agreed { export, mode: self.mode, allocation })
    }
}

#[cfg(test)]
mod tests;
