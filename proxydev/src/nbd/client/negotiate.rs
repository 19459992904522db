//! The client's side of a handshake.

use std::io::{self, IoSliceMut};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use oslet::sys::vectored::Piece;
use rustix::event::PollFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection};

use crate::nbd::stream::Stream;
use crate::nbd::uri::{Address, Uri};
use crate::nbd::wire::{
    self, ExportFlags, HandshakeFlags, Info, Mode, OptionHeader, OptionReplyHeader, info, opt, rep,
};
use crate::{Error, Result, limits};

/// How much of the protocol is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effort {
    /// What the server has.
    Full,
    /// For servers that hang up on options that they do not know.
    NameOnly,
}

/// What was agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Terms {
    pub(super) size: u64,
    pub(super) flags: ExportFlags,
    /// Smallest, best and largest request.
    pub(super) blocks: (u32, u32, u32),
    pub(super) mode: Mode,
}

/// Connects and takes the export.
pub(super) fn connect(
    uri: &Uri,
    tls: Option<&Arc<ClientConfig>>,
    effort: Effort,
    deadline: Instant,
) -> Result<(Stream, Terms)> {
    let failed = |error: io::Error| Error::Protocol(format!("{}: {error}", uri.address));
    let stream = dial(&uri.address, deadline).map_err(failed)?;
    stream.prepare().map_err(failed)?;
    let mut talk = Talk { stream, deadline, uri };
    let greeting = wire::decode_greeting(&talk.array()?)?;
    if !greeting.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(Error::Protocol(format!("{}: not a fixed newstyle server", uri.address)));
    }
    talk.send(&(greeting & HandshakeFlags::all()).bits().to_be_bytes())?;
    if let Some(config) = tls {
        talk = talk.secure(config)?;
    }
    let mut mode = Mode::Simple;
    if effort == Effort::Full {
        if talk.agrees(opt::EXTENDED_HEADERS)? {
            mode = Mode::Extended;
        } else if talk.agrees(opt::STRUCTURED_REPLY)? {
            mode = Mode::Structured;
        }
        if let Some(terms) = talk.go(mode)? {
            return Ok((talk.stream, terms));
        }
    }
    let terms = talk.export_name(mode, greeting.contains(HandshakeFlags::NO_ZEROES))?;
    Ok((talk.stream, terms))
}

