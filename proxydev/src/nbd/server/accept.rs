//! Sockets that a server listens at.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Shared;
use crate::nbd::stream::{self, Stream};
use crate::{Error, Result};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// How long nothing is accepted when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => Ok(listener.accept()?.0.into()),
            Self::Tcp(listener) => Ok(listener.accept()?.0.into()),
        }
    }
}

/// A socket that only this user may connect to.
pub(super) fn bind_unix(path: &Path) -> Result<UnixListener> {
    let at =
        |what: &'static str| move |errno: Errno| Error::Open { path: path.to_owned(), what, errno };
    remove_dead(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(at("socket"))?;
    let address = SocketAddrUnix::new(path).map_err(at("name of a socket"))?;
    // The name gets the mode that the socket has when it is bound.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(at("fchmod"))?;
    rustix::net::bind(&socket, &address).map_err(at("bind"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(at("listen"))?;
    Ok(UnixListener::from(socket))
}

/// Removes a socket at which nobody listens any more.
fn remove_dead(path: &Path) -> Result<()> {
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(Error::Invalid(format!(
            "{}: there is a file that is no socket",
            path.display()
        )));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // Another that does the same may be first.
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        _ => Err(Error::Invalid(format!("{}: somebody listens there already", path.display()))),
    }
}

pub(super) fn bind_tcp(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    listener.map_err(|error| Error::Invalid(format!("nbd: listen at {address}: {error}")))
}

/// Accepts until the server ends.
pub(super) fn serve(shared: &Arc<Shared>, listener: &Listener) {
    while !shared.stopping() {
        let mut fds =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(&shared.stop, PollFlags::IN)];
        if stream::wait(&mut fds, None).is_err() {
            return;
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            // One too many is closed; it counts for nothing.
            Ok(stream) => drop(shared.connect(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Descriptors or memory are short: what is there stays in the backlog.
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
