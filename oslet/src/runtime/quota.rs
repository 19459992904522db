//! What a participant must not do with memory that others need: keep too many frames in limbo, or
//! leave a segment behind that is none any more, so that nobody knows what it pins.
//!
//! Who keeps more than its quota of one home's frames in limbo is asked to let go, and then fenced
//! (a runtime) or killed (a native client). Whose segment does not validate is so at once: what it
//! pins cannot be known while it lives, and until then no frame leaves limbo.

use std::collections::HashSet;

use super::control::Control;
use super::*;
use crate::wire::Who;

/// How long one over quota has to let go.
pub(super) const LET_GO: Duration = Duration::from_secs(2);
/// Charges that are not heard of for this long are over.
const STALE: Duration = Duration::from_secs(1);
/// How often limbo frames are charged to those who pin them.
const CHARGE: Duration = Duration::from_millis(400);

/// Since when one is over quota, and when it was last found so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    since: Instant,
    last: Instant,
}

impl Over {
    /// Found over quota now. Returns for how long already: zero for the first time.
    pub(super) fn found(over: &mut Option<Self>, now: Instant) -> Duration {
        let known = over.filter(|over| now.saturating_duration_since(over.last) < STALE);
        let since = known.map_or(now, |over| over.since);
        *over = Some(Self { since, last: now });
        now.saturating_duration_since(since)
    }
}

/// What is kept between two rounds.
#[derive(Default)]
pub(super) struct Quotas {
    charged: Option<Instant>,
    /// This runtime's own pins on its own frames.
    own: Option<Over>,
    /// Clients that are killed and have not ended yet.
    condemned: HashSet<(ParticipantId, Epoch)>,
}

/// How many frames one participant may keep in limbo, of a segment with `total` frames of which
/// `limbo` are there, kept by that many participants. Nobody is below it when half of the segment
/// is in limbo: then at least one of them must let go.
fn quota(total: usize, limbo: usize, keepers: usize) -> usize {
    let quota = total / limits::LIMBO_PART;
    match limbo > total / 2 {
        true => quota.min(total / 2 / keepers.max(1)),
        false => quota,
    }
}

impl Control {
    /// Frames that are free but for pins come back, or are charged to those that pin them.
    pub(super) fn mind_pins(&mut self) {
        self.check_segments();
        let shared = Arc::clone(&self.shared);
        shared.arena.tick();
        let usage = shared.arena.usage();
        let early = self.quotas.charged.is_some_and(|last| last.elapsed() < CHARGE);
        if usage.limbo <= usage.total / limits::LIMBO_PART || early {
            return;
        }
        let now = Instant::now();
        self.quotas.charged = Some(now);
        let charges = shared.arena.limbo_charges().0;
        let quota = quota(usage.total, usage.limbo, charges.len());
        for (who, frames) in charges {
            let Some(epoch) = shared.region.segment(who).map(|segment| segment.epoch()) else {
                continue;
            };
            if frames > quota {
                self.over_quota(who, epoch, frames as u64, now);
            }
        }
    }

    fn over_quota(&mut self, who: ParticipantId, epoch: Epoch, frames: u64, now: Instant) {
        let shared = Arc::clone(&self.shared);
        let (me, link) = (shared.who(), self.peers[who.oslet.index()].link);
        let message = Message::OverQuota { who: Who::new(who, epoch), frames };
        if Who::new(who, epoch) == me {
            // Nobody fences itself: its services let go when they can.
            if Over::found(&mut self.quotas.own, now).is_zero() {
                shared.tell(Task::Event(Event::LetGo(shared.me, shared.epoch, frames)));
            }
        } else if who.is_runtime() {
            let over = Over::found(&mut self.peers[who.oslet.index()].over, now);
            if over >= LET_GO {
                let why = format!("keeps {frames} frames of {} in limbo", shared.name(shared.me));
                self.suspect(who.oslet, epoch, &why);
            } else if let (Some(link), true) = (link, over.is_zero()) {
                self.send(link, &message, Vec::new());
            }
        } else if who.oslet == shared.me {
            self.client_over_quota(who.slot(), epoch, frames);
        } else if let Some(link) = link {
            self.send(link, &message, Vec::new());
        }
    }

    /// Others need frames that this runtime keeps from being reused.
    pub(super) fn asked_to_let_go(&mut self, home: OsletId, epoch: Epoch, frames: u64) {
        let name = self.shared.name(home);
        self.shared.log(format_args!("{name} asks to let go of {frames} frames in limbo"));
        self.shared.tell(Task::Event(Event::LetGo(home, epoch, frames)));
    }

    /// Fences runtimes and kills clients whose segment is none any more.
    fn check_segments(&mut self) {
        let shared = Arc::clone(&self.shared);
        let present = shared.region.present();
        self.quotas.condemned.retain(|condemned| present.contains(condemned));
        for (who, epoch) in present {
            let listed = shared.region.check(who);
            let linked = self.peers[who.oslet.index()].is_linked(epoch);
            let why = match listed {
                Err(error) => error.to_string(),
                // It has said that our segment is mapped, which it lists before.
                Ok(false) if who.is_runtime() && linked => "it lists no pins on our frames".into(),
                Ok(_) => continue,
            };
            match who.is_runtime() {
                true => self.suspect(who.oslet, epoch, &why),
                false => self.condemn(who, epoch, &why),
            }
        }
    }

    /// Kills a client, ours or another's. Its own runtime sees it end and tells everybody.
    pub(super) fn condemn(&mut self, who: ParticipantId, epoch: Epoch, why: &str) {
        let Some(process) = self.client_process(who, epoch) else { return };
        let killed = process.send(libc::SIGKILL);
        if !self.quotas.condemned.insert((who, epoch)) {
            return;
        }
        let result = killed.map_or_else(|error| error.to_string(), |()| "killed".into());
        self.shared.log(format_args!("client {who:?} epoch {epoch}: {why}: {result}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_over_quota_before_the_frames_run_out() {
        assert_eq!(quota(800, 100, 1), 100);
        assert_eq!(quota(800, 400, 20), 100);
        for keepers in 1..1000 {
            let (total, limbo) = (4096, 2049);
            // Each keeps at least one, together they keep all: not all can be within the quota.
            assert!(quota(total, limbo, keepers) * keepers < limbo, "{keepers}");
        }
        assert_eq!(quota(0, 0, 0), 0);
    }

    #[test]
    fn time_over_quota_counts_from_its_beginning_and_is_forgotten() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut over = None;
        assert_eq!(Over::found(&mut over, at(0)), Duration::ZERO);
        for ms in [400, 800, 1200, 2000] {
            assert_eq!(Over::found(&mut over, at(ms)), Duration::from_millis(ms));
        }
        assert_eq!(Over::found(&mut over, at(3100)), Duration::ZERO, "it was not over meanwhile");
    }
}
