//! The hand-over under `loom`: every interleaving of handles, commits and the next transaction.

use loom::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::*;

/// What each transaction holds, in the order in which they are written.
#[derive(Default)]
struct Disk {
    /// Handles of a transaction that have not ended.
    open: u32,
    /// Changes of the running transaction and of the one before.
    changes: Vec<(Tid, u32)>,
    /// What was written: a transaction, and its changes.
    written: Vec<(Tid, Vec<u32>)>,
    writing: bool,
}

struct Model {
    state: Mutex<State>,
    signals: [Condvar; 4],
    disk: Mutex<Disk>,
    /// Blocks that a transaction may change.
    most: u32,
}

struct Guard<'a>(Option<MutexGuard<'a, State>>);

impl std::ops::Deref for Guard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.0.as_ref().expect("nobody waits with it")
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_mut().expect("nobody waits with it")
    }
}

impl Monitor for Model {
    type Guard<'a> = Guard<'a>;

    fn lock(&self) -> Guard<'_> {
        Guard(Some(self.state.lock().unwrap()))
    }

    fn wait<'a>(&'a self, state: &mut Guard<'a>, signal: Signal) {
        let held = state.0.take().expect("it is held");
        state.0 = Some(self.signals[signal as usize].wait(held).unwrap());
    }

    fn signal(&self, signal: Signal) {
        self.signals[signal as usize].notify_all();
    }

    fn unlocked<'a, T>(&'a self, state: &mut Guard<'a>, work: impl FnOnce() -> T) -> T {
        state.0 = None;
        let done = work();
        state.0 = Some(self.state.lock().unwrap());
        done
    }
}

impl Work for Model {
    type Changes = Vec<u32>;

    fn fits(&self, state: &State, credits: u32) -> Room {
        let blocks = state.running.used + state.running.reserved + credits;
        if blocks > self.most { Room::Full } else { Room::Enough }
    }

    fn collect(&self, tid: Tid) -> Result<Vec<u32>> {
        let mut disk = self.disk.lock().unwrap();
        assert_eq!(disk.open, 0, "a handle of {tid} is open, or the next one's began");
        let changes = std::mem::take(&mut disk.changes);
        Ok(changes
            .into_iter()
            .map(|(of, change)| {
                assert_eq!(of, tid, "a change of another transaction");
                change
            })
            .collect())
    }

    fn take_room(&self, _: &mut State, changes: &Vec<u32>) -> Result<()> {
        assert!(changes.len() <= self.most as usize);
        Ok(())
    }

    fn write(&self, tid: Tid, changes: &Vec<u32>) -> Result<()> {
        {
            let mut disk = self.disk.lock().unwrap();
            assert!(!disk.writing, "two commits at once");
            disk.writing = true;
        }
        loom::thread::yield_now();
        let mut disk = self.disk.lock().unwrap();
        disk.writing = false;
        let next = disk.written.last().is_none_or(|(last, _)| last.next() == tid);
        assert!(next, "{tid} behind {:?}", disk.written);
        disk.written.push((tid, changes.clone()));
        Ok(())
    }

    fn give_up(&self, error: &Error) {
        panic!("{error}");
    }
}

impl Gate for Model {}

impl Model {
    fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(Tid(7), u32::MAX)),
            signals: [const { () }; 4].map(|()| Condvar::new()),
            disk: Mutex::new(Disk::default()),
            most,
        })
    }

    /// One operation: it changes a block within a handle.
    fn change(&self, change: u32) -> Tid {
        let tid = self.join(1).unwrap();
        self.disk.lock().unwrap().open += 1;
        loom::thread::yield_now();
        {
            let mut disk = self.disk.lock().unwrap();
            disk.changes.push((tid, change));
            disk.open -= 1;
        }
        self.leave(1, 0);
        tid
    }

    /// Whether a change has been written with its transaction.
    fn has(&self, tid: Tid, change: u32) -> bool {
        let disk = self.disk.lock().unwrap();
        disk.written.iter().any(|(of, changes)| *of == tid && changes.contains(&change))
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn loom_what_was_committed_holds_all_handles_that_joined() {
    explore(|| {
        let model = Model::new(10);
        let threads: Vec<_> = [1, 2]
            .map(|change| {
                let model = model.clone();
                loom::thread::spawn(move || {
                    let tid = model.change(change);
                    model.commit(tid).unwrap();
                    assert!(model.has(tid, change), "{change} is not durable");
                })
            })
            .into();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(model.lock().committed.at_least(Tid(7)));
    });
}

#[test]
fn loom_a_commit_without_changes_leaves_the_transaction_open() {
    explore(|| {
        let model = Model::new(10);
        let other = {
            let model = model.clone();
            loom::thread::spawn(move || {
                // Nothing was changed: it ends all the same.
                let tid = model.join(1).unwrap();
                model.leave(0, 1);
                model.commit(tid).unwrap();
            })
        };
        let tid = model.change(1);
        other.join().unwrap();
        model.commit(tid).unwrap();
        assert!(model.has(tid, 1));
    });
}

#[test]
fn loom_who_waits_for_a_full_transaction_joins_the_next() {
    explore(|| {
        let model = Model::new(1);
        let threads: Vec<_> = [1, 2]
            .map(|change| {
                let model = model.clone();
                loom::thread::spawn(move || {
                    let tid = model.change(change);
                    // The thread that commits what is full.
                    model.commit(tid).unwrap();
                    (tid, change)
                })
            })
            .into();
        let done: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_ne!(done[0].0, done[1].0);
        assert!(done.iter().all(|(tid, change)| model.has(*tid, *change)));
    });
}
