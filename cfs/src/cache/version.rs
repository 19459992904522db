//! Readers of another version must not read these tables: whoever changes how they lie in memory,
//! or where in them something is put, raises the region's layout version.

use oslet::id::{FrameNo, Generation, OsletId, PageRef, ParticipantId};
use oslet::region::layout::LAYOUT_VERSION;
use oslet::words::LocalWords;

use super::{InodeRecord, InodeTable, Key, Name, NameIndex, PageIndex, RECORD_VALUES, Sizes, kind};
use crate::id::Ino;

/// FNV-1a over words.
fn hash(seed: u64, words: &[u64]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What a table of that many bytes holds after `fill`.
fn filled(len: usize, fill: impl FnOnce(LocalWords)) -> Vec<u64> {
    let words = LocalWords::new(len / 8);
    fill(words.clone());
    let words = words.to_vec();
    assert!(words.iter().any(|word| *word != 0), "nothing was published");
    words
}

fn record(ino: u32) -> InodeRecord {
    let mut words = [0; RECORD_VALUES];
    // docs/region-layout.md, the sequence left out: a regular file, with all times and sizes.
    words[0] = u64::from(ino) | 3 << 32;
    words[1] = 0o100_644 | 1 << 32;
    for (index, word) in words.iter_mut().enumerate().skip(2).take(13) {
        *word = index as u64 * 3;
    }
    InodeRecord::from_words(&words).expect("a record as the layout draws it")
}

#[test]
fn tables_lie_as_this_layout_version_says() {
    let sizes = Sizes::of(1000);
    let home = ParticipantId::runtime(OsletId::new(2).unwrap());
    let pages = filled(sizes.pages, |words| {
        let index = PageIndex::new(words, sizes.pages).unwrap();
        for n in 1..200_u32 {
            let key = Key::new(Ino(n % 7 + 1), u64::from(n) << 20).unwrap();
            let page = PageRef { home, frame: FrameNo(n), generation: Generation::new(n) };
            index.link(key, page).unwrap();
        }
    });
    let inodes = filled(sizes.inodes, |words| {
        let table = InodeTable::new(words, sizes.inodes).unwrap();
        (1..200).for_each(|ino| table.publish(&record(ino * 11)));
    });
    let names = |long: bool, len: usize| {
        filled(len, |words| {
            let index = NameIndex::new(words, len, long).unwrap();
            for n in 1..40 {
                let name = format!("{n}{}", if long { "x".repeat(100) } else { String::new() });
                let name = Name::new(Ino(n), name.as_bytes()).unwrap();
                index.publish(&name, (n % 3 > 0).then_some(Ino(n)));
            }
        })
    };
    let (short, long) = (names(false, sizes.short_names), names(true, sizes.long_names));
    let kinds = [kind::PAGES, kind::INODES, kind::SHORT_NAMES, kind::LONG_NAMES];
    let tables = [&pages[..], &inodes, &short, &long, &kinds];
    let found = tables.into_iter().fold(0xcbf2_9ce4_8422_2325, hash);
    // Both, or neither.
    let known = (8, 0xdca8_6d45_30b2_8778);
    assert_eq!(
        (LAYOUT_VERSION, found),
        known,
        "published tables have changed ({found:#x}): raise LAYOUT_VERSION and write both here"
    );
}
