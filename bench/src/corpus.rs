//! The data that is read: every word of it can be checked by knowing where it stands.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// 64-bit words of a page.
pub const WORDS: usize = PAGE / 8;

/// Directories of the tree, and files in each.
const DIRS: u64 = 32;
const FILES: u64 = 64;

/// What word `word` of page `page` holds.
#[inline]
pub fn expected(page: u64, word: usize) -> u64 {
    (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0517_c0de).wrapping_add(word as u64)
}

/// Fills a whole page.
pub fn fill(page: u64, bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&expected(page, index).to_le_bytes());
    }
}

/// The word at `index` of a page's bytes; 0, which no page holds there, when it is not so long.
#[inline]
pub fn word(bytes: &[u8], index: usize) -> u64 {
    let found = bytes.get(index * 8..index * 8 + 8);
    found.and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A walk over random pages that remembers whether all it saw was right.
///
/// Where it leads is known ahead, so that a processor may overlap its steps, as far as what they
/// do allows that. In a *chain* what a step saw decides where the next one leads: no two overlap.
#[derive(Debug, Clone)]
pub struct Walk {
    state: u64,
    pages: u64,
    wrong: u64,
    chain: bool,
}

impl Walk {
    /// A walk over `pages` pages; every walk of the same length is the same.
    pub fn new(pages: u64) -> Self {
        Self { state: 0x2545_f491_4f6c_dd1d, pages: pages.max(1), wrong: 0, chain: false }
    }

    /// The same walk as a chain.
    pub fn chain(pages: u64) -> Self {
        Self { chain: true, ..Self::new(pages) }
    }

    /// How many pages it leads over.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The next page, and the index of a word in it.
    #[inline]
    pub fn step(&mut self) -> (u64, usize) {
        if self.chain {
            // Zero, unless something was wrong; a branch, not arithmetic, or every walk would wait.
            self.state ^= std::hint::black_box(self.wrong);
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let page = (u128::from(self.state) * u128::from(self.pages)) >> 64;
        (page as u64, self.state as usize % WORDS)
    }

    /// Takes in the word that stood there.
    #[inline]
    pub fn saw(&mut self, page: u64, word: usize, value: u64) {
        self.saw_instead(value, expected(page, word));
    }

    /// Takes in some other value, and what it should have been.
    #[inline]
    pub fn saw_instead(&mut self, value: u64, wanted: u64) {
        self.wrong |= value ^ wanted;
    }

    /// Whether everything seen so far was right.
    ///
    /// # Errors
    /// It was not.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.wrong == 0, "what was read is not what was written (bits {:x})", self.wrong);
        Ok(())
    }
}

/// Writes a file of `bytes` bytes, rounded down to pages, and waits until it is stored.
///
/// # Errors
/// The file system's, with the path.
pub fn write_pages(path: &Path, bytes: u64) -> anyhow::Result<()> {
    const PAGES_AT_ONCE: usize = 256;
    let name = || path.display().to_string();
    let mut file = File::create_new(path).with_context(name)?;
    let mut chunk = vec![0; PAGE * PAGES_AT_ONCE];
    let pages = bytes / PAGE as u64;
    let mut page = 0;
    while page < pages {
        let count = (pages - page).min(PAGES_AT_ONCE as u64) as usize;
        for (number, bytes) in (page..).zip(chunk.chunks_exact_mut(PAGE).take(count)) {
            fill(number, bytes);
        }
        file.write_all(&chunk[..count * PAGE]).with_context(name)?;
        page += count as u64;
    }
    file.sync_all().with_context(name)
}

/// One file of the tree: where it is and how many bytes it has.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The directory's name, relative to the tree.
    pub dir: String,
    /// Relative to its directory.
    pub name: CString,
    /// `dir/name`.
    pub path: CString,
    /// All files differ in size.
    pub size: u64,
}

/// The files of the tree that [`write_tree`] makes.
///
/// # Errors
/// None in fact: no name holds a NUL.
pub fn leaves() -> anyhow::Result<Vec<Leaf>> {
    let mut found = Vec::new();
    for dir in 0..DIRS {
        for file in 0..FILES {
            let (dir_name, name) = (format!("dir{dir:02}"), format!("file-{file:03}.data"));
            let path = CString::new(format!("{dir_name}/{name}"))?;
            let size = dir * FILES + file + 1;
            found.push(Leaf { dir: dir_name, name: CString::new(name)?, path, size });
        }
    }
    Ok(found)
}

/// Makes the tree of small files below `top`.
///
/// # Errors
/// The file system's, with the path.
pub fn write_tree(top: &Path) -> anyhow::Result<()> {
    for leaf in leaves()? {
        let dir = top.join(&leaf.dir);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let path = top.join(leaf.path.to_str()?);
        fs::write(&path, vec![b'.'; usize::try_from(leaf.size)?])
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_walk_covers_its_pages_and_notices_one_wrong_word() {
        let mut walk = Walk::new(64);
        let mut seen = BTreeSet::new();
        for _ in 0..4096 {
            let (page, word) = walk.step();
            assert!(page < 64 && word < WORDS);
            walk.saw(page, word, expected(page, word));
            seen.insert(page);
        }
        assert_eq!(seen.len(), 64);
        walk.check().unwrap();
        let (page, word) = walk.step();
        walk.saw(page, word, expected(page ^ 1, word));
        assert!(walk.check().is_err());
    }

    #[test]
    fn files_hold_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages");
        write_pages(&path, 300 * PAGE as u64 + 17).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 300 * PAGE);
        let page = &bytes[299 * PAGE..];
        assert_eq!(word(page, WORDS - 1), expected(299, WORDS - 1));
        assert_eq!(word(page, WORDS), 0);
    }
}
