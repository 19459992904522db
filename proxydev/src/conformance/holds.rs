//! Frames that requests name: who keeps them, and for how long.

use oslet::limits::FRAME_SIZE;
use oslet::region::Pins;

use super::Subject;
use crate::{Data, Operation, Slice, sync};

/// What was read does not change while it is held, whatever is written meanwhile.
pub(super) fn data_stay_as_they_were(subject: &Subject) {
    let len = (subject.block() as usize).max(2 * FRAME_SIZE);
    let mut held = Vec::new();
    for value in 1..=20u8 {
        subject.write(0, &vec![value; len]).expect("write");
        held.push(subject.read(0, len).expect("read"));
    }
    for (data, value) in held.iter().zip(1..=20u8) {
        let found = data.to_vec().expect("data are mapped");
        assert!(found.iter().all(|byte| *byte == value), "held data of round {value} changed");
    }
    // Also on another thread, in another order than they came.
    held.reverse();
    std::thread::spawn(move || drop(held)).join().expect("dropping data");
    assert!(subject.bytes(0, len).iter().all(|byte| *byte == 20));
}

/// Data in small pieces at odd places of memory, which no disk can take from where they lie.
pub(super) fn scattered_data(subject: &Subject) {
    let block = subject.block() as usize;
    let expected: Vec<u8> = (0..4 * block).map(|i| (i % 253) as u8).collect();
    let (mut pages, mut slices) = (Vec::new(), Vec::new());
    // Pieces of a third of a block or so, each somewhere in a frame of its own.
    let piece = (block / 3).min(1000);
    for (index, chunk) in expected.chunks(piece).enumerate() {
        let mut frame = subject.arena.alloc().expect("room for data in the region");
        let at = (index * 37 + 1) % (FRAME_SIZE - piece);
        let mut memory = frame.bytes().expect("own memory");
        memory.fill()[at..at + chunk.len()].copy_from_slice(chunk);
        let page = frame.publish();
        slices.push(Slice::new(page, at, chunk.len()).expect("within the frame"));
        pages.push(page);
    }
    let region = subject.arena.region();
    let mut pins = Pins::new(region, pages.len());
    for page in &pages {
        assert!(pins.add(*page).expect("pin"));
    }
    let data = Data::pinned(pins, slices.clone()).expect("pins and slices agree");
    let write = Operation::Write { offset: block as u64, data, fua: false };
    sync::execute(&*subject.device, write).expect("write of scattered data");
    assert!(subject.bytes(block as u64, expected.len()) == expected, "scattered data differ");

    // The same, kept by the caller's own means.
    subject.write(block as u64, &vec![0; expected.len()]).expect("write");
    let data = Data::kept(region, slices, Box::new(())).expect("own frames");
    let write = Operation::Write { offset: block as u64, data, fua: true };
    sync::execute(&*subject.device, write).expect("write of kept data");
    assert!(subject.bytes(block as u64, expected.len()) == expected, "kept data differ");
    subject.arena.retire(&pages);
}

/// Reading into frames that the caller chose, and taking frames over.
pub(super) fn frames_of_the_caller(subject: &Subject) {
    let block = subject.block() as usize;
    let len = block.max(3 * FRAME_SIZE);
    let expected: Vec<u8> = (0..len).map(|i| (i % 241) as u8).collect();
    subject.write(0, &expected).expect("write");
    let read = |frames: usize| {
        let into = subject.arena.alloc_many(frames).expect("room in the region");
        let read = Operation::Read { offset: 0, len: len as u32, into };
        sync::execute(&*subject.device, read)
    };
    assert!(read(1).is_err() || len <= FRAME_SIZE, "too few frames");
    // One more than is needed comes back to the arena.
    let data = read(len / FRAME_SIZE + 1).expect("read into frames");
    assert!(data.to_vec().expect("data are mapped") == expected);
    match data.into_pages() {
        Ok(pages) => {
            assert_eq!(pages.len(), len.div_ceil(FRAME_SIZE));
            for (index, page) in pages.iter().enumerate() {
                let guard = subject.arena.region().pin(*page).expect("pin").expect("not stale");
                let start = index * FRAME_SIZE;
                let end = (start + FRAME_SIZE).min(len);
                assert_eq!(guard.bytes().to_vec()[..end - start], expected[start..end]);
            }
            subject.arena.retire(&pages);
        }
        // The device keeps its frames itself.
        Err(data) => assert!(data.to_vec().expect("data are mapped") == expected),
    }
}
