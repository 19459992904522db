use oslet::id::{FrameNo, Generation, OsletId, ParticipantId};
use oslet::words::LocalWords;

use super::*;

/// As many pages as the index was made for: none displaces another, and all are found, also those
/// that had to make way.
#[test]
fn all_pages_that_the_index_is_made_for_are_found() {
    const PAGES: u32 = 40_000;
    let len = PageIndex::bytes(PAGES as usize);
    let index = PageIndex::new(LocalWords::new(len / 8), len).unwrap();
    let home = ParticipantId::runtime(OsletId::new(3).unwrap());
    let page = |n: u32| PageRef { home, frame: FrameNo(n), generation: Generation::new(n + 1) };
    let key = |n: u32| Key::new(Ino(7 + n % 5), u64::from(n) << (n % 2 * 17)).unwrap();
    let mut moved = 0;
    for n in 0..PAGES {
        while let Err(taken) = index.link(key(n), page(n)) {
            let (other, slot) = index.make_way(&taken).expect("no room in any other bucket");
            assert_eq!(index.at(slot), Some(other));
            moved += 1;
        }
    }
    assert!(moved > 0, "nothing had to make way: the test tests nothing");
    for n in 0..PAGES {
        let found = index.find(key(n)).unwrap_or_else(|| panic!("page {n} is lost"));
        assert!(found.page() == page(n) && found.still(), "page {n}");
    }
}

/// A file's pages are found at a glance: nearly all of them lie in their first bucket, however full
/// the index is.
#[test]
fn the_pages_of_a_large_file_are_found_at_a_glance() {
    const PAGES: u32 = 40_000;
    let len = PageIndex::bytes(PAGES as usize);
    let index = PageIndex::new(LocalWords::new(len / 8), len).unwrap();
    let home = ParticipantId::runtime(OsletId::new(3).unwrap());
    let page = |n: u32| PageRef { home, frame: FrameNo(n), generation: Generation::new(n + 1) };
    let file = FileKey::new(Ino(12));
    for n in 0..PAGES {
        while let Err(taken) = index.link(file.near(n), page(n)) {
            index.make_way(&taken).expect("no room in any other bucket");
        }
    }
    let seen = |n: &u32| {
        let found = index.glance(file.near(*n)).filter(|found| found.still());
        found.is_some_and(|found| found.page() == page(*n))
    };
    let count = (0..PAGES).filter(seen).count();
    assert!(count > PAGES as usize * 97 / 100, "{count}");
    // What is not there is not seen: no key, or an empty slot's, which `still` takes for a link.
    for n in PAGES..2 * PAGES {
        assert!(index.glance(file.near(n)).is_none_or(|found| !found.still()), "page {n}");
    }
    let (slot, _) = index.locate(file.near(7)).unwrap();
    index.unlink(slot);
    assert!(index.glance(file.near(7)).is_none_or(|found| found.word == 0));
    assert!(index.find(file.near(7)).is_none());
}

/// The pages of one file, by looking each up and by going through the index.
#[test]
fn the_pages_of_a_file_are_listed() {
    let len = PageIndex::bytes(1000);
    let index = PageIndex::new(LocalWords::new(len / 8), len).unwrap();
    let home = ParticipantId::runtime(OsletId::new(3).unwrap());
    let far = 5 << 32;
    for n in 0..90u32 {
        let page = PageRef { home, frame: FrameNo(n), generation: Generation::new(1) };
        let number = u64::from(n / 3) + if n % 2 == 0 { far } else { 0 };
        index.link(Key::new(Ino(n % 3 + 1), number).unwrap(), page).unwrap();
    }
    let listed = |range: Range<u64>| {
        let mut pages: Vec<_> = index.pages_of(Ino(2), range).into_iter().collect();
        pages.sort_by_key(|&(page, ..)| page);
        for &(page, slot, reference) in &pages {
            assert_eq!(index.at(slot), Some(reference));
            assert_eq!(index.find(Key::new(Ino(2), page).unwrap()).unwrap().page(), reference);
        }
        pages.into_iter().map(|(page, ..)| page).collect::<Vec<_>>()
    };
    // Frames 1, 4, 7, ...: every second one is far up.
    let (near, high): (Vec<u64>, Vec<u64>) = (0..30).partition(|n| n % 2 == 0);
    let high: Vec<u64> = high.into_iter().map(|n| n + far).collect();
    assert_eq!(listed(0..40), near);
    assert_eq!(listed(far..far + 40), high);
    assert_eq!(listed(0..1 << 36), [near, high].concat());
    assert_eq!(listed(4..9), [4, 6, 8]);
}
