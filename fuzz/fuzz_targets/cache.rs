//! Published tables with arbitrary words: page index, inode table and name index as a client
//! reads them.
#![no_main]

use cfs::cache::{InodeTable, Key, Name, NameIndex, PageIndex};
use cfs::id::Ino;
use fuzz::{Input, put};
use libfuzzer_sys::fuzz_target;
use oslet::words::LocalWords;

const WORDS: usize = 512;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let words = LocalWords::new(WORDS);
    let len = usize::from(input.half()) % (WORDS * 8 + 1);
    let (ino, page) = (Ino(input.byte().into()), input.byte());
    let name = {
        let count = usize::from(input.byte());
        input.bytes(count)
    };
    let all = input.byte();
    for index in 0..WORDS {
        if input.is_empty() {
            break;
        }
        // One entry's worth of words, everywhere: no hash is to be guessed.
        put(&words, index, input.long());
    }
    if all & 1 == 1 {
        let row: Vec<u64> = {
            let mut input = Input(input.0);
            (0..24).map(|_| input.long()).collect()
        };
        (0..WORDS).for_each(|index| put(&words, index, row[index % row.len()]));
    }
    if let Some(key) = Key::new(ino, page.into()) {
        let index = PageIndex::read(words.clone());
        if let Some(found) = index.find(key) {
            found.still();
        }
        if let Some(found) = index.glance(key) {
            found.still();
        }
    }
    let least = InodeTable::<()>::bytes(1);
    let table = InodeTable::new(words.clone(), len.max(least)).expect("large enough for a set");
    if let Some(record) = table.find(ino) {
        record.to_words();
    }
    for long in [false, true] {
        if let Some(name) = Name::new(ino, name) {
            let least = NameIndex::<()>::bytes(1, long);
            let index = NameIndex::new(words.clone(), len.max(least), long);
            index.expect("large enough for a set").find(&name);
        }
    }
});
