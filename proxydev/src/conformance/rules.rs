//! Geometry, and the answers to requests that cannot be carried out.

use rustix::io::Errno;

use super::{MIN_SIZE, Subject};
use crate::{Data, Error, Operation, Result, limits, sync};

pub(super) fn geometry(subject: &Subject) {
    let info = subject.device.info();
    assert!(info.block_size.is_power_of_two(), "{info:?}");
    assert!(info.block_size >= limits::MIN_BLOCK_SIZE, "{info:?}");
    assert!(info.size.is_multiple_of(info.block_size.into()), "{info:?}");
    assert!(info.size >= MIN_SIZE, "{info:?}: too small to be tested");
    assert!(info.optimal_size >= info.block_size, "{info:?}");
    assert!(info.memory_alignment.is_power_of_two(), "{info:?}");
    assert!(info.max_transfer >= 1 << 20 && info.max_transfer <= limits::MAX_TRANSFER, "{info:?}");
    assert!(!info.read_only, "{info:?}");
    assert!(!subject.device.name().is_empty());
}

pub(super) fn bounds_and_alignment(subject: &Subject) {
    let info = subject.device.info();
    let (size, block) = (info.size, subject.block());
    let before = subject.bytes(size - block, block as usize);
    let execute = |operation| sync::execute(&*subject.device, operation);
    let write = |offset, len: u64| subject.write(offset, &vec![0xee; len as usize]);
    let read = |offset, len: u64| subject.read(offset, len as usize);
    let discard = |offset, len| execute(Operation::Discard { offset, len });
    let zero = |offset, len| {
        execute(Operation::WriteZeroes { offset, len, may_unmap: true, fua: false, fast: false })
    };

    // Beyond the end there is no space to write, and nothing to read.
    for offset in [size - block, size, size + block] {
        assert_errno(read(offset, 2 * block), Errno::INVAL, "read beyond the end");
        assert_errno(discard(offset, 2 * block), Errno::INVAL, "discard beyond the end");
        assert_errno(write(offset, 2 * block), Errno::NOSPC, "write beyond the end");
        assert_errno(zero(offset, 2 * block), Errno::NOSPC, "zeroes beyond the end");
    }
    let far = u64::MAX - u64::MAX % block;
    assert_errno(read(far, block), Errno::INVAL, "read at the end of numbers");
    assert_errno(write(far, block), Errno::NOSPC, "write at the end of numbers");
    assert_errno(discard(block, far), Errno::INVAL, "discard of all numbers");
    assert_errno(zero(block, far), Errno::NOSPC, "zeroes over all numbers");

    for (offset, len) in [(1, block), (0, block - 1), (block / 2, block), (0, block + 1)] {
        assert_errno(read(offset, len), Errno::INVAL, "misaligned read");
        assert_errno(write(offset, len), Errno::INVAL, "misaligned write");
        assert_errno(discard(offset, len), Errno::INVAL, "misaligned discard");
        assert_errno(zero(offset, len), Errno::INVAL, "misaligned zeroes");
    }

    let long = u64::from(info.max_transfer) + block;
    assert_errno(read(0, long), Errno::OVERFLOW, "too long a read");
    let pages = long.div_ceil(oslet::limits::FRAME_SIZE as u64) as usize;
    if subject.arena.usage().free > pages {
        assert_errno(write(0, long), Errno::INVAL, "too long a write");
    }
    assert_eq!(
        subject.bytes(size - block, block as usize),
        before,
        "refused requests change nothing"
    );
}

pub(super) fn empty_requests(subject: &Subject) {
    let size = subject.device.info().size;
    for offset in [0, size] {
        for operation in [
            Operation::read(offset, 0),
            Operation::Write { offset, data: Data::empty(), fua: true },
            Operation::Discard { offset, len: 0 },
            Operation::WriteZeroes { offset, len: 0, may_unmap: false, fua: true, fast: false },
        ] {
            let what = format!("{operation:?}");
            let result = sync::execute(&*subject.device, operation);
            assert!(result.is_ok_and(|data| data.is_empty()), "{what}");
        }
    }
}

pub(super) fn changes_are_refused(subject: &Subject) {
    let block = subject.block();
    let data = subject.data(&vec![1; block as usize]);
    for operation in [
        Operation::Write { offset: 0, data, fua: false },
        Operation::Discard { offset: 0, len: block },
        Operation::WriteZeroes { offset: 0, len: block, may_unmap: true, fua: false, fast: false },
    ] {
        let what = operation.what();
        let result = sync::execute(&*subject.device, operation);
        assert_errno(result, Errno::PERM, what);
    }
}

fn assert_errno(result: Result<Data>, expected: Errno, what: &str) {
    match result {
        Ok(data) => panic!("{what}: succeeded with {} bytes, expected {expected}", data.len()),
        Err(error) => {
            assert_eq!(error.errno(), expected, "{what}: {error}");
            assert!(!matches!(error, Error::Abandoned), "{what}: {error}");
        }
    }
}
