//! Suspecting those whose heartbeat stands still.
//!
//! Silence is counted in the watcher's own time, and only as much of it as the watcher was running:
//! after a machine was paused, or the watcher starved, everybody gets their whole time again.

use std::time::Duration;

use crate::id::{Epoch, OsletId};
use crate::limits;

/// How often a runtime beats and looks, and how long it believes in those that do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Timing {
    /// Between two beats, in milliseconds.
    pub interval_ms: u64,
    /// Silence after which one is suspected, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { interval_ms: 100, timeout_ms: 1000 }
    }
}

/// A process that the kernel says is not stopped may only be waiting for a CPU: it gets this many
/// times longer.
const STARVED: u32 = 5;

#[derive(Clone, Copy, Debug)]
struct Watched {
    epoch: Epoch,
    count: u64,
    silence: Duration,
}

/// One process's view of the others' heartbeats.
#[derive(Debug)]
pub struct Watch {
    timing: Timing,
    last: Option<Duration>,
    /// How much time the present look may charge.
    elapsed: Duration,
    seen: Vec<Option<Watched>>,
}

impl Watch {
    /// A watch that has seen nobody.
    pub fn new(timing: Timing) -> Self {
        let seen = vec![None; limits::MAX_OSLETS];
        Self { timing, last: None, elapsed: Duration::ZERO, seen }
    }

    /// Starts a look around at that time (of any monotonic clock).
    pub fn tick(&mut self, now: Duration) {
        let most = Duration::from_millis(self.timing.interval_ms.saturating_mul(2));
        let elapsed = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        self.elapsed = elapsed.min(most);
        self.last = Some(now);
    }

    /// Looks at one heartbeat. True when its owner is to be fenced: it has been silent for the
    /// time-out and `stopped` confirms it, or for several times as long.
    pub fn look(
        &mut self,
        oslet: OsletId,
        epoch: Epoch,
        count: u64,
        stopped: impl FnOnce() -> bool,
    ) -> bool {
        let seen = &mut self.seen[oslet.index()];
        match seen {
            Some(watched) if watched.epoch == epoch && watched.count == count => {
                watched.silence += self.elapsed;
                let timeout = Duration::from_millis(self.timing.timeout_ms);
                watched.silence >= timeout
                    && (watched.silence >= timeout.saturating_mul(STARVED) || stopped())
            }
            _ => {
                *seen = Some(Watched { epoch, count, silence: Duration::ZERO });
                false
            }
        }
    }

    /// Stops watching that one.
    pub fn forget(&mut self, oslet: OsletId) {
        self.seen[oslet.index()] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { interval_ms: 100, timeout_ms: 1000 };

    struct Machine {
        watch: Watch,
        now: u64,
    }

    impl Machine {
        fn pass(&mut self, ms: u64, count: u64, stopped: bool) -> bool {
            self.now += ms;
            self.watch.tick(Duration::from_millis(self.now));
            self.watch.look(OsletId::new(5).unwrap(), Epoch(1), count, || stopped)
        }
    }

    fn machine() -> Machine {
        let mut machine = Machine { watch: Watch::new(TIMING), now: 7 };
        assert!(!machine.pass(0, 1, true));
        machine
    }

    #[test]
    fn a_stopped_one_is_suspected_after_the_time_out_and_not_before() {
        let mut machine = machine();
        let ticks = (1..100).find(|_| machine.pass(100, 1, true)).unwrap();
        assert_eq!(ticks, 10);
    }

    #[test]
    fn one_that_runs_but_is_silent_gets_longer() {
        let mut machine = machine();
        let ticks = (1..100).find(|_| machine.pass(100, 1, false)).unwrap();
        assert_eq!(ticks, 50);
    }

    #[test]
    fn a_beat_clears_the_silence() {
        let mut machine = machine();
        for count in 2..100 {
            assert!(!machine.pass(900, count, true));
            assert!(!machine.pass(200, count, true));
        }
    }

    #[test]
    fn a_pause_of_the_whole_machine_is_held_against_nobody() {
        let mut machine = machine();
        assert!(!machine.pass(100, 1, true));
        assert!(!machine.pass(3_600_000, 1, true), "the watcher did not run either");
        assert!(!machine.pass(100, 2, true));
        let ticks = (1..100).find(|_| machine.pass(100, 2, true)).unwrap();
        assert_eq!(ticks, 10);
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_charges_nothing() {
        let mut machine = machine();
        for _ in 0..100 {
            machine.now -= 1;
            assert!(!machine.pass(1, 1, true));
        }
    }

    #[test]
    fn a_new_incarnation_starts_afresh() {
        let mut machine = machine();
        for _ in 0..9 {
            assert!(!machine.pass(100, 1, true));
        }
        machine.watch.tick(Duration::from_millis(machine.now + 100));
        let o = OsletId::new(5).unwrap();
        assert!(!machine.watch.look(o, Epoch(2), 1, || true));
        machine.watch.forget(o);
        assert!(!machine.watch.look(o, Epoch(2), 1, || true));
    }
}
