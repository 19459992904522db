//! Answers to the ioctl requests that lsattr and its like send.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{Done, Piece, Reply};
use crate::mount::abi::{self, ioctl};
use crate::mount::ops::FileFlags;

/// Flags as FS_IOC_GETFLAGS shows them, and what `struct fsxattr` calls them.
const EXTENDED: [(u32, u32); 8] = [
    (0x8, 0x20),           // sync
    (0x10, 0x8),           // immutable
    (0x20, 0x10),          // append
    (0x40, 0x80),          // nodump
    (0x80, 0x40),          // noatime
    (0x200_0000, 0x8000),  // dax
    (0x2000_0000, 0x200),  // projinherit
    (0x10_0000, 0x2_0000), // verity
];

/// What of an inode's flags was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mount) enum Question {
    Flags,
    Generation,
    Extended,
}

impl Question {
    /// What an ioctl command asks; `None` for those that are not about flags.
    pub(in crate::mount) fn of(command: u32) -> Option<Self> {
        match command {
            ioctl::GETFLAGS => Some(Self::Flags),
            ioctl::GETVERSION | ioctl::EXT4_GETVERSION => Some(Self::Generation),
            ioctl::FSGETXATTR => Some(Self::Extended),
            _ => None,
        }
    }
}

/// The obligation to answer what an inode's flags are.
pub struct FlagsReply {
    reply: Reply<Done>,
    question: Question,
}

impl FlagsReply {
    pub(in crate::mount) fn new(reply: Reply<Done>, question: Question) -> Self {
        Self { reply, question }
    }

    pub(in crate::mount) fn apart(self) -> (Reply<Done>, Question) {
        (self.reply, self.question)
    }

    /// These.
    pub fn flags(self, file: &FileFlags) {
        match self.question {
            Question::Flags => self.send(&file.flags),
            Question::Generation => self.send(&file.generation),
            Question::Extended => self.send(&abi::FsXattr {
                xflags: extended(file.flags),
                projid: file.project,
                ..Default::default()
            }),
        }
    }

    /// Refuses.
    pub fn error(self, errno: Errno) {
        self.reply.error(errno);
    }

    fn send(self, value: &(impl IntoBytes + zerocopy::Immutable)) {
        let (head, value) = (abi::IoctlOut::default(), value.as_bytes());
        if value.len() > self.reply.limit {
            return self.reply.error(Errno::FAULT);
        }
        self.reply.pieces(&[Piece::Bytes(head.as_bytes()), Piece::Bytes(value)]);
    }
}

/// The flags that an `xflags` sets, and those that it could.
pub(in crate::mount) fn from_extended(xflags: u32) -> (u32, u32) {
    let set = EXTENDED.iter().filter(|(_, bit)| xflags & bit != 0);
    let known = EXTENDED.iter().fold(0, |known, (flag, _)| known | flag);
    (set.fold(0, |flags, (flag, _)| flags | flag), known)
}

fn extended(flags: u32) -> u32 {
    let set = EXTENDED.iter().filter(|(flag, _)| flags & flag != 0);
    set.fold(0, |set, &(_, flag)| set | flag)
}
