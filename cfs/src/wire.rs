//! What OSlets ask a volume's owner. All arguments are words; bodies are validated archives.

/// First and last kind of this crate's requests.
pub const KINDS: std::ops::RangeInclusive<u16> = 0x200..=0x2ff;

/// The volume (object number) is always the first argument.
pub mod kind {
    /// (volume, directory, -), body: a name. Reply: (inode, -, -), body [`super::Record`].
    pub const LOOKUP: u16 = 0x200;
    /// (volume, inode, -). Reply body [`super::Record`].
    pub const GETATTR: u16 = 0x201;
    /// (volume, inode, page | count << 48). Reply body [`super::Pages`]; fewer than asked for at
    /// the file's end.
    pub const READ: u16 = 0x202;
    /// (volume, inode, page). Reply body: the page's bytes, for when references do not last.
    pub const READ_COPY: u16 = 0x203;
    /// (volume, inode, -). Reply body: the target.
    pub const READLINK: u16 = 0x204;
    /// (volume, inode, position). Reply body [`super::Listing`].
    pub const READDIR: u16 = 0x205;
    /// (volume, inode, -), body: a name. Reply: (length, -, -), body: the first bytes of the value.
    pub const GETXATTR: u16 = 0x206;
    /// (volume, inode, offset), body: a name. Reply body: the value from the offset on.
    pub const GETXATTR_MORE: u16 = 0x207;
    /// (volume, inode, offset). Reply: (length, -, -), body: the names from the offset on, each
    /// with a zero behind it.
    pub const LISTXATTR: u16 = 0x208;
    /// (volume, -, -). Reply body [`super::StatFsBody`].
    pub const STATFS: u16 = 0x209;
    /// (volume, inode, offset | data << 63). Reply: (offset, -, -).
    pub const SEEK: u16 = 0x20a;
    /// (volume, inode, -), body [`crate::change::Order`]. Reply: (inode or 0, made, -), body
    /// [`super::Record`] or none.
    pub const CHANGE: u16 = 0x20b;
    /// As [`CHANGE`]; (volume, inode, -), body [`super::Pieces`]: the order lies in frames of the
    /// sender.
    pub const CHANGE_PAGES: u16 = 0x20c;
    /// (volume, inode | options << 32, offset), body: the bytes. Reply: (offset, bytes, -).
    pub const WRITE: u16 = 0x20d;
    /// As [`WRITE`], body [`super::Pieces`]: the bytes lie in frames of the sender.
    pub const WRITE_PAGES: u16 = 0x20e;
    /// (volume, inode | data alone << 32, errors seen). Reply: (an errno that came since, or 0;
    /// errors seen; -), when the file is durable.
    pub const SYNC: u16 = 0x20f;
    /// (volume, -, errors seen): the same for the whole volume.
    pub const SYNC_ALL: u16 = 0x210;
    /// (volume, inode, -): the sender holds the inode once more, which stays until it is let go.
    /// Reply: (errors seen, -, -).
    pub const HOLD: u16 = 0x211;
    /// (volume, inode, times): the sender lets go.
    pub const LET_GO: u16 = 0x212;
    /// (volume, inode, 0 or 1): a descriptor of a file is closed, the last one (0) or one of many.
    /// The reply comes when what it holds in place of what was truncated to nothing is written.
    pub const CLOSE: u16 = 0x213;
    /// (volume, -, -), body [`super::Trim`]. Reply: (bytes discarded, -, -).
    pub const TRIM: u16 = 0x214;
}

/// Bytes of a reply's body that are used for data.
pub const MAX_DATA: usize = oslet::limits::MAX_BODY - 1024;

/// Pages in one READ.
pub const MAX_PAGES: usize = 1024;

/// An inode's record, as the inode table holds it.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct Record {
    /// [`crate::cache::InodeRecord::to_words`].
    pub words: [u64; crate::cache::RECORD_VALUES],
}

/// References to consecutive pages.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct Pages {
    /// [`oslet::id::PageRef::to_word`] each.
    pub refs: Vec<u64>,
}

/// Bytes in frames of the sender, which keeps them until the reply.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct Pieces {
    /// [`oslet::id::PageRef::to_word`] each; they are filled one after the other, from the start.
    pub refs: Vec<u64>,
    /// Bytes in them.
    pub len: u64,
}

/// Entries of a directory.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct Listing {
    /// In the order of their positions.
    pub entries: Vec<Entry>,
    /// Whether nothing follows.
    pub end: bool,
}

