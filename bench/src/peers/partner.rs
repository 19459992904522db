//! The other end of a conversation: a thread on a processor of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::machine::Cpus;

/// How long a partner may be silent before the measurement is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Spins between two looks at the clock.
const SPINS: u32 = 1 << 16;
/// How long a partner sleeps at a time while its side is not measured.
const NAP: Duration = Duration::from_micros(200);

/// A cache line (two, where the processor fetches pairs) with one word in it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Line(pub(super) AtomicU64);

/// A thread that answers until it is dropped.
pub(super) struct Partner {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Partner {
    /// Starts `answer` on `cpu`; it must end soon after the flag that it gets has become true.
    pub(super) fn start(
        cpu: usize,
        answer: impl FnOnce(&AtomicBool) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let body = move || {
            Cpus::pin(cpu)?;
            answer(&flag)
        };
        let thread = thread::Builder::new().name("bench partner".to_owned()).spawn(body);
        Ok(Self { stop, thread: Some(thread.context("starting the partner")?) })
    }

    /// Why the partner has ended before its time, if it has.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if !self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return Ok(());
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => Err(error.context("the partner failed")),
            Some(Err(_)) => bail!("the partner panicked"),
            _ => bail!("the partner has ended"),
        }
    }

    /// Tells the partner to end, without waiting.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // Its error has been reported by `check`, or nobody waits for its answers any more.
            let _ = thread.join();
        }
    }
}

/// Why a wait by spinning ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Spun {
    Seen,
    Stopped,
}

/// Spins until `seen` says so, `stop` is set, or patience is at an end. A partner (with `stop`) is
/// patient without end, and naps while nobody asks it: several of them share a processor.
#[inline]
pub(super) fn spin(
    stop: Option<&AtomicBool>,
    mut seen: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Spun> {
    let mut since = None;
    loop {
        for _ in 0..SPINS {
            if seen()? {
                return Ok(Spun::Seen);
            }
            std::hint::spin_loop();
        }
        if let Some(stop) = stop {
            if stop.load(Ordering::Relaxed) {
                return Ok(Spun::Stopped);
            }
            // Nothing is measured now: leave the processor to whoever it is measured with.
            while !seen()? {
                if stop.load(Ordering::Relaxed) {
                    return Ok(Spun::Stopped);
                }
                thread::sleep(NAP);
            }
            return Ok(Spun::Seen);
        }
        let since = since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            bail!("no answer within {} s", PATIENCE.as_secs());
        }
    }
}
