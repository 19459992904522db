//! The protocol on an OSlet's membership word: every step is one compare-and-swap.
//!
//! ```text
//! Vacant, Dead --join--> Joining --serve--> Alive --leave--> Vacant
//!                           |                 |
//!                           +----- fence -----+--> Fencing(by) --> Dead
//! ```
//!
//! A place is joined under the next epoch, and only when its last incarnation has left or is dead,
//! so that a fence of epoch *n* never meets epoch *n + 1*. A fencer that goes is replaced: the
//! fence is idempotent, and only the one whose name is in the word ends it.

use crate::id::{Epoch, OsletId};
#[cfg(not(loom))]
use crate::region::ControlPage;
use crate::{Error, Result};

/// In which state an OSlet is; the low byte of its membership word's high half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MemberState {
    /// Nobody has joined in this place, or it has left cleanly.
    Vacant = 0,
    /// Its runtime is setting up; it owns a segment but serves nothing yet.
    Joining = 1,
    /// It takes part.
    Alive = 2,
    /// A survivor is making sure that it can no longer write.
    Fencing = 3,
    /// Fenced: nothing of it can reach shared memory's readers or a disk any more.
    Dead = 4,
}

/// One OSlet's membership, complete in one word.
///
/// Bits 0-31 epoch, 32-39 state, 40-47 the OSlet that is fencing it plus one, or zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Membership {
    /// State of the latest incarnation.
    pub state: MemberState,
    /// Which incarnation.
    pub epoch: Epoch,
    /// Who fences it while `state` is [`MemberState::Fencing`].
    pub fencer: Option<OsletId>,
}

impl Membership {
    pub(crate) fn to_word(self) -> u64 {
        let fencer = self.fencer.map_or(0, |oslet| oslet.index() as u64 + 1);
        u64::from(self.epoch.0) | (self.state as u64) << 32 | fencer << 40
    }

    pub(crate) fn from_word(word: u64) -> Result<Self> {
        let corrupt = || Error::Corrupt {
            peer: "control page".into(),
            what: format!("{word:#x} is no membership"),
        };
        let state = match (word >> 32) as u8 {
            0 => MemberState::Vacant,
            1 => MemberState::Joining,
            2 => MemberState::Alive,
            3 => MemberState::Fencing,
            4 => MemberState::Dead,
            _ => return Err(corrupt()),
        };
        let fencer = match (word >> 40) as u8 {
            0 => None,
            n => Some(OsletId::new(n as usize - 1).ok_or_else(corrupt)?),
        };
        if word >> 48 != 0 {
            return Err(corrupt());
        }
        Ok(Self { state, epoch: Epoch(word as u32), fencer })
    }
}

/// The membership words: the control page's, or a model's.
pub trait Words {
    /// The word of that OSlet.
    fn member(&self, oslet: OsletId) -> Result<Membership>;
    /// Changes it if it is still `current`, else says what it is.
    fn change(
        &self,
        oslet: OsletId,
        current: Membership,
        new: Membership,
    ) -> Result<std::result::Result<(), Membership>>;
}

#[cfg(not(loom))]
impl Words for ControlPage {
    fn member(&self, oslet: OsletId) -> Result<Membership> {
        ControlPage::member(self, oslet)
    }

    fn change(
        &self,
        oslet: OsletId,
        current: Membership,
        new: Membership,
    ) -> Result<std::result::Result<(), Membership>> {
        self.change_member(oslet, current, new)
    }
}

/// How an attempt to join went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Join {
    /// The place is ours, in this epoch, in state `Joining`.
    Taken(Epoch),
    /// The incarnation before has neither left nor been fenced.
    Unfenced(Membership),
}

