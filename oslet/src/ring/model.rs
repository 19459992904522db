//! Exhaustive models of the ring under `loom`: `cargo xtask test` runs them.

use super::spsc::{self, layout};
use super::*;
use crate::sync::Ordering;
use crate::words::{LocalWords as Words, ReadWords};
use loom::sync::{Arc, Condvar, Mutex};

struct Ends {
    producer: Producer<Words, Words>,
    consumer: Consumer<Words, Words>,
    park: Words,
}

fn ring(capacity: usize) -> Ends {
    let out = Words::new(layout::producer_words(capacity));
    let own = Words::new(layout::CONSUMER_WORDS);
    let park = Words::new(layout::PARK_WORDS);
    let producer = Producer::new(out.clone(), own.clone(), capacity);
    Ends { producer, consumer: Consumer::new(out, own, capacity), park }
}

fn message(id: u64) -> Descriptor {
    Descriptor { id, args: [id, !id, 0], ..Descriptor::default() }
}

/// Every descriptor arrives once, whole and in order, through a ring that wraps.
#[test]
fn descriptors_arrive_in_order() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let Ends { mut producer, mut consumer, .. } = ring(2);
        let sender = loom::thread::spawn(move || {
            let mut sent = 0;
            while sent < 3 {
                match producer.push(message(sent)).unwrap() {
                    Ok(()) => sent += 1,
                    Err(Full) => loom::thread::yield_now(),
                }
            }
        });
        let mut expected = 0;
        while expected < 3 {
            match consumer.pop().unwrap() {
                Some(found) => {
                    assert_eq!(found, message(expected));
                    expected += 1;
                }
                None => loom::thread::yield_now(),
            }
        }
        sender.join().unwrap();
    });
}

/// A batch appears whole: once its first descriptor is there, all are.
#[test]
fn a_batch_is_published_by_one_store() {
    loom::model(|| {
        let Ends { mut producer, mut consumer, .. } = ring(2);
        let sender = loom::thread::spawn(move || {
            assert_eq!(producer.push_batch(&[message(0), message(1)]), Ok(2));
        });
        if consumer.pop().unwrap().is_some() {
            assert_eq!(consumer.pop().unwrap(), Some(message(1)));
        }
        sender.join().unwrap();
    });
}

/// The kernel's futex, for one waiter: it compares and goes to sleep under a lock, which whoever
/// wakes it takes.
#[derive(Default)]
struct Futex {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Futex {
    fn wait(&self, words: &Words, expected: u32) {
        let held = self.lock.lock().unwrap();
        if words.load(layout::TAIL, Ordering::Relaxed) as u32 == expected {
            drop(self.changed.wait(held).unwrap());
        } else {
            drop(held);
            loom::thread::yield_now();
        }
    }

    fn wake(&self) {
        let _held = self.lock.lock().unwrap();
        self.changed.notify_one();
    }
}

/// Takes `count` messages as a consumer does that never polls. Returns how often it parked.
fn take_all(consumer: &mut Consumer<Words, Words>, park: &Words, bell: &Futex, count: u64) -> u64 {
    let (mut taken, mut parkings) = (0, 0);
    while taken < count {
        if let Some(found) = consumer.pop().unwrap() {
            assert_eq!(found, message(taken));
            taken += 1;
            continue;
        }
        parkings += 1;
        spsc::announce_parking(park);
        if !consumer.ready().unwrap() {
            bell.wait(consumer.peer(), consumer.awaited_tail());
        }
        spsc::retract_parking(park);
    }
    parkings
}

/// A consumer that sleeps is woken as long as something is in the ring, though each parking is
/// woken from once only: whatever it took before the tail came by, whenever it parks again. A lost
/// wake-up is a deadlock here.
#[test]
fn no_wake_up_is_lost() {
    const COUNT: u64 = 3;
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let Ends { mut producer, mut consumer, park } = ring(4);
        let (bell, line) = (Arc::new(Futex::default()), park.clone());
        let ringing = Arc::clone(&bell);
        let sender = loom::thread::spawn(move || {
            let mut wakes = 0;
            for id in 0..COUNT {
                producer.push(message(id)).unwrap().unwrap();
                if producer.move_tail(&line) {
                    wakes += 1;
                    ringing.wake();
                }
            }
            wakes
        });
        let parkings = take_all(&mut consumer, &park, &bell, COUNT);
        let wakes: u64 = sender.join().unwrap();
        assert!(wakes <= parkings, "{wakes} wake-ups for {parkings} parkings");
    });
}
