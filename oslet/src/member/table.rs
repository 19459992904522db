//! From membership words to events: a word shows a state, services want to know what happened.

use super::Event;
use super::word::{MemberState, Membership};
use crate::id::{Epoch, OsletId};
use crate::limits;

/// What this process has told its services so far.
#[derive(Debug)]
pub struct Table {
    /// The incarnation that services believe to be present, and whether its fence has begun.
    told: Vec<Option<(Epoch, bool)>>,
}

impl Default for Table {
    fn default() -> Self {
        Self { told: vec![None; limits::MAX_OSLETS] }
    }
}

impl Table {
    /// The events that lead from what was told to `now`. `mapped` is the incarnation whose segment
    /// is mapped: nobody is announced before.
    ///
    /// Words are looked at now and then, so that steps may have been missed: of an incarnation that
    /// is replaced it is told that it is dead, whichever way it went.
    pub fn observe(
        &mut self,
        oslet: OsletId,
        now: Membership,
        mapped: Option<Epoch>,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        let told = &mut self.told[oslet.index()];
        if let Some((epoch, fencing)) = *told {
            match now.state {
                _ if now.epoch != epoch => {
                    events.push(Event::Dead(oslet, epoch));
                    *told = None;
                }
                MemberState::Vacant => {
                    events.push(Event::Left(oslet, epoch));
                    *told = None;
                }
                MemberState::Dead => {
                    events.push(Event::Dead(oslet, epoch));
                    *told = None;
                }
                MemberState::Fencing if !fencing => {
                    events.push(Event::Fencing(oslet, epoch));
                    *told = Some((epoch, true));
                }
                _ => {}
            }
        }
        if told.is_none() && now.state == MemberState::Alive && mapped == Some(now.epoch) {
            events.push(Event::Joined(oslet, now.epoch));
            *told = Some((now.epoch, false));
        }
        events
    }

    /// Those that services believe to be present.
    pub fn present(&self) -> impl Iterator<Item = (OsletId, Epoch)> + '_ {
        let named = |(index, told): (usize, &Option<(Epoch, bool)>)| {
            Some((OsletId::new(index)?, told.as_ref()?.0))
        };
        self.told.iter().enumerate().filter_map(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(state: MemberState, epoch: u32) -> Membership {
        Membership { state, epoch: Epoch(epoch), fencer: None }
    }

    #[test]
    fn nobody_is_announced_before_it_is_mapped() {
        let o = OsletId::new(3).unwrap();
        let mut table = Table::default();
        assert_eq!(table.observe(o, at(MemberState::Joining, 1), Some(Epoch(1))), []);
        assert_eq!(table.observe(o, at(MemberState::Alive, 1), None), []);
        let joined = [Event::Joined(o, Epoch(1))];
        assert_eq!(table.observe(o, at(MemberState::Alive, 1), Some(Epoch(1))), joined);
        assert_eq!(table.observe(o, at(MemberState::Alive, 1), Some(Epoch(1))), []);
        let fencing = [Event::Fencing(o, Epoch(1))];
        assert_eq!(table.observe(o, at(MemberState::Fencing, 1), Some(Epoch(1))), fencing);
        let replaced = [Event::Dead(o, Epoch(1)), Event::Joined(o, Epoch(2))];
        assert_eq!(table.observe(o, at(MemberState::Alive, 2), Some(Epoch(2))), replaced);
        assert_eq!(table.observe(o, at(MemberState::Vacant, 2), None), [Event::Left(o, Epoch(2))]);
    }

    proptest! {
        /// Whatever was missed: joined and gone alternate, and epochs rise.
        #[test]
        fn every_join_has_one_end(words in proptest::collection::vec((0u8..5, 0u32..3), 0..60)) {
            let o = OsletId::new(0).unwrap();
            let (mut table, mut epoch, mut present) = (Table::default(), 1, None);
            for (state, advance) in words {
                epoch += advance / 2;
                let state = [
                    MemberState::Vacant, MemberState::Joining, MemberState::Alive,
                    MemberState::Fencing, MemberState::Dead,
                ][state as usize];
                for event in table.observe(o, at(state, epoch), Some(Epoch(epoch))) {
                    match event {
                        Event::Joined(_, e) => {
                            prop_assert_eq!(present, None);
                            present = Some(e);
                        }
                        Event::Fencing(_, e) => prop_assert_eq!(present, Some(e)),
                        Event::Dead(_, e) | Event::Left(_, e) => {
                            prop_assert_eq!(present, Some(e));
                            present = None;
                        }
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
                prop_assert_eq!(table.present().next().map(|(_, e)| e), present);
            }
        }
    }
}
