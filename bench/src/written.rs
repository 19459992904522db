//! What is written so that it can be told afterwards whether it was: pages written over at random,
//! and a file written from its beginning to its end.

use anyhow::ensure;

use crate::corpus::{self, PAGE, WORDS, Walk};

/// Random pages of a file, each with the number of its last write in its first word.
pub struct Overwriting {
    walk: Walk,
    /// Of each page.
    last: Vec<u64>,
    count: u64,
    page: Vec<u8>,
}

impl Overwriting {
    /// Of a file that holds what [`corpus::write_pages`] has written.
    pub fn new(walk: Walk) -> Self {
        let last = (0..walk.pages()).map(|page| corpus::expected(page, 0)).collect();
        let mut page = vec![0; PAGE];
        corpus::fill(0, &mut page);
        Self { walk, last, count: 0, page }
    }

    /// What to write next: which page, and its bytes.
    #[inline]
    pub fn step(&mut self) -> (u64, &[u8]) {
        let (page, _) = self.walk.step();
        self.count += 1;
        self.last[page as usize] = self.count;
        self.page[..8].copy_from_slice(&self.count.to_le_bytes());
        (page, &self.page)
    }

    /// Reads all pages back.
    ///
    /// # Errors
    /// A page holds something else than was written to it last.
    pub fn check(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut found = vec![0; PAGE];
        for (page, &last) in (0..).zip(&self.last) {
            read(page, &mut found)?;
            let kept = last == corpus::expected(page, 0);
            let rest = corpus::expected(if kept { page } else { 0 }, WORDS - 1);
            let right = corpus::word(&found, 0) == last && corpus::word(&found, WORDS - 1) == rest;
            ensure!(right, "page {page} does not hold what was written to it last");
        }
        Ok(())
    }
}

/// A file in chunks, each page with its number in its first word.
pub struct Stream {
    chunk: Vec<u8>,
}

impl Stream {
    /// In chunks of so many bytes.
    pub fn new(chunk: u64) -> Self {
        let mut chunk = vec![0; chunk as usize];
        for (page, bytes) in chunk.chunks_exact_mut(PAGE).enumerate() {
            corpus::fill(page as u64, bytes);
        }
        Self { chunk }
    }

    /// Bytes of a chunk.
    pub fn len(&self) -> u64 {
        self.chunk.len() as u64
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// The bytes of that chunk.
    #[inline]
    pub fn chunk(&mut self, index: u64) -> &[u8] {
        let first = index * (self.chunk.len() / PAGE) as u64;
        for (page, bytes) in (first..).zip(self.chunk.chunks_exact_mut(PAGE)) {
            bytes[..8].copy_from_slice(&page.to_le_bytes());
        }
        &self.chunk
    }

    /// Reads `chunks` chunks back.
    ///
    /// # Errors
    /// One holds something else.
    pub fn check(
        &self,
        chunks: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut found = vec![0; self.chunk.len()];
        for index in 0..chunks {
            read(index * self.len(), &mut found)?;
            let first = index * (found.len() / PAGE) as u64;
            for (page, (found, wanted)) in
                (first..).zip(found.chunks_exact(PAGE).zip(self.chunk.chunks_exact(PAGE)))
            {
                let right = corpus::word(found, 0) == page && found[8..] == wanted[8..];
                ensure!(right, "page {page} does not hold what was written to it");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_not_made_is_noticed() {
        for lost in [None, Some(20)] {
            let mut writing = Overwriting::new(Walk::new(16));
            let mut file = vec![0; 16 * PAGE];
            for (page, bytes) in (0..).zip(file.chunks_exact_mut(PAGE)) {
                corpus::fill(page, bytes);
            }
            for count in 0..40 {
                let (page, bytes) = writing.step();
                // From there on nothing is written.
                if lost.is_none_or(|lost| count < lost) {
                    file[page as usize * PAGE..][..PAGE].copy_from_slice(bytes);
                }
            }
            let checked = writing.check(|page, out| {
                out.copy_from_slice(&file[page as usize * PAGE..][..PAGE]);
                Ok(())
            });
            assert_eq!(checked.is_ok(), lost.is_none());
        }
    }

    #[test]
    fn chunks_that_changed_places_are_noticed() {
        let mut stream = Stream::new(4 * PAGE as u64);
        let mut file: Vec<u8> = (0..3).flat_map(|index| stream.chunk(index).to_vec()).collect();
        let check = |file: &[u8]| {
            stream.check(3, |offset, out| {
                out.copy_from_slice(&file[offset as usize..][..out.len()]);
                Ok(())
            })
        };
        check(&file).unwrap();
        let first = file[..4 * PAGE].to_vec();
        file[8 * PAGE..].copy_from_slice(&first);
        assert!(check(&file).is_err());
    }
}