/// Takes the place `me` for a new incarnation.
///
/// # Errors
/// When the epochs are used up.
pub fn join(words: &impl Words, me: OsletId) -> Result<Join> {
    let mut now = words.member(me)?;
    loop {
        if !matches!(now.state, MemberState::Vacant | MemberState::Dead) {
            return Ok(Join::Unfenced(now));
        }
        let epoch = now
            .epoch
            .next()
            .ok_or_else(|| Error::Exhausted(format!("{me:?}: all epochs are used up")))?;
        let new = Membership { state: MemberState::Joining, epoch, fencer: None };
        match words.change(me, now, new)? {
            Ok(()) => return Ok(Join::Taken(epoch)),
            Err(found) => now = found,
        }
    }
}

/// From `Joining` to `Alive`.
///
/// # Errors
/// [`Error::Gone`] when a survivor fences us: stop at once.
pub fn serve(words: &impl Words, me: OsletId, epoch: Epoch) -> Result<()> {
    step(words, me, epoch, MemberState::Alive, &[MemberState::Joining])
}

/// A clean leave: all that this incarnation had is given back.
///
/// # Errors
/// [`Error::Gone`] when a survivor fences us: stop at once.
pub fn leave(words: &impl Words, me: OsletId, epoch: Epoch) -> Result<()> {
    step(words, me, epoch, MemberState::Vacant, &[MemberState::Joining, MemberState::Alive])
}

fn step(
    words: &impl Words,
    me: OsletId,
    epoch: Epoch,
    to: MemberState,
    from: &[MemberState],
) -> Result<()> {
    let new = Membership { state: to, epoch, fencer: None };
    let mut now = words.member(me)?;
    loop {
        if now.epoch != epoch || !from.contains(&now.state) {
            return Err(Error::Gone(format!(
                "{me:?} epoch {epoch} (this process, {:?})",
                now.state
            )));
        }
        match words.change(me, now, new)? {
            Ok(()) => return Ok(()),
            Err(found) => now = found,
        }
    }
}

/// Whose task a fence is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fencer {
    /// Ours, from now on or already.
    Me,
    /// That OSlet's, which still takes part.
    Other(OsletId),
    /// Nobody's: that incarnation has left, is dead, or is long replaced.
    Over,
}

/// Makes the fence of (`target`, `epoch`) ours unless a fencer who is not `gone` has it.
///
/// # Errors
/// When a word does not validate.
pub fn begin_fence(
    words: &impl Words,
    me: OsletId,
    target: OsletId,
    epoch: Epoch,
    gone: impl Fn(OsletId) -> bool,
) -> Result<Fencer> {
    let mine = Membership { state: MemberState::Fencing, epoch, fencer: Some(me) };
    let mut now = words.member(target)?;
    loop {
        match (now.epoch == epoch, now.state, now.fencer) {
            (false, ..) | (_, MemberState::Vacant | MemberState::Dead, _) => {
                return Ok(Fencer::Over);
            }
            (_, MemberState::Fencing, Some(who)) if who == me => return Ok(Fencer::Me),
            (_, MemberState::Fencing, Some(who)) if !gone(who) => return Ok(Fencer::Other(who)),
            _ => {}
        }
        match words.change(target, now, mine)? {
            Ok(()) => return Ok(Fencer::Me),
            Err(found) => now = found,
        }
    }
}

/// Ends our fence: the target is dead. False when the fence is not ours any more.
///
/// # Errors
/// When a word does not validate.
pub fn end_fence(words: &impl Words, me: OsletId, target: OsletId, epoch: Epoch) -> Result<bool> {
    let mine = Membership { state: MemberState::Fencing, epoch, fencer: Some(me) };
    let dead = Membership { state: MemberState::Dead, epoch, fencer: None };
    Ok(words.change(target, mine, dead)?.is_ok())
}

/// Gives up a fence that an earlier incarnation of ours began and whose descriptors went with it:
/// anybody takes it from there.
///
/// # Errors
/// When a word does not validate.
pub fn disown_fence(words: &impl Words, me: OsletId, target: OsletId) -> Result<()> {
    let now = words.member(target)?;
    if now.state == MemberState::Fencing && now.fencer == Some(me) {
        // Whoever changed it meanwhile has taken it over.
        let _ = words.change(target, now, Membership { fencer: None, ..now })?;
    }
    Ok(())
}

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