/// One entry of a directory.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct Entry {
    /// What it names.
    pub ino: u32,
    /// The type bits of the mode shifted down by 12, zero if the directory does not say.
    pub kind: u8,
    /// Where to go on after it.
    pub next: u64,
    /// Its name.
    pub name: Vec<u8>,
}

/// What statfs(2) tells.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct StatFsBody {
    /// block size, blocks, free, available, inodes, free inodes, longest name, identity.
    pub words: [u64; 8],
}

/// What FITRIM asks for.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug)]
pub struct Trim {
    /// In bytes: where to begin, how far to go, and the shortest run that counts.
    pub words: [u64; 3],
}

/// A type as the upper four bits of a mode.
pub fn kind_bits(kind: crate::disk::inode::Kind) -> u8 {
    use crate::disk::inode::Kind;
    match kind {
        Kind::Fifo => 0x1,
        Kind::CharDevice => 0x2,
        Kind::Directory => 0x4,
        Kind::BlockDevice => 0x6,
        Kind::Regular => 0x8,
        Kind::Symlink => 0xa,
        Kind::Socket => 0xc,
    }
}

#[cfg(test)]
mod tests {
    use oslet::region::layout::LAYOUT_VERSION;
    use oslet::rpc::encode;
    use oslet::rpc::golden::Golden;

    use super::*;
    use crate::change::{Caller, Change, NewInode, Order, SetAttr, SetTime};

    /// One of each change, every field a value of its own.
    fn changes() -> Vec<Change> {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let inode = NewInode { mode: 1, umask: 2, device: (3, 4) };
        let attr = SetAttr {
            mode: Some(1),
            uid: Some(2),
            gid: Some(3),
            size: Some(4),
            atime: Some(SetTime::Now),
            mtime: Some(SetTime::At(5, 6)),
            ctime: None,
            kill_privileges: true,
        };
        vec![
            Change::Make { name: bytes("a"), inode, reuse: true },
            Change::Symlink { name: bytes("a"), target: bytes("b") },
            Change::Link { name: bytes("a"), ino: 1 },
            Change::Unlink { name: bytes("a") },
            Change::Rmdir { name: bytes("a") },
            Change::Rename { name: bytes("a"), to: 1, new_name: bytes("b"), flags: 2 },
            Change::Set { attr },
            Change::Accessed,
            Change::SetXattr { name: bytes("a"), value: bytes("b"), flags: 1 },
            Change::RemoveXattr { name: bytes("a") },
            Change::Allocate { mode: 1, offset: 2, len: 3 },
            Change::SetFlags { flags: 1, known: 2, project: Some(3) },
            Change::MakeNameless { inode },
        ]
    }

    /// Changes, and an order, which has one.
    fn show_changes(golden: &mut Golden) {
        for change in changes() {
            let shown = format!("{change:?}");
            let name = shown.split(|letter: char| !letter.is_alphanumeric()).next();
            golden.body(&format!("Change::{}", name.unwrap()), &encode(&change).unwrap());
        }
        let caller = Caller { uid: 1, gid: 2, privileged: true };
        let order = Order { caller, change: Change::Accessed };
        golden.body("Order", &encode(&order).unwrap());
        for part in ["SetTime::Now", "SetTime::At", "SetAttr", "NewInode", "Caller"] {
            golden.part(part);
        }
    }

    #[test]
    fn requests_are_as_recorded() {
        let entry = || Entry { ino: 1, kind: 2, next: 3, name: vec![4, 5] };
        let mut words = [0; crate::cache::RECORD_VALUES];
        words.iter_mut().zip(1..).for_each(|(word, value)| *word = value);
        let sources =
            [include_str!("wire.rs"), include_str!("change.rs"), include_str!("caller.rs")];
        let mut golden = Golden::new(LAYOUT_VERSION, &sources);
        golden.body("Record", &encode(&Record { words }).unwrap());
        golden.body("Pages", &encode(&Pages { refs: vec![1, 2] }).unwrap());
        golden.body("Pieces", &encode(&Pieces { refs: vec![1, 2], len: 3 }).unwrap());
        golden.body("Entry", &encode(&entry()).unwrap());
        let listing = Listing { entries: vec![entry()], end: true };
        golden.body("Listing", &encode(&listing).unwrap());
        let statfs = StatFsBody { words: [1, 2, 3, 4, 5, 6, 7, 8] };
        golden.body("StatFsBody", &encode(&statfs).unwrap());
        golden.body("Trim", &encode(&Trim { words: [1, 2, 3] }).unwrap());
        show_changes(&mut golden);
        golden.check("cfs/testdata/wire.txt", include_str!("../testdata/wire.txt"));
    }
}
