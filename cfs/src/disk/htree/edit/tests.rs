use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::{HashSeed, Index, Root, checksum, is_index_block};
use super::*;
use crate::disk::inode::Kind;

const SEED: u32 = 0x0bad_cafe;
const HASHES: HashSeed = HashSeed { seed: [1, 2, 3, 4], unsigned: true };

/// A directory in memory, by the codecs alone.
struct Dir {
    rules: Rules,
    blocks: Vec<Box<[u8]>>,
    indexed: bool,
}

/// The way to a leaf: number of each index block and the place in it, and the leaf's number.
type Path = (Vec<(u32, usize)>, u32);

impl Dir {
    fn new(block_size: usize, format: Format, coarse: bool) -> Self {
        let version = if coarse {
            HashVersion::coarse(&HASHES)
        } else {
            HashVersion::new(1, &HASHES).unwrap()
        };
        let rules = Rules { format, version, seed: SEED };
        let mut first = dirent::first_block(block_size, 12, 2, format);
        dirent::seal(&mut first, format, SEED);
        Self { rules, blocks: vec![first], indexed: false }
    }

    fn index(&self, number: u32) -> Index<'_> {
        let block = &self.blocks[number as usize];
        let checksums = self.rules.format.checksums;
        if number == 0 {
            let large = self.rules.format.large;
            Root::parse(block, &HASHES, large, checksums).unwrap().index
        } else {
            Index::parse(block, checksums).unwrap()
        }
    }

    fn levels(&self) -> u8 {
        let large = self.rules.format.large;
        let checksums = self.rules.format.checksums;
        Root::parse(&self.blocks[0], &HASHES, large, checksums).unwrap().levels
    }

    /// All leaves that may hold a name of this hash, each with the way to it.
    fn leaves(&self, hash: u32) -> Vec<Path> {
        let mut path = Vec::new();
        let mut number = 0;
        for _ in 0..=self.levels() {
            let place = self.index(number).find(hash);
            path.push((number, place));
            number = self.index(number).block(place);
        }
        let mut leaves = vec![(path.clone(), number)];
        while let Some(depth) =
            (0..path.len()).rev().find(|&i| path[i].1 + 1 < self.index(path[i].0).len())
        {
            path.truncate(depth + 1);
            path[depth].1 += 1;
            let (at, place) = path[depth];
            if self.index(at).hash(place) & !1 != hash {
                break;
            }
            number = self.index(at).block(place);
            while path.len() <= usize::from(self.levels()) {
                path.push((number, 0));
                number = self.index(number).block(0);
            }
            leaves.push((path.clone(), number));
        }
        leaves
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        let scan = |number: u32| {
            let block = &self.blocks[number as usize];
            dirent::scan(block, name, self.rules.format).unwrap().found.map(|found| found.ino)
        };
        if !self.indexed {
            return scan(0);
        }
        self.leaves(self.rules.version.hash(name)).into_iter().find_map(|(_, leaf)| scan(leaf))
    }

    /// Enters a name that is not there; `false` if the tree is full.
    fn insert(&mut self, name: &[u8], ino: u32) -> bool {
        let format = self.rules.format;
        let entry = NewEntry { ino, name, file_type: format.file_type(Kind::Regular) };
        let (path, leaf) = if self.indexed {
            self.leaves(self.rules.version.hash(name)).swap_remove(0)
        } else {
            (Vec::new(), 0)
        };
        let block = &mut self.blocks[leaf as usize];
        if let Some(room) = dirent::scan(block, name, format).unwrap().room {
            let mut patch = dirent::insert(block, room, &entry).unwrap();
            patch.seal(block, format, SEED);
            patch.apply(block);
            return true;
        }
        let next = self.blocks.len() as u32;
        let changed = if self.indexed {
            let path: Vec<Step<'_>> = path
                .iter()
                .map(|&(number, place)| Step {
                    number,
                    bytes: &self.blocks[number as usize],
                    place,
                })
                .collect();
            let Some(count) = blocks_to_split(&path, format) else { return false };
            let leaf = (leaf, &self.blocks[leaf as usize][..]);
            let changed = split(&path, leaf, &entry, &self.rules, next).unwrap();
            let fresh = changed.iter().filter(|(number, _)| *number >= next).count();
            assert_eq!(fresh, count as usize);
            changed
        } else {
            self.indexed = true;
            let [root, leaf] = index_linear(&self.blocks[0], 1, &self.rules).unwrap().unwrap();
            let path = [Step { number: 0, bytes: &root, place: 0 }];
            split(&path, (1, &leaf), &entry, &self.rules, 2).unwrap()
        };
        let fresh = changed.iter().map(|(number, _)| number + 1).max().unwrap();
        self.blocks.resize(self.blocks.len().max(fresh as usize), Box::default());
        let mut seen = BTreeSet::new();
        for (number, block) in changed {
            assert!(seen.insert(number), "block {number} twice");
            self.blocks[number as usize] = block;
        }
        true
    }

    fn remove(&mut self, name: &[u8]) {
        let format = self.rules.format;
        let leaves = if self.indexed {
            self.leaves(self.rules.version.hash(name))
        } else {
            vec![(Vec::new(), 0)]
        };
        for (_, leaf) in leaves {
            let block = &mut self.blocks[leaf as usize];
            if let Some(found) = dirent::scan(block, name, format).unwrap().found {
                let mut patch = dirent::remove(block, found).unwrap();
                patch.seal(block, format, SEED);
                patch.apply(block);
                return;
            }
        }
        panic!("no name to remove");
    }

    /// Checksums are right, the index is in order and names each leaf once, and each name lies
    /// where its hash says.
    fn check(&self) {
        for (number, block) in self.blocks.iter().enumerate() {
            if self.rules.format.checksums {
                let index = self.indexed && (number == 0 || is_index_block(block));
                let sums = if index {
                    checksum(block, number == 0, SEED)
                } else {
                    crate::disk::dirent::checksum(block, SEED)
                };
                let (found, computed) = sums.expect("a tail");
                assert_eq!(found, computed, "block {number}");
            }
        }
        if self.indexed {
            let mut seen = BTreeSet::from([0]);
            self.check_index(0, 0, u32::MAX, self.levels(), &mut seen);
            assert_eq!(seen.len(), self.blocks.len(), "a block is not in the tree");
        }
    }

    fn check_index(&self, number: u32, low: u32, high: u32, below: u8, seen: &mut BTreeSet<u32>) {
        let index = self.index(number);
        for place in 0..index.len() {
            let from = if place == 0 { low } else { index.hash(place) };
            let to = if place + 1 < index.len() { index.hash(place + 1) } else { high };
            assert!(from <= to, "hashes out of order");
            let child = index.block(place);
            assert!(seen.insert(child), "block {child} twice in the tree");
            if below > 0 {
                self.check_index(child, from, to, below - 1, seen);
                continue;
            }
            for entry in dirent::entries(&self.blocks[child as usize], self.rules.format).unwrap() {
                let hash = self.rules.version.hash(entry.name);
                // Up to `to` itself only if the next leaf carries on with that hash.
                assert!(hash >= from & !1 && hash < to, "a name outside of its leaf");
            }
        }
    }
}

