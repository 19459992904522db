//! Breaking threads out of blocking system calls.
//!
//! A read of /dev/fuse can be ended by nothing but a request, the end of the connection, or a
//! signal. Polling beside it would wake every thread for each request.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use parking_lot::Mutex;

/// Threads that can be made to return from a blocking call with `EINTR`.
#[derive(Debug)]
pub struct Interrupter {
    signal: libc::c_int,
    threads: Mutex<Vec<libc::pid_t>>,
}

impl Interrupter {
    /// Takes a real-time signal for the purpose; every interrupter of the process shares it.
    pub fn new() -> io::Result<Self> {
        let signal = libc::SIGRTMIN() + 7;
        // SAFETY: all-zero bytes are a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // No SA_RESTART: the interrupted call must return.
        // SAFETY: the handler does nothing, which is safe at any instant.
        let failed = unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0;
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { signal, threads: Mutex::new(Vec::new()) })
    }

    /// Makes the calling thread one that is interrupted, until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        // SAFETY: takes no argument and always succeeds.
        let thread = unsafe { libc::gettid() };
        self.threads.lock().push(thread);
        Entered { interrupter: self, thread }
    }

    /// Signals every thread that has entered; how many there are. One that was not yet in its
    /// blocking call misses the signal: set a flag that threads look at, and repeat until 0.
    pub fn interrupt(&self) -> usize {
        let threads = self.threads.lock();
        for &thread in &*threads {
            // SAFETY: the thread lives: it leaves the list under this lock. The signal's handler
            // does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, self.signal) };
        }
        threads.len()
    }
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// A thread is interrupted while this lives.
#[derive(Debug)]
pub struct Entered<'a> {
    interrupter: &'a Interrupter,
    thread: libc::pid_t,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut threads = self.interrupter.threads.lock();
        if let Some(place) = threads.iter().position(|thread| *thread == self.thread) {
            threads.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_blocked_read_returns() {
        let (reader, _writer) = io::pipe().unwrap();
        let interrupter = Interrupter::new().unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _entered = interrupter.enter();
                while !stop.load(Ordering::Acquire) {
                    let answer = rustix::io::read(&reader, &mut [0; 1]);
                    assert_eq!(answer, Err(rustix::io::Errno::INTR));
                }
            });
            while interrupter.interrupt() == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, Ordering::Release);
            while interrupter.interrupt() > 0 {
                thread::sleep(Duration::from_millis(1));
            }
        });
    }
}
