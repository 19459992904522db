//! From the kernel's bytes to the filesystem's methods. The bytes are checked although the kernel
//! wrote them: a request that does not parse is answered with EIO and does no harm.

use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{self, op};
use super::ops::{Filesystem, Handle, NodeId, Opening, ReadRange, Request, Whence};
use super::reply::{Channel, Done, FlagsReply, Question, Reply, Written};

mod change;

/// A name longer than this is refused here: the kernel leaves it to the filesystem.
pub(super) const NAME_MAX: usize = 255;

/// The part of a request after its header.
#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    /// Begins with the operation's arguments, if it has any.
    arguments: &'a [u8],
    /// The rest where it is elsewhere (io_uring); else it follows the arguments.
    rest: Option<&'a [u8]>,
}

impl<'a> Body<'a> {
    /// Arguments and names in one run of bytes, as /dev/fuse gives them.
    pub(super) fn joined(bytes: &'a [u8]) -> Self {
        Self { arguments: bytes, rest: None }
    }

    /// Arguments and names apart, as io_uring gives them.
    pub(super) fn apart(arguments: &'a [u8], rest: &'a [u8]) -> Self {
        Self { arguments, rest: Some(rest) }
    }

    /// The arguments, and what follows them.
    fn arguments<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<(T, &'a [u8]), Errno> {
        let (arguments, tail) = T::read_from_prefix(self.arguments).map_err(|_| Errno::IO)?;
        Ok((arguments, self.rest.unwrap_or(tail)))
    }

    /// What follows where there are no arguments.
    fn rest(&self) -> &'a [u8] {
        self.rest.unwrap_or(self.arguments)
    }
}

/// Takes one name off `bytes`; it ends with a zero byte.
fn name<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Errno> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Errno::IO)?;
    let name = &bytes[..end];
    *bytes = &bytes[end + 1..];
    match end {
        0 => Err(Errno::IO),
        1..=NAME_MAX => Ok(name),
        _ => Err(Errno::NAMETOOLONG),
    }
}

/// Serves one request. `max` bounds the bytes of an answer.
pub(super) fn dispatch(
    fs: &dyn Filesystem,
    header: &abi::InHeader,
    body: Body<'_>,
    channel: impl FnOnce() -> Channel,
    max: usize,
) {
    let node = NodeId(header.nodeid);
    match header.opcode {
        op::FORGET => {
            if let Ok((forget, _)) = body.arguments::<abi::ForgetIn>() {
                fs.forget(node, forget.nlookup);
            }
        }
        op::BATCH_FORGET => batch_forget(fs, body),
        op::INTERRUPT => {
            if let Ok((interrupt, _)) = body.arguments::<abi::InterruptIn>() {
                fs.interrupt(interrupt.unique);
            }
        }
        // Answers to a notification that is never sent.
        op::NOTIFY_REPLY => {}
        _ => {
            let mut call = Call { fs, header, body, max, channel: Some(channel()) };
            if let Err(errno) = call.run(node) {
                call.reply::<Done>(0).error(errno);
            }
        }
    }
}

fn batch_forget(fs: &dyn Filesystem, body: Body<'_>) {
    let Ok((batch, mut rest)) = body.arguments::<abi::BatchForgetIn>() else { return };
    for _ in 0..batch.count {
        let Ok((one, tail)) = abi::ForgetOne::read_from_prefix(rest) else { return };
        fs.forget(NodeId(one.nodeid), one.nlookup);
        rest = tail;
    }
}

/// A request that is to be answered.
struct Call<'a> {
    fs: &'a dyn Filesystem,
    header: &'a abi::InHeader,
    body: Body<'a>,
    max: usize,
    channel: Option<Channel>,
}

