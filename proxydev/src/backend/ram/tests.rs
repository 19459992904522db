use super::*;
use crate::conformance::{self, Subject};
use crate::sync;
use crate::testing::arena;

#[test]
fn a_ram_disk_conforms() {
    let arena = arena(6144);
    for (size, seed) in [(4 << 20, 1), ((4 << 20) + 512, 77)] {
        let device: Arc<dyn BlockDevice> = Arc::new(RamDevice::new("ram", size, &arena).unwrap());
        let (homes, settle) = (vec![Arc::clone(&arena)], Box::new(|| ()));
        let subject = Subject { device, arena: Arc::clone(&arena), homes, settle };
        conformance::run(&subject, seed);
    }
    while arena.tick() > 0 {}
    assert_eq!(arena.usage().free, 6144, "a dropped device gives all its memory back");
}

#[test]
fn a_ram_disk_that_does_not_fit_is_refused() {
    let arena = arena(128);
    let error = RamDevice::new("big", 1 << 20, &arena).err().unwrap();
    assert!(error.to_string().contains("big: 1048576 bytes"), "{error}");
    assert!(RamDevice::new("huge", u64::MAX / 512 * 512, &arena).is_err());
    assert!(RamDevice::new("odd", 1000, &arena).is_err());
    assert_eq!(arena.usage().free, 128);
    let device = RamDevice::new("small", 64 * 4096, &arena).unwrap();
    assert_eq!(arena.usage().free, 0);
    // With no frame left to hold what is to be written, there is an error and no harm.
    let held: Vec<_> = (0..limits::RAM_SPARE_FRAMES)
        .map(|_| {
            let held = sync::execute(&device, Operation::read(0, 4096)).unwrap();
            let zero = Operation::WriteZeroes {
                offset: 0,
                len: 512,
                may_unmap: false,
                fua: false,
                fast: false,
            };
            sync::execute(&device, zero).unwrap();
            held
        })
        .collect();
    let last = sync::execute(&device, Operation::read(0, 4096)).unwrap();
    let zero = || Operation::WriteZeroes {
        offset: 0,
        len: 512,
        may_unmap: false,
        fua: false,
        fast: false,
    };
    let error = sync::execute(&device, zero()).unwrap_err();
    assert_eq!(error.errno(), rustix::io::Errno::NOMEM, "{error}");
    drop(held);
    sync::execute(&device, zero()).unwrap();
    drop((device, last));
    while arena.tick() > 0 {}
    assert_eq!(arena.usage().free, 128);
}

#[test]
fn data_are_handed_out_without_a_copy() {
    let arena = arena(1200);
    let device = RamDevice::new("ram", 4 << 20, &arena).unwrap();
    let one = sync::execute(&device, Operation::read(4096, 8192)).unwrap();
    let two = sync::execute(&device, Operation::read(4096, 8192)).unwrap();
    assert_eq!(one.slices(), two.slices());
    assert!(one.into_pages().is_err(), "a RAM disk keeps its frames");
}

#[test]
fn readers_see_whole_blocks_while_writers_replace_them() {
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    let arena = arena(1024);
    let device = RamDevice::new("ram", 64 * 4096, &arena).unwrap();
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let data = sync::execute(&device, Operation::read(0, 16384)).unwrap();
                    for page in data.to_vec().unwrap().chunks(4096) {
                        assert!(page.iter().all(|byte| *byte == page[0]), "a torn page");
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..2000u32 {
            let data = Data::copy_from(&arena, &[round as u8; 16384]).unwrap();
            let write = Operation::Write { offset: 0, data, fua: false };
            sync::execute(&device, write).unwrap();
        }
        while reads.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
}
