//! Sizes, allocation ahead, and inodes that go.

use super::*;
use crate::Caller;
use crate::disk::inode::InodeFlags;

#[test]
fn an_inode_without_names_goes_with_its_last_holder() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Memory::new(image(64, args));
        let writer = memory.writer();
        let free = writer.space.statfs();
        let cells: Vec<_> = (0..40).map(|at| unnamed(&writer, at * 10)).collect();
        for cell in &cells {
            cell.hold(2);
            writer.settle(cell).unwrap();
            assert!(!cell.read().gone);
        }
        // In an order in which the list loses its middle first.
        for cell in cells.iter().skip(1).step_by(2).chain(cells.iter().step_by(2)) {
            writer.release(cell, 1).unwrap();
            assert!(!cell.read().gone);
            writer.release(cell, 1).unwrap();
            assert!(cell.read().gone);
            assert!(writer.live(cell.ino()).is_err());
        }
        writer.journal.flush_all().unwrap();
        assert_eq!(writer.space.statfs(), free);
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

#[test]
fn a_stop_takes_what_is_still_held() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Memory::new(image(64, args));
        let writer = memory.writer();
        let cells: Vec<_> = (0..8).map(|at| unnamed(&writer, at * 40)).collect();
        cells.iter().for_each(|cell| cell.hold(1));
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

#[test]
fn allocation_ahead_zeroing_and_moving() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Memory::new(image(64, args));
        let writer = memory.writer();
        let cell = writer.live(file(&writer.volume)).unwrap();
        let mut live = cell.write();
        let root = Caller::ROOT;
        let bits = writer.volume.superblock().block_bits;
        let done = writer.allocate(&mut live, 10, 100, 100 << bits, Allocate::Grow, &root);
        if !live.inode.flags.contains(InodeFlags::EXTENTS) {
            assert!(matches!(done, Err(Error::Unsupported(_))));
            assert!(matches!(writer.zero(&mut live, 0, 9, now()), Err(Error::Unsupported(_))));
            assert!(matches!(writer.collapse(&mut live, 0, 9, now()), Err(Error::Unsupported(_))));
            assert!(matches!(writer.insert(&mut live, 0, 9, now()), Err(Error::Unsupported(_))));
            continue;
        }
        done.unwrap();
        assert_eq!(live.inode.size, 100 << bits);
        writer.allocate(&mut live, 0, 200, 200 << bits, Allocate::KeepSize, &root).unwrap();
        assert_eq!(live.inode.size, 100 << bits);
        assert_eq!(unwritten(&writer, &live), 200);
        let mut handle = writer.begin(40).unwrap();
        writer.convert(&mut handle, &mut live, 0..60, false).unwrap();
        writer.store(&mut handle, &mut live).unwrap();
        drop(handle);
        assert_eq!(unwritten(&writer, &live), 140);
        writer.zero(&mut live, 50, 55, now()).unwrap();
        assert_eq!(unwritten(&writer, &live), 145);
        writer.collapse(&mut live, 40, 52, now()).unwrap();
        assert_eq!((unwritten(&writer, &live), live.inode.size), (143, 88 << bits));
        writer.insert(&mut live, 20, 7, now()).unwrap();
        assert_eq!((unwritten(&writer, &live), live.inode.size), (143, 95 << bits));
        assert_eq!(writer.map(&live, 20, 100).unwrap().mapping, Mapping::Hole);
        writer.punch(&mut live, 0, 10, now()).unwrap();
        assert_eq!(writer.map(&live, 0, 100).unwrap().len, 10);
        // What was allocated beyond the size goes when the size is set.
        let size = live.inode.size;
        writer.truncate(&mut live, size, now()).unwrap();
        let beyond = writer.map(&live, 95, 1000).unwrap();
        assert_eq!((beyond.mapping, beyond.len), (Mapping::Hole, 1000));
        drop(live);
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

fn unwritten(writer: &Writer, live: &Live) -> u64 {
    let runs = writer.volume.runs(&live.inode, 0, 1000).map(Result::unwrap);
    runs.filter(|run| matches!(run.mapping, Mapping::Unwritten(_))).map(|run| run.len).sum()
}

