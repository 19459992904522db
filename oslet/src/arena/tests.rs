use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::id::{Epoch, OsletId};
use crate::region::{Backing, ControlPage, OwnSegment, OwnedFrame, Paging, Pins, SegmentSpec};

fn region(control: &ControlPage, index: usize, frames: usize) -> Arc<Region> {
    let spec = SegmentSpec {
        participant: ParticipantId::runtime(OsletId::new(index).unwrap()),
        epoch: Epoch(1),
        frames,
        space: 1 << 16,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    let control = ControlPage::open(control.file().try_clone().unwrap()).unwrap();
    Region::new(control, own, Paging::default()).unwrap()
}

/// One home refills a few frames as fast as it can while readers pin what they find in a shared
/// word: a pinned page must show one fill throughout.
#[test]
fn a_pinned_page_never_changes_under_its_reader() {
    let control = ControlPage::create(&Backing::Memfd, "stress", 2).unwrap();
    let (home, reader) = (region(&control, 0, 4), region(&control, 1, 1));
    let id = |index| ParticipantId::runtime(OsletId::new(index).unwrap());
    home.map(&reader.own().reader().unwrap(), id(1), Epoch(1)).unwrap();
    reader.map(&home.own().reader().unwrap(), id(0), Epoch(1)).unwrap();
    let arena = Arena::new(&home);
    let link = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let (reads, mut fills) = (AtomicU64::new(0), 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let word = link.load(Ordering::Acquire);
                let Some(page) = PageRef::from_word(word) else { continue };
                let still = || link.load(Ordering::SeqCst) == word;
                if let Some(guard) = reader.pin_if(page, Epoch(1), still) {
                    let first = guard.bytes().word(0).unwrap();
                    for at in (0..4096).step_by(512) {
                        assert_eq!(guard.bytes().word(at).unwrap(), first, "refilled while pinned");
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let start = std::time::Instant::now();
        // Long enough, and on a slow machine (or under valgrind) until both have had their turns.
        let enough = |fills: u64| fills > 100 && reads.load(Ordering::Relaxed) > 100;
        let go_on = |fills: u64| {
            let ms = start.elapsed().as_millis();
            ms < 400 || (ms < 60_000 && !enough(fills))
        };
        let mut old: Option<PageRef> = None;
        while go_on(fills) {
            let Ok(mut frame) = arena.alloc() else { continue };
            fills += 1;
            for chunk in frame.bytes().unwrap().fill().chunks_mut(8) {
                chunk.copy_from_slice(&fills.to_ne_bytes());
            }
            let page = frame.publish();
            link.store(page.to_word(), Ordering::SeqCst);
            if let Some(old) = old.replace(page) {
                arena.retire(&[old]);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let reads = reads.into_inner();
    assert!(reads > 100 && fills > 100, "{reads} reads, {fills} fills: nothing was tested");
}

#[test]
fn frames_that_lie_together_are_handed_out_together_again() {
    let control = ControlPage::create(&Backing::Memfd, "order", 2).unwrap();
    let home = region(&control, 0, 64);
    let arena = Arena::new(&home);
    let publish = |frames: Vec<OwnedFrame>| frames.into_iter().map(|frame| frame.publish());
    let mut pages: Vec<_> = publish(arena.alloc_many(64).unwrap()).collect();
    for round in 0..3 {
        let kept = pages.split_off(48);
        arena.retire(&pages);
        let again: Vec<_> = publish(arena.alloc_many(48).unwrap()).collect();
        let number = |page: &PageRef| page.frame.0;
        assert!(again.iter().map(number).eq(pages.iter().map(number)), "round {round}");
        pages = again;
        pages.extend(kept);
    }
}

#[test]
fn a_reclaimed_frame_is_handed_out_unless_it_is_pinned() {
    let control = ControlPage::create(&Backing::Memfd, "reclaim", 2).unwrap();
    let home = region(&control, 0, 2);
    let arena = Arena::new(&home);
    let page = arena.alloc().unwrap().publish();
    let frame = arena.reclaim(page).expect("nobody pins it");
    assert_eq!(frame.number(), page.frame);
    assert!(home.pin(page).unwrap().is_none(), "the old reference is stale");
    let page = frame.publish();
    let mut pins = Pins::new(&home, 1);
    assert!(pins.add(page).unwrap());
    assert!(arena.reclaim(page).is_none());
    assert_eq!(arena.usage(), Usage { total: 2, free: 1, limbo: 1 });
    assert!(!pins.add(page).unwrap(), "stale references are not pinned");
    assert_eq!((pins.len(), pins.page(0)), (1, Some(page)));
    std::thread::spawn(move || drop(pins)).join().unwrap();
    assert_eq!(arena.tick(), 1);
    assert_eq!(arena.usage(), Usage { total: 2, free: 2, limbo: 0 });
}
