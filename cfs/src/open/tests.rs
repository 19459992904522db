use std::process::Command;

use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};
use proxydev::backend::engine::EngineOptions;

use super::*;
use crate::id::Block;
use crate::journal::{Journal, JournalOptions};

const FRAMES: usize = 700;

fn arena() -> Arc<Arena> {
    let control = ControlPage::create(&Backing::Memfd, "open", 1).unwrap();
    let spec = SegmentSpec {
        participant: ParticipantId::runtime(OsletId::new(0).unwrap()),
        epoch: Epoch(1),
        frames: FRAMES,
        space: 2 << 20,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    Arena::new(&Region::new(control, own, Paging::default()).unwrap())
}

/// Transactions larger than all frames for writes, while somebody else holds every other frame.
#[test]
fn metadata_reach_the_disk_when_no_frame_is_free() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 << 20).unwrap();
    let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=16"];
    let made = Command::new("mke2fs").args(args).arg(image.path()).status();
    assert!(made.expect("these tests need mke2fs (package e2fsprogs)").success());
    let arena = arena();
    let engine = Engine::new(arena.region(), EngineOptions::default()).unwrap();
    let mut opened = Image::open(image.path(), &engine, &arena, &OpenOptions::default()).unwrap();
    let volume = Arc::new(opened.take_volume().unwrap());
    let journal = Journal::open(&volume, &JournalOptions::default()).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| arena.alloc().ok()).collect();
    assert!(held.len() > FRAMES / 2);
    let start = volume.superblock().blocks_count - 2000;
    // More than the log holds.
    for round in 1..=8_u8 {
        let mut handle = journal.begin(900).unwrap();
        // Every third block: many pieces when they go home.
        for block in (start..start + 1800).step_by(3) {
            handle.create(Block(block), vec![round; 4096].into()).unwrap();
        }
        let tid = handle.tid();
        drop(handle);
        journal.commit(tid).unwrap();
    }
    drop(held);
    journal.stop().unwrap();
    let mut found = vec![0; 4096];
    for block in (start..start + 1800).step_by(3) {
        volume.source().read_at(block * 4096, &mut found).unwrap();
        assert!(found == [8; 4096], "block {block}");
    }
    drop((journal, volume));
    opened.close().unwrap();
    let out = Command::new("e2fsck").arg("-fn").arg(image.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}
