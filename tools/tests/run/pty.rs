//! A pseudo-terminal with an interactive shell on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::world::LIMIT;

const PROMPT: &str = "outer> ";

pub(crate) struct Pty {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What was said and not yet expected.
    seen: String,
    shell: Child,
}

impl Pty {
    /// bash, which is in every Debian and has job control.
    pub(crate) fn shell() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let terminal = ioctl_tiocgptpeer(&controller, flags).unwrap();
        let stdio = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let shell = Command::new("setsid")
            .args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"])
            // In two parts, so that its echo is not taken for it.
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .stdin(stdio(&terminal))
            .stdout(stdio(&terminal))
            .stderr(stdio(&terminal))
            .spawn()
            .unwrap();
        drop(terminal);
        let keyboard = File::from(controller);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut pty = Self { keyboard, screen, seen: String::new(), shell };
        pty.prompt();
        pty
    }

    pub(crate) fn resize(&self, ws_row: u16, ws_col: u16) {
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    pub(crate) fn key(&mut self, key: u8) {
        self.keyboard.write_all(&[key]).unwrap();
    }

    /// Waits until that is on the screen, and forgets what is before it.
    pub(crate) fn expect(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} ({error}) is not in {:?}", self.seen),
            }
        }
    }

    pub(crate) fn prompt(&mut self) {
        self.expect(PROMPT);
    }

    /// What comes in that time, besides what is there.
    pub(crate) fn collect(&mut self, time: Duration) -> String {
        let end = Instant::now() + time;
        let left = || end.saturating_duration_since(Instant::now());
        while let Ok(bytes) = self.screen.recv_timeout(left()) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
