//! Changes of blocks of directory entries.

use super::{HEAD, RawEntry, RawTail, SHORTEST, TAIL, TAIL_TYPE};
use crate::disk::checksum::crc32c;
use crate::disk::features::{Features, Incompat};
use crate::disk::inode::Kind;
use crate::limits::MAX_NAME;
use zerocopy::{FromBytes, IntoBytes};

/// What a volume's features say of its directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    /// Entries say what their inode is.
    pub filetype: bool,
    /// Blocks end in a checksum.
    pub checksums: bool,
    /// Hash trees may have a level more.
    pub large: bool,
}

impl Format {
    /// As the features have it.
    pub fn new(features: &Features) -> Self {
        Self {
            filetype: features.incompat.contains(Incompat::FILETYPE),
            checksums: features.metadata_csum(),
            large: features.incompat.contains(Incompat::LARGEDIR),
        }
    }

    /// Bytes of a block that entries may fill.
    pub fn room(&self, block_size: usize) -> usize {
        block_size - if self.checksums { TAIL } else { 0 }
    }

    /// What an entry says of an inode of that kind.
    pub fn file_type(&self, kind: Kind) -> u8 {
        if self.filetype { file_type(kind) } else { 0 }
    }
}

/// An entry to be.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    /// The inode that it names.
    pub ino: u32,
    /// 1 to 255 bytes.
    pub name: &'a [u8],
    /// As [`Format::file_type`] has it.
    pub file_type: u8,
}

/// A name that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The inode that it names.
    pub ino: u32,
    /// Where its entry begins.
    offset: usize,
    /// Where the entry before it begins, if there is one.
    previous: Option<usize>,
}

/// Where a block has room for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room(usize);

/// What a block says about a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scan {
    /// The name's entry; the room is not looked for then.
    pub found: Option<Found>,
    /// The first room for an entry of this name.
    pub room: Option<Room>,
}

/// Bytes that an entry with a name of `len` bytes needs. No record is shorter than one of a byte.
pub fn needed(len: usize) -> usize {
    (HEAD + len).next_multiple_of(4).max(SHORTEST)
}

/// The head of an entry of blocks up to 32 KiB, checked as far as walking on depends on it.
#[derive(Clone, Copy)]
struct Head {
    ino: u32,
    record: usize,
    name_len: usize,
    file_type: u8,
}

impl Head {
    fn at(entries: &[u8], offset: usize) -> Result<Self, String> {
        let head = entries.get(offset..).and_then(|rest| rest.first_chunk::<HEAD>());
        let head = u64::from_le_bytes(*head.ok_or_else(|| cut(offset))?);
        let record = usize::from((head >> 32) as u16);
        let name_len = usize::from((head >> 48) as u8);
        if record < SHORTEST
            || record % 4 != 0
            || record < HEAD + name_len
            || record > entries.len() - offset
        {
            return Err(format!(
                "entry at byte {offset}: record of {record} bytes for a name of {name_len}"
            ));
        }
        Ok(Self { ino: head as u32, record, name_len, file_type: (head >> 56) as u8 })
    }

    /// Bytes of the record that a further entry could take.
    fn slack(&self) -> usize {
        if self.ino == 0 { self.record } else { self.record - needed(self.name_len) }
    }
}

fn cut(offset: usize) -> String {
    format!("entry at byte {offset}: cut off")
}

/// Looks for a name, and for room for it, in a block whose entries were checked before.
pub fn scan(block: &[u8], name: &[u8], format: Format) -> Result<Scan, String> {
    let entries = &block[..format.room(block.len())];
    let need = needed(name.len());
    let (mut offset, mut previous, mut room) = (0, None, None);
    while offset < entries.len() {
        let head = Head::at(entries, offset)?;
        if head.ino != 0
            && head.name_len == name.len()
            && entries[offset + HEAD..][..head.name_len] == *name
        {
            let found = Found { ino: head.ino, offset, previous };
            return Ok(Scan { found: Some(found), room: None });
        }
        if room.is_none() && head.record >= need && head.slack() >= need {
            room = Some(Room(offset));
        }
        previous = Some(offset);
        offset += head.record;
    }
    Ok(Scan { found: None, room })
}

