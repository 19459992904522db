//! The limit of any message: one cache line that goes to another processor and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::case::Side;
use crate::machine::Cpus;

use super::ONE_CPU;
use super::partner::{Line, Partner, Spun, spin};

/// Round trips of a bare cache line between the measuring thread and one on the second CPU.
///
/// # Errors
/// No thread can be started.
pub fn line(cpus: Cpus) -> anyhow::Result<Side> {
    round_trips(cpus, 0)
}

/// The same with a line for each direction, as it must be where every byte has one writer: the
/// reader's copy of a line has to be called back before its writer's next store is seen.
///
/// # Errors
/// No thread can be started.
pub fn line_each_way(cpus: Cpus) -> anyhow::Result<Side> {
    round_trips(cpus, 1)
}

/// Questions are in the first of two lines, answers in that one.
fn round_trips(cpus: Cpus, answers: usize) -> anyhow::Result<Side> {
    let Some(second) = cpus.second else { return Ok(Side::absent(ONE_CPU)) };
    let lines = Arc::new([Line::default(), Line::default()]);
    let theirs = Arc::clone(&lines);
    // Questions are odd, answers even: each side waits for the other's next number.
    let mut partner = Partner::start(second, move |stop| {
        let mut next = 1;
        loop {
            let seen = || Ok(theirs[0].0.load(Ordering::Acquire) == next);
            if spin(Some(stop), seen)? == Spun::Stopped {
                return Ok(());
            }
            theirs[answers].0.store(next + 1, Ordering::Release);
            next += 2;
        }
    })?;
    let mut next = 1;
    Ok(Side::batch(move |operations| {
        partner.check()?;
        let started = Instant::now();
        for _ in 0..operations {
            lines[0].0.store(next, Ordering::Release);
            spin(None, || Ok(lines[answers].0.load(Ordering::Acquire) == next + 1))?;
            next += 2;
        }
        Ok(started.elapsed())
    }))
}
