//! The NBD server: listeners, and one thread a connection. See docs/devices.md.

mod accept;
mod connection;
mod pending;

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oslet::arena::Arena;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use rustls::ServerConfig;

use super::export::Exports;
use super::handshake::TlsPolicy;
use super::link::Link;
use super::stream::Stream;
use crate::{Error, Result, limits};

/// Whether clients are encrypted.
#[derive(Clone, Default)]
pub enum TlsMode {
    /// Never.
    #[default]
    Off,
    /// Those that want to be.
    Selective(Arc<ServerConfig>),
    /// All; nothing is told to others.
    Forced(Arc<ServerConfig>),
}

impl TlsMode {
    fn policy(&self) -> TlsPolicy {
        match self {
            Self::Off => TlsPolicy::Off,
            Self::Selective(_) => TlsPolicy::Selective,
            Self::Forced(_) => TlsPolicy::Forced,
        }
    }

    fn config(&self) -> Option<&Arc<ServerConfig>> {
        match self {
            Self::Off => None,
            Self::Selective(config) | Self::Forced(config) => Some(config),
        }
    }
}

impl fmt::Debug for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.policy())
    }
}

/// How a server serves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Encryption.
    pub tls: TlsMode,
    /// Connections at a time, [`limits::NBD_MAX_CONNECTIONS`] at most.
    pub connections: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            tls: TlsMode::Off,
            connections: limits::NBD_MAX_CONNECTIONS,
            handshake: Duration::from_millis(limits::NBD_HANDSHAKE_MS),
        }
    }
}

/// Serves exports. Dropping it is [`Self::shutdown`].
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<JoinHandle<()>>>,
    /// Sockets in the filesystem, to be removed at the end.
    paths: Mutex<Vec<PathBuf>>,
}

/// What all connections share.
struct Shared {
    exports: Arc<dyn Exports>,
    arena: Arc<Arena>,
    options: ServerOptions,
    stopping: AtomicBool,
    /// Readable from the beginning of the end.
    stop: OwnedFd,
    connections: Mutex<Connections>,
    gone: Condvar,
}

#[derive(Default)]
struct Connections {
    count: usize,
    next: u64,
    /// Those behind their handshake.
    links: Vec<(u64, Arc<Link>)>,
}

impl Server {
    /// Serves `exports`, with frames from `arena` for what clients write.
    pub fn new(
        exports: Arc<dyn Exports>,
        arena: &Arc<Arena>,
        options: ServerOptions,
    ) -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = stop.map_err(|errno| Error::Invalid(format!("nbd server: eventfd: {errno}")))?;
        let shared = Shared {
            exports,
            arena: Arc::clone(arena),
            options,
            stopping: AtomicBool::new(false),
            stop,
            connections: Mutex::default(),
            gone: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared), listeners: Mutex::default(), paths: Mutex::default() })
    }

    /// Accepts connections at a Unix socket, made for this user alone. What is left of a server
    /// that has died is replaced.
    ///
    /// # Errors
    /// When something else is there, or somebody serves it.
    pub fn listen_unix(&self, path: &Path) -> Result<()> {
        let listener = accept::bind_unix(path)?;
        self.paths.lock().push(path.to_owned());
        self.listen(format!("nbd {}", path.display()), listener.into())
    }

    /// Accepts connections at a TCP port; the address, with the port that was chosen for port 0.
    /// Whoever reaches it may read and write what is exported: give a loopback address where
    /// nothing else is meant.
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr> {
        let (listener, address) = accept::bind_tcp(address)?;
        self.listen(format!("nbd {address}"), listener.into())?;
        Ok(address)
    }

    fn listen(&self, name: String, listener: accept::Listener) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = spawn(&name, move || accept::serve(&shared, &listener))?;
        self.listeners.lock().push(thread);
        Ok(())
    }

    /// Serves one connection that is there already.
    ///
    /// # Errors
    /// When there are too many.
    pub fn serve(&self, socket: UnixStream) -> Result<()> {
        self.shared.connect(socket.into())
    }

    /// The connections behind their handshake.
    #[cfg(test)]
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.shared.connections.lock().links.iter().map(|(_, link)| Arc::clone(link)).collect()
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().count
    }

    /// Ends: nobody is accepted any more, what is in hand is finished, what comes later is answered
    /// ESHUTDOWN. Connections that then do not end in time are cut.
    pub fn shutdown(&self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        // It stays readable for all listeners.
        let _ = rustix::io::write(&shared.stop, &1_u64.to_ne_bytes());
        for listener in self.listeners.lock().drain(..) {
            // One that panicked has ended as well.
            let _ = listener.join();
        }
        for path in self.paths.lock().drain(..) {
            // It may have been removed.
            let _ = std::fs::remove_file(path);
        }
        let connections = shared.connections.lock();
        connections.links.iter().for_each(|(_, link)| link.ring());
        let links = std::mem::take(&mut shared.wait_for_end(connections).links);
        links.iter().for_each(|(_, link)| link.give_up());
        // They have nothing to wait for any more.
        drop(shared.wait_for_end(shared.connections.lock()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Waits until there is no connection, but not for long.
    fn wait_for_end<'s>(
        &'s self,
        mut connections: MutexGuard<'s, Connections>,
    ) -> MutexGuard<'s, Connections> {
        let limit = Instant::now() + Duration::from_millis(limits::NBD_SHUTDOWN_MS);
        while connections.count > 0 && Instant::now() < limit {
            self.gone.wait_until(&mut connections, limit);
        }
        connections
    }

    /// Serves a connection on a thread of its own.
    fn connect(self: &Arc<Self>, stream: Stream) -> Result<()> {
        let limit = self.options.connections.min(limits::NBD_MAX_CONNECTIONS);
        let id = {
            let mut connections = self.connections.lock();
            if connections.count >= limit {
                return Err(Error::Invalid(format!("nbd server: {limit} connections already")));
            }
            connections.count += 1;
            connections.next += 1;
            connections.next
        };
        let counted = Counted { shared: Arc::clone(self), id };
        spawn("nbd", move || {
            // How a connection ended is the client's to tell; the server has nobody to tell it.
            let _ = connection::serve(&counted, stream);
        })?;
        Ok(())
    }
}

/// A connection that counts until it is dropped.
struct Counted {
    shared: Arc<Shared>,
    id: u64,
}

impl Counted {
    /// The handshake is over.
    fn register(&self, link: &Arc<Link>) {
        self.shared.connections.lock().links.push((self.id, Arc::clone(link)));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut connections = self.shared.connections.lock();
        connections.count -= 1;
        connections.links.retain(|(id, _)| *id != self.id);
        drop(connections);
        self.shared.gone.notify_all();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    spawned.map_err(|error| Error::Invalid(format!("{name}: no thread: {error}")))
}

#[cfg(test)]
mod tests;
