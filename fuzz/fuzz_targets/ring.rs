//! Rings whose other half is written by somebody with bad intentions, and the same ring with two
//! honest ends.
#![no_main]

use std::collections::VecDeque;

use fuzz::{Input, put};
use libfuzzer_sys::fuzz_target;
use oslet::ring::{Consumer, Descriptor, Producer, layout};
use oslet::words::LocalWords;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let capacity = 1 << (input.byte() % 4);
    if input.byte() & 1 == 0 {
        hostile(input, capacity);
    } else {
        honest(input, capacity);
    }
});

/// Words change behind the back of both ends, and every error is as good as any.
fn hostile(mut input: Input<'_>, capacity: usize) {
    let (out, own) = halves(capacity);
    let park = LocalWords::new(layout::PARK_WORDS);
    let mut producer = Producer::new(out.clone(), own.clone(), capacity);
    let mut consumer = Consumer::new(out.clone(), own.clone(), capacity);
    while !input.is_empty() {
        let step = input.byte();
        match step % 8 {
            0 => put(&out, input.half().into(), input.long()),
            1 => put(&own, layout::HEAD, input.long()),
            // What an honest end would write, or nearly.
            2 => put(&out, layout::ENTRIES + usize::from(step >> 3) * 8, input.byte().into()),
            3 => {
                let _ = producer.push(descriptor(&mut input));
            }
            4 => {
                let batch: Vec<_> = (0..step >> 4).map(|_| descriptor(&mut input)).collect();
                let _ = producer.push_batch(&batch);
            }
            5 => {
                let _ = (producer.has_room(), producer.taken());
                put(&park, layout::PARKED, (step >> 3).into());
                producer.move_tail(&park);
            }
            6 => {
                let _ = (consumer.ready(), consumer.pop());
            }
            _ => {
                consumer.release();
                consumer.awaited_tail();
            }
        }
    }
}

/// Nobody interferes: a ring is a queue.
fn honest(mut input: Input<'_>, capacity: usize) {
    let (out, own) = halves(capacity);
    let mut producer = Producer::new(out.clone(), own.clone(), capacity);
    let mut consumer = Consumer::new(out, own, capacity);
    let mut queue = VecDeque::new();
    while !input.is_empty() {
        let step = input.byte();
        match step % 4 {
            0 => {
                let descriptor = descriptor(&mut input);
                if producer.push(descriptor).expect("an honest consumer").is_ok() {
                    queue.push_back(descriptor);
                }
            }
            1 => {
                let batch: Vec<_> = (0..step >> 4).map(|_| descriptor(&mut input)).collect();
                let count = producer.push_batch(&batch).expect("an honest consumer");
                queue.extend(&batch[..count]);
            }
            _ => assert_eq!(consumer.pop().expect("an honest producer"), queue.pop_front()),
        }
        assert!(queue.len() <= capacity);
    }
}

/// The producer's half of a ring, and the consumer's.
fn halves(capacity: usize) -> (LocalWords, LocalWords) {
    (LocalWords::new(layout::producer_words(capacity)), LocalWords::new(layout::LINE_WORDS))
}

fn descriptor(input: &mut Input<'_>) -> Descriptor {
    Descriptor {
        id: input.half().into(),
        kind: input.byte().into(),
        body_len: input.word(),
        args: [input.byte().into(); 3],
        ..Descriptor::default()
    }
}
