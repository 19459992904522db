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
    let Some(second) = cpus.second else { return Ok(Side::absent(ONE_CPU)) };
    let line = Arc::new(Line::default());
    let theirs = Arc::clone(&line);
    // The asker makes the word odd, the answerer even: each waits for the other's next number.
    let mut partner = Partner::start(second, move |stop| {
        let mut next = 1;
        loop {
            let seen = || Ok(theirs.0.load(Ordering::Acquire) == next);
            if spin(Some(stop), seen)? == Spun::Stopped {
                return Ok(());
            }
            theirs.0.store(next + 1, Ordering::Release);
            next += 2;
        }
    })?;
    let mut next = 1;
    Ok(Side::batch(move |operations| {
        partner.check()?;
        let started = Instant::now();
        for _ in 0..operations {
            line.0.store(next, Ordering::Release);
            spin(None, || Ok(line.0.load(Ordering::Acquire) == next + 1))?;
            next += 2;
        }
        Ok(started.elapsed())
    }))
}

/// The same with a line for each direction, as it must be where every byte has one writer: the
/// reader's copy of a line has to be called back before its writer's next store is seen.
///
/// # Errors
/// No thread can be started.
pub fn line_each_way(cpus: Cpus) -> anyhow::Result<Side> {
    let Some(second) = cpus.second else { return Ok(Side::absent(ONE_CPU)) };
    let lines = Arc::new([Line::default(), Line::default()]);
    let theirs = Arc::clone(&lines);
    let mut partner = Partner::start(second, move |stop| {
        for next in 1.. {
            let seen = || Ok(theirs[0].0.load(Ordering::Acquire) == next);
            if spin(Some(stop), seen)? == Spun::Stopped {
                break;
            }
            theirs[1].0.store(next, Ordering::Release);
        }
        Ok(())
    })?;
    let mut next = 1;
    Ok(Side::batch(move |operations| {
        partner.check()?;
        let started = Instant::now();
        for _ in 0..operations {
            lines[0].0.store(next, Ordering::Release);
            spin(None, || Ok(lines[1].0.load(Ordering::Acquire) == next))?;
            next += 1;
        }
        Ok(started.elapsed())
    }))
}
