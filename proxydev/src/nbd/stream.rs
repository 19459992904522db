//! A connection's bytes: a Unix or TCP socket, or TLS over either. Nothing here waits but
//! [`Stream::wait`].

use std::io::{self, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use oslet::sys::vectored::{self, Piece};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::time::Timespec;
use rustls::Connection;

/// Bytes given to TLS at a time.
const RECORD: usize = 16 << 10;
/// Bytes that TLS may hold encrypted and unsent.
const TLS_BUFFER: usize = 256 << 10;

/// A socket that is never waited for.
#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Bytes in both directions.
pub(crate) struct Stream {
    socket: Socket,
    tls: Option<Mutex<Connection>>,
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self { socket: Socket::Unix(socket), tls: None }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self { socket: Socket::Tcp(socket), tls: None }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl Stream {
    /// Sets the socket up: no waiting, no delays, room for a large answer.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                // As much as one answer of common size; what the system allows will do.
                let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER);
            }
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(socket, true)?;
            }
        }
        Ok(())
    }

    /// Whether both ends share memory bandwidth and processors, so that looking often pays.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }

    /// Puts TLS over the socket: the handshake, until `deadline`.
    pub(crate) fn secure(self, mut tls: Connection, deadline: Instant) -> io::Result<Self> {
        tls.set_buffer_limit(Some(TLS_BUFFER));
        while tls.is_handshaking() || tls.wants_write() {
            let mut socket = Raw(&self);
            let waits = match (tls.wants_write(), tls.wants_read()) {
                (true, _) => tls.write_tls(&mut socket).map(|_| ()),
                _ => read_records(&mut tls, &mut socket),
            };
            match waits {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let interest = if tls.wants_write() { PollFlags::OUT } else { PollFlags::IN };
                    self.wait(interest, Some(deadline))?;
                }
                Err(error) => {
                    // The other side is told why, if it listens.
                    let _ = tls.write_tls(&mut socket);
                    return Err(error);
                }
            }
        }
        Ok(Self { socket: self.socket, tls: Some(Mutex::new(tls)) })
    }

    /// Receives what is there: at least one byte, 0 at the end.
    pub(crate) fn recv(&self, into: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return retry(|| match &self.socket {
                Socket::Unix(socket) => (&*socket).read_vectored(into),
                Socket::Tcp(socket) => (&*socket).read_vectored(into),
            });
        };
        let mut tls = tls.lock();
        loop {
            match tls.reader().read_vectored(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    read_records(&mut tls, &mut Raw(self))?;
                }
                // An end without a farewell: as of a socket that is closed.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
        }
    }

    /// Sends what the socket takes, at least one byte.
    pub(crate) fn send(&self, pieces: &[Piece<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return retry(|| vectored::send(self, pieces)) };
        let mut tls = tls.lock();
        flush(&mut tls, &mut Raw(self))?;
        let mut sent = 0;
        let mut record = [0; RECORD];
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let part = rest.len().min(RECORD);
                rest.first(part).copy_to(&mut record[..part]);
                let taken = tls.writer().write(&record[..part])?;
                sent += taken;
                rest = rest.skip(taken);
                match flush(&mut tls, &mut Raw(self)) {
                    Ok(()) => {}
                    // What was taken counts as sent; the rest is asked for again.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(sent),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(sent)
    }

    /// Sends what TLS still holds.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match &self.tls {
            Some(tls) => flush(&mut tls.lock(), &mut Raw(self)),
            None => Ok(()),
        }
    }

    /// Waits until the socket is ready for this.
    pub(crate) fn wait(&self, interest: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        let mut fds = [PollFd::new(self, interest)];
        match wait(&mut fds, deadline)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Ends it in both directions, whoever is using it.
    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls
            && let Some(mut tls) = tls.try_lock()
        {
            tls.send_close_notify();
            let _ = flush(&mut tls, &mut Raw(self));
        }
        // It may be closed already.
        let _ = rustix::net::shutdown(self, Shutdown::Both);
    }
}

/// Bytes that a socket holds for its other end, where the system allows it.
const SEND_BUFFER: usize = 2 << 20;

/// Waits for one of several descriptors; returns how many are ready, 0 when the time is up.
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = left.map(timespec);
        match poll(fds, limit.as_ref()) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

/// The bare socket, for TLS.
struct Raw<'a>(&'a Stream);

impl Read for Raw<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        retry(|| match &self.0.socket {
            Socket::Unix(socket) => (&*socket).read(into),
            Socket::Tcp(socket) => (&*socket).read(into),
        })
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| vectored::send(self.0, &[Piece::Bytes(bytes)]))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_records(tls: &mut Connection, socket: &mut Raw<'_>) -> io::Result<()> {
    let ended = tls.read_tls(socket)? == 0;
    let state = tls.process_new_packets();
    let state = state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    // What came last is still to be read.
    if ended && state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn flush(tls: &mut Connection, socket: &mut Raw<'_>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(socket)?;
    }
    Ok(())
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
