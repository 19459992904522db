//! Unix SEQPACKET sockets that carry [`Message`]s and descriptors.
//!
//! A socket's path may be longer than the 107 bytes that fit into an address: its directory is
//! opened and the address goes through /proc/self/fd.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rkyv::util::AlignedVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::wire::Message;
use crate::{Error, Result, limits, sys};

/// The name of an OSlet's control socket in its directory.
pub const NAME: &str = "control.sock";

/// What a peer may have said that was not yet sent on.
const QUEUE: usize = 1024;
const BACKLOG: i32 = 128;

/// A listening control socket.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens in that directory; a socket that is there already is replaced: the caller knows
    /// that nobody serves it.
    pub fn bind(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file(&path, "remove")(error));
            }
            _ => {}
        }
        let (_parent, address) = address(directory)?;
        let socket = socket(SocketFlags::NONBLOCK)?;
        rustix::net::bind(&socket, &address).map_err(Error::file(&path, "bind"))?;
        // Whoever may enter the directory is looked at again when it connects.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o600))
            .map_err(Error::file(&path, "chmod"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(Error::file(&path, "listen"))?;
        Ok(Self(socket))
    }

    /// The next connection, if one waits; those of other users are dropped.
    pub fn accept(&self) -> Result<Option<Connection>> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&self.0, flags) {
                Ok(socket) => match Connection::new(socket) {
                    Ok(connection) => return Ok(Some(connection)),
                    Err(_) => continue,
                },
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(Error::io("control socket: accept")(error)),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A message that came, with its descriptors.
#[derive(Debug)]
pub struct Received {
    /// What was said.
    pub message: Message,
    /// What came along.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of a connection; never blocks unless asked to wait.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// The process at the other end when it connected or listened; 0 if it is not to be seen.
    pid: u32,
    queue: VecDeque<(AlignedVec, Vec<OwnedFd>)>,
}

impl Connection {
    /// A connection over that socket, if its other end is of our user or root.
    pub fn new(socket: OwnedFd) -> Result<Self> {
        let peer =
            sys::process::peer(&socket).map_err(Error::io("control socket: peer credentials"))?;
        let own = rustix::process::geteuid().as_raw();
        if peer.uid != own && peer.uid != 0 {
            return Err(Error::Invalid(format!(
                "control socket: user {} may not use what belongs to user {own}",
                peer.uid
            )));
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(Error::io("control socket"))?;
        // From inside an OSlet no runtime is to be seen.
        let pid = peer.pid.unwrap_or(0);
        Ok(Self { socket, pid, queue: VecDeque::new() })
    }

    /// Connects to the runtime that listens in that directory.
    ///
    /// # Errors
    /// [`Error::Gone`] when nobody does.
    pub fn connect(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        let nobody = || Error::Gone(format!("{}: the runtime that listens there", path.display()));
        let (_parent, address) = match address(directory) {
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(nobody());
            }
            other => other?,
        };
        let socket = socket(SocketFlags::NONBLOCK)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => Self::new(socket),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(nobody()),
            Err(error) => Err(Error::file(&path, "connect")(error)),
        }
    }

    /// Two ends in one process, to be passed on.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(Error::io("socketpair"))?;
        Ok((Self::new(ours)?, theirs))
    }

    /// A second descriptor of this end; what is queued stays with the first.
    pub fn duplicate(&self) -> Result<Self> {
        let socket = self.socket.try_clone().map_err(Error::io("control socket: dup"))?;
        Ok(Self { socket, pid: self.pid, queue: VecDeque::new() })
    }

    /// The process at the other end, as the kernel says.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends, or queues what the peer does not take yet.
    ///
    /// # Errors
    /// [`Error::Gone`] when the connection is closed, [`Error::Exhausted`] when the peer takes
    /// nothing: the connection is to be cut.
    pub fn send(&mut self, message: &Message, descriptors: Vec<OwnedFd>) -> Result<()> {
        self.queue.push_back((message.encode()?, descriptors));
        self.flush()?;
        if self.queue.len() > QUEUE {
            return Err(Error::Exhausted(format!(
                "process {}: it takes no messages and {QUEUE} wait for it",
                self.pid
            )));
        }
        Ok(())
    }

    /// Whether something waits to be sent by [`Self::flush`].
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends what is queued, as far as the peer takes it.
    ///
    /// # Errors
    /// [`Error::Gone`] when the connection is closed.
    pub fn flush(&mut self) -> Result<()> {
        while let Some((bytes, descriptors)) = self.queue.front() {
            match send(&self.socket, bytes, descriptors) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(self.gone()),
                Err(error) => return Err(Error::io("control socket: send")(error)),
            }
        }
        Ok(())
    }

    /// The next message, if one has come.
    ///
    /// # Errors
    /// [`Error::Gone`] when the peer has closed, [`Error::Corrupt`] when it sent something else
    /// than a message: the connection is to be cut.
    pub fn receive(&mut self) -> Result<Option<Received>> {
        let corrupt = |what: &str| Error::Corrupt {
            peer: format!("process {}", self.pid),
            what: what.to_owned(),
        };
        let mut bytes = vec![0; limits::MAX_MESSAGE];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(self.gone()),
                Err(error) => return Err(Error::io("control socket: receive")(error)),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(corrupt("a message longer, or with more descriptors, than is allowed"));
        }
        if received.bytes == 0 {
            return Err(self.gone());
        }
        bytes.truncate(received.bytes);
        let message = Message::decode(&bytes, &format!("process {}", self.pid))?;
        Ok(Some(Received { message, descriptors }))
    }

    /// The next message, waited for until `end`.
    ///
    /// # Errors
    /// As [`Self::receive`]; [`Error::Timeout`] when none has come.
    pub fn wait(&mut self, what: &str, limit: Duration) -> Result<Received> {
        let end = Instant::now() + limit;
        loop {
            if let Some(received) = self.receive()? {
                return Ok(received);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::Timeout { what: what.to_owned(), ms });
            }
            let interest =
                if self.is_behind() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&self.socket, interest)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => self.flush()?,
                Err(error) => return Err(Error::io("control socket: poll")(error)),
            }
        }
    }

    fn gone(&self) -> Error {
        Error::Gone(format!("process {}", self.pid))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn socket(flags: SocketFlags) -> Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(Error::io("control socket"))
}

