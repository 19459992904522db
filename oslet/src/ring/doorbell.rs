//! Waiting for rings: spin while it pays, then park on the tails by futex.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

use super::Incoming;
use super::spsc::{self, layout};
use crate::limits;
use crate::region::{Ro, Rw};
use crate::sync::{AtomicU64, Ordering};
use crate::words::WriteWords;

/// How long a consumer polls after its last message before it parks. A wake-up costs some 30 us on
/// each side; polling for about that long at most doubles the cost of a wait and usually saves it.
pub const SPIN: Duration = Duration::from_micros(50);

/// Where the kernel has no `futex_waitv` (before Linux 5.16) several rings are polled this often.
const POLL: Duration = Duration::from_millis(2);

/// Wakes whoever waits for this tail.
pub(crate) fn wake(tail: &Ro<AtomicU64>) {
    // Nothing to do about an error: the word is mapped, and waiters look again at their time limit.
    let _ = futex::wake(tail.futex(layout::TAIL), futex::Flags::empty(), 1);
}

/// The CPU that this thread runs on.
pub fn current_cpu() -> u64 {
    rustix::thread::sched_getcpu() as u64
}

/// Says in a parking line where its consumer runs, so that callers on the same CPU do not spin.
pub(crate) fn note_cpu(park: &Rw<AtomicU64>) {
    park.store(layout::CONSUMER_CPU, current_cpu() + 1, Ordering::Relaxed);
}

/// Parks until one of the rings has a message, somebody else wakes `park`'s owner through `extra`,
/// or `limit` has passed. Spurious returns are allowed.
///
/// `extra` is a word of this process (with the value seen before the caller last looked for work)
/// that other threads of it change and wake.
pub(crate) fn wait(
    park: &Rw<AtomicU64>,
    rings: &mut [&mut Incoming],
    extra: Option<(&std::sync::atomic::AtomicU32, u32)>,
    limit: Duration,
) {
    rings.iter_mut().for_each(|ring| ring.release());
    spsc::announce_parking(park);
    if !rings.iter().any(|ring| ring.ready()) {
        sleep(rings, extra, limit);
    }
    note_cpu(park);
    spsc::retract_parking(park);
}

fn sleep(
    rings: &[&mut Incoming],
    extra: Option<(&std::sync::atomic::AtomicU32, u32)>,
    limit: Duration,
) {
    let timeout = |length: Duration| futex::Timespec {
        tv_sec: length.as_secs() as i64,
        tv_nsec: i64::from(length.subsec_nanos()),
    };
    if let ([ring], None) = (rings, extra) {
        let (tail, value) = ring.bell();
        // Woken, changed, interrupted or timed out: the caller looks again in each case.
        let _ = futex::wait(
            tail.futex(layout::TAIL),
            futex::Flags::empty(),
            value,
            Some(&timeout(limit)),
        );
        return;
    }
    debug_assert!(rings.len() < limits::RINGS_PER_THREAD);
    let mut waits = Vec::with_capacity(rings.len() + 1);
    let mut add = |word: *const std::sync::atomic::AtomicU32, value: u32| {
        let mut wait = futex::Wait::new();
        wait.val = u64::from(value);
        wait.uaddr = futex::WaitPtr::new(word.cast_mut().cast());
        wait.flags = futex::WaitFlags::SIZE_U32;
        waits.push(wait);
    };
    for ring in rings {
        let (tail, value) = ring.bell();
        add(std::ptr::from_ref(tail.futex(layout::TAIL)), value);
    }
    if let Some((word, value)) = extra {
        add(std::ptr::from_ref(word), value);
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let mut until = timeout(limit);
    until.tv_sec += now.tv_sec;
    until.tv_nsec += now.tv_nsec;
    if until.tv_nsec >= 1_000_000_000 {
        until.tv_sec += 1;
        until.tv_nsec -= 1_000_000_000;
    }
    let flags = futex::WaitvFlags::empty();
    let clock = futex::ClockId::Monotonic;
    if futex::waitv(&waits, flags, Some(&until), clock) == Err(Errno::NOSYS) {
        std::thread::sleep(POLL.min(limit));
    }
}

/// Polls for as long as it pays. Returns true when `ready` did.
#[inline]
pub fn spin_until(mut ready: impl FnMut() -> bool, from: Instant, spin: Duration) -> bool {
    loop {
        for _ in 0..64 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if from.elapsed() >= spin {
            return false;
        }
    }
}

/// A parking line's owner ends: nobody need wake it any more.
pub(crate) fn leave(park: &impl WriteWords) {
    spsc::retract_parking(park);
}
