use proptest::prelude::*;

use super::spsc::{self, layout};
use super::*;
use crate::sync::Ordering;
use crate::words::{LocalWords as Words, WriteWords};

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

impl Ends {
    /// Pushes so many, one by one. Returns how many wake-ups that takes.
    fn send(&mut self, count: u64) -> usize {
        let mut one = |id| {
            self.producer.push(Descriptor { id, ..Descriptor::default() }).unwrap().unwrap();
            self.producer.move_tail(&self.park)
        };
        (0..count).map(&mut one).filter(|woken| *woken).count()
    }

    fn take_all(&mut self) {
        while self.consumer.pop().unwrap().is_some() {}
    }
}

#[test]
fn a_consumer_is_woken_once_for_each_time_that_it_parks() {
    let mut ring = ring(16);
    assert_eq!(ring.send(5), 0, "it runs");
    for _ in 0..3 {
        ring.take_all();
        spsc::announce_parking(&ring.park);
        // However long it takes to run again.
        assert_eq!((ring.send(1), ring.send(5)), (1, 0));
        spsc::retract_parking(&ring.park);
        assert_eq!(ring.send(5), 0, "it runs");
    }
}

/// What a consumer took before the tail came by is nothing to wake it for; it parks on the tail as
/// it is then, and what comes next wakes it.
#[test]
fn a_consumer_that_was_ahead_of_the_tail_is_woken_by_the_next_message() {
    let mut ring = ring(4);
    ring.producer.push(Descriptor::default()).unwrap().unwrap();
    ring.take_all();
    spsc::announce_parking(&ring.park);
    assert!(!ring.consumer.ready().unwrap());
    assert_eq!(ring.consumer.awaited_tail(), 0, "it would not sleep, and look again and again");
    assert!(!ring.producer.move_tail(&ring.park), "nothing is there for it");
    assert_eq!(ring.consumer.awaited_tail(), 1);
    assert_eq!((ring.send(1), ring.send(1)), (1, 0));
}

proptest! {
    /// Whatever is pushed, singly or in batches, comes out once and in order.
    #[test]
    fn a_ring_is_a_queue(steps in proptest::collection::vec(0usize..6, 1..300)) {
        let out = Words::new(layout::producer_words(4));
        let own = Words::new(layout::CONSUMER_WORDS);
        let mut producer = Producer::new(out.clone(), own.clone(), 4);
        let mut consumer = Consumer::new(out, own, 4);
        let (mut sent, mut received) = (0u64, 0u64);
        let message = |id| Descriptor { id, kind: id as u16, ..Descriptor::default() };
        for step in steps {
            match step {
                0 => match producer.push(message(sent)).unwrap() {
                    Ok(()) => sent += 1,
                    Err(Full) => prop_assert!(sent - received >= 3),
                },
                1..=3 => {
                    let batch: Vec<_> = (sent..sent + step as u64).map(message).collect();
                    sent += producer.push_batch(&batch).unwrap() as u64;
                }
                _ => match consumer.pop().unwrap() {
                    Some(found) => {
                        prop_assert_eq!(found, message(received));
                        received += 1;
                    }
                    None => prop_assert_eq!(sent, received),
                },
            }
        }
    }

    /// Random words in the peer's half are refused or ignored, never a panic.
    #[test]
    fn random_words_are_survived(
        noise in proptest::collection::vec((0usize..40, any::<u64>()), 0..60),
        head: u64,
    ) {
        let out = Words::new(layout::producer_words(4));
        let own = Words::new(layout::CONSUMER_WORDS);
        for (index, value) in noise {
            out.store(index, value, Ordering::Relaxed);
        }
        let mut consumer = Consumer::new(out.clone(), own.clone(), 4);
        for _ in 0..8 {
            let _ = consumer.pop();
        }
        own.store(layout::HEAD, head, Ordering::Relaxed);
        let mut producer = Producer::new(out, own, 4);
        for id in 0..8 {
            let _ = producer.push(Descriptor { id, ..Descriptor::default() });
        }
    }
}