/// The directory, to be held while the address is used.
fn address(directory: &Path) -> Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(Error::file(directory, "open"))?;
    let path = format!("/proc/self/fd/{}/{NAME}", parent.as_raw_fd());
    let address = SocketAddrUnix::new(path).map_err(Error::file(directory, "address"))?;
    Ok((parent, address))
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> rustix::io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::TOOMANYREFS);
    }
    loop {
        let slices = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn messages_and_descriptors_go_through_a_long_path() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("d ".repeat(60)).join("e".repeat(100));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(matches!(Connection::connect(&directory), Err(Error::Gone(_))));
        let listener = Listener::bind(&directory).unwrap();
        let mut client = Connection::connect(&directory).unwrap();
        let mut server = listener.accept().unwrap().unwrap();
        assert!(listener.accept().unwrap().is_none());
        assert_eq!((client.pid(), server.pid()), (std::process::id(), std::process::id()));
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        client.send(&Message::Segment, vec![writer]).unwrap();
        let received = server.wait("segment", SECOND).unwrap();
        assert_eq!(received.message, Message::Segment);
        rustix::io::write(&received.descriptors[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap(), 1);
        drop(client);
        assert!(matches!(server.receive(), Err(Error::Gone(_))));
        drop(listener);
        assert!(matches!(Connection::connect(&directory), Err(Error::Gone(_))));
        Listener::bind(&directory).unwrap();
    }

    #[test]
    fn what_is_no_message_is_corrupt_and_leaks_no_descriptor() {
        let (mut ours, theirs) = Connection::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&theirs, &[7; 40], &[writer]).unwrap();
        assert!(matches!(ours.receive(), Err(Error::Corrupt { .. })));
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap(), 0, "every writer is closed");
        let long = vec![0; limits::MAX_MESSAGE + 1];
        send(&theirs, &long, &[]).unwrap();
        assert!(matches!(ours.receive(), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_cut_off_after_a_bounded_queue() {
        let (mut ours, theirs) = Connection::pair().unwrap();
        let refused = (0..100_000).find_map(|_| ours.send(&Message::Changed, vec![]).err());
        assert!(matches!(refused, Some(Error::Exhausted(_))), "{refused:?}");
        assert!(ours.is_behind());
        let mut theirs = Connection::new(theirs).unwrap();
        assert_eq!(theirs.wait("any", SECOND).unwrap().message, Message::Changed);
        ours.flush().unwrap();
    }

    #[test]
    fn a_wait_ends() {
        let (mut ours, _theirs) = Connection::pair().unwrap();
        let limit = Duration::from_millis(20);
        assert!(matches!(ours.wait("x", limit), Err(Error::Timeout { .. })));
    }
}
