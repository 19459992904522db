//! The transport that every kernel has: threads that read requests from /dev/fuse.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::thread::CpuSet;
use zerocopy::FromBytes;

use super::abi;
use super::dispatch::Body;
use super::notify;
use super::reply::Channel;
use super::session::Shared;

/// Serves until the connection ends or the session stops. An answer goes to the descriptor that
/// its request was read from, so each thread has a clone of its own.
pub(super) fn serve(shared: &Shared, device: &Arc<OwnedFd>, cpu: Option<usize>) -> io::Result<()> {
    if let Some(cpu) = cpu {
        bind(cpu);
    }
    notify::this_thread_serves();
    let mut buffer = vec![0; shared.read_buffer_len()];
    let _entered = shared.interrupter().enter();
    while !shared.is_stopping() {
        match rustix::io::read(device, &mut buffer[..]) {
            Ok(len) => handle(shared, device, &buffer[..len]),
            Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => return Ok(()),
            // A request that was taken back before it could be read is NOENT.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn handle(shared: &Shared, device: &Arc<OwnedFd>, bytes: &[u8]) {
    // Shorter than a header: not even its number is known, so nobody can be answered.
    let Ok((header, body)) = abi::InHeader::read_from_prefix(bytes) else { return };
    shared.dispatch(&header, Body::joined(body), || Channel::Device(device.clone()));
}

/// Binds the calling thread. A CPU that has gone offline since is no reason not to serve.
fn bind(cpu: usize) {
    if cpu < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(cpu);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}
