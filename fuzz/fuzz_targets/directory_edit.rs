//! Changes of directories: entries come, go and lead elsewhere in a block of any contents, and a
//! block that is full becomes a hash tree. The input begins with flags and then has one block;
//! each change is a byte, an inode number and a name. All that is not meant stays.
#![no_main]

use cfs::disk::dirent::edit::{self, Format, NewEntry};
use cfs::disk::dirent::{self, Entries};
use cfs::disk::htree::edit::{Rules, Step, blocks_to_split, index_linear, split};
use cfs::disk::htree::{HashSeed, HashVersion};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 1024;
const SEED: u32 = 7;

/// Inode, type and name of an entry.
type Entry = (u32, u8, Vec<u8>);

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.byte();
    let format = Format { filetype: flags & 1 != 0, checksums: flags & 2 != 0, large: false };
    let mut block = input.bytes(BLOCK).to_vec();
    block.resize(BLOCK, 0);
    if flags & 4 != 0 {
        block = edit::first_block(BLOCK, 12, 2, format).into_vec();
    }
    // No block is changed whose tail was not found and right.
    let room = format.room(BLOCK);
    block[room..].copy_from_slice(&edit::pack(BLOCK, &[], format)[room..]);
    edit::seal(&mut block, format, SEED);
    let _ = (edit::is_empty(&block, format), edit::dotdot(&block));
    let Some(mut model) = entries(&block, format) else {
        // Nothing is changed in what is no block of entries.
        let _ = edit::scan(&block, input.0, format);
        return;
    };
    while !input.is_empty() {
        let (what, ino) = (input.byte(), input.word() | 1);
        let name = {
            let len = usize::from(input.byte()).max(1);
            let name = input.bytes(len);
            if name.is_empty() { b"x" } else { name }
        };
        let entry = NewEntry { ino, name, file_type: what >> 4 };
        let scan = edit::scan(&block, name, format).expect("entries were sound");
        let mut patch = match (scan.found, scan.room) {
            (Some(found), _) if what & 1 == 0 => {
                // Of two entries of one name the first is found.
                model.remove(place(&model, name));
                edit::remove(&block, found).expect("it was found")
            }
            (Some(found), _) => {
                let at = place(&model, name);
                (model[at].0, model[at].1) = (ino, what >> 4);
                edit::redirect(&block, found, ino, what >> 4).expect("it was found")
            }
            (None, Some(room)) => {
                model.push((ino, what >> 4, name.to_vec()));
                edit::insert(&block, room, &entry).expect("there is room")
            }
            (None, None) => return grow(&block, &model, &entry, format, flags),
        };
        patch.seal(&block, format, SEED);
        patch.apply(&mut block);
        check(&block, format);
        let mut found = entries(&block, format).expect("it was sound");
        found.sort();
        model.sort();
        assert_eq!(found, model);
        model = entries(&block, format).expect("it was sound");
    }
});

fn place(model: &[Entry], name: &[u8]) -> usize {
    model.iter().position(|entry| entry.2 == name).expect("what was found is known")
}

fn entries(block: &[u8], format: Format) -> Option<Vec<Entry>> {
    let found = edit::entries(block, format).ok()?;
    Some(found.iter().map(|entry| (entry.ino, entry.file_type, entry.name.to_vec())).collect())
}

/// The reader finds the same, and the checksum is right.
fn check(block: &[u8], format: Format) {
    if format.checksums {
        let (found, computed) = dirent::checksum(block, SEED).expect("a tail");
        assert_eq!(found, computed);
    }
    // It is stricter: a block that it refuses was so at first.
    let room = format.room(block.len());
    let count = Entries::new(&block[..room], u32::MAX).filter(Result::is_ok).count();
    assert!(count <= edit::entries(block, format).expect("sound").len());
}

/// The block becomes a tree, which splits for the entry: all names are in one of its leaves.
fn grow(block: &[u8], model: &[Entry], entry: &NewEntry<'_>, format: Format, flags: u8) {
    let seed = HashSeed::new([u32::from(flags), 1, 2, 3], u32::from(flags >> 6));
    let number = flags >> 4 & 3;
    let Some(version) = HashVersion::new(number, &seed) else { return };
    let rules = Rules { format, version, seed: SEED };
    let Ok(Some([root, leaf])) = index_linear(block, number, &rules) else { return };
    let path = [Step { number: 0, bytes: &root, place: 0 }];
    assert_eq!(blocks_to_split(&path, format), Some(1));
    let Ok(changed) = split(&path, (1, &leaf), entry, &rules, 2) else { return };
    let mut expected = model[2..].to_vec();
    expected.push((entry.ino, entry.file_type, entry.name.to_vec()));
    let mut found = Vec::new();
    let mut limits = Vec::new();
    for (number, bytes) in &changed {
        if *number != 0 {
            check(bytes, format);
            let names = entries(bytes, format).expect("it was packed");
            let hashes = names.iter().map(|entry| version.hash(&entry.2));
            limits.push((*number, hashes.clone().min(), hashes.max()));
            found.extend(names);
        }
    }
    limits.sort();
    let [(1, _, Some(low)), (2, Some(high), _)] = limits[..] else {
        panic!("leaves {limits:?}");
    };
    assert!(low <= high);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}