fn format(checksums: bool, large: bool) -> Format {
    Format { filetype: true, checksums, large }
}

#[test]
fn a_tree_grows_until_it_is_full() {
    for (checksums, large, levels) in [(true, false, 1), (false, false, 1), (true, true, 2)] {
        let mut dir = Dir::new(128, format(checksums, large), false);
        let mut count = 0u32;
        while dir.insert(format!("{count:x}").as_bytes(), count + 11) {
            count += 1;
            if count.is_multiple_of(500) {
                dir.check();
            }
        }
        dir.check();
        assert_eq!(dir.levels(), levels, "after {count} names");
        for i in 0..count {
            assert_eq!(dir.find(format!("{i:x}").as_bytes()), Some(i + 11));
        }
        assert_eq!(dir.find(format!("{count:x}").as_bytes()), None);
    }
}

#[test]
fn names_of_one_hash_fill_leaf_after_leaf() {
    let mut dir = Dir::new(256, format(true, false), true);
    let name = |i: u32| format!("{}{i}", if i.is_multiple_of(7) { 'b' } else { 'a' });
    for i in 0..300 {
        assert!(dir.insert(name(i).as_bytes(), i + 11));
        dir.check();
    }
    assert!(dir.leaves(u32::from(b'a') << 24).len() > 5);
    for i in 0..300 {
        assert_eq!(dir.find(name(i).as_bytes()), Some(i + 11));
    }
}

#[test]
fn a_directory_that_does_not_begin_with_its_dots_stays_as_it_is() {
    let dir = Dir::new(1024, format(false, false), false);
    let mut block = dir.blocks[0].clone();
    block[4] = 16;
    block.copy_within(12..26, 16);
    block[20..22].copy_from_slice(&1008u16.to_le_bytes());
    assert!(index_linear(&block, 1, &dir.rules).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_tree_is_a_map_of_names(
        steps in proptest::collection::vec((any::<bool>(), 0u16..400, 0usize..3), 0..800),
        bits in 8u32..=10,
        checksums: bool,
        large: bool,
        coarse: bool,
    ) {
        let mut dir = Dir::new(1 << bits, format(checksums, large), coarse);
        let mut model = BTreeMap::new();
        for (i, (insert, number, long)) in steps.into_iter().enumerate() {
            let fill = [0, 20, if bits == 10 { 240 } else { 40 }][long];
            let name = format!("{}{number:x}{}", (b'a' + (number % 5) as u8) as char,
                "x".repeat(fill)).into_bytes();
            let ino = i as u32 + 11;
            prop_assert_eq!(dir.find(&name), model.get(&name).copied());
            if insert && !model.contains_key(&name) {
                if dir.insert(&name, ino) {
                    model.insert(name, ino);
                }
            } else if model.remove(&name).is_some() {
                dir.remove(&name);
                prop_assert_eq!(dir.find(&name), None);
            }
        }
        dir.check();
        for (name, ino) in &model {
            prop_assert_eq!(dir.find(name), Some(*ino));
        }
    }
}
