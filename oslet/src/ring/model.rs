//! Exhaustive models of the ring under `loom`: `cargo xtask test` runs them.

use super::spsc::{self, layout};
use super::*;
use crate::sync::{AtomicU64, Ordering};
use crate::words::{ReadWords, WriteWords};
use loom::sync::Arc;

#[derive(Clone)]
struct Words(Arc<Vec<AtomicU64>>);

impl Words {
    fn new(count: usize) -> Self {
        Self(Arc::new((0..count).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl ReadWords for Words {
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0[index].load(order)
    }
}

impl WriteWords for Words {
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[index].store(value, order);
    }
}

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

/// A consumer that goes to sleep on the tail is woken, or has seen the descriptor: either the
/// tail has moved (the futex refuses to sleep), or the producer saw it parked (and wakes it).
#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let Ends { mut producer, consumer, park } = ring(2);
        let parking = park.clone();
        let sender = loom::thread::spawn(move || {
            producer.push(message(0)).unwrap().unwrap();
            producer.move_tail(&park)
        });
        spsc::announce_parking(&parking);
        let seen = consumer.ready().unwrap();
        let tail = consumer.peer().load(layout::TAIL, Ordering::Relaxed);
        let would_sleep = !seen && tail as u32 == consumer.awaited_tail();
        let woken = sender.join().unwrap();
        spsc::retract_parking(&parking);
        assert!(seen || !would_sleep || woken, "asleep with a descriptor in the ring");
    });
}
