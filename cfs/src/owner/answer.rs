//! Requests, answered: by a call in the owner's own process, by messages in the others.

use oslet::id::{Epoch, PageRef, ParticipantId};
use oslet::limits::FRAME_SIZE;
use oslet::region::{Bytes, PageGuard};
use oslet::rpc;
use rkyv::util::AlignedVec;

use super::Owner;
use crate::cache::InodeRecord;
use crate::change::{Order, WriteOptions};
use crate::disk::inode::Inode;
use crate::id::Ino;
use crate::wire::{self, kind};
use crate::{Error, Result};

/// What goes into a reply.
#[derive(Debug, Default)]
pub struct Answer {
    /// Inline results.
    pub args: [u64; 3],
    /// The body.
    pub body: AlignedVec,
}

impl Answer {
    fn body(body: AlignedVec) -> Self {
        Self { args: [0; 3], body }
    }

    fn bytes(length: u64, bytes: &[u8]) -> Self {
        let mut body = AlignedVec::with_capacity(bytes.len());
        body.extend_from_slice(bytes);
        Self { args: [length, 0, 0], body }
    }

    fn words(first: u64, second: u64) -> Self {
        Self { args: [first, second, 0], body: AlignedVec::new() }
    }

    fn record(record: &InodeRecord) -> Result<Self> {
        let body = rpc::encode(&wire::Record { words: record.to_words() })?;
        Ok(Self { args: [u64::from(record.attr.ino.0), 0, 0], body })
    }
}

impl Owner {
    /// Answers one request of [`wire::kind`], of that participant. May use the device.
    ///
    /// # Errors
    /// Those of the operation, and ENOSYS for what is no request.
    pub fn answer(
        &self,
        from: Sender,
        request: u16,
        args: [u64; 3],
        body: &[u8],
    ) -> Result<Answer> {
        let ino = ino(args[1] & u64::from(u32::MAX))?;
        let options = args[1] >> 32;
        if options != 0 && !matches!(request, kind::WRITE | kind::WRITE_PAGES | kind::SYNC) {
            return Err(Error::Stale(format!("inode {}", args[1])));
        }
        self.noting(ino, self.answer_request((from, request), (ino, options), args, body))
    }

    fn answer_request(
        &self,
        (from, request): (Sender, u16),
        (ino, options): (Ino, u64),
        args: [u64; 3],
        body: &[u8],
    ) -> Result<Answer> {
        match request {
            kind::CHANGE => self.answer_change(from, ino, body),
            kind::CHANGE_PAGES => {
                let pieces = Sent::pin(self, from, body)?;
                let mut bytes = AlignedVec::<16>::with_capacity(pieces.len());
                pieces.pieces()?.iter().try_for_each(|piece| {
                    let mut part = vec![0; piece.len()];
                    piece.copy_to(&mut part);
                    bytes.extend_from_slice(&part);
                    Ok::<_, Error>(())
                })?;
                self.answer_change(from, ino, &bytes)
            }
            kind::WRITE => {
                let options = WriteOptions::from_bits(options);
                let written = self.write_file(ino, args[2], &[Bytes::Own(body)], options)?;
                Ok(Answer::words(written.offset, written.len as u64))
            }
            kind::WRITE_PAGES => {
                let options = WriteOptions::from_bits(options);
                let sent = Sent::pin(self, from, body)?;
                let written = self.write_file(ino, args[2], &sent.pieces()?, options)?;
                Ok(Answer::words(written.offset, written.len as u64))
            }
            kind::SYNC => {
                let (seen, errno) = self.sync(ino, options & 1 == 1, args[2])?;
                Ok(Answer::words(errno.unwrap_or(0) as u64, seen))
            }
            kind::SYNC_ALL => {
                let (seen, errno) = self.sync_all(args[2])?;
                Ok(Answer::words(errno.unwrap_or(0) as u64, seen))
            }
            kind::HOLD => Ok(Answer::words(self.hold(ino, from)?, 0)),
            kind::LET_GO => self.let_go(ino, from, args[2]).map(|()| Answer::default()),
            kind::CLOSE => {
                self.close_file(ino, args[2] == 0);
                Ok(Answer::default())
            }
            kind::LOOKUP => Answer::record(&self.lookup(ino, body)?),
            kind::GETATTR => Answer::record(&self.publish_inode(ino)?),
            kind::READ => {
                let (page, count) = (args[2] & ((1 << 48) - 1), args[2] >> 48);
                let count = count.clamp(1, wire::MAX_PAGES as u64);
                let refs = self.read_pages(ino, page, count)?;
                let refs = refs.into_iter().map(|page| page.to_word()).collect();
                Ok(Answer::body(rpc::encode(&wire::Pages { refs })?))
            }
            kind::READ_COPY => {
                let mut bytes = vec![0; oslet::limits::FRAME_SIZE];
                let offset = args[2].saturating_mul(oslet::limits::FRAME_SIZE as u64);
                let read = self.read_copy(ino, offset, &mut bytes)?;
                Ok(Answer::bytes(read as u64, &bytes))
            }
            kind::READLINK => {
                let target = self.with_inode(ino, |inode| self.volume.readlink(inode))?;
                Ok(Answer::bytes(target.len() as u64, &target))
            }
            kind::READDIR => self.listing(ino, args[2]),
            kind::GETXATTR | kind::GETXATTR_MORE => {
                let value = self.with_inode(ino, |inode| self.volume.getxattr(inode, body))?;
                let from = if request == kind::GETXATTR { 0 } else { args[2] };
                Ok(part(&value, from))
            }
            kind::LISTXATTR => {
                let mut names = self.with_inode(ino, |inode| self.volume.listxattr(inode))?;
                names.iter_mut().for_each(|name| name.push(0));
                Ok(part(&names.concat(), args[2]))
            }
            kind::STATFS => {
                let s = self.statfs();
                let words = [
                    u64::from(s.block_size),
                    s.blocks,
                    s.free,
                    s.available,
                    s.inodes,
                    s.free_inodes,
                    u64::from(s.name_max),
                    s.id,
                ];
                Ok(Answer::body(rpc::encode(&wire::StatFsBody { words })?))
            }
            kind::TRIM => {
                let ask = rpc::access::<wire::ArchivedTrim>(body, "a trim")?;
                let words = ask.words.map(|word| word.to_native());
                Ok(Answer::words(self.trim(words[0], words[1], words[2])?, 0))
            }
            kind::SEEK => {
                let (offset, data) = (args[2] & !(1 << 63), args[2] >> 63 == 1);
                let found = self.seek(ino, offset, data)?;
                Ok(Answer { args: [found, 0, 0], body: AlignedVec::new() })
            }
            _ => Err(Error::Owner(ENOSYS)),
        }
    }

