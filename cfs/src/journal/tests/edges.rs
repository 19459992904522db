//! What is refused, and what the superblock says.

use super::*;
use crate::disk::superblock::{OFFSET, RawSuperblock, SIZE, STATE_ERRORS};
use zerocopy::{FromBytes, IntoBytes};

fn superblock(source: &dyn BlockSource) -> RawSuperblock {
    let mut bytes = [0; SIZE];
    source.read_at(OFFSET, &mut bytes).unwrap();
    RawSuperblock::read_from_bytes(&bytes).unwrap()
}

fn needs_recovery(raw: &RawSuperblock) -> bool {
    raw.features().incompat.contains(crate::disk::features::Incompat::RECOVER)
}

fn memory(args: &[&str]) -> Arc<dyn BlockSource> {
    Arc::new(MemSource::new(image(32 << 10, args)))
}

fn refusal(source: &Arc<dyn BlockSource>) -> String {
    let before = contents(source);
    let volume = Arc::new(Volume::open(source.clone(), &Options::default()).unwrap());
    let error = Journal::open(&volume, &JournalOptions::default()).err().unwrap();
    assert!(contents(source) == before, "{error}: something was written");
    error.to_string()
}

fn contents(source: &Arc<dyn BlockSource>) -> Vec<u8> {
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Changes fields of the journal's superblock.
fn edit_log(source: &Arc<dyn BlockSource>, edit: impl FnOnce(&mut format::RawSuperblock)) {
    let volume = Volume::open(source.clone(), &Options::default()).unwrap();
    let raw = mark::read(&volume).unwrap();
    let place = locate::LogPlace::find(&volume, &raw).unwrap().block(0).unwrap();
    let offset = place << volume.superblock().block_bits;
    let mut bytes = [0; format::SUPERBLOCK_SIZE];
    source.read_at(offset, &mut bytes).unwrap();
    let mut raw = format::RawSuperblock::read_from_bytes(&bytes).unwrap();
    edit(&mut raw);
    source.write_at(offset, raw.as_bytes()).unwrap();
}

#[test]
fn what_cannot_be_written_is_refused_by_name() {
    let external = memory(&["-t", "ext4", "-O", "^has_journal"]);
    let mut raw = superblock(&*external);
    raw.feature_compat = (raw.feature_compat.get() | 4).into();
    (raw.journal_dev, raw.journal_uuid) = (0x0811.into(), [7; 16]);
    raw.update_checksum();
    external.write_at(OFFSET, raw.as_bytes()).unwrap();
    let error = refusal(&external);
    assert!(error.contains("journal on a device of its own"), "{error}");

    let old = memory(&["-t", "ext3", "-b", "1024"]);
    edit_log(&old, |raw| raw.header.kind = 3.into());
    let error = refusal(&old);
    assert!(error.contains("journal version 1"), "{error}");

    let short = memory(&["-t", "ext3", "-b", "1024"]);
    edit_log(&short, |raw| raw.max_len = 800.into());
    let error = refusal(&short);
    assert!(error.contains("journal of 800 blocks"), "{error}");

    let large = memory(&["-t", "ext4", "-b", "16384"]);
    let error = refusal(&large);
    assert!(error.contains("block size 16384"), "{error}");
}

#[test]
fn the_superblock_tells_of_use() {
    for (args, journal) in [(["-t", "ext4"], true), (["-t", "ext2"], false)] {
        let source = memory(&args);
        let before = superblock(&*source);
        let volume = Arc::new(Volume::open(source.clone(), &Options::default()).unwrap());
        let options = JournalOptions { mount_point: Some("/global".into()), ..Default::default() };
        let opened = Journal::open(&volume, &options).unwrap();
        let during = superblock(&*source);
        assert_eq!(during.mnt_count.get(), before.mnt_count.get() + 1);
        assert!(during.last_mounted.starts_with(b"/global\0"));
        assert!(during.mtime.get() > before.mtime.get());
        assert_eq!(needs_recovery(&during), journal);
        assert_eq!(during.state.get() & STATE_CLEAN != 0, journal, "without a log it is unclean");
        opened.count_written(300 << 10);
        opened.stop().unwrap();
        let after = superblock(&*source);
        assert!(!needs_recovery(&after));
        assert_eq!(after.state.get(), before.state.get());
        assert_eq!(after.kbytes_written.get(), before.kbytes_written.get() + 300);
        assert!(after.wtime.get() >= during.mtime.get());
        drop((opened, volume));
        assert_clean(&contents(&source));
    }
}

#[test]
fn an_operation_that_fails_in_its_midst_gives_the_journal_up() {
    let source = memory(&["-t", "ext4", "-b", "4096"]);
    let (volume, journal) = open(&source);
    let block = Block(free_blocks(&volume).start);
    let mut handle = journal.begin(2).unwrap();
    handle.create(block, vec![1; 4096].into()).unwrap();
    drop(handle);
    journal.flush_all().unwrap();
    let mut handle = journal.begin(2).unwrap();
    let tid = handle.tid();
    handle.put(block, 0, &[2]).unwrap();
    let error = handle.fail(Error::corrupt("inode 12", "is no such thing"));
    assert!(matches!(error, Error::Corrupt { .. }));
    drop(handle);
    assert!(matches!(journal.begin(1), Err(Error::ReadOnly)));
    assert_eq!(journal.commit(tid).unwrap_err().errno(), 5);
    assert!(journal.aborted().unwrap().contains("inode 12"));
    journal.stop().unwrap_err();
    let raw = superblock(&*source);
    assert!(raw.state.get() & STATE_ERRORS != 0);
    assert_eq!((raw.error_count.get(), raw.last_error_errcode), (1, 5));
    let report = recover(&source).unwrap().unwrap();
    assert_eq!(report.aborted, -rustix::io::Errno::UCLEAN.raw_os_error());
    let mut found = [0];
    source.read_at(block.0 * 4096, &mut found).unwrap();
    assert_eq!(found, [1], "half an operation was committed");
}

#[test]
fn a_panic_between_changes_gives_the_journal_up() {
    let source = memory(&["-t", "ext4", "-b", "4096"]);
    let (volume, journal) = open(&source);
    let block = Block(free_blocks(&volume).start);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut handle = journal.begin(2).unwrap();
        handle.create(block, vec![1; 4096].into()).unwrap();
        handle.put(block, 4090, &[0; 7]).unwrap();
    }));
    assert!(panicked.is_err());
    assert!(journal.aborted().is_some());
}

