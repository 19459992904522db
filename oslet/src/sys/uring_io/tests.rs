use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::*;
use crate::arena::Arena;
use crate::id::{Epoch, OsletId, ParticipantId};
use crate::region::{Backing, ControlPage, Paging, Region, SegmentSpec};
use crate::sys::disk::{Buffer, Source};

fn arena(frames: usize) -> Arc<Arena> {
    let control = ControlPage::create(&Backing::Memfd, "disk", 2).unwrap();
    let spec = SegmentSpec {
        participant: ParticipantId::runtime(OsletId::new(0).unwrap()),
        epoch: Epoch(1),
        frames,
        space: 1 << 16,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    Arena::new(&Region::new(control, own, Paging::default()).unwrap())
}

fn file(len: usize) -> (Arc<File>, Vec<u8>) {
    let bytes: Vec<u8> = (0..len).map(|i| (i / 4096 * 31 + i % 251) as u8).collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    (Arc::new(file), bytes)
}

fn collect<T>(ring: &Ring<T>, count: usize) -> Vec<Finished<T>> {
    let mut finished = Vec::new();
    for _ in 0..100 {
        if finished.len() == count {
            break;
        }
        ring.wait(Duration::from_millis(100));
        ring.reap(&mut finished);
    }
    assert_eq!(finished.len(), count);
    finished
}

fn contents(io: Io) -> Vec<u8> {
    let frames = io.into_frames();
    frames.into_iter().flat_map(|mut frame| frame.bytes().unwrap().as_raw().to_vec()).collect()
}

#[test]
fn more_operations_than_the_depth_all_end_once() {
    let arena = arena(64);
    let (file, bytes) = file(64 * 4096);
    for registered in [false, true] {
        let mut ring = Ring::new(4).unwrap();
        if registered {
            ring.register(arena.region().own()).unwrap();
            assert!(ring.fixed.is_some());
        }
        let reads = (0..32).map(|index| {
            let frames = arena.alloc_many(2).unwrap();
            (Io::read(&file, index * 8192, 8192, frames).unwrap(), index)
        });
        ring.submit(reads.collect::<Vec<_>>());
        let mut finished = collect(&ring, 32);
        finished.sort_by_key(|(_, index, _)| *index);
        for (position, (io, index, result)) in finished.into_iter().enumerate() {
            assert_eq!((position as u64, result.unwrap()), (index, 8192));
            let start = index as usize * 8192;
            assert_eq!(contents(io), bytes[start..start + 8192]);
        }
        assert_eq!(ring.in_flight(), 0);
    }
}

#[test]
fn scattered_frames_are_one_registered_operation_where_the_kernel_can() {
    let arena = arena(8);
    let (file, bytes) = file(4 * 4096);
    let mut ring = Ring::new(1).unwrap();
    ring.register(arena.region().own()).unwrap();
    // Every other frame, so that no two ranges touch.
    let mut all = arena.alloc_many(8).unwrap();
    all.sort_by_key(|frame| frame.number());
    let all: Vec<_> = all.into_iter().step_by(2).collect();
    let io = Io::read(&file, 0, 4 * 4096 - 100, all).unwrap();
    assert_eq!(io.vectors.len(), 4);
    let fixed = ring.fixed.as_ref().unwrap();
    assert_eq!(fixed.index(&io.vectors), fixed.vectors.then_some(0));
    ring.submit([(io, ())]);
    let (io, (), result) = collect(&ring, 1).pop().unwrap();
    assert_eq!(result.unwrap(), 4 * 4096 - 100);
    assert_eq!(contents(io)[..4 * 4096 - 100], bytes[..4 * 4096 - 100]);
}

#[test]
fn pages_and_buffers_are_written_where_they_belong() {
    let arena = arena(8);
    let (file, mut bytes) = file(8 * 4096);
    let mut ring = Ring::new(4).unwrap();
    ring.register(arena.region().own()).unwrap();
    let pages: Vec<_> = (1..4u8)
        .map(|value| {
            let mut frame = arena.alloc().unwrap();
            frame.bytes().unwrap().fill().fill(value);
            frame.publish()
        })
        .collect();
    let slices = pages.iter().map(|page| (Source::Own(*page), 100, 1000));
    let write = Io::write_pages(&file, 5000, arena.region(), slices, true).unwrap();
    let mut buffer = Buffer::zeroed(300).unwrap();
    buffer.fill(9);
    let other = Io::write_buffer(&file, 20_000, buffer, false).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    ring.submit([(write, 3000), (other, 300), (Io::allocate(&file, punch, 0, 4096), 0)]);
    for (_, expected, result) in collect(&ring, 3) {
        assert_eq!(result.unwrap(), expected);
    }
    ring.submit([(Io::data_sync(&file), 0)]);
    assert_eq!(collect(&ring, 1).pop().unwrap().2.unwrap(), 0);
    for (index, value) in (1..4u8).enumerate() {
        bytes[5000 + index * 1000..][..1000].fill(value);
    }
    bytes[20_000..20_300].fill(9);
    bytes[..4096].fill(0);
    let mut now = vec![0; bytes.len()];
    file.read_exact_at(&mut now, 0).unwrap();
    assert_eq!(now, bytes);
}

#[test]
fn an_operation_run_in_pieces_is_the_whole() {
    let arena = arena(4);
    let (file, bytes) = file(3 * 4096);
    let mut frames = arena.alloc_many(4).unwrap();
    frames.sort_by_key(|frame| frame.number());
    frames.remove(1);
    let mut io = Io::read(&file, 10, 3 * 4096 - 10, frames).unwrap();
    let all = io.remaining();
    // As if the kernel had transferred the first 5000 bytes only.
    assert_eq!(io.run().unwrap(), all);
    io.advance(5000);
    assert_eq!((io.remaining(), io.offset()), (all - 5000, 5010));
    assert_eq!(io.run().unwrap(), all - 5000);
    io.advance(all - 5000);
    assert_eq!((io.remaining(), io.vectors.len()), (0, 0));
    assert_eq!(contents(io)[..all], bytes[10..]);
}

#[test]
fn errors_come_back_and_waits_end() {
    let read_only = File::open("/proc/self/exe").unwrap();
    let ring = Ring::new(1).unwrap();
    let buffer = Buffer::zeroed(4096).unwrap();
    ring.submit([(Io::write_buffer(&Arc::new(read_only), 0, buffer, false).unwrap(), ())]);
    let (_, (), result) = collect(&ring, 1).pop().unwrap();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    let start = std::time::Instant::now();
    ring.wait(Duration::from_millis(20));
    assert!(start.elapsed() >= Duration::from_millis(15));
    ring.wake();
    ring.wait(Duration::from_secs(60));
    ring.reap(&mut Vec::new());
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(Ring::<()>::new(0).is_err());
}
