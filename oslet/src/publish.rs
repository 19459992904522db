//! How one writer publishes records and references to readers in other processes that take no
//! lock: the protocols alone, over any words, so that a model can check them.
//!
//! A *record* is guarded by a sequence word: odd while it is written, zero while it is empty. A
//! *slot* is a key and a reference; a reader takes the reference, pins the frame that it names and
//! looks again ([`crate::region::Region::pin_if`]).

use crate::sync::{Ordering, fence};
use crate::words::{ReadWords, WriteWords};

/// Writes a record: `values` behind the sequence word at `base`. Calls for one record must not
/// overlap: the writer holds its own lock.
pub fn write_record(words: &impl WriteWords, base: usize, values: &[u64]) {
    change_record(words, base, values.iter().copied().enumerate());
}

/// As [`write_record`], for some values of a record that has them all: each with its place.
pub fn change_record(
    words: &impl WriteWords,
    base: usize,
    values: impl Iterator<Item = (usize, u64)>,
) {
    let sequence = words.load(base, Ordering::Relaxed);
    let writing = begin(words, base, sequence);
    for (index, value) in values {
        words.store(base + 1 + index, value, Ordering::Relaxed);
    }
    // SYNC POINT: record
    words.store(base, writing.wrapping_add(1).max(2), Ordering::Release);
}

/// Makes a record empty.
pub fn clear_record(words: &impl WriteWords, base: usize, len: usize) {
    let sequence = words.load(base, Ordering::Relaxed);
    if sequence == 0 {
        return;
    }
    let writing = begin(words, base, sequence);
    for index in 0..len {
        words.store(base + 1 + index, 0, Ordering::Relaxed);
    }
    // Not zero: a reader that copied the old contents must see that the sequence moved on.
    // SYNC POINT: record
    words.store(base, writing.wrapping_add(1).max(2), Ordering::Release);
}

fn begin(words: &impl WriteWords, base: usize, sequence: u64) -> u64 {
    let writing = sequence | 1;
    let writing = if writing == sequence { sequence.wrapping_add(2) } else { writing };
    words.store(base, writing, Ordering::Relaxed);
    // SYNC POINT: record
    fence(Ordering::Release);
    writing
}

/// How often a reader tries again while a record is being written. Then it asks the owner, whose
/// answer waits for its own lock: nobody spins on a writer that died in the middle (R4).
pub const RECORD_TRIES: usize = 64;

/// Copies the first `N` values of a record. Returns whether there is one that comes to rest; what
/// was copied counts only then.
#[inline(always)]
pub fn read_record<const N: usize>(
    words: &impl ReadWords,
    base: usize,
    out: &mut [u64; N],
) -> bool {
    for _ in 0..RECORD_TRIES {
        // SYNC POINT: record
        let before = words.load(base, Ordering::Acquire);
        if before == 0 {
            return false;
        }
        if before & 1 == 0 {
            for (index, value) in out.iter_mut().enumerate() {
                *value = words.load(base + 1 + index, Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if words.load(base, Ordering::Relaxed) == before {
                return true;
            }
        }
        crate::sync::spin_loop();
    }
    false
}

/// Where the two words of a slot are: a bucket may keep its keys together, to be compared at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The key's word.
    pub key: usize,
    /// The word of the reference.
    pub value: usize,
}

/// Links `value` under `key` in a slot, which must be empty. The writer's lock is held.
pub fn link(words: &impl WriteWords, slot: Slot, key: u64, value: u64) {
    debug_assert_eq!(words.load(slot.value, Ordering::Relaxed), 0);
    // Behind the zero of `unlink`: who sees this key behind its fence does not see the old value.
    words.store(slot.key, key, Ordering::Release);
    // SYNC POINT: page linked
    words.store(slot.value, value, Ordering::SeqCst);
}

/// Empties a slot. The frame that it named is reused only behind a fence and a look at the pins:
/// [`crate::arena::Arena::retire`].
pub fn unlink(words: &impl WriteWords, slot: Slot) {
    // SYNC POINT: page linked
    words.store(slot.value, 0, Ordering::SeqCst);
}

/// The value of a slot whose key was seen to be the one that is looked for; zero for none. It may
/// be another key's by now, and what it names may be gone: pin, then ask [`still_linked`].
#[inline(always)]
pub fn linked(words: &impl ReadWords, slot: Slot) -> u64 {
    // SYNC POINT: page linked
    words.load(slot.value, Ordering::Acquire)
}

/// Whether the slot holds exactly that, behind a pin. Both words count: one frame may be linked
/// under several keys (the page of zeros), and a slot may have been refilled between the look at
/// its key and that at its value.
#[inline(always)]
pub fn still_linked(words: &impl ReadWords, slot: Slot, key: u64, value: u64) -> bool {
    // SYNC POINT: page linked
    words.load(slot.value, Ordering::SeqCst) == value
        && words.load(slot.key, Ordering::Relaxed) == key
}

#[cfg(all(test, loom))]
mod model;
