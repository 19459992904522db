//! New pages in a row: one look at the budget, one turn with the index, for all of them.

use std::sync::Arc;

use oslet::id::PageRef;
use oslet::region::put_past_caches;

use super::{Input, Part};
use crate::cache::Key;
use crate::id::Ino;
use crate::owner::Owner;
use crate::owner::dirty::File;
use crate::owner::frames::Blocks;
use crate::owner::pages::{PAGE, key};
use crate::{Error, Result};

impl Owner {
    /// Writes whole pages one behind the other that nothing shows, if that is what they are and
    /// there is more than one. How many.
    pub(super) fn write_row(
        &self,
        file: &Arc<File>,
        ino: Ino,
        parts: &[Part],
        input: &mut Input<'_>,
    ) -> (usize, Result<()>) {
        if parts.len() == 1 {
            return (0, Ok(()));
        }
        let (keys, pages) = match self.fill_row(file, ino, parts, input) {
            Ok(filled) => filled,
            Err(error) => return (0, Err(error)),
        };
        let blocks = |index: usize| {
            let part: &Part = &parts[index];
            Blocks { dirty: part.blocks, reserved: part.reserve, writing: 0 }
        };
        let (count, linked) = self.link_row(&keys, &pages, blocks);
        self.files.add(file, parts[0].page, &pages[..count]);
        let taken = input.take(count * PAGE as usize, |_, _| Ok(()));
        (count, linked.and(taken))
    }

    /// Fills frames for such pages; the input is not used up.
    fn fill_row(
        &self,
        file: &Arc<File>,
        ino: Ino,
        parts: &[Part],
        input: &Input<'_>,
    ) -> Result<(Vec<Key>, Vec<PageRef>)> {
        let keys = parts.iter().map(|part| key(ino, part.page)).collect::<Result<_>>()?;
        self.make_room(parts.len())?;
        let mut frames = self.arena.alloc_many(parts.len())?;
        let mut input = Input { ..*input };
        let len = parts.len() * PAGE as usize;
        // What was written in sequence for long is not what is read next.
        let streamed = file.pending().is_streamed(parts[0].page);
        match input.piece(len).filter(|_| streamed) {
            Some(bytes) => put_past_caches(&mut frames, bytes)?,
            None => input.take(len, |at, piece| {
                let (mut at, mut from) = (at, 0);
                while from < piece.len() {
                    let (index, within) = (at / PAGE as usize, at % PAGE as usize);
                    let now = (PAGE as usize - within).min(piece.len() - from);
                    let part = piece.part(from, now);
                    let missing = || Error::Invalid("a write of fewer bytes than it says".into());
                    frames[index].put(within, part.ok_or_else(missing)?)?;
                    (at, from) = (at + now, from + now);
                }
                Ok(())
            })?,
        }
        Ok((keys, frames.into_iter().map(|frame| frame.publish()).collect()))
    }
}