impl Call<'_> {
    /// The answer's obligation; taken once, after all that can fail.
    fn reply<K>(&mut self, limit: usize) -> Reply<K> {
        Reply::new(self.channel.take(), self.header.unique, limit.min(self.max))
    }

    /// The same for a write of `len` bytes, which must have come with it.
    fn data_reply(&mut self, len: usize) -> Result<Reply<Written>, Errno> {
        let came = self.channel.as_ref().map_or(0, |channel| channel.data().len());
        if came < len {
            return Err(Errno::IO);
        }
        Ok(Reply::new(self.channel.take(), self.header.unique, len))
    }

    /// An error is answered by the caller: `reply` has not been taken then.
    fn run(&mut self, node: NodeId) -> Result<(), Errno> {
        let fs = self.fs;
        let header = self.header;
        let request =
            &Request { unique: header.unique, uid: header.uid, gid: header.gid, pid: header.pid };
        let body = self.body;
        match header.opcode {
            op::LOOKUP => {
                let name = name(&mut body.rest())?;
                fs.lookup(request, node, name, self.reply(0));
            }
            op::GETATTR => fs.getattr(request, node, self.reply(0)),
            op::STATX => fs.statx(request, node, self.reply(0)),
            op::READLINK => fs.readlink(request, node, self.reply(PATH_MAX)),
            op::OPEN => {
                let (open, _) = body.arguments::<abi::OpenIn>()?;
                let how = opening(open.flags, open.open_flags);
                let reads = how.flags.intersection(OFlags::ACCMODE) == OFlags::RDONLY;
                if !(reads || fs.features().writable) {
                    return Err(Errno::ROFS);
                }
                fs.open(request, node, how, self.reply(0));
            }
            op::OPENDIR => fs.opendir(request, node, self.reply(0)),
            op::RELEASE | op::RELEASEDIR => {
                let (release, _) = body.arguments::<abi::ReleaseIn>()?;
                let handle = Handle(release.fh);
                if header.opcode == op::RELEASE {
                    fs.release(node, handle);
                } else {
                    fs.releasedir(node, handle);
                }
                self.reply::<Done>(0).done();
            }
            op::READ | op::READDIR | op::READDIRPLUS => self.read(request, node)?,
            op::GETXATTR => {
                let (get, mut rest) = body.arguments::<abi::GetxattrIn>()?;
                let name = name(&mut rest)?;
                fs.getxattr(request, node, name, self.reply(get.size as usize));
            }
            op::LISTXATTR => {
                let (list, _) = body.arguments::<abi::GetxattrIn>()?;
                fs.listxattr(request, node, self.reply(list.size as usize));
            }
            op::ACCESS => {
                let (access, _) = body.arguments::<abi::AccessIn>()?;
                fs.access(request, node, access.mask, self.reply(0));
            }
            op::STATFS => fs.statfs(request, node, self.reply(0)),
            op::LSEEK => {
                let (seek, _) = body.arguments::<abi::LseekIn>()?;
                let whence = match seek.whence as i32 {
                    3 => Whence::Data,
                    4 => Whence::Hole,
                    _ => return Err(Errno::INVAL),
                };
                fs.lseek(request, node, Handle(seek.fh), seek.offset, whence, self.reply(0));
            }
            op::IOCTL => self.ioctl(request, node)?,
            op::FLUSH => {
                let (flush, _) = body.arguments::<abi::FlushIn>()?;
                fs.flush(request, node, Handle(flush.fh), self.reply(0));
            }
            op::FSYNC | op::FSYNCDIR => {
                let (fsync, _) = body.arguments::<abi::FsyncIn>()?;
                let data_only = fsync.fsync_flags & abi::FSYNC_DATA != 0;
                fs.fsync(request, node, Handle(fsync.fh), data_only, self.reply(0));
            }
            op::DESTROY => self.reply::<Done>(0).done(),
            _ => self.change(request, node)?,
        }
        Ok(())
    }

    /// The questions that have one answer whoever asks, and what chattr and fstrim want; others are
    /// none of this filesystem.
    fn ioctl(&mut self, request: &Request, node: NodeId) -> Result<(), Errno> {
        let fs = self.fs;
        let (ioctl, data) = self.body.arguments::<abi::IoctlIn>()?;
        let Some(question) = Question::of(ioctl.cmd) else {
            return self.ioctl_change(request, node, ioctl.cmd, data);
        };
        let reply = self.reply(ioctl.out_size as usize);
        fs.flags(request, node, FlagsReply::new(reply, question));
        Ok(())
    }

    fn read(&mut self, request: &Request, node: NodeId) -> Result<(), Errno> {
        let fs = self.fs;
        let (read, _) = self.body.arguments::<abi::ReadIn>()?;
        let (handle, offset) = (Handle(read.fh), read.offset);
        let size = read.size.min(u32::try_from(self.max).unwrap_or(u32::MAX));
        let limit = size as usize;
        match self.header.opcode {
            op::READ => {
                // An offset is never negative for the kernel: the end of the range must not be.
                if offset.checked_add(u64::from(size)).is_none_or(|end| end > i64::MAX as u64) {
                    return Err(Errno::INVAL);
                }
                let no_atime = OFlags::from_bits_retain(read.flags).contains(OFlags::NOATIME);
                let range = ReadRange { offset, size, no_atime };
                fs.read(request, node, handle, range, self.reply(limit));
            }
            op::READDIR => fs.readdir(request, node, handle, offset, self.reply(limit)),
            _ => fs.readdirplus(request, node, handle, offset, self.reply(limit)),
        }
        Ok(())
    }
}

fn opening(flags: u32, open_flags: u32) -> Opening {
    let kill_privileges = open_flags & abi::OPEN_KILL_SUIDGID != 0;
    Opening { flags: OFlags::from_bits_retain(flags), kill_privileges }
}

/// The longest target of a symbolic link.
const PATH_MAX: usize = 4096;

#[cfg(test)]
mod tests;
