//! What is read is what was written.

use oslet::limits::FRAME_SIZE;

use super::{Random, Subject};
use crate::{Data, Operation, sync};

/// Random requests one at a time, each compared with an array of bytes.
pub(super) fn against_a_model(subject: &Subject, random: &mut Random) {
    let block = subject.block();
    let span = super::MIN_SIZE;
    let mut model = random.bytes(span as usize);
    for (index, chunk) in model.chunks(512 << 10).enumerate() {
        subject.write((index * (512 << 10)) as u64, chunk).expect("write");
    }
    for round in 0..150 {
        let most = if round % 10 == 0 { 512 << 10 } else { 32 << 10 };
        let offset = random.below(span / block) * block;
        let len = (random.below(most / block) + 1) * block;
        let len = len.min(span - offset);
        let range = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0..=2 => {
                let bytes = random.bytes(len as usize);
                let (data, fua) = (subject.data(&bytes), random.below(4) == 0);
                let write = Operation::Write { offset, data, fua };
                sync::execute(&*subject.device, write).expect("write");
                model[range].copy_from_slice(&bytes);
            }
            3 => {
                let (may_unmap, fua) = (random.below(2) == 0, random.below(4) == 0);
                let zero = Operation::WriteZeroes { offset, len, may_unmap, fua, fast: false };
                sync::execute(&*subject.device, zero).expect("write zeroes");
                model[range].fill(0);
            }
            4 => sync::flush(&*subject.device).expect("flush"),
            _ => {
                let found = subject.bytes(offset, len as usize);
                assert!(found == model[range], "round {round}: {len} bytes at {offset} differ");
            }
        }
    }
    for (index, chunk) in model.chunks(256 << 10).enumerate() {
        let found = subject.bytes((index * (256 << 10)) as u64, chunk.len());
        assert!(found == chunk, "contents differ in piece {index} at the end");
    }
}

/// Requests that do not overlap, all in flight at once.
pub(super) fn many_in_flight(subject: &Subject, random: &mut Random) {
    let block = subject.block();
    let len = block.max(FRAME_SIZE as u64);
    let count = (super::MIN_SIZE / len).min(256).min(subject.arena.usage().free as u64 / 4);
    assert!(count > 8, "too small an arena to test with");
    for round in 0..3 {
        let bytes: Vec<_> = (0..count).map(|_| random.bytes(len as usize)).collect();
        let write = |(index, bytes): (usize, &Vec<u8>)| Operation::Write {
            offset: index as u64 * len,
            data: subject.data(bytes),
            fua: false,
        };
        for outcome in subject.all(bytes.iter().enumerate().map(write).collect()) {
            assert!(outcome.expect("write").is_empty());
        }
        // Reads with flushes and failures among them; each hears of its own end.
        let mut operations: Vec<_> =
            (0..count).map(|index| Operation::read(index * len, len as u32)).collect();
        operations.push(Operation::Flush);
        operations.push(Operation::read(1, block as u32));
        let mut outcomes = subject.all(operations);
        assert!(outcomes.pop().is_some_and(|outcome| outcome.is_err()));
        assert!(outcomes.pop().is_some_and(|outcome| outcome.is_ok()));
        for (index, (outcome, expected)) in outcomes.into_iter().zip(&bytes).enumerate() {
            let found = outcome.expect("read").to_vec().expect("data are mapped");
            assert!(found == *expected, "round {round}: request {index} of {count} differs");
        }
    }
}

/// Writes to the same blocks at once: each block ends as one of them wrote it.
pub(super) fn overlapping_writes(subject: &Subject) {
    let block = subject.block() as usize;
    let len = 8 * block;
    let writes = (1..=16u8).map(|value| Operation::Write {
        offset: (usize::from(value) % 4 * block) as u64,
        data: subject.data(&vec![value; len]),
        fua: false,
    });
    for outcome in subject.all(writes.collect()) {
        outcome.expect("write");
    }
    // Behind the last completion every write has taken effect.
    for (index, found) in subject.bytes(0, len).chunks(block).enumerate() {
        let value = found[0];
        assert!((1..=16).contains(&value), "block {index} shows {value}");
        assert!(found.iter().all(|byte| *byte == value), "block {index} is a mixture");
        let first = usize::from(value) % 4;
        assert!(first <= index, "block {index} shows {value}, which was written from {first} on");
    }
}

