//! What a runtime and its OSlet's init say to each other while it starts: one JSON value a packet,
//! with at most one descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Spec;
use crate::{Error, Result};

/// From the runtime.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToInit {
    /// Begin.
    Start { spec: Box<Spec>, runtime_pid: u32, die_with_thread: bool },
    /// The filesystem is being served.
    GoOn,
}

/// From init, or from the process that makes it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToRuntime {
    /// PID 1 is that process.
    Forked { pid: u32 },
    /// The filesystem is mounted; its descriptor comes with this.
    Fuse,
    /// All is there.
    Ready { notes: Vec<String> },
    /// It cannot be.
    Failed { what: String },
}

/// Bytes of a packet.
const MAX_MESSAGE: usize = 128 << 10;

pub(super) fn send(
    socket: &OwnedFd,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let bytes = serde_json::to_vec(message)
        .map_err(|error| Error::Invalid(format!("message to or from init: {error}")))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(Error::Exhausted(format!(
            "message to or from init: {} bytes, at most {MAX_MESSAGE}: too many devices or groups",
            bytes.len()
        )));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.unwrap_or(socket.as_fd())];
    if descriptor.is_some() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(Error::io("message to or from init: send"))?;
    Ok(())
}

/// The next message; `None` when the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(
    socket: &OwnedFd,
    end: Instant,
) -> Result<Option<(T, Option<OwnedFd>)>> {
    wait(socket, end)?;
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
    let received = match received {
        // The other end was closed with something unread in it.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        other => other.map_err(Error::io("message to or from init: receive"))?,
    };
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last();
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let corrupt = |what: String| Error::Corrupt { peer: "init".to_owned(), what };
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(corrupt("message too long".to_owned()));
    }
    let message = serde_json::from_slice(&bytes[..received.bytes])
        .map_err(|error| corrupt(error.to_string()))?;
    Ok(Some((message, descriptor)))
}

fn wait(socket: &OwnedFd, end: Instant) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(n) if n > 0 => return Ok(()),
            Ok(_) if left.is_zero() => {
                let ms = begin.elapsed().as_millis() as u64;
                return Err(Error::Timeout { what: "init: start".to_owned(), ms });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("message to or from init: poll")(error)),
        }
    }
}
