//! Many threads, and storage that fails.

use proxydev::layer::{Rule, Rules};

use super::*;
use crate::engine::store::layer::FaultSource;
use crate::journal::recover;

#[test]
fn threads_make_fill_cut_and_remove_inodes_of_their_own() {
    for (name, args) in KINDS {
        println!("{name}");
        let memory = Memory::new(image(64, args));
        let writer = memory.writer();
        let free = writer.space.statfs();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let writer = &writer;
                scope.spawn(move || churn(writer, thread));
            }
        });
        writer.journal.flush_all().unwrap();
        assert_eq!(writer.space.statfs(), free);
        writer.stop().unwrap();
        assert_clean(&memory.bytes());
    }
}

fn churn(writer: &Arc<Writer>, seed: u64) {
    let mut random = Random(seed);
    let mut held = Vec::new();
    for round in 0..60 {
        let cell = unnamed(writer, random.below(60));
        cell.hold(1);
        held.push(cell);
        let some = random.below(held.len() as u64) as usize;
        match random.below(4) {
            0 => writer.truncate(&mut held[some].write(), random.below(50_000), now()).unwrap(),
            1 => writer.punch(&mut held[some].write(), 3, 20, now()).unwrap(),
            2 => drop(writer.live(held[some].ino()).unwrap()),
            _ => writer.release(&held.swap_remove(some), 1).unwrap(),
        }
        if round % 8 == 0 {
            let tid = cell_tid(&held);
            writer.journal.commit(tid).unwrap();
        }
    }
    for cell in held {
        writer.release(&cell, 1).unwrap();
    }
}

/// The last transaction that changed the last of these.
fn cell_tid(cells: &[Arc<Cell>]) -> crate::journal::format::Tid {
    cells.last().map_or(crate::journal::format::Tid(0), |cell| cell.read().tid)
}

/// What is done to a volume whose storage fails: as far as it goes.
fn work(writer: &Arc<Writer>, ino: Ino) -> Result<()> {
    let cell = writer.live(ino)?;
    let bits = writer.volume.superblock().block_bits;
    for at in 0..200 {
        let mut live = cell.write();
        let claim = writer.space.claim(Block(3000 + 50 * at), 1, false)?;
        let mut handle = writer.begin(writer.insert_credits(&live, 1))?;
        writer.insert_run(&mut handle, &mut live, 3 * at, claim, false)?;
        (live.inode.size, live.disk_size) = ((3 * at + 1) << bits, (3 * at + 1) << bits);
        writer.store(&mut handle, &mut live)?;
        drop(handle);
        if at % 32 == 0 {
            writer.journal.flush_all()?;
        }
    }
    writer.truncate(&mut cell.write(), 100 << bits, now())?;
    writer.journal.flush_all()?;
    writer.punch(&mut cell.write(), 10, 50, now())?;
    writer.truncate(&mut cell.write(), 0, now())?;
    writer.stop()
}

/// That e2fsck has nothing to do, or does it.
fn assert_repaired(bytes: &[u8], clean: bool) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if !clean {
        let out = Command::new("e2fsck").arg("-fy").arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.code().is_some_and(|code| code <= 1), "{text}");
    }
    assert_clean_file(file.path());
}

#[test]
fn an_error_of_the_storage_leaves_what_recovery_makes_clean() {
    for (name, args) in KINDS.iter().filter(|(_, args)| !args.contains(&"^has_journal")) {
        if args.contains(&"ext2") {
            continue;
        }
        let base = image(32, args);
        let mut failed = 0;
        let changes = (0..40).step_by(3).map(|at| (false, at));
        for (reads, after) in changes.chain((0..8).map(|at| (true, at))) {
            let memory = Memory::new(base.clone());
            let rules = Rules::new();
            let source: Arc<dyn BlockSource> = Arc::new(FaultSource::new(memory.0.clone(), &rules));
            let options = Options { metadata_cache: 0, ..Options::default() };
            let volume = Arc::new(Volume::open(source, &options).unwrap());
            let writer = Writer::open(volume, &WriterOptions::default()).unwrap();
            let ino = file(&writer.volume);
            let rule = Rule { reads, writes: !reads, flushes: !reads, ..Rule::all() };
            rules.set([Rule { after, times: 1, ..rule }]);
            let done = work(&writer, ino);
            failed += rules.failed();
            drop(writer);
            let source: Arc<dyn BlockSource> = memory.0.clone();
            recover(&source).unwrap();
            println!("{name}: reads {reads}, after {after}: {done:?}");
            assert_repaired(&memory.bytes(), done.is_ok());
        }
        assert!(failed > 8, "{failed} failed");
    }
}
