//! Segments of runtimes that are gone. What the last owner of a volume has published stays readable
//! until somebody owns the volume again; joiners and new clients get such segments too. A segment
//! to which nothing leads any more is given back, by each process as soon as it pins none of its
//! frames.

use std::fs::File;

use super::control::Control;
use super::*;
use crate::region::Membership;
use crate::wire::Who;

/// The segment of an incarnation that is dead or has left.
pub(super) struct Orphan {
    oslet: OsletId,
    epoch: Epoch,
    /// For those that come later.
    file: Option<Arc<File>>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Something may lead to it: it is the last owner of something.
    Named,
    /// Services are letting go of its frames.
    Asked,
    /// Nothing leads to it.
    Free,
}

impl Orphan {
    fn who(&self) -> Who {
        Who::new(ParticipantId::runtime(self.oslet), self.epoch)
    }
}

impl Control {
    /// Looks whether the incarnation that is mapped in that place has gone; its pins end then.
    pub(super) fn adopt(&mut self, oslet: OsletId, now: Membership, mapped: Option<Epoch>) {
        let Some(epoch) = mapped else { return };
        let over = matches!(now.state, MemberState::Vacant | MemberState::Dead);
        let known = |orphan: &Orphan| (orphan.oslet, orphan.epoch) == (oslet, epoch);
        if !(over || now.epoch != epoch) || self.orphans.iter().any(known) {
            return;
        }
        self.shared.region.end_pins(ParticipantId::runtime(oslet), epoch);
        let peer = &self.peers[oslet.index()];
        let file = peer.segment.clone().filter(|_| peer.epoch == epoch);
        self.orphans.push(Orphan { oslet, epoch, file, stage: Stage::Named });
    }

    /// The segment of one that was dead before we came.
    pub(super) fn take_orphan(&mut self, who: Who, segment: File) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let runtime = who.participant().filter(|p| p.is_runtime() && p.oslet != shared.me);
        let Some(ParticipantId { oslet, .. }) = runtime else { return Ok(()) };
        let (control, participant) = (shared.region.control(), ParticipantId::runtime(oslet));
        let dead = oslet.index() < control.oslets()
            && control.member(oslet)?.state == MemberState::Dead
            && control.member(oslet)?.epoch == who.epoch();
        // Others may have passed it on already, or its successor has come.
        if !dead || shared.region.segment(participant).is_some() {
            return Ok(());
        }
        shared.region.map(&segment, participant, who.epoch())?;
        shared.region.end_pins(participant, who.epoch());
        let (epoch, file) = (who.epoch(), Some(Arc::new(segment)));
        self.orphans.push(Orphan { oslet, epoch, file, stage: Stage::Named });
        Ok(())
    }

    /// Sends the segments to which something may lead, to a runtime or client that has just come.
    pub(super) fn pass_orphans(&mut self, token: u64, message: impl Fn(Who) -> Message) {
        let named = self.orphans.iter().filter(|orphan| orphan.stage == Stage::Named);
        let found: Vec<_> = named
            .filter_map(|orphan| Some((orphan.who(), Arc::clone(orphan.file.as_ref()?))))
            .collect();
        for (who, file) in found {
            self.send_segment(token, &message(who), &file);
        }
    }

    /// Services have let go.
    pub(super) fn may_bury(&mut self, oslet: OsletId, epoch: Epoch) {
        for orphan in &mut self.orphans {
            if (orphan.oslet, orphan.epoch) == (oslet, epoch) {
                orphan.stage = Stage::Free;
            }
        }
        self.bury();
    }

    /// Gives back what it can; called every round.
    pub(super) fn bury(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut freed = Vec::new();
        self.orphans.retain_mut(|orphan| {
            let (oslet, epoch) = (orphan.oslet, orphan.epoch);
            let participant = ParticipantId::runtime(oslet);
            if shared.region.segment(participant).is_none_or(|segment| segment.epoch() != epoch) {
                // Its successor's has taken its place.
                return false;
            }
            match orphan.stage {
                Stage::Named if !shared.owned_last(oslet, epoch) => {
                    orphan.stage = Stage::Asked;
                    let again = Arc::clone(&shared);
                    let done = Box::new(move || again.inbox.post(Command::Bury(oslet, epoch)));
                    shared.tell(Task::Release(participant, epoch, done));
                }
                Stage::Free => match shared.region.forget(participant, epoch) {
                    Ok(false) => {}
                    Ok(true) => {
                        freed.push(orphan.who());
                        return false;
                    }
                    Err(error) => {
                        shared.log(error);
                        return false;
                    }
                },
                _ => {}
            }
            true
        });
        for who in freed {
            self.tell_clients(&Message::Forget { who });
        }
        if let Err(error) = shared.region.release_forgotten() {
            shared.log(error);
        }
    }
}

impl Shared {
    /// Whether something has no later owner than that incarnation.
    fn owned_last(&self, oslet: OsletId, epoch: Epoch) -> bool {
        let control = self.region.control();
        (0..limits::MAX_OWNED_OBJECTS).any(|object| {
            // A word that is none leads nowhere.
            control.owner(object).is_ok_and(|now| now.owner == Some((oslet, epoch)))
        })
    }
}