#[test]
fn a_full_volume_leaves_nothing_half_done() {
    for (name, args) in KINDS.iter().take(6) {
        println!("{name}");
        let memory = Memory::new(image(16, args));
        let writer = memory.writer();
        let cell = writer.live(file(&writer.volume)).unwrap();
        let mut live = cell.write();
        let bits = writer.volume.superblock().block_bits;
        let caller = Caller { uid: 1000, gid: 1000, privileged: false };
        let all = 32 << (20 - bits);
        let done = writer.allocate(&mut live, 0, all, all << bits, Allocate::Grow, &caller);
        assert!(matches!(done, Err(Error::NoSpace)), "{done:?}");
        assert_eq!(unwritten(&writer, &live), 1000);
        assert!(writer.space.statfs().free > 0, "blocks are kept for the superuser");
        drop(live);
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

#[test]
fn a_map_that_cannot_grow_stays_as_it_is() {
    for (name, args) in KINDS.iter().take(6) {
        println!("{name}");
        let memory = Memory::new(image(16, args));
        let writer = memory.writer();
        let cell = writer.live(file(&writer.volume)).unwrap();
        let mut live = cell.write();
        let bits = writer.volume.superblock().block_bits;
        let all = 32 << (20 - bits);
        let done = writer.allocate(&mut live, 0, all, all << bits, Allocate::Grow, &Caller::ROOT);
        assert!(matches!(done, Err(Error::NoSpace)), "{done:?}");
        while writer.space.claim(Block(1), 1, false).map(std::mem::forget).is_ok() {}
        let mut converted = 0;
        let error = loop {
            let mut handle = writer.begin(40).unwrap();
            let range = converted * 2..converted * 2 + 1;
            let done = writer.convert(&mut handle, &mut live, range, false);
            writer.store(&mut handle, &mut live).unwrap();
            match done {
                Ok(()) => converted += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoSpace));
        let runs = writer.volume.runs(&live.inode, 0, all).map(Result::unwrap);
        let written = runs.filter(|run| matches!(run.mapping, Mapping::Data(_)));
        assert_eq!(written.map(|run| run.len).sum::<u64>(), converted);
        drop(live);
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

#[test]
fn sizes_have_the_limits_of_their_maps() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Memory::new(image(32, args));
        let writer = memory.writer();
        let cell = writer.live(file(&writer.volume)).unwrap();
        let mut live = cell.write();
        let most = writer.max_size(&live.inode);
        assert!(matches!(writer.truncate(&mut live, most + 1, now()), Err(Error::FileTooBig)));
        writer.truncate(&mut live, most, now()).unwrap();
        let bits = writer.volume.superblock().block_bits;
        let last = (most >> bits) - 1;
        let claim = writer.space.claim(Block(4000), 1, false).unwrap();
        let mut handle = writer.begin(40).unwrap();
        writer.insert_run(&mut handle, &mut live, last, claim, false).unwrap();
        writer.store(&mut handle, &mut live).unwrap();
        let claim = writer.space.claim(Block(4000), 1, false).unwrap();
        let beyond = writer.insert_run(&mut handle, &mut live, 1 << 32, claim, false);
        assert!(matches!(beyond, Err(Error::FileTooBig)));
        drop((handle, live));
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

#[test]
fn idle_inodes_are_let_go_and_orphans_stay() {
    let memory = Memory::new(image(32, KINDS[0].1));
    let options = WriterOptions { live_inodes: 0, ..WriterOptions::default() };
    let writer = Writer::open(memory.volume(), &options).unwrap();
    let cells: Vec<_> = (0..600).map(|_| unnamed(&writer, 0)).collect();
    // Though nobody has them: the table alone knows that they have to go.
    let numbers: Vec<_> = cells.iter().map(|cell| cell.ino()).collect();
    drop(cells);
    for ino in numbers {
        writer.settle(&writer.live(ino).unwrap()).unwrap();
    }
    writer.stop().unwrap();
    assert_clean(&memory.bytes());
}
