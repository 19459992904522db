//! The membership protocol under `loom`: every interleaving of its steps.

use loom::sync::Arc;

use super::*;
use crate::sync::{AtomicU64, Ordering};

struct Model([AtomicU64; 4]);

impl Words for Model {
    fn member(&self, oslet: OsletId) -> Result<Membership> {
        Membership::from_word(self.0[oslet.index()].load(Ordering::SeqCst))
    }

    fn change(
        &self,
        oslet: OsletId,
        current: Membership,
        new: Membership,
    ) -> Result<std::result::Result<(), Membership>> {
        let (from, to) = (current.to_word(), new.to_word());
        let order = Ordering::SeqCst;
        match self.0[oslet.index()].compare_exchange(from, to, order, order) {
            Ok(_) => Ok(Ok(())),
            Err(found) => Membership::from_word(found).map(Err),
        }
    }
}

fn oslet(index: usize) -> OsletId {
    OsletId::new(index).unwrap()
}

/// OSlet 0 is alive in epoch 1; its fence has not ended.
fn model() -> (Arc<Model>, Arc<AtomicU64>) {
    let alive = Membership { state: MemberState::Alive, epoch: Epoch(1), fencer: None };
    let words = [alive, alive, alive, alive].map(|word| AtomicU64::new(word.to_word()));
    (Arc::new(Model(words)), Arc::new(AtomicU64::new(0)))
}

/// Fences OSlet 0 in epoch 1 as `me`; returns whether it was this one that ended it.
fn fence(words: &Model, done: &AtomicU64, me: usize) -> bool {
    match begin_fence(words, oslet(me), oslet(0), Epoch(1), |_| false).unwrap() {
        Fencer::Me => {
            // Kill, reap, wait for the I/O: what a new incarnation must find done.
            done.store(1, Ordering::SeqCst);
            end_fence(words, oslet(me), oslet(0), Epoch(1)).unwrap()
        }
        Fencer::Other(_) | Fencer::Over => false,
    }
}

#[test]
fn loom_of_two_survivors_one_fences() {
    loom::model(|| {
        let (words, done) = model();
        let other = {
            let (words, done) = (words.clone(), done.clone());
            loom::thread::spawn(move || fence(&words, &done, 2))
        };
        let mine = fence(&words, &done, 1);
        let theirs = other.join().unwrap();
        assert!(mine ^ theirs);
        assert_eq!(words.member(oslet(0)).unwrap().state, MemberState::Dead);
    });
}

#[test]
fn loom_a_rejoin_waits_for_the_fence_and_is_not_hit_by_it() {
    loom::model(|| {
        let (words, done) = model();
        let fencers: Vec<_> = [1, 2]
            .map(|me| {
                let (words, done) = (words.clone(), done.clone());
                loom::thread::spawn(move || fence(&words, &done, me))
            })
            .into_iter()
            .collect();
        if let Join::Taken(epoch) = join(&*words, oslet(0)).unwrap() {
            assert_eq!(epoch, Epoch(2));
            assert_eq!(done.load(Ordering::SeqCst), 1, "joined before the fence had ended");
            serve(&*words, oslet(0), epoch).unwrap();
        }
        for fencer in fencers {
            fencer.join().unwrap();
        }
        let now = words.member(oslet(0)).unwrap();
        let expected = if now.epoch == Epoch(2) { MemberState::Alive } else { MemberState::Dead };
        assert_eq!(now.state, expected);
    });
}

/// The first fencer stops half-way; who takes over and who disowned it do not both end it.
#[test]
fn loom_a_fence_that_is_taken_over_ends_once() {
    loom::model(|| {
        let (words, done) = model();
        let first = begin_fence(&*words, oslet(1), oslet(0), Epoch(1), |_| false).unwrap();
        assert_eq!(first, Fencer::Me);
        let late = {
            let words = words.clone();
            loom::thread::spawn(move || end_fence(&*words, oslet(1), oslet(0), Epoch(1)).unwrap())
        };
        let disowner = {
            let words = words.clone();
            loom::thread::spawn(move || disown_fence(&*words, oslet(1), oslet(0)).unwrap())
        };
        let begun = begin_fence(&*words, oslet(2), oslet(0), Epoch(1), |_| true).unwrap();
        done.store(1, Ordering::SeqCst);
        let second =
            begun == Fencer::Me && end_fence(&*words, oslet(2), oslet(0), Epoch(1)).unwrap();
        disowner.join().unwrap();
        assert!(!(late.join().unwrap() && second));
    });
}

/// Leaving and being fenced exclude each other.
#[test]
fn loom_who_leaves_is_not_fenced() {
    loom::model(|| {
        let (words, done) = model();
        let leaver = {
            let words = words.clone();
            loom::thread::spawn(move || leave(&*words, oslet(0), Epoch(1)).is_ok())
        };
        let fenced = fence(&words, &done, 1);
        assert!(leaver.join().unwrap() ^ fenced);
    });
}