pub(super) fn zeroes_and_discard(subject: &Subject) {
    let block = subject.block() as usize;
    let len = 64 * block;
    for (may_unmap, fua) in [(false, false), (true, false), (false, true), (true, true)] {
        subject.write(0, &vec![0xa5; len]).expect("write");
        let (offset, zeroed) = (3 * block, 50 * block);
        let zero = Operation::WriteZeroes {
            offset: offset as u64,
            len: zeroed as u64,
            may_unmap,
            fua,
            fast: false,
        };
        sync::execute(&*subject.device, zero).expect("write zeroes");
        let found = subject.bytes(0, len);
        assert!(found[offset..offset + zeroed].iter().all(|byte| *byte == 0), "zeroes read back");
        assert!(found[..offset].iter().all(|byte| *byte == 0xa5), "what lies before stays");
        assert!(found[offset + zeroed..].iter().all(|byte| *byte == 0xa5), "what follows stays");
    }
    subject.write(0, &vec![0xa5; len]).expect("write");
    let (offset, discarded) = (5 * block as u64, 9 * block as u64);
    let discard = Operation::Discard { offset, len: discarded };
    sync::execute(&*subject.device, discard).expect("discard");
    let found = subject.bytes(0, len);
    let (start, end) = (offset as usize, (offset + discarded) as usize);
    let inside = &found[start..end];
    assert!(
        inside.iter().all(|byte| *byte == 0 || *byte == 0xa5),
        "discarded blocks show new data"
    );
    assert!(found[..start].iter().chain(&found[end..]).all(|byte| *byte == 0xa5), "others stay");
    // More than any one transfer.
    let all = subject.device.info().size;
    let zero =
        Operation::WriteZeroes { offset: 0, len: all, may_unmap: true, fua: false, fast: false };
    sync::execute(&*subject.device, zero).expect("write zeroes to all of it");
    assert!(subject.bytes(all - len as u64, len).iter().all(|byte| *byte == 0));
}

/// The helpers that read and write bytes at any offset.
pub(super) fn bytes_at_any_offset(subject: &Subject, random: &mut Random) {
    let span = 256 << 10;
    let mut model = random.bytes(span);
    sync::write_at(&*subject.device, &subject.arena, 0, &model).expect("write");
    for _ in 0..60 {
        let offset = random.below(span as u64) as usize;
        let len = (random.below(9000) as usize).min(span - offset);
        let range = offset..offset + len;
        if random.below(2) == 0 {
            let bytes = random.bytes(len);
            sync::write_at(&*subject.device, &subject.arena, offset as u64, &bytes).expect("write");
            model[range].copy_from_slice(&bytes);
        } else {
            let mut found = vec![0; len];
            sync::read_at(&*subject.device, offset as u64, &mut found).expect("read");
            assert!(found == model[range], "{len} bytes at {offset} differ");
        }
    }
    let size = subject.device.info().size;
    assert!(sync::read_at(&*subject.device, size - 1, &mut [0; 2]).is_err());
    assert!(sync::write_at(&*subject.device, &subject.arena, size, &[0]).is_err());
}

/// One request of the greatest length, at an offset that no frame starts at.
pub(super) fn largest_transfer(subject: &Subject) {
    let info = subject.device.info();
    let len = info.max_transfer as usize;
    let pages = len.div_ceil(FRAME_SIZE);
    if subject.arena.usage().free < 2 * pages {
        return;
    }
    let bytes = Random(0x1234_5678_9abc_def1).bytes(len);
    let offset = u64::from(info.block_size);
    let write = Operation::Write { offset, data: subject.data(&bytes), fua: false };
    assert!(sync::execute(&*subject.device, write).as_ref().is_ok_and(Data::is_empty));
    assert!(subject.bytes(offset, len) == bytes, "{len} bytes at {offset} differ");
}
