//! A Unix socket between two threads, as between two processes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::case::Side;
use crate::machine::Cpus;

use super::partner::{PATIENCE, Partner};

/// Bytes of a message: as many as a descriptor of our rings has.
const MESSAGE: usize = 64;

/// The asker's end. Fields drop in order: the stream first, which ends the partner.
struct Asker {
    stream: UnixStream,
    partner: Partner,
    number: u64,
}

/// Round trips of a 64-byte message over a Unix stream socket.
///
/// # Errors
/// No socket or thread can be made.
pub fn unix_socket(cpus: Cpus) -> anyhow::Result<Side> {
    let (stream, mut theirs) = UnixStream::pair().context("socketpair")?;
    stream.set_read_timeout(Some(PATIENCE)).context("socket time limit")?;
    let second = cpus.second.unwrap_or(cpus.first);
    let partner = Partner::start(second, move |_| {
        let mut message = [0; MESSAGE];
        loop {
            match theirs.read_exact(&mut message) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error).context("reading the question"),
            }
            let number = u64::from_le_bytes(first(&message));
            message[..8].copy_from_slice(&number.wrapping_add(1).to_le_bytes());
            theirs.write_all(&message).context("writing the answer")?;
        }
    })?;
    let mut asker = Asker { stream, partner, number: 0 };
    Ok(Side::batch(move |operations| asker.ask(operations)))
}

impl Asker {
    fn ask(&mut self, operations: u64) -> anyhow::Result<Duration> {
        self.partner.check()?;
        let mut message = [0; MESSAGE];
        let started = Instant::now();
        for _ in 0..operations {
            message[..8].copy_from_slice(&self.number.to_le_bytes());
            self.stream.write_all(&message).context("writing the question")?;
            self.stream.read_exact(&mut message).context("reading the answer")?;
            let answer = u64::from_le_bytes(first(&message));
            ensure!(answer == self.number + 1, "{} was answered by {answer}", self.number);
            self.number = answer;
        }
        Ok(started.elapsed())
    }
}

fn first(message: &[u8; MESSAGE]) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *message;
    [a, b, c, d, e, f, g, h]
}
