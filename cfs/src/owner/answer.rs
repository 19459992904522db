//! Requests, answered: by a call in the owner's own process, by messages in the others.

use oslet::rpc;
use rkyv::util::AlignedVec;

use super::Owner;
use crate::cache::InodeRecord;
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

    fn record(record: &InodeRecord) -> Result<Self> {
        let body = rpc::encode(&wire::Record { words: record.to_words() })?;
        Ok(Self { args: [u64::from(record.attr.ino.0), 0, 0], body })
    }
}

impl Owner {
    /// Answers one request of [`wire::kind`]. May read the device.
    ///
    /// # Errors
    /// Those of the operation, and ENOSYS for what is no request.
    pub fn answer(&self, request: u16, args: [u64; 3], body: &[u8]) -> Result<Answer> {
        let ino = ino(args[1])?;
        match request {
            kind::LOOKUP => Answer::record(&self.lookup(ino, body)?),
            kind::GETATTR => Answer::record(&self.publish_inode(&self.inode(ino)?)?),
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
                let read = self.volume.read(&self.inode(ino)?, offset, &mut bytes)?;
                Ok(Answer::bytes(read as u64, &bytes))
            }
            kind::READLINK => {
                let target = self.volume.readlink(&self.inode(ino)?)?;
                Ok(Answer::bytes(target.len() as u64, &target))
            }
            kind::READDIR => self.listing(ino, args[2]),
            kind::GETXATTR | kind::GETXATTR_MORE => {
                let value = self.volume.getxattr(&self.inode(ino)?, body)?;
                let from = if request == kind::GETXATTR { 0 } else { args[2] };
                Ok(part(&value, from))
            }
            kind::LISTXATTR => {
                let mut names = self.volume.listxattr(&self.inode(ino)?)?;
                names.iter_mut().for_each(|name| name.push(0));
                Ok(part(&names.concat(), args[2]))
            }
            kind::STATFS => {
                let s = self.volume.statfs();
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
            kind::SEEK => {
                let (offset, data) = (args[2] & !(1 << 63), args[2] >> 63 == 1);
                let inode = self.inode(ino)?;
                let found = if data {
                    self.volume.seek_data(&inode, offset)?
                } else {
                    self.volume.seek_hole(&inode, offset)?
                };
                Ok(Answer { args: [found, 0, 0], body: AlignedVec::new() })
            }
            _ => Err(Error::Owner(ENOSYS)),
        }
    }

    fn listing(&self, ino: Ino, position: u64) -> Result<Answer> {
        let inode = self.inode(ino)?;
        let mut listing = wire::Listing { entries: Vec::new(), end: true };
        // An archived entry takes 24 bytes and its name.
        let mut room = wire::MAX_DATA;
        self.volume.readdir(&inode, position, |entry| {
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

const ENOSYS: i32 = 38;

fn ino(argument: u64) -> Result<Ino> {
    u32::try_from(argument).map(Ino).map_err(|_| Error::Stale(format!("inode {argument}")))
}

fn part(value: &[u8], from: u64) -> Answer {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(value.len());
    let rest = &value[from..];
    Answer::bytes(value.len() as u64, &rest[..rest.len().min(wire::MAX_DATA)])
}
