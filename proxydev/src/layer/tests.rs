use std::sync::Arc;
use std::time::Duration;

use oslet::arena::Arena;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::record::Window;
use super::*;
use crate::backend::ram::RamDevice;
use crate::conformance::{self, Subject};
use crate::testing::arena;
use crate::{BlockDevice, Data, Operation, sync};

const SIZE: u64 = 4 << 20;

fn ram(arena: &Arc<Arena>) -> Arc<dyn BlockDevice> {
    Arc::new(RamDevice::new("ram", SIZE, arena).unwrap())
}

fn conforms(device: Arc<dyn BlockDevice>, arena: &Arc<Arena>, seed: u64) {
    let (homes, settle) = (vec![Arc::clone(arena)], Box::new(|| ()));
    conformance::run(&Subject { device, arena: Arc::clone(arena), homes, settle }, seed);
}

fn image(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.info().size as usize];
    sync::read_at(device, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_wrapper_conforms() {
    let arena = arena(6144);
    conforms(Arc::new(Record::new(ram(&arena), &Log::new())), &arena, 3);
    let rules = Rules::new();
    // A rule that is met and lets everything through.
    rules.set([Rule { after: u64::MAX, ..Rule::all() }]);
    conforms(Arc::new(Fault::new(ram(&arena), &rules)), &arena, 4);
    assert!(rules.changes() > 0 && rules.failed() == 0);
    let heard = Arc::new(Mutex::new(0));
    let count = Arc::clone(&heard);
    let listener = Arc::new(move |traced: &Traced| {
        assert!(!traced.to_string().is_empty());
        *count.lock() += 1;
    });
    conforms(Arc::new(Trace::new(ram(&arena), listener)), &arena, 5);
    assert!(*heard.lock() > 100);
    let late = Duration::from_micros(300);
    let delay = Delay::new(ram(&arena), Duration::ZERO, late, 6).unwrap();
    conforms(Arc::new(delay), &arena, 6);
}

#[test]
fn wrappers_stack() {
    let arena = arena(6144);
    let (log, rules) = (Log::new(), Rules::new());
    let late = Duration::from_micros(100);
    let slow = Arc::new(Delay::new(ram(&arena), Duration::ZERO, late, 9).unwrap());
    let traced = Arc::new(Trace::new(slow, Arc::new(|_: &Traced| ())));
    let faulty = Arc::new(Fault::new(traced, &rules));
    let device = Arc::new(Record::new(faulty, &log));
    conforms(device.clone(), &arena, 8);
    // What the log says is what the device holds.
    let mut rebuilt = vec![0; SIZE as usize];
    for event in log.take() {
        if let Event::Change(change) = event {
            change.apply(&mut rebuilt, 0..change.sectors());
        }
    }
    // A discarded range may be anything; the suite writes everything it discards again or reads
    // zeros there, as this RAM device has it.
    let found = image(&*device);
    let differing = rebuilt.iter().zip(&found).filter(|(a, b)| a != b && **b != 0).count();
    assert_eq!(differing, 0);
    rules.set([Rule { reads: false, ..Rule::all() }]);
    sync::flush(&*device).unwrap_err();
    assert!(log.events().is_empty(), "what failed is not in the log");
}

#[test]
fn rules_choose_requests() {
    let arena = arena(2048);
    let (rules, below) = (Rules::new(), ram(&arena));
    let device = Fault::new(below.clone(), &rules);
    let write = |offset: u64| {
        let data = Data::copy_from(&arena, &[7; 512]).unwrap();
        sync::execute(&device, Operation::Write { offset, data, fua: false })
    };
    rules.set([Rule::nth_change(1, Errno::NOSPC)]);
    write(0).unwrap();
    assert_eq!(write(512).unwrap_err().errno(), Errno::NOSPC);
    write(512).unwrap();
    assert_eq!((rules.changes(), rules.failed()), (3, 1));
    rules.set([Rule { range: 4096..8192, flushes: false, ..Rule::all() }]);
    write(3584).unwrap();
    sync::flush(&device).unwrap();
    for offset in [4096, 7680] {
        let error = write(offset).unwrap_err();
        assert_eq!(error.errno(), Errno::IO, "{error}");
        sync::execute(&device, Operation::read(offset, 512)).unwrap_err();
    }
    write(8192).unwrap();
    let bytes = image(&*below);
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0), "what failed did not reach it");
    assert_eq!(bytes[8192], 7);
}

#[test]
fn a_window_has_what_no_flush_covers() {
    let log = Log::new();
    let bytes = |byte: u8| What::Bytes(vec![byte; 1024].into());
    log.change(0, bytes(1), false, 0).unwrap();
    let flush = log.now();
    // Completed while the flush was under way: not covered by it.
    log.change(1024, bytes(2), false, 1).unwrap();
    log.flushed(flush);
    log.change(0, bytes(3), true, 3).unwrap();
    log.mark(17);
    // Submitted before the power failed, completed after.
    log.change(2048, bytes(4), false, 4).unwrap();
    log.change(3072, bytes(5), false, 6).unwrap();
    let events = log.events();
    let window = |durable: &[usize], pending: &[usize]| Window {
        durable: durable.to_vec(),
        pending: pending.to_vec(),
    };
    assert_eq!(Window::at(&events, 0), window(&[], &[0]));
    assert_eq!(Window::at(&events, 2), window(&[], &[0, 1]));
    assert_eq!(Window::at(&events, 3), window(&[0], &[1, 3]));
    assert_eq!(Window::at(&events, 5), window(&[0, 3], &[1, 5]));
    assert_eq!(Window::at(&events, 7), window(&[0, 3], &[1, 5, 6]));
    let Event::Change(change) = &events[1] else { panic!("{events:?}") };
    let mut image = vec![0; 2048];
    change.apply(&mut image, 1..2);
    assert!(image[..1536].iter().all(|b| *b == 0) && image[1536..].iter().all(|b| *b == 2));
    change.apply(&mut image, 0..9);
    assert!(image[1024..].iter().all(|b| *b == 2));
    change.apply(&mut image[..1100], 0..2);
}

#[test]
fn completions_come_late_and_out_of_order_but_come() {
    let arena = arena(2048);
    let (shortest, longest) = (Duration::from_millis(3), Duration::from_millis(30));
    let device = Delay::new(ram(&arena), shortest, longest, 5).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let start = std::time::Instant::now();
    for number in 0..20_u64 {
        let order = Arc::clone(&order);
        let read = Operation::read(number * 512, 512);
        device.submit(crate::Request::new(read, move |result| {
            result.unwrap();
            order.lock().push((number, start.elapsed()));
        }));
    }
    sync::flush(&device).unwrap();
    assert!(start.elapsed() >= shortest);
    drop(device);
    let order = order.lock();
    assert_eq!(order.len(), 20, "a device that goes leaves nobody waiting");
    assert!(!order.is_sorted(), "{order:?}");
}