/// The used entries of a block in order, whatever their names: inode, type and name.
pub fn entries(block: &[u8], format: Format) -> Result<Vec<NewEntry<'_>>, String> {
    let bytes = &block[..format.room(block.len())];
    let mut entries = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        let head = Head::at(bytes, offset)?;
        if head.ino != 0 {
            entries.push(NewEntry {
                ino: head.ino,
                name: &bytes[offset + HEAD..][..head.name_len],
                file_type: head.file_type,
            });
        }
        offset += head.record;
    }
    Ok(entries)
}

/// Puts an entry into room that [`scan`] found for its name.
pub fn insert(block: &[u8], room: Room, entry: &NewEntry<'_>) -> Result<Patch, String> {
    let Room(mut offset) = room;
    let head = Head::at(block, offset)?;
    let mut patch = Patch::new();
    let mut record = head.record;
    if head.ino != 0 {
        let used = needed(head.name_len);
        patch.push(offset + 4, &(used as u16).to_le_bytes());
        (offset, record) = (offset + used, record - used);
    }
    patch.push_entry(offset, record, entry);
    Ok(patch)
}

/// Takes an entry out: the one before it gets its space, or it becomes an unused one.
pub fn remove(block: &[u8], found: Found) -> Result<Patch, String> {
    let head = Head::at(block, found.offset)?;
    let mut patch = Patch::new();
    let unused = [0; HEAD + MAX_NAME];
    if let Some(previous) = found.previous {
        let before = Head::at(block, previous)?;
        patch.push(previous + 4, &((before.record + head.record) as u16).to_le_bytes());
        patch.push(found.offset, &unused[..HEAD + head.name_len]);
    } else {
        patch.push(found.offset, &unused[..4]);
        patch.push(found.offset + 6, &unused[..2 + head.name_len]);
    }
    Ok(patch)
}

/// Lets an entry name another inode.
pub fn redirect(block: &[u8], found: Found, ino: u32, file_type: u8) -> Result<Patch, String> {
    Head::at(block, found.offset)?;
    let mut patch = Patch::new();
    patch.push(found.offset, &ino.to_le_bytes());
    patch.push(found.offset + 7, &[file_type]);
    Ok(patch)
}

/// The only block of a new directory.
pub fn first_block(block_size: usize, ino: u32, parent: u32, format: Format) -> Box<[u8]> {
    let file_type = format.file_type(Kind::Directory);
    let dots = [(ino, &b"."[..]), (parent, &b".."[..])];
    let dots = dots.map(|(ino, name)| NewEntry { ino, name, file_type });
    pack(block_size, &dots, format)
}

/// A block of these entries without a gap, its checksum still to be [`seal`]ed. They must fit.
pub fn pack(block_size: usize, entries: &[NewEntry<'_>], format: Format) -> Box<[u8]> {
    let mut block = vec![0; block_size].into_boxed_slice();
    let room = format.room(block_size);
    let mut patch = Patch::new();
    let mut offset = 0;
    for (i, entry) in entries.iter().enumerate() {
        let last = i + 1 == entries.len();
        let record = if last { room - offset } else { needed(entry.name.len()) };
        patch.clear();
        patch.push_entry(offset, record, entry);
        patch.apply(&mut block);
        offset += record;
    }
    if entries.is_empty() {
        block[4..6].copy_from_slice(&(room as u16).to_le_bytes());
    }
    if format.checksums {
        let tail = RawTail {
            inode: 0.into(),
            rec_len: (TAIL as u16).into(),
            name_len: 0,
            file_type: TAIL_TYPE,
            checksum: 0.into(),
        };
        block[room..].copy_from_slice(tail.as_bytes());
    }
    block
}

/// Whether a block has no names but "." and "..".
pub fn is_empty(block: &[u8], format: Format) -> Result<bool, String> {
    let bytes = &block[..format.room(block.len())];
    let mut offset = 0;
    while offset < bytes.len() {
        let head = Head::at(bytes, offset)?;
        let name = &bytes[offset + HEAD..][..head.name_len];
        if head.ino != 0 && !matches!(name, b"." | b"..") {
            return Ok(false);
        }
        offset += head.record;
    }
    Ok(true)
}

/// Sets the checksum of a whole block that is to have one.
pub fn seal(block: &mut [u8], format: Format, inode_seed: u32) {
    if format.checksums {
        let (entries, tail) = block.split_at_mut(block.len() - TAIL);
        tail[TAIL - 4..].copy_from_slice(&crc32c(inode_seed, entries).to_le_bytes());
    }
}

/// The number in an entry that stands for a kind of inode.
pub fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::Regular => 1,
        Kind::Directory => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink => 7,
    }
}

