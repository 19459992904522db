//! Cuts and removals in the middle of which power fails: at every flush, with any part of what was
//! not flushed.

use proxydev::layer::record::Window;
use proxydev::layer::{Event, Log};

use super::*;
use crate::Caller;
use crate::disk::inode::InodeFlags;
use crate::engine::store::layer::RecordSource;
use crate::journal::{recover, take_over};

const KINDS: &[(&str, &[&str])] = &[
    ("ext4", &["-t", "ext4", "-b", "1024", "-J", "size=1"]),
    ("ext4, list", &["-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "^orphan_file"]),
    ("ext3", &["-t", "ext3", "-b", "1024", "-J", "size=1"]),
];

/// Files that are cut and inodes that go, each with more blocks than a transaction gives back.
fn work(writer: &Arc<Writer>) {
    let cell = writer.live(file(&writer.volume)).unwrap();
    let mut live = cell.write();
    let extents = live.inode.flags.contains(InodeFlags::EXTENTS);
    fill(writer, &mut live, 900);
    writer.journal.flush_all().unwrap();
    let cells: Vec<_> = (0..3).map(|at| unnamed(writer, 30 + 300 * at)).collect();
    cells.iter().for_each(|cell| cell.hold(1));
    writer.journal.flush_all().unwrap();
    writer.truncate(&mut live, 100 << 10, now()).unwrap();
    writer.journal.flush_all().unwrap();
    writer.release(&cells[1], 1).unwrap();
    if extents {
        writer.allocate(&mut live, 0, 600, 600 << 10, Allocate::Grow, &Caller::ROOT).unwrap();
        writer.journal.flush_all().unwrap();
        writer.collapse(&mut live, 20, 40, now()).unwrap();
        writer.insert(&mut live, 60, 100, now()).unwrap();
    }
    writer.punch(&mut live, 10, 50, now()).unwrap();
    writer.truncate(&mut live, 0, now()).unwrap();
    writer.journal.flush_all().unwrap();
    writer.release(&cells[2], 1).unwrap();
    drop(live);
    writer.stop().unwrap();
}

/// What recovery did in all.
#[derive(Default)]
struct Seen {
    removed: u32,
    cut: u32,
    kept: u32,
    crashes: u32,
}

fn check(name: &str, base: &[u8], events: &[Event], crash: usize, part: u64, seen: &mut Seen) {
    let window = Window::at(events, crash);
    let mut image = base.to_vec();
    let mut random = Random(crash as u64 * 3 + part);
    let pending = window.pending.iter().filter(|_| match part {
        0 => false,
        1 => true,
        _ => random.below(2) == 0,
    });
    for &at in window.durable.iter().chain(pending) {
        if let Event::Change(change) = &events[at] {
            change.apply(&mut image, 0..change.sectors());
        }
    }
    println!("{name}: power fails after event {crash}, {part}");
    check_taken_over(image.clone(), seen);
    let source: Arc<dyn BlockSource> = Arc::new(MemSource::new(image));
    let report = recover(&source)
        .unwrap_or_else(|error| panic!("{name}: power fails after event {crash}, {part}: {error}"));
    if let Some(report) = report {
        assert_eq!(report.orphans.left, None);
        seen.removed += report.orphans.removed;
        seen.cut += report.orphans.cut;
    }
    seen.crashes += 1;
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes).unwrap();
    assert_clean(&bytes);
}

/// The same where the volume is taken over: inodes without names are there for who had them open.
fn check_taken_over(image: Vec<u8>, seen: &mut Seen) {
    let memory = Memory::new(image);
    let source: Arc<dyn BlockSource> = memory.0.clone();
    let report = take_over(&source).unwrap();
    let kept = report.map_or(0, |report| report.orphans.kept);
    // The successor may be cut short as well.
    assert_eq!(take_over(&source).unwrap(), None);
    let writer = memory.writer();
    let cells = writer.take_kept();
    assert_eq!(cells.len(), kept as usize);
    for (at, cell) in cells.iter().enumerate() {
        assert_eq!((cell.read().inode.links, cell.holds()), (0, 1));
        cell.hold(1);
        writer.release(cell, 1).unwrap();
        assert!(!cell.read().gone, "somebody has it open");
        // Others go when the volume is closed.
        if at % 2 == 0 {
            writer.release(cell, 1).unwrap();
            assert!(cell.read().gone);
        }
    }
    writer.stop().unwrap();
    assert_clean(&memory.bytes());
    seen.kept += kept;
}

/// Records what is done to a volume from the last event of `prepare` on.
fn record(
    megabytes: u64,
    args: &[&str],
    prepare: impl Fn(&Arc<Writer>),
    work: impl Fn(&Arc<Writer>),
) -> (Vec<u8>, Vec<Event>) {
    let memory = Memory::new(image(megabytes, args));
    let log = Log::new();
    let source: Arc<dyn BlockSource> = Arc::new(RecordSource::new(memory.0.clone(), &log));
    let volume = Arc::new(Volume::open(source, &Options::default()).unwrap());
    let writer = Writer::open(volume, &WriterOptions::default()).unwrap();
    prepare(&writer);
    writer.journal.flush_all().unwrap();
    let base = memory.bytes();
    log.take();
    work(&writer);
    assert_clean(&memory.bytes());
    (base, log.take())
}

fn flushes(events: &[Event]) -> Vec<usize> {
    (0..events.len()).filter(|&at| matches!(events[at], Event::Flush { .. })).collect()
}

#[test]
fn power_may_fail_at_every_flush() {
    for (name, args) in KINDS {
        let (base, events) = record(32, args, |_| (), work);
        let mut seen = Seen::default();
        for (number, &at) in flushes(&events).iter().enumerate() {
            check(name, &base, &events, at, number as u64 % 3, &mut seen);
            check(name, &base, &events, at + 1, 0, &mut seen);
        }
        let Seen { removed, cut, kept, crashes } = seen;
        println!("{name}: {crashes} crashes, {removed} inodes removed, {kept} kept, {cut} cut");
        assert!(removed > 0 && kept > 0);
    }
}

#[test]
fn power_may_fail_in_cuts_of_many_transactions() {
    for (name, args) in KINDS {
        let prepare = |writer: &Arc<Writer>| {
            let cell = writer.live(file(&writer.volume)).unwrap();
            fill(writer, &mut cell.write(), 24_000);
        };
        let cut = |writer: &Arc<Writer>| {
            let cell = writer.live(file(&writer.volume)).unwrap();
            writer.truncate(&mut cell.write(), 5000, now()).unwrap();
            assert_eq!(cell.read().inode.blocks, 6);
            writer.stop().unwrap();
        };
        let (base, events) = record(64, args, prepare, cut);
        let mut seen = Seen::default();
        let flushes = flushes(&events);
        for &at in flushes.iter().take(12) {
            check(name, &base, &events, at + 1, 0, &mut seen);
        }
        let Seen { cut, crashes, .. } = seen;
        println!("{name}: {crashes} of {} crashes, {cut} cut", flushes.len());
        assert!(cut > 0);
    }
}

#[test]
fn what_a_directory_was_does_not_come_back_over_contents() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Memory::new(image(32, args));
        let writer = memory.writer();
        let cell = unnamed(&writer, 0);
        let mut live = cell.write();
        live.inode.kind = crate::disk::inode::Kind::Directory;
        let mut blocks = Vec::new();
        for at in 0..150 {
            let goal = Block(9000 + 3 * at);
            let claim = writer.space.claim(goal, 1, false).unwrap();
            let mut handle = writer.begin(writer.insert_credits(&live, 1) + 1).unwrap();
            handle.create(claim.start(), vec![0xaa; 1024].into()).unwrap();
            blocks.push(claim.start());
            writer.insert_run(&mut handle, &mut live, at, claim, false).unwrap();
            writer.store(&mut handle, &mut live).unwrap();
        }
        live.inode.kind = crate::disk::inode::Kind::Regular;
        live.inode.flags |= crate::disk::inode::InodeFlags::JOURNAL_DATA;
        drop(live);
        writer.journal.flush_all().unwrap();
        writer.settle(&cell).unwrap();
        writer.journal.flush_all().unwrap();
        // They are free now, and somebody else's at once.
        for block in &blocks {
            memory.0.write_at(block.0 << 10, &[0x55; 1024]).unwrap();
        }
        let crashed = Memory::new(memory.bytes());
        drop(writer);
        let source: Arc<dyn BlockSource> = crashed.0.clone();
        let report = recover(&source).unwrap().unwrap();
        assert!(report.revoked > 0);
        for block in &blocks {
            let mut bytes = [0; 1024];
            crashed.0.read_at(block.0 << 10, &mut bytes).unwrap();
            assert!(bytes == [0x55; 1024], "{block}");
        }
        assert_clean(&crashed.bytes());
    }
}
