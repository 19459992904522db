//! Two threads that wake one another by futex, as two processes over shared memory would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use rustix::thread::futex::{self, Flags};

use crate::case::Side;
use crate::machine::Cpus;

use super::partner::{PATIENCE, Partner};

/// Not `PRIVATE`: the kernel looks the page up, as it must when two processes share it.
const SHARED: Flags = Flags::empty();
/// How long the partner sleeps before it looks whether it should end.
const NAP_NS: i64 = 100_000_000;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Bell(AtomicU32);

impl Bell {
    fn ring(&self, number: u32) -> anyhow::Result<()> {
        self.0.store(number, Ordering::Release);
        futex::wake(&self.0, SHARED, 1).context("futex wake")?;
        Ok(())
    }

    /// Sleeps until the bell shows `number`, for one nap at most; says whether it does.
    fn wait(&self, number: u32) -> anyhow::Result<bool> {
        let nap = rustix::thread::Timespec { tv_sec: 0, tv_nsec: NAP_NS };
        let seen = self.0.load(Ordering::Acquire);
        if seen == number {
            return Ok(true);
        }
        match futex::wait(&self.0, SHARED, seen, Some(&nap)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {
                Ok(self.0.load(Ordering::Acquire) == number)
            }
            Err(error) => Err(error).context("futex wait"),
        }
    }
}

/// Round trips of a wake-up and its answer between two sleeping threads.
///
/// # Errors
/// No thread can be started.
pub fn futex(cpus: Cpus) -> anyhow::Result<Side> {
    let bells = Arc::new((Bell::default(), Bell::default()));
    let theirs = Arc::clone(&bells);
    let second = cpus.second.unwrap_or(cpus.first);
    let mut partner = Partner::start(second, move |stop| {
        let mut number = 1;
        while !stop.load(Ordering::Relaxed) {
            if theirs.0.wait(number)? {
                theirs.1.ring(number)?;
                number = number.wrapping_add(1);
            }
        }
        Ok(())
    })?;
    let mut number: u32 = 1;
    Ok(Side::batch(move |operations| {
        partner.check()?;
        let started = Instant::now();
        for _ in 0..operations {
            bells.0.ring(number)?;
            let asked = Instant::now();
            while !bells.1.wait(number)? {
                if asked.elapsed() > PATIENCE {
                    bail!("no answer within {} s", PATIENCE.as_secs());
                }
            }
            number = number.wrapping_add(1);
        }
        Ok(started.elapsed())
    }))
}
