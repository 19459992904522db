//! The bytes of a write.

use oslet::region::Bytes;

use crate::{Error, Result};

/// What is written, in pieces, of which the first are used up.
pub(super) struct Input<'a> {
    pub(super) pieces: &'a [Bytes<'a>],
    /// Bytes of the first that are used up.
    pub(super) used: usize,
}

impl<'a> Input<'a> {
    /// The next `len` bytes, if they lie together.
    pub(super) fn piece(&self, len: usize) -> Option<Bytes<'a>> {
        self.pieces.first()?.part(self.used, len)
    }

    /// Takes the next `len` bytes: hands each piece of them to `put`, with its place among them.
    pub(super) fn take(
        &mut self,
        len: usize,
        mut put: impl FnMut(usize, Bytes<'a>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let missing = || Error::Invalid("a write of fewer bytes than it says".into());
            let (piece, rest) = self.pieces.split_first().ok_or_else(missing)?;
            let left = piece.len() - self.used;
            if left == 0 {
                (self.pieces, self.used) = (rest, 0);
                continue;
            }
            let now = left.min(len - done);
            put(done, piece.part(self.used, now).ok_or_else(missing)?)?;
            self.used += now;
            done += now;
        }
        Ok(())
    }
}
