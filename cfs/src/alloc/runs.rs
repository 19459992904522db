//! Which bits of a group are free, with an index of the runs of free bits.

use std::ops::Range;

/// Bits, set while taken, and over them a tree that knows for each piece of the group how long
/// the runs of free bits at its start, at its end and anywhere in it are.
///
/// So the longest run is known at once, and the first one of a wanted length after a goal is found
/// in a number of steps that grows with the tree's height.
pub(super) struct Runs {
    words: Box<[u64]>,
    /// Node 1 is the root, nodes `2n` and `2n + 1` are below `n`; the lower half has no words.
    nodes: Box<[Node]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Node {
    head: u16,
    tail: u16,
    longest: u16,
}

const WORD: u32 = 64;

impl Runs {
    /// From a bitmap's bytes; bits beyond them are taken.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let count = bytes.len().div_ceil(8).next_power_of_two();
        let mut words = vec![!0; count].into_boxed_slice();
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0xff; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        let nodes = vec![Node::default(); 2 * count].into_boxed_slice();
        let mut runs = Self { words, nodes };
        runs.refresh(0..count);
        runs
    }

    /// The longest run of free bits.
    pub(super) fn longest(&self) -> u32 {
        self.nodes[1].longest.into()
    }

    /// Marks bits as taken.
    pub(super) fn take(&mut self, bits: Range<u32>) {
        self.change(bits, |word, mask| *word |= mask);
    }

    /// Marks bits as free.
    pub(super) fn give(&mut self, bits: Range<u32>) {
        debug_assert!(self.all_taken(bits.clone()), "{bits:?} are free already");
        self.change(bits, |word, mask| *word &= !mask);
    }

    /// Whether all these bits are taken.
    fn all_taken(&self, bits: Range<u32>) -> bool {
        let mut missing = 0;
        each(bits, |at, mask| missing |= mask & !self.words[at]);
        missing == 0
    }

    /// Free bits from `bit` on, up to the first that is taken and to `most`.
    pub(super) fn len_at(&self, bit: u32, most: u32) -> u32 {
        let mut len = 0;
        while len < most {
            let at = bit + len;
            let Some(word) = self.words.get((at / WORD) as usize) else { break };
            let left = WORD - at % WORD;
            let free = (word >> (at % WORD)).trailing_zeros().min(left);
            len += free;
            if free < left {
                break;
            }
        }
        len.min(most)
    }

    /// The start of the first run of `len` free bits at or after `from`.
    pub(super) fn find(&self, from: u32, len: u32) -> Option<u32> {
        let mut search = Search { runs: self, from, len, before: 0 };
        search.node(1, 0, self.words.len() as u32 * WORD)
    }

    fn change(&mut self, bits: Range<u32>, change: impl Fn(&mut u64, u64)) {
        if bits.is_empty() {
            return;
        }
        let words = (bits.start / WORD) as usize..((bits.end - 1) / WORD) as usize + 1;
        each(bits, |at, mask| change(&mut self.words[at], mask));
        self.refresh(words);
    }

    /// Brings the nodes over these words up to date.
    fn refresh(&mut self, words: Range<usize>) {
        let count = self.words.len();
        for at in words.clone() {
            self.nodes[count + at] = Node::of(self.words[at]);
        }
        let (mut first, mut last) = (count + words.start, count + words.end - 1);
        let mut half = WORD;
        while first > 1 {
            (first, last) = (first / 2, last / 2);
            let mut same = true;
            for at in first..=last {
                let node = Node::join(self.nodes[2 * at], self.nodes[2 * at + 1], half);
                same &= node == self.nodes[at];
                self.nodes[at] = node;
            }
            // What lies above depends on these alone.
            if same {
                break;
            }
            half *= 2;
        }
    }
}

/// Calls `visit` with each word that holds bits of the range, and which of its bits.
fn each(bits: Range<u32>, mut visit: impl FnMut(usize, u64)) {
    let mut at = bits.start;
    while at < bits.end {
        let len = (WORD - at % WORD).min(bits.end - at);
        visit((at / WORD) as usize, (!0 >> (WORD - len)) << (at % WORD));
        at += len;
    }
}

impl Node {
    fn of(word: u64) -> Self {
        let mut free = !word;
        let mut longest = 0;
        if word == 0 {
            longest = WORD as u16;
        } else {
            // Each round takes one bit off each run.
            while free != 0 {
                free &= free << 1;
                longest += 1;
            }
        }
        let (head, tail) = (word.trailing_zeros() as u16, word.leading_zeros() as u16);
        Self { head, tail, longest }
    }

