//! The allocator of a segment's table space. Its state is the owner's alone and private; readers
//! find what was allocated through directories and messages.

use std::collections::BTreeMap;

/// Free ranges by offset; first fit, neighbours joined when freed.
#[derive(Debug)]
pub(super) struct Space {
    free: BTreeMap<usize, usize>,
}

impl Space {
    pub(super) fn new(offset: usize, len: usize) -> Self {
        let mut free = BTreeMap::new();
        if len > 0 {
            free.insert(offset, len);
        }
        Self { free }
    }

    /// The offset of `len` bytes aligned to `align`, or `None` when no free range has room.
    pub(super) fn alloc(&mut self, len: usize, align: usize) -> Option<usize> {
        let fits = |(&start, &size): (&usize, &usize)| {
            let at = start.checked_next_multiple_of(align)?;
            let end = at.checked_add(len)?;
            (end <= start + size).then_some((start, size, at))
        };
        let (start, size, at) = self.free.iter().find_map(fits)?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        if at + len < start + size {
            self.free.insert(at + len, start + size - at - len);
        }
        Some(at)
    }

    /// Gives back what [`Self::alloc`] returned for that length.
    pub(super) fn free(&mut self, mut offset: usize, mut len: usize) {
        if let Some((&before, &size)) = self.free.range(..offset).next_back()
            && before + size == offset
        {
            self.free.remove(&before);
            offset = before;
            len += size;
        }
        if let Some(size) = self.free.remove(&(offset + len)) {
            len += size;
        }
        self.free.insert(offset, len);
    }

    /// All free bytes.
    #[cfg(test)]
    fn total(&self) -> usize {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(
            steps in proptest::collection::vec((0usize..40, 0u32..4, any::<bool>()), 1..200)
        ) {
            let mut space = Space::new(64, 1000);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (len, align, release) in steps {
                let len = len + 1;
                if release && !held.is_empty() {
                    let (offset, len) = held.swap_remove(len % held.len());
                    space.free(offset, len);
                } else if let Some(offset) = space.alloc(len, 1 << align) {
                    prop_assert!(offset >= 64 && offset + len <= 1064);
                    prop_assert_eq!(offset % (1 << align), 0);
                    for &(other, size) in &held {
                        prop_assert!(offset + len <= other || other + size <= offset);
                    }
                    held.push((offset, len));
                }
            }
            for (offset, len) in held {
                space.free(offset, len);
            }
            prop_assert_eq!(space.total(), 1000);
            prop_assert_eq!(space.alloc(1000, 64), Some(64));
        }
    }
}