fn dial(address: &Address, deadline: Instant) -> io::Result<Stream> {
    match address {
        Address::Unix(path) => Ok(UnixStream::connect(path)?.into()),
        Address::Tcp(host, port) => {
            let mut last = io::ErrorKind::AddrNotAvailable.into();
            for address in (host.as_str(), *port).to_socket_addrs()? {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                match TcpStream::connect_timeout(&address, left) {
                    Ok(stream) => return Ok(stream.into()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

struct Talk<'a> {
    stream: Stream,
    deadline: Instant,
    uri: &'a Uri,
}

impl Talk<'_> {
    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Protocol(format!("{}: {error}", self.uri.address))
    }

    fn send(&self, mut bytes: &[u8]) -> Result<()> {
        loop {
            let sent = match bytes.is_empty() {
                true => self.stream.flush().map(|()| 0),
                false => self.stream.send(&[Piece::Bytes(bytes)]),
            };
            match sent {
                Ok(0) => return Ok(()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.wait(error, PollFlags::OUT)?,
            }
        }
    }

    fn receive(&self, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            match self.stream.recv(&mut [IoSliceMut::new(into)]) {
                Ok(0) => return Err(self.failed("it hung up")),
                Ok(count) => into = &mut into[count..],
                Err(error) => self.wait(error, PollFlags::IN)?,
            }
        }
        Ok(())
    }

    fn wait(&self, error: io::Error, interest: PollFlags) -> Result<()> {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(self.failed(error));
        }
        self.stream.wait(interest, Some(self.deadline)).map_err(|error| self.failed(error))
    }

    fn array<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }

    /// One answer to an option: its kind and data.
    fn answer(&self, option: u32) -> Result<(u32, Vec<u8>)> {
        let header = OptionReplyHeader::decode(&self.array()?)?;
        if header.option != option || header.len as usize > limits::NBD_MAX_OPTION {
            return Err(self.failed(format!("{header:?} answers option {option}")));
        }
        let mut data = vec![0; header.len as usize];
        self.receive(&mut data)?;
        Ok((header.kind, data))
    }

    fn refused(&self, kind: u32, data: &[u8]) -> Error {
        let why = match kind {
            rep::ERR_UNKNOWN => "no such export".to_owned(),
            rep::ERR_TLS_REQD => "it wants TLS; use nbds".to_owned(),
            kind => format!("refused with {kind:#x}"),
        };
        let (export, said) = (&self.uri.export, String::from_utf8_lossy(data));
        self.failed(format!("export {export:?}: {why} {said}"))
    }

    /// Asks for something without data that the server may not have.
    fn agrees(&self, option: u32) -> Result<bool> {
        self.send(&OptionHeader::encode(option, b""))?;
        let (kind, data) = self.answer(option)?;
        match kind {
            rep::ACK => Ok(true),
            rep::ERR_TLS_REQD => Err(self.refused(kind, &data)),
            kind if kind & rep::ERROR != 0 => Ok(false),
            kind => Err(self.failed(format!("{kind} answers option {option}"))),
        }
    }

    fn secure(self, config: &Arc<ClientConfig>) -> Result<Self> {
        if !self.agrees(opt::STARTTLS)? {
            return Err(self.failed("it has no TLS; use nbd"));
        }
        let host = match &self.uri.address {
            Address::Unix(_) => "localhost",
            Address::Tcp(host, _) => host,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| self.failed(error))?;
        let tls = ClientConnection::new(Arc::clone(config), name);
        let tls = Connection::Client(tls.map_err(|error| self.failed(error))?);
        let Self { stream, deadline, uri } = self;
        let failed = |error: io::Error| Error::Protocol(format!("{}: tls: {error}", uri.address));
        let stream = stream.secure(tls, deadline).map_err(failed)?;
        Ok(Self { stream, deadline, uri })
    }

    /// `None` where the server has no GO.
    fn go(&self, mode: Mode) -> Result<Option<Terms>> {
        let data = wire::encode_go(&self.uri.export, &[info::BLOCK_SIZE]);
        self.send(&OptionHeader::encode(opt::GO, &data))?;
        let (mut export, mut blocks) = (None, (1, 4096, limits::NBD_MAX_PAYLOAD));
        // As many kinds of information as there are, and some to come.
        for _ in 0..limits::NBD_MAX_OPTIONS {
            let (kind, data) = self.answer(opt::GO)?;
            match kind {
                rep::INFO => match wire::decode_reply_info(&data) {
                    Some(Info::Export(size, flags)) => export = Some((size, flags)),
                    Some(Info::BlockSize(min, best, max)) => blocks = (min, best, max),
                    Some(_) => {}
                    None => return Err(self.failed("broken information")),
                },
                rep::ACK => {
                    let (size, flags) = export.ok_or_else(|| self.failed("no size"))?;
                    return Ok(Some(Terms { size, flags, blocks, mode }));
                }
                rep::ERR_UNSUP => return Ok(None),
                kind => return Err(self.refused(kind, &data)),
            }
        }
        Err(self.failed("no end of information"))
    }

    fn export_name(&self, mode: Mode, no_zeroes: bool) -> Result<Terms> {
        self.send(&OptionHeader::encode(opt::EXPORT_NAME, self.uri.export.as_bytes()))?;
        let size = u64::from_be_bytes(self.array()?);
        let flags = ExportFlags::from_bits_retain(u16::from_be_bytes(self.array()?));
        if !no_zeroes {
            self.receive(&mut [0; wire::EXPORT_PADDING])?;
        }
        Ok(Terms { size, flags, blocks: (1, 4096, limits::NBD_MAX_PAYLOAD), mode })
    }
}
