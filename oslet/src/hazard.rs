//! Pins as hazard references: a counter that a reader keeps in its own segment for each frame of
//! another, which keeps the frame's home from reusing it.
//!
//! Reader: count, fence, look at the link again. Home: unlink, fence, look at the counters. One of
//! the two sees the other. A counter's upper four bits say when the frame was last used, so that
//! its home can tell idle frames from busy ones without readers writing to its memory.

use crate::sync::{AtomicU16, Ordering, fence, fence_after_rmw};

/// Bits of a counter that count pins.
const PIN_BITS: u32 = 12;
const PIN_MASK: u16 = (1 << PIN_BITS) - 1;
/// Pins of one participant on one frame at a time. What lies between this and the width of the
/// counter is for threads that find it too high and are about to take theirs back.
pub const MAX_PINS_PER_FRAME: u16 = 0xe00;
/// Ages are told apart modulo this many ticks of the home's clock.
pub const CLOCK_TICKS: u16 = 1 << (16 - PIN_BITS);

/// A counter that can be looked at.
pub trait Seen {
    /// An atomic load.
    fn load(&self, order: Ordering) -> u16;
}

/// A counter that can be changed.
pub trait Counter: Seen {
    /// An atomic addition; returns what was there before.
    fn fetch_add(&self, value: u16, order: Ordering) -> u16;
    /// An atomic subtraction; returns what was there before.
    fn fetch_sub(&self, value: u16, order: Ordering) -> u16;
}

impl Seen for AtomicU16 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u16 {
        Self::load(self, order)
    }
}

impl Counter for AtomicU16 {
    #[inline(always)]
    fn fetch_add(&self, value: u16, order: Ordering) -> u16 {
        Self::fetch_add(self, value, order)
    }
    #[inline(always)]
    fn fetch_sub(&self, value: u16, order: Ordering) -> u16 {
        Self::fetch_sub(self, value, order)
    }
}

/// Counts a pin at tick `clock` of the home. Returns whether there was room for it: if not, it is
/// to be taken back at once. The link must be looked at again behind this.
#[inline(always)]
pub fn pin(counter: &impl Counter, clock: u16) -> bool {
    // SYNC POINT: pin or reuse
    let before = counter.fetch_add(1, Ordering::SeqCst);
    // Of a counter that was last used at this very tick the count alone is left.
    let count = before ^ clock << PIN_BITS;
    let room = count < MAX_PINS_PER_FRAME || date(counter, before, clock);
    fence_after_rmw();
    room
}

/// Dates a counter that was another tick's. Returns whether there was room in it.
#[cold]
#[inline(never)]
fn date(counter: &impl Counter, before: u16, clock: u16) -> bool {
    let age = (clock % CLOCK_TICKS).wrapping_sub(before >> PIN_BITS) % CLOCK_TICKS;
    // Two threads at once may leave a wrong age, which only delays or hastens an eviction; the
    // count below is never touched by multiples of its range.
    counter.fetch_add(age << PIN_BITS, Ordering::Relaxed);
    before & PIN_MASK < MAX_PINS_PER_FRAME
}

/// Takes a pin back.
#[inline(always)]
pub fn unpin(counter: &impl Counter) {
    // SYNC POINT: unpin
    counter.fetch_sub(1, Ordering::Release);
}

/// Between unlinking and looking at the counters.
pub fn before_scan() {
    // SYNC POINT: pin or reuse
    fence(Ordering::SeqCst);
}

/// Whether the frame is pinned by the counter's owner.
pub fn is_pinned(counter: &impl Seen) -> bool {
    count(counter) != 0
}

/// How often the frame is pinned by the counter's owner.
pub fn count(counter: &impl Seen) -> u16 {
    // SYNC POINT: unpin
    counter.load(Ordering::SeqCst) & PIN_MASK
}

/// Ticks since the counter's owner last used the frame, modulo [`CLOCK_TICKS`].
pub fn age(counter: &impl Seen, clock: u16) -> u16 {
    (clock % CLOCK_TICKS).wrapping_sub(counter.load(Ordering::Relaxed) >> PIN_BITS) % CLOCK_TICKS
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_counter_has_no_room_at_any_tick() {
        for clock in 0..CLOCK_TICKS {
            let full = MAX_PINS_PER_FRAME | 3 << PIN_BITS;
            let counter = AtomicU16::new(full - 1);
            assert!(pin(&counter, clock));
            assert!(!pin(&counter, clock));
            unpin(&counter);
            assert_eq!((count(&counter), age(&counter, clock)), (MAX_PINS_PER_FRAME, 0));
        }
    }

    #[test]
    fn ages_and_pins_do_not_touch_each_other() {
        let counter = AtomicU16::new(0);
        for clock in 0..100u16 {
            assert!(pin(&counter, clock));
            assert!(is_pinned(&counter));
            assert_eq!(age(&counter, clock), 0);
            assert_eq!(age(&counter, clock + 3), 3);
            assert!(pin(&counter, clock));
            assert_eq!(count(&counter), 2);
            unpin(&counter);
            unpin(&counter);
            assert!(!is_pinned(&counter));
        }
    }
}
