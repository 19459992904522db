//! The suite that every device and wrapper passes.
//!
//! [`run`] needs a writable device of at least [`MIN_SIZE`] bytes, whose contents it destroys. Each
//! check panics with what it expected. One seed gives one sequence of requests.

mod contents;
mod holds;
mod rules;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use oslet::arena::Arena;

use crate::{BlockDevice, Data, Operation, Request, Result, sync};

/// Bytes that a device under test has at least.
pub const MIN_SIZE: u64 = 4 << 20;

/// How long any one request may take here.
const LIMIT: Duration = Duration::from_secs(30);

/// A device under test.
pub struct Subject {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// Where the caller's data lie.
    pub arena: Arc<Arena>,
    /// Every arena that the device takes frames from: none may be missing at the end.
    pub homes: Vec<Arc<Arena>>,
    /// What makes frames come home that the device still keeps for others.
    pub settle: Box<dyn Fn()>,
}

/// Runs every check.
pub fn run(subject: &Subject, seed: u64) {
    let free: Vec<_> = subject.homes.iter().map(|home| home.usage().free).collect();
    rules::geometry(subject);
    rules::bounds_and_alignment(subject);
    rules::empty_requests(subject);
    contents::against_a_model(subject, &mut Random(seed | 1));
    contents::many_in_flight(subject, &mut Random(seed | 3));
    contents::overlapping_writes(subject);
    contents::zeroes_and_discard(subject);
    contents::bytes_at_any_offset(subject, &mut Random(seed | 5));
    contents::largest_transfer(subject);
    holds::data_stay_as_they_were(subject);
    holds::scattered_data(subject);
    holds::frames_of_the_caller(subject);
    for (home, before) in subject.homes.iter().zip(free) {
        let start = Instant::now();
        while home.usage().free < before && start.elapsed() < Duration::from_secs(5) {
            (subject.settle)();
            home.tick();
            std::thread::sleep(Duration::from_millis(1));
        }
        let usage = home.usage();
        assert!(usage.free >= before, "{usage:?}: {before} frames were free before");
    }
}

/// Checks a device that is only read: its contents, and that every change is refused.
pub fn run_read_only(subject: &Subject, expected: &[u8]) {
    let device = &*subject.device;
    assert!(device.info().read_only);
    assert_eq!(device.info().size, expected.len() as u64);
    let mut found = vec![0; expected.len()];
    sync::read_at(device, 0, &mut found).expect("reading all of it");
    assert!(found == expected, "contents differ");
    rules::changes_are_refused(subject);
    sync::flush(device).expect("a flush changes nothing");
}

impl Subject {
    fn block(&self) -> u64 {
        self.device.info().block_size.into()
    }

    fn data(&self, bytes: &[u8]) -> Data {
        Data::copy_from(&self.arena, bytes).expect("room for data in the region")
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<Data> {
        let data = self.data(bytes);
        sync::execute(&*self.device, Operation::Write { offset, data, fua: false })
    }

    fn read(&self, offset: u64, len: usize) -> Result<Data> {
        sync::execute(&*self.device, Operation::read(offset, len as u32))
    }

    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let data = self.read(offset, len).expect("read");
        assert_eq!(data.len(), len, "bytes of a read");
        data.to_vec().expect("data are mapped")
    }

    /// Submits all at once; returns the outcomes in order, each of which comes exactly once.
    fn all(&self, operations: Vec<Operation>) -> Vec<Result<Data>> {
        let count = operations.len();
        let (send, receive) = mpsc::channel();
        let requests = operations.into_iter().enumerate().map(|(index, operation)| {
            let send = send.clone();
            // The receiver is there until the last has been sent.
            Request::new(operation, move |result| drop(send.send((index, result))))
        });
        self.device.submit_all(requests.collect());
        drop(send);
        let mut outcomes: Vec<_> = (0..count).map(|_| None).collect();
        for _ in 0..count {
            let (index, result) = receive.recv_timeout(LIMIT).expect("every request completes");
            assert!(outcomes[index].replace(result).is_none(), "completed twice");
        }
        assert!(receive.recv().is_err(), "every completion is used up");
        outcomes.into_iter().flatten().collect()
    }
}

/// A small generator of reproducible numbers (xorshift64*); the state is not zero.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (first, step) = (self.below(256), self.below(250) * 2 + 1);
        (0..len as u64).map(|i| (first + i * step + i / 509) as u8).collect()
    }
}