#[test]
fn credits_are_bounded_by_the_log() {
    let source = memory(&["-t", "ext4", "-b", "1024", "-J", "size=1"]);
    let (_volume, journal) = open(&source);
    let most = journal.max_credits();
    assert!(matches!(journal.begin(most + 1), Err(Error::Exhausted(_))));
    let mut handle = journal.begin(most - 10).unwrap();
    assert!(!handle.extend(11).unwrap());
    assert!(handle.extend(10).unwrap());
    assert_eq!(handle.credits(), most);
    let before = handle.tid();
    handle.restart(1).unwrap();
    assert!(handle.tid() == before, "nothing was changed, and nothing was committed");
    drop(handle);
    journal.stop().unwrap();
    assert!(matches!(journal.begin(1), Err(Error::ReadOnly)));
}

#[test]
fn transactions_without_changes_are_not_written() {
    let source = memory(&["-t", "ext4"]);
    let (_volume, journal) = open(&source);
    let before = contents(&source);
    let first = journal.running();
    drop(journal.begin(5).unwrap());
    journal.commit(first).unwrap();
    journal.flush_all().unwrap();
    let mut handle = journal.begin(5).unwrap();
    handle.sync();
    drop(handle);
    assert!(contents(&source) == before);
    assert!(journal.running() == first);
    assert!(journal.commit(first.next()).is_err(), "there is no such transaction yet");
}

struct Counter {
    block: Block,
    locked: parking_lot::Mutex<u64>,
    committed: parking_lot::Mutex<Vec<Tid>>,
}

impl CommitHook for Counter {
    fn locking(&self, handle: &mut Handle<'_>) -> Result<()> {
        let mut count = self.locked.lock();
        *count += 1;
        handle.put(self.block, 0, &count.to_le_bytes())
    }

    fn committed(&self, tid: Tid) {
        self.committed.lock().push(tid);
    }
}

#[test]
fn hooks_have_the_last_word_in_each_transaction() {
    let source = memory(&["-t", "ext4", "-b", "4096"]);
    let (volume, journal) = open(&source);
    let start = free_blocks(&volume).start;
    let hook = Arc::new(Counter {
        block: Block(start),
        locked: parking_lot::Mutex::new(0),
        committed: parking_lot::Mutex::default(),
    });
    journal.begin(1).unwrap().create(Block(start), vec![0; 4096].into()).unwrap();
    journal.add_hook(hook.clone());
    for round in 0..10_u64 {
        let mut handle = journal.begin(1).unwrap();
        handle.create(Block(start + 1), vec![round as u8; 4096].into()).unwrap();
        let tid = handle.tid();
        drop(handle);
        journal.commit(tid).unwrap();
        assert_eq!(hook.committed.lock().last(), Some(&tid), "told before who waits");
    }
    drop(journal);
    recover(&source).unwrap().unwrap();
    let mut count = [0; 8];
    source.read_at(start * 4096, &mut count).unwrap();
    assert_eq!(u64::from_le_bytes(count), 10);
    assert_eq!(*hook.locked.lock(), 10);
}
