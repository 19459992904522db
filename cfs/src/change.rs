//! What is asked of a volume's owner: changes of names, attributes and contents, each complete in
//! itself, as they go in a call or in a message.

// The derive leaves the fields of an enum's resolver without documentation.
#![allow(missing_docs)]

use rkyv::{Archive, Deserialize, Serialize};

pub use crate::Caller;
use crate::cache::InodeRecord;

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum SetTime {
    /// The present.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Archive, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last changed contents.
    pub mtime: Option<SetTime>,
    /// Last changed at all; the present unless it is given.
    pub ctime: Option<SetTime>,
    /// Set-user-ID and set-group-ID are to go, and `security.capability`: somebody without
    /// privileges changes contents or owner.
    pub kill_privileges: bool,
}

/// Permissions and type of a new inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct NewInode {
    /// Type and permissions as `st_mode` has them; the umask has not been applied.
    pub mode: u16,
    /// Applied where the directory has no default ACL.
    pub umask: u16,
    /// Major and minor of a device node.
    pub device: (u32, u32),
}

/// A change of a directory, an inode or contents. The inode is named beside it.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Change {
    /// A new name, in this directory, for a new file, directory, node or socket.
    Make {
        /// The name.
        name: Vec<u8>,
        /// What is made.
        inode: NewInode,
        /// A regular file: what is there already will do, if it is one (open without O_EXCL).
        reuse: bool,
    },
    /// A new symbolic link in this directory.
    Symlink {
        /// The name.
        name: Vec<u8>,
        /// What it says.
        target: Vec<u8>,
    },
    /// A new name in this directory for an inode that has one.
    Link {
        /// The name.
        name: Vec<u8>,
        /// The inode.
        ino: u32,
    },
    /// A name of this directory goes.
    Unlink {
        /// The name.
        name: Vec<u8>,
    },
    /// An empty directory of this directory goes.
    Rmdir {
        /// The name.
        name: Vec<u8>,
    },
    /// A name of this directory becomes one of another, or of the same.
    Rename {
        /// The name.
        name: Vec<u8>,
        /// The directory that it is then in.
        to: u32,
        /// What it is called there.
        new_name: Vec<u8>,
        /// `RENAME_*`.
        flags: u32,
    },
    /// Attributes.
    Set {
        /// Which, and to what.
        attr: SetAttr,
    },
    /// It was read: the time of that is the present, where the volume's options want that. Other
    /// times stay.
    Accessed,
    /// An extended attribute is set.
    SetXattr {
        /// Its name.
        name: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// `XATTR_*`.
        flags: u32,
    },
    /// An extended attribute goes.
    RemoveXattr {
        /// Its name.
        name: Vec<u8>,
    },
    /// What fallocate(2) does with a range.
    Allocate {
        /// `FALLOC_FL_*`.
        mode: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Flags, as chattr sets them.
    SetFlags {
        /// `FS_*_FL`.
        flags: u32,
        /// Those of them that are meant; others stay as they are.
        known: u32,
        /// Project to charge, where it is to change.
        project: Option<u32>,
    },
    /// A file without a name, for this directory (O_TMPFILE), which the sender holds then.
    MakeNameless {
        /// What is made.
        inode: NewInode,
    },
}

/// A change, and for whom.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Order {
    /// For whom.
    pub caller: Caller,
    /// What.
    pub change: Change,
}

/// What came of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The inode that was made or changed, as it is now; none where a name went.
    pub record: Option<InodeRecord>,
    /// Whether something was made: false where what was there did.
    pub made: bool,
}

/// How bytes are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteOptions {
    /// At the end of the file, wherever the offset is.
    pub append: bool,
    /// Durable, with all attributes, before the answer (O_SYNC).
    pub sync: bool,
    /// Durable, with what is needed to find them, before the answer (O_DSYNC).
    pub data_sync: bool,
    /// Set-user-ID, set-group-ID and `security.capability` are to go: the writer has no privileges.
    pub kill_privileges: bool,
    /// Blocks that are reserved may be used.
    pub privileged: bool,
}

impl WriteOptions {
    /// As bits of a message.
    pub(crate) fn bits(self) -> u64 {
        let all = [self.append, self.sync, self.data_sync, self.kill_privileges, self.privileged];
        (0..).zip(all).map(|(bit, set)| u64::from(set) << bit).sum()
    }

    /// From bits of a message; unknown ones say nothing.
    pub(crate) fn from_bits(bits: u64) -> Self {
        let set = |bit: u32| bits >> bit & 1 == 1;
        Self {
            append: set(0),
            sync: set(1),
            data_sync: set(2),
            kill_privileges: set(3),
            privileged: set(4),
        }
    }
}

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Where the first byte went.
    pub offset: u64,
    /// How many bytes: fewer than asked for when the volume is full or a device failed.
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_write_survive_a_message() {
        for bits in 0..32 {
            assert_eq!(WriteOptions::from_bits(bits).bits(), bits);
        }
        let append = WriteOptions { append: true, ..WriteOptions::default() };
        assert_eq!(WriteOptions::from_bits(append.bits() | 1 << 40), append);
    }
}