/// Ranges of one block and what they become: in order, and none over another.
#[derive(Clone, Debug)]
pub struct Patch {
    pieces: [(usize, usize); PIECES],
    count: usize,
    bytes: [u8; PIECE_BYTES],
    used: usize,
}

/// A record's length, an entry, and a checksum.
const PIECES: usize = 3;
const PIECE_BYTES: usize = 2 + HEAD + MAX_NAME + 4;

impl Patch {
    fn new() -> Self {
        Self { pieces: [(0, 0); PIECES], count: 0, bytes: [0; PIECE_BYTES], used: 0 }
    }

    fn clear(&mut self) {
        (self.count, self.used) = (0, 0);
    }

    fn push(&mut self, offset: usize, bytes: &[u8]) {
        self.pieces[self.count] = (offset, bytes.len());
        self.count += 1;
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    fn push_entry(&mut self, offset: usize, record: usize, entry: &NewEntry<'_>) {
        let head = RawEntry {
            inode: entry.ino.into(),
            rec_len: (record as u16).into(),
            name_len: entry.name.len() as u8,
            file_type: entry.file_type,
        };
        self.push(offset, head.as_bytes());
        // The name belongs to the same piece.
        self.pieces[self.count - 1].1 += entry.name.len();
        self.bytes[self.used..self.used + entry.name.len()].copy_from_slice(entry.name);
        self.used += entry.name.len();
    }

    /// Where each range begins, and its bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut at = 0;
        self.pieces[..self.count].iter().map(move |&(offset, len)| {
            at += len;
            (offset, &self.bytes[at - len..at])
        })
    }

    /// Changes a copy of the block.
    pub fn apply(&self, block: &mut [u8]) {
        for (offset, bytes) in self.pieces() {
            block[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Adds the checksum of the block as it will be.
    pub fn seal(&mut self, block: &[u8], format: Format, inode_seed: u32) {
        if format.checksums {
            let end = block.len() - TAIL;
            let crc = self.crc(block, end, inode_seed);
            self.push(block.len() - 4, &crc.to_le_bytes());
        }
    }

    /// The same for the root of a hash tree, whose index follows "." and "..".
    pub fn seal_root(
        &mut self,
        block: &[u8],
        format: Format,
        inode_seed: u32,
    ) -> Result<(), String> {
        if format.checksums {
            let (covered, tail) = crate::disk::htree::covered(block, true)
                .ok_or("hash tree root without room for its checksum")?;
            let crc = crc32c(self.crc(block, covered, inode_seed), &block[tail..tail + 4]);
            self.push(tail + 4, &crc32c(crc, &[0; 4]).to_le_bytes());
        }
        Ok(())
    }

    /// The checksum of the first `end` bytes of the block as it will be.
    fn crc(&self, block: &[u8], end: usize, seed: u32) -> u32 {
        let (mut crc, mut at) = (seed, 0);
        for (offset, bytes) in self.pieces() {
            crc = crc32c(crc32c(crc, &block[at..offset]), bytes);
            at = offset + bytes.len();
        }
        crc32c(crc, &block[at..end])
    }
}

/// Where the format has the entry ".." in a directory's first block; `None` if it is not there.
pub fn dotdot(block: &[u8]) -> Option<Found> {
    let head = |offset: usize, name: &[u8]| {
        let (head, rest) = RawEntry::ref_from_prefix(block.get(offset..)?).ok()?;
        let named = usize::from(head.name_len) == name.len() && rest.starts_with(name);
        named.then_some(head)
    };
    let dot = head(0, b".")?;
    let dotdot = head(DOTDOT, b"..")?;
    let found = Found { ino: dotdot.inode.get(), offset: DOTDOT, previous: Some(0) };
    (usize::from(dot.rec_len.get()) == DOTDOT).then_some(found)
}

/// Where the entry ".." begins.
const DOTDOT: usize = SHORTEST;

#[cfg(test)]
mod tests;