    fn answer_change(&self, from: Sender, ino: Ino, body: &[u8]) -> Result<Answer> {
        let order = rpc::access::<crate::change::ArchivedOrder>(body, "a change")?;
        let order = rkyv::deserialize::<Order, rkyv::rancor::Error>(order)
            .map_err(|error| Error::Invalid(format!("a change: {error}")))?;
        let changed = self.apply(from, ino, &order)?;
        let answer = changed.record.map_or(Ok(Answer::default()), |record| Answer::record(&record));
        answer.map(|mut answer| {
            answer.args[1] = changed.made.into();
            answer
        })
    }

    fn listing(&self, ino: Ino, position: u64) -> Result<Answer> {
        self.with_inode(ino, |inode| self.listing_of(inode, position))
    }

    fn listing_of(&self, inode: &Inode, position: u64) -> Result<Answer> {
        let mut listing = wire::Listing { entries: Vec::new(), end: true };
        // An archived entry takes 24 bytes and its name.
        let mut room = wire::MAX_DATA;
        self.volume.readdir(inode, position, |entry| {
            let size = 40 + entry.name.len();
            if size > room {
                listing.end = false;
                return std::ops::ControlFlow::Break(());
            }
            room -= size;
            listing.entries.push(wire::Entry {
                ino: entry.ino.0,
                kind: entry.kind.map_or(0, wire::kind_bits),
                next: entry.next,
                name: entry.name.to_vec(),
            });
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(Answer::body(rpc::encode(&listing)?))
    }
}

/// Who asks: a participant, in one incarnation.
pub(super) type Sender = (ParticipantId, Epoch);

/// Bytes in frames of the sender, pinned.
struct Sent<'r> {
    guards: Vec<PageGuard<'r>>,
    len: usize,
}

impl<'r> Sent<'r> {
    fn pin(owner: &'r Owner, from: Sender, body: &[u8]) -> Result<Self> {
        let bad = || Error::Invalid("a change whose bytes are not where it says".into());
        let pieces = rpc::access::<wire::ArchivedPieces>(body, "a change")?;
        let len = usize::try_from(pieces.len.to_native()).map_err(|_| bad())?;
        if len > pieces.refs.len() * FRAME_SIZE || pieces.refs.len() > wire::MAX_PAGES {
            return Err(bad());
        }
        let region = owner.arena.region();
        let pin = |word: u64| {
            let page = PageRef::from_word(word).ok_or_else(bad)?;
            region.pin_from(page, from)?.ok_or_else(bad)
        };
        let guards = pieces.refs.iter().map(|word| pin(word.to_native())).collect::<Result<_>>()?;
        Ok(Self { guards, len })
    }

    fn len(&self) -> usize {
        self.len
    }

    fn pieces(&self) -> Result<Vec<Bytes<'_>>> {
        let mut left = self.len;
        let mut pieces = Vec::with_capacity(self.guards.len());
        for guard in &self.guards {
            let part = guard.bytes().sub(0, left.min(FRAME_SIZE));
            pieces.extend(part.map(Bytes::Shared));
            left -= left.min(FRAME_SIZE);
        }
        Ok(pieces)
    }
}

const ENOSYS: i32 = 38;

fn ino(argument: u64) -> Result<Ino> {
    u32::try_from(argument).map(Ino).map_err(|_| Error::Stale(format!("inode {argument}")))
}

fn part(value: &[u8], from: u64) -> Answer {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(value.len());
    let rest = &value[from..];
    Answer::bytes(value.len() as u64, &rest[..rest.len().min(wire::MAX_DATA)])
}
