//! Requests that change something.

use rustix::fs::OFlags;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::{Call, name, opening};
use crate::mount::abi::{self, fattr, ioctl, op};
use crate::mount::ops::{
    Allocation, Changes, CopyRange, Handle, NewFlags, NewNode, NodeId, RenameFlags, Request,
    SetTime, Time, TrimRange, WriteRange, XattrFlags,
};
use crate::mount::reply::flags;

impl Call<'_> {
    /// As [`Call::run`]. Where nothing may be changed: EROFS, the names checked first. What is
    /// unknown fails with ENOSYS, after which the kernel does without.
    pub(super) fn change(&mut self, request: &Request, node: NodeId) -> Result<(), Errno> {
        let body = self.body;
        let opcode = self.header.opcode;
        match opcode {
            op::MKNOD | op::MKDIR | op::SYMLINK | op::LINK | op::CREATE | op::TMPFILE => {
                self.make(request, node)
            }
            op::UNLINK | op::RMDIR => {
                let name = name(&mut body.rest())?;
                self.writable()?;
                if opcode == op::UNLINK {
                    self.fs.unlink(request, node, name, self.reply(0));
                } else {
                    self.fs.rmdir(request, node, name, self.reply(0));
                }
                Ok(())
            }
            op::RENAME => {
                let (rename, rest) = body.arguments::<abi::RenameIn>()?;
                self.rename(request, node, (NodeId(rename.newdir), 0), rest)
            }
            op::RENAME2 => {
                let (rename, rest) = body.arguments::<abi::Rename2In>()?;
                self.rename(request, node, (NodeId(rename.newdir), rename.flags), rest)
            }
            op::SETATTR
            | op::WRITE
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::COPY_FILE_RANGE_64
            | op::SETXATTR
            | op::REMOVEXATTR => {
                self.writable()?;
                self.change_file(request, node)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.fs.features().writable { Ok(()) } else { Err(Errno::ROFS) }
    }

    fn make(&mut self, request: &Request, node: NodeId) -> Result<(), Errno> {
        let (fs, body) = (self.fs, self.body);
        let node_of = |mode, umask, rdev| NewNode { mode, umask, rdev: device_parts(rdev) };
        match self.header.opcode {
            op::MKNOD => {
                let (make, mut rest) = body.arguments::<abi::MknodIn>()?;
                let name = name(&mut rest)?;
                self.writable()?;
                let new = node_of(make.mode, make.umask, make.rdev);
                fs.mknod(request, node, name, &new, self.reply(0));
            }
            op::MKDIR => {
                let (make, mut rest) = body.arguments::<abi::MkdirIn>()?;
                let name = name(&mut rest)?;
                self.writable()?;
                let new = node_of(make.mode, make.umask, 0);
                fs.mkdir(request, node, name, &new, self.reply(0));
            }
            op::SYMLINK => {
                let mut rest = body.rest();
                let name = name(&mut rest)?;
                let end = rest.iter().position(|byte| *byte == 0).ok_or(Errno::IO)?;
                self.writable()?;
                fs.symlink(request, node, name, &rest[..end], self.reply(0));
            }
            op::LINK => {
                let (link, mut rest) = body.arguments::<abi::LinkIn>()?;
                let name = name(&mut rest)?;
                self.writable()?;
                fs.link(request, NodeId(link.oldnodeid), node, name, self.reply(0));
            }
            opcode => {
                let (make, mut rest) = body.arguments::<abi::CreateIn>()?;
                // The kernel sends a name with TMPFILE too; nobody looks it up.
                let name = name(&mut rest)?;
                self.writable()?;
                let new = node_of(make.mode, make.umask, 0);
                let how = opening(make.flags, make.open_flags);
                if opcode == op::CREATE {
                    fs.create(request, node, name, &new, how, self.reply(0));
                } else {
                    fs.tmpfile(request, node, &new, how, self.reply(0));
                }
            }
        }
        Ok(())
    }

    fn rename(
        &mut self,
        request: &Request,
        node: NodeId,
        (to, flags): (NodeId, u32),
        mut rest: &[u8],
    ) -> Result<(), Errno> {
        let from = (node, name(&mut rest)?);
        let to = (to, name(&mut rest)?);
        self.writable()?;
        let flags = RenameFlags::from_bits_retain(flags);
        self.fs.rename(request, from, to, flags, self.reply(0));
        Ok(())
    }

    fn change_file(&mut self, request: &Request, node: NodeId) -> Result<(), Errno> {
        let (fs, body) = (self.fs, self.body);
        match self.header.opcode {
            op::SETATTR => {
                let (set, _) = body.arguments::<abi::SetattrIn>()?;
                fs.setattr(request, node, &changes(&set), self.reply(0));
            }
            op::WRITE => self.write(request, node)?,
            op::FALLOCATE => {
                let (ask, _) = body.arguments::<abi::FallocateIn>()?;
                range(ask.offset, ask.length)?;
                let what = Allocation { offset: ask.offset, len: ask.length, mode: ask.mode };
                fs.fallocate(request, node, Handle(ask.fh), &what, self.reply(0));
            }
            op::COPY_FILE_RANGE => {
                let (copy, _) = body.arguments::<abi::CopyFileRangeIn>()?;
                // The answer of this form counts 32 bits.
                let len = copy.len.min(1 << 30);
                range(copy.off_in, len)?;
                range(copy.off_out, len)?;
                let what = CopyRange { from: copy.off_in, to: copy.off_out, len };
                fs.copy(request, node, NodeId(copy.nodeid_out), &what, self.reply(0));
            }
            // After ENOSYS the kernel asks in the older form.
            op::COPY_FILE_RANGE_64 => return Err(Errno::NOSYS),
            op::SETXATTR => {
                let (set, mut rest) = body.arguments::<abi::SetxattrIn>()?;
                let name = name(&mut rest)?;
                let value = rest.get(..set.size as usize).ok_or(Errno::IO)?;
                let kill_sgid = set.setxattr_flags & abi::SETXATTR_KILL_SGID != 0;
                let how = (XattrFlags::from_bits_retain(set.flags), kill_sgid);
                fs.setxattr(request, node, name, value, how, self.reply(0));
            }
            _ => {
                let name = name(&mut body.rest())?;
                fs.removexattr(request, node, name, self.reply(0));
            }
        }
        Ok(())
    }

    fn write(&mut self, request: &Request, node: NodeId) -> Result<(), Errno> {
        let (write, _) = self.body.arguments::<abi::WriteIn>()?;
        range(write.offset, u64::from(write.size))?;
        let flags = OFlags::from_bits_retain(write.flags);
        let reply = self.data_reply(write.size as usize)?;
        let sync = if flags.contains(OFlags::SYNC) {
            Some(false)
        } else {
            (flags.bits() & abi::O_DSYNC != 0).then_some(true)
        };
        let write_back = write.write_flags & abi::WRITE_CACHE != 0;
        let range = WriteRange {
            offset: write.offset,
            size: write.size,
            append: flags.contains(OFlags::APPEND) && !write_back,
            sync,
            write_back,
            kill_privileges: write.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        };
        self.fs.write(request, node, Handle(write.fh), &range, reply);
        Ok(())
    }

    /// chattr and fstrim.
    pub(super) fn ioctl_change(
        &mut self,
        request: &Request,
        node: NodeId,
        command: u32,
        data: &[u8],
    ) -> Result<(), Errno> {
        let fs = self.fs;
        match command {
            ioctl::SETFLAGS => {
                let (flags, _) = u32::read_from_prefix(data).map_err(|_| Errno::IO)?;
                self.writable()?;
                let new = NewFlags { flags, known: u32::MAX, project: None };
                fs.set_flags(request, node, &new, self.reply(0));
            }
            ioctl::FSSETXATTR => {
                let (set, _) = abi::FsXattr::read_from_prefix(data).map_err(|_| Errno::IO)?;
                self.writable()?;
                let (flags, known) = flags::from_extended(set.xflags);
                let new = NewFlags { flags, known, project: Some(set.projid) };
                fs.set_flags(request, node, &new, self.reply(0));
            }
            ioctl::FITRIM => {
                let (trim, _) = abi::TrimRange::read_from_prefix(data).map_err(|_| Errno::IO)?;
                self.writable()?;
                let range = TrimRange { start: trim.start, len: trim.len, min_len: trim.minlen };
                fs.trim(request, &range, self.reply(0));
            }
            _ => return Err(Errno::NOTTY),
        }
        Ok(())
    }
}

/// An offset is never negative for the kernel: the end of a range must not be.
fn range(offset: u64, len: u64) -> Result<(), Errno> {
    let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
    end.map(|_| ()).ok_or(Errno::INVAL)
}

/// From the kernel's 32-bit form: 12 bits of major within 20 bits of minor.
fn device_parts(device: u32) -> (u32, u32) {
    ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

fn changes(set: &abi::SetattrIn) -> Changes {
    let has = |bit| set.valid & bit != 0;
    let time = |present, now, secs, nanos: u32| match (has(present), has(now)) {
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time { secs, nanos: nanos.min(999_999_999) })),
        (false, _) => None,
    };
    Changes {
        mode: has(fattr::MODE).then_some(set.mode),
        uid: has(fattr::UID).then_some(set.uid),
        gid: has(fattr::GID).then_some(set.gid),
        size: has(fattr::SIZE).then_some(set.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, set.atime, set.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, set.mtime, set.mtimensec),
        ctime: has(fattr::CTIME)
            .then(|| Time { secs: set.ctime, nanos: set.ctimensec.min(999_999_999) }),
        kill_privileges: has(fattr::KILL_SUIDGID),
    }
}
