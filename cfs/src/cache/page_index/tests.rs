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
        if let Err(taken) = index.link(key(n), page(n)) {
            let (other, slot) = index.make_way(&taken).expect("no room in any other bucket");
            assert_eq!(index.at(slot), Some(other));
            index.link(key(n), page(n)).expect("a slot was made free");
            moved += 1;
        }
    }
    assert!(moved > 0, "nothing had to make way: the test tests nothing");
    for n in 0..PAGES {
        let found = index.find(key(n)).unwrap_or_else(|| panic!("page {n} is lost"));
        assert!(found.page() == page(n) && found.still(), "page {n}");
    }
}
