use proptest::prelude::*;

use super::spsc::layout;
use super::*;
use crate::sync::Ordering;
use crate::words::{ReadWords, WriteWords};
use std::cell::RefCell;
use std::rc::Rc;

#[derive(Clone)]
struct Words(Rc<RefCell<Vec<u64>>>);

impl Words {
    fn new(count: usize) -> Self {
        Self(Rc::new(RefCell::new(vec![0; count])))
    }
}

impl ReadWords for Words {
    fn load(&self, index: usize, _: Ordering) -> u64 {
        self.0.borrow()[index]
    }
}

impl WriteWords for Words {
    fn store(&self, index: usize, value: u64, _: Ordering) {
        self.0.borrow_mut()[index] = value;
    }
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