    /// Two neighbours of `half` bits each.
    fn join(left: Self, right: Self, half: u32) -> Self {
        let half = half as u16;
        Self {
            head: if left.head == half { half + right.head } else { left.head },
            tail: if right.tail == half { half + left.tail } else { right.tail },
            longest: left.longest.max(right.longest).max(left.tail + right.head),
        }
    }
}

struct Search<'a> {
    runs: &'a Runs,
    from: u32,
    len: u32,
    /// Free bits just before the next node.
    before: u32,
}

impl Search<'_> {
    fn node(&mut self, at: usize, start: u32, size: u32) -> Option<u32> {
        let node = self.runs.nodes[at];
        if start + size <= self.from {
            return None;
        }
        if start >= self.from {
            if self.before + u32::from(node.head) >= self.len {
                return Some(start - self.before);
            }
            if u32::from(node.longest) < self.len {
                let free = u32::from(node.tail);
                self.before = if free == size { self.before + size } else { free };
                return None;
            }
        }
        if size == WORD {
            return self.word(at - self.runs.words.len(), start);
        }
        let half = size / 2;
        self.node(2 * at, start, half).or_else(|| self.node(2 * at + 1, start + half, half))
    }

    /// A word that holds the run, or in which `from` lies.
    fn word(&mut self, at: usize, start: u32) -> Option<u32> {
        let mut free = !self.runs.words[at];
        if start < self.from {
            free &= !0 << (self.from - start);
        }
        self.before = (!free).leading_zeros();
        if self.len > WORD {
            return None;
        }
        // A bit stays while as many free bits as `width` begin there.
        let mut width = 1;
        while width < self.len {
            let step = width.min(self.len - width);
            free &= free >> step;
            width += step;
        }
        (free != 0).then(|| start + free.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model_find(model: &[bool], from: u32, len: u32) -> Option<u32> {
        (from as usize..model.len())
            .find(|&start| {
                let end = start + len as usize;
                end <= model.len() && model[start..end].iter().all(|taken| !taken)
            })
            .map(|start| start as u32)
    }

    fn model_longest(model: &[bool]) -> u32 {
        model.split(|taken| *taken).map(|run| run.len() as u32).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn runs_are_found_as_a_plain_search_finds_them(
            bytes in prop_oneof![Just(24usize), Just(125), Just(128)],
            changes in proptest::collection::vec(
                (any::<bool>(), 0u32..1024, 0u32..200, 0u32..1024, 1u32..300),
                1..40,
            ),
        ) {
            let mut runs = Runs::new(&vec![0; bytes]);
            let mut model = vec![false; bytes * 8];
            let size = model.len() as u32;
            for (taken, start, len, from, wanted) in changes {
                let (start, from) = (start % size, from % size);
                let end = (start + len).min(size);
                runs.take(start..end);
                if !taken {
                    runs.give(start..end);
                }
                model[start as usize..end as usize].fill(taken);
                prop_assert_eq!(runs.longest(), model_longest(&model));
                prop_assert_eq!(runs.find(from, wanted), model_find(&model, from, wanted));
                let free = model[from as usize..].iter().take_while(|taken| !**taken).count();
                prop_assert_eq!(runs.len_at(from, wanted), wanted.min(free as u32));
                let within = model[start as usize..end as usize].iter().all(|taken| *taken);
                prop_assert_eq!(runs.all_taken(start..end), within);
                let all: Vec<bool> = (0..size).map(|bit| runs.len_at(bit, 1) == 0).collect();
                prop_assert_eq!(&all, &model);
            }
            prop_assert_eq!(runs.find(size, 1), None);
        }
    }

    #[test]
    fn a_whole_group_is_one_run() {
        let mut runs = Runs::new(&[0; 4096]);
        assert_eq!(runs.longest(), 32768);
        assert_eq!(runs.find(0, 32768), Some(0));
        assert_eq!(runs.find(1, 32768), None);
        assert_eq!(runs.find(1, 32767), Some(1));
        assert_eq!(runs.len_at(0, u32::MAX), 32768);
        runs.take(0..32768);
        assert_eq!((runs.longest(), runs.find(0, 1)), (0, None));
    }
}
