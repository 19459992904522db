use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::disk::dirent::{Entries, checksum};

const SEED: u32 = 0x1234_5678;

fn format(filetype: bool, checksums: bool) -> Format {
    Format { filetype, checksums, large: false }
}

/// What the reader finds in a block, after it has found its checksum right.
fn read(block: &[u8], format: Format) -> BTreeMap<Vec<u8>, (u32, Option<Kind>)> {
    if format.checksums {
        let (found, computed) = checksum(block, SEED).expect("a tail");
        assert_eq!(found, computed);
    }
    let mut names = BTreeMap::new();
    for entry in Entries::new(block, u32::MAX) {
        let entry = entry.expect("sound entries");
        assert!(names.insert(entry.name.to_vec(), (entry.ino, entry.kind)).is_none());
    }
    names
}

#[test]
fn a_new_directory_has_two_names() {
    for (filetype, checksums) in [(false, false), (true, true)] {
        let format = format(filetype, checksums);
        let mut block = first_block(1024, 12, 2, format);
        seal(&mut block, format, SEED);
        let kind = filetype.then_some(Kind::Directory);
        let names = read(&block, format);
        assert_eq!(names.len(), 2);
        assert_eq!(names[&b"."[..]], (12, kind));
        assert_eq!(names[&b".."[..]], (2, kind));
        assert!(is_empty(&block, format).unwrap());
        let dotdot = dotdot(&block).unwrap();
        assert_eq!(dotdot.ino, 2);
        let patch = redirect(&block, dotdot, 7, format.file_type(Kind::Directory)).unwrap();
        let mut patch = patch;
        patch.seal(&block, format, SEED);
        patch.apply(&mut block);
        assert_eq!(read(&block, format)[&b".."[..]], (7, kind));
    }
}

#[test]
fn a_block_of_nothing_is_one_unused_entry() {
    let format = format(true, true);
    let mut block = pack(1024, &[], format);
    seal(&mut block, format, SEED);
    assert!(read(&block, format).is_empty());
    let room = scan(&block, &[b'n'; 255], format).unwrap().room.expect("all of it");
    let name = [b'n'; 255];
    let mut patch = insert(&block, room, &NewEntry { ino: 11, name: &name, file_type: 1 }).unwrap();
    patch.seal(&block, format, SEED);
    patch.apply(&mut block);
    assert_eq!(read(&block, format).len(), 1);
}

#[test]
fn records_that_lead_astray_are_refused() {
    let format = format(true, false);
    let block = first_block(1024, 12, 2, format);
    for record in [0u16, 8, 13, 1016, 1020] {
        let mut block = block.clone();
        block[16..18].copy_from_slice(&record.to_le_bytes());
        assert!(scan(&block, b"name", format).is_err(), "{record}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u8>, Kind),
    Remove(usize),
    Redirect(usize, Kind),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Regular),
        Just(Kind::Directory),
        Just(Kind::CharDevice),
        Just(Kind::BlockDevice),
        Just(Kind::Fifo),
        Just(Kind::Socket),
        Just(Kind::Symlink),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0xe9)], 1..=255);
    let short = proptest::collection::vec(b'a'..=b'd', 1..12);
    prop_oneof![
        2 => (name, kind()).prop_map(|(name, kind)| Step::Insert(name, kind)),
        4 => (short, kind()).prop_map(|(name, kind)| Step::Insert(name, kind)),
        3 => any::<usize>().prop_map(Step::Remove),
        1 => (any::<usize>(), kind()).prop_map(|(which, kind)| Step::Redirect(which, kind)),
    ]
}

proptest! {
    #[test]
    fn a_block_is_a_map_of_names(
        steps in proptest::collection::vec(step(), 0..120),
        bits in 10u32..=12,
        filetype: bool,
        checksums: bool,
    ) {
        let format = format(filetype, checksums);
        let mut block = pack(1 << bits, &[], format);
        seal(&mut block, format, SEED);
        let mut model: BTreeMap<Vec<u8>, (u32, Option<Kind>)> = BTreeMap::new();
        for (i, step) in steps.into_iter().enumerate() {
            let ino = i as u32 + 11;
            let nth = |which: usize| {
                model.keys().nth(which % model.len().max(1)).cloned()
            };
            let (mut patch, name, after) = match step {
                Step::Insert(name, kind) => {
                    let scan = scan(&block, &name, format).unwrap();
                    let known = model.get(&name).map(|entry| entry.0);
                    prop_assert_eq!(scan.found.map(|found| found.ino), known);
                    let used: usize = model.keys().map(|name| needed(name.len())).sum();
                    if scan.found.is_some() {
                        continue;
                    }
                    let Some(room) = scan.room else {
                        // Not more than what lies between entries could be in the way.
                        let most = used + needed(name.len()) * (model.len() + 1);
                        prop_assert!(most > format.room(block.len()));
                        continue;
                    };
                    let file_type = format.file_type(kind);
                    let entry = NewEntry { ino, name: &name, file_type };
                    let patch = insert(&block, room, &entry).unwrap();
                    (patch, name, Some((ino, filetype.then_some(kind))))
                }
                Step::Remove(which) => {
                    let Some(name) = nth(which) else { continue };
                    let found = scan(&block, &name, format).unwrap().found.expect("it is there");
                    (remove(&block, found).unwrap(), name, None)
                }
                Step::Redirect(which, kind) => {
                    let Some(name) = nth(which) else { continue };
                    let found = scan(&block, &name, format).unwrap().found.expect("it is there");
                    let patch = redirect(&block, found, ino, format.file_type(kind)).unwrap();
                    (patch, name, Some((ino, filetype.then_some(kind))))
                }
            };
            match after {
                Some(entry) => model.insert(name, entry),
                None => model.remove(&name),
            };
            patch.seal(&block, format, SEED);
            patch.apply(&mut block);
            prop_assert_eq!(&read(&block, format), &model);
            prop_assert_eq!(is_empty(&block, format).unwrap(), model.is_empty());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        mut block in proptest::collection::vec(0u8..40, 1024),
        name in proptest::collection::vec(0u8..4, 1..20),
        checksums: bool,
    ) {
        let format = format(true, checksums);
        block[5] = 0;
        if let Ok(scan) = scan(&block, &name, format) {
            if let Some(found) = scan.found {
                let _ = remove(&block, found);
                let _ = redirect(&block, found, 1, 1);
            }
            if let Some(room) = scan.room {
                let entry = NewEntry { ino: 1, name: &name, file_type: 1 };
                let mut patch = insert(&block, room, &entry).unwrap();
                patch.seal(&block, format, 0);
                patch.apply(&mut block);
            }
        }
        let _ = entries(&block, format);
        dotdot(&block);
    }
}

/// Nobody reads such an entry, but what lies behind it is found.
#[test]
fn an_entry_without_a_name_has_a_whole_record() {
    let format = format(true, true);
    let names = [&b""[..], b"b"].map(|name| NewEntry { ino: 7, name, file_type: 1 });
    let block = pack(1024, &names, format);
    assert_eq!(entries(&block, format).unwrap().len(), 2);
    assert!(scan(&block, b"b", format).unwrap().found.is_some());
}
