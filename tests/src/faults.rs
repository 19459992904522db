//! A device that fails, at every request of a workload: whoever needed it hears of it, what was
//! promised before stays promised, and what nobody heard of is no loss.

pub mod mounted;
pub mod native;
pub mod workload;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxydev::layer::Rule;
use rustix::io::Errno;

use crate::crash::Recording;
use crate::crash::check::{Checker, Effort};
use crate::crash::promise::History;
use crate::opfuzz::Subject;
use crate::opfuzz::model::{Model, Traits};
use crate::opfuzz::op::{Op, Outcome};

/// Requests of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requests {
    /// What reads.
    Reads,
    /// What writes, zeroes or discards.
    Writes,
    /// What makes durable.
    Flushes,
}

/// How a device fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which requests.
    pub requests: Requests,
    /// The first of them that fails, counted from 0.
    pub first: u64,
    /// That one alone, or all from there on.
    pub once: bool,
    /// With what.
    pub errno: Errno,
}

impl Fault {
    /// It as a rule of a layer.
    #[must_use]
    pub fn rule(self) -> Rule {
        Rule {
            reads: self.requests == Requests::Reads,
            writes: self.requests == Requests::Writes,
            flushes: self.requests == Requests::Flushes,
            after: self.first,
            times: if self.once { 1 } else { u64::MAX },
            errno: self.errno,
            ..Rule::all()
        }
    }
}

/// What a run came to.
pub struct Outcomes {
    /// Operations that were tried; after a failed mount none is.
    pub ops: Vec<Op>,
    /// Which of them failed for the device's sake.
    pub failed: Vec<bool>,
    /// What the clean stop at the end said; `None` if it went well.
    pub stop: Option<String>,
}

impl Outcomes {
    /// Whether somebody heard of an error.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.stop.is_some() || self.failed.contains(&true)
    }
}

/// Errors that a failed device may have for who asks a filesystem for something.
fn is_of_device(outcome: &Outcome, fault: Fault) -> bool {
    let expected = [fault.errno, Errno::IO, Errno::ROFS, Errno::NODEV];
    let errno = |errno: &Errno| *outcome == Outcome::Error(errno.raw_os_error());
    expected.iter().any(errno)
}

/// What a run knows of its device and volume.
pub struct Watch<'a> {
    /// What the volume is like.
    pub traits: Traits,
    /// How the device fails.
    pub fault: Fault,
    /// Whether it has.
    pub has_failed: &'a dyn Fn() -> bool,
    /// Whether the volume was given up: half an operation may be seen until it is closed.
    pub is_given_up: &'a dyn Fn() -> bool,
    /// Told how many operations have completed.
    pub mark: &'a dyn Fn(u64),
}

/// Does a workload while its device may fail. Until something fails answers are those of the model;
/// from then on they are those or errors of a device, and what is read of contents may be gone.
///
/// # Errors
/// Another answer, or one of a broken device although it was not.
pub fn run(subject: &mut dyn Subject, ops: &[Op], watch: &Watch<'_>) -> Result<Outcomes> {
    let mut model = Model::new(watch.traits);
    let mut outcomes = Outcomes { ops: Vec::new(), failed: Vec::new(), stop: None };
    for (number, op) in ops.iter().enumerate() {
        let before = model.clone();
        let (expected, found) = (model.apply(op), subject.apply(op));
        (watch.mark)(number as u64 + 1);
        let same = expected.allows(&found);
        let failed = !same && is_of_device(&found, watch.fault);
        ensure!(!failed || (watch.has_failed)(), "{op}: {found:?}, though nothing has failed");
        outcomes.failed.push(failed);
        outcomes.ops.push(op.clone());
        if failed {
            model = before;
            model.fail(op);
            // What was closed uncleanly is not opened again.
            if *op == Op::Remount {
                break;
            }
            continue;
        }
        if let Some(shorter) = shorter(op, &found).filter(|_| !same && (watch.has_failed)()) {
            model = before;
            model.apply(&shorter);
            outcomes.ops.pop();
            outcomes.ops.push(shorter);
            continue;
        }
        let contents = matches!((&expected, &found), (Outcome::Bytes(_), Outcome::Bytes(_)));
        let lost = (outcomes.is_told() && contents) || (watch.is_given_up)();
        ensure!(same || lost, "step {number}, {op}: {found:?}, not {expected:?}");
    }
    Ok(outcomes)
}

/// The write that this one came to, of which a part was done.
fn shorter(op: &Op, found: &Outcome) -> Option<Op> {
    match (op, found) {
        (Op::Write { slot, offset, len, seed }, Outcome::Number(done)) if done < len => {
            Some(Op::Write { slot: *slot, offset: *offset, len: *done, seed: *seed })
        }
        _ => None,
    }
}

/// Holds what a device holds at the end to what was promised.
///
/// # Errors
/// What was lost, or cannot be recovered.
pub fn judge(
    recording: &Recording,
    outcomes: &Outcomes,
    traits: Traits,
    dir: &Path,
    seed: u64,
) -> Result<()> {
    let history = History::of(&outcomes.ops, &outcomes.failed, traits).without_replacements();
    let effort = Effort { samples: 1, moments: 0, compare: 8 };
    let mut checker = Checker::new(recording, &history, dir, effort, seed);
    let failed = outcomes.ops.iter().zip(&outcomes.failed).enumerate();
    let failed = failed.filter(|(_, (_, failed))| **failed).take(6);
    let failed: Vec<_> = failed.map(|(number, (op, _))| format!("{number}: {op}")).collect();
    let told = || format!("these failed: {failed:#?}, and the stop: {:?}", outcomes.stop);
    let left = checker.at_end(outcomes.ops.len()).with_context(told)?;
    match history.judge_all(&left) {
        Some(why) if !outcomes.is_told() => bail!("nobody heard of an error, but {why}"),
        _ => Ok(()),
    }
}

/// How long a run may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Panics of all threads that were seen so far.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Does something that must end, and in which no thread may panic.
///
/// # Errors
/// It does not end in time, a thread panicked, or its own.
pub fn bounded<T: Send + 'static>(run: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    static COUNTED: std::sync::Once = std::sync::Once::new();
    COUNTED.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            usual(info);
        }));
    });
    let before = PANICS.load(Ordering::Relaxed);
    let (done, wait) = channel();
    let thread = std::thread::spawn(move || {
        // Who waited too long has gone.
        let _ = done.send(run());
    });
    let result = match wait.recv_timeout(LIMIT) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => bail!("it does not end within {LIMIT:?}"),
        Err(RecvTimeoutError::Disconnected) => bail!("it panicked: {:?}", thread.join().is_err()),
    };
    ensure!(PANICS.load(Ordering::Relaxed) == before, "a thread panicked");
    result
}
