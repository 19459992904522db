//! The transport that every kernel has: threads that read requests from /dev/fuse.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi;
use super::dispatch::Body;
use super::notify;
use super::place::Place;
use super::reply::Channel;
use super::session::Shared;

/// Serves until the connection ends or the session stops. An answer goes to the descriptor that
/// its request was read from, so each thread has a clone of its own.
pub(super) fn serve(shared: &Shared, device: &Arc<OwnedFd>, mut place: Place) -> io::Result<()> {
    notify::this_thread_serves();
    let mut buffer = shared.buffers().take();
    let _entered = shared.interrupter().enter();
    while !shared.is_stopping() {
        match rustix::io::read(device, &mut buffer[..]) {
            Ok(len) => place.follow(handle(shared, device, &mut buffer, len)),
            Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => return Ok(()),
            // A request that was taken back before it could be read is NOENT.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Serves one request; returns the thread that it comes from, 0 for none.
fn handle(shared: &Shared, device: &Arc<OwnedFd>, buffer: &mut Vec<u8>, len: usize) -> u32 {
    let bytes = &buffer[..len];
    // Shorter than a header: not even its number is known, so nobody can be answered.
    let Ok((header, body)) = abi::InHeader::read_from_prefix(bytes) else { return 0 };
    if header.opcode != abi::op::WRITE {
        shared.dispatch(&header, Body::joined(body), || Channel::Device(device.clone()));
        return header.pid;
    }
    // The data stay where they are, and go with the obligation to answer.
    let mut arguments = [0; size_of::<abi::WriteIn>()];
    let known = body.len().min(arguments.len());
    arguments[..known].copy_from_slice(&body[..known]);
    let data = len - body.len() + known..len;
    let buffers = shared.buffers();
    let full = std::mem::replace(buffer, buffers.take());
    let channel = || Channel::DeviceData(device.clone(), buffers.lend(full, data));
    shared.dispatch(&header, Body::apart(&arguments[..known], &[]), channel);
    header.pid
}
