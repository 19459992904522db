//! What OSlets are compared with, and the limits that the hardware sets.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use crate::case::Side;
use crate::corpus::{self, PAGE, WORDS, Walk};
use crate::scratch::In;

mod futex;
mod iceoryx;
mod line;
mod partner;
mod raw;
mod socket;

pub use futex::futex;
pub use iceoryx::iceoryx2;
pub use line::{line, line_each_way};
pub use raw::raw_stream;
pub use socket::unix_socket;

/// Why a side that spins is not measured on one processor.
const ONE_CPU: &str = "needs two CPUs";

/// pread of the pages that `walk` leads to in the file that [`corpus::write_pages`] wrote at
/// `path`, all of them cached; `keep` is held as long (the mount).
///
/// # Errors
/// The file cannot be opened or read through once.
pub fn pread<T: 'static>(path: &Path, mut walk: Walk, keep: Rc<T>) -> anyhow::Result<Side> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    let pages = file.metadata().with_context(name)?.len() / PAGE as u64;
    let mut buffer = vec![0; PAGE];
    let mut chunk = vec![0; 1 << 20];
    ensure!(pages == walk.pages(), "{}: {pages} pages", path.display());
    let held = In { open: file, _mount: keep };
    Ok(Side::batch(move |operations| {
        let In { open: file, .. } = whole(&held);
        // The kernel may have dropped pages since the last time: what is measured is cached reads.
        let (mut at, end) = (0, pages * PAGE as u64);
        while at < end {
            let part = chunk.len().min((end - at) as usize);
            file.read_exact_at(&mut chunk[..part], at)?;
            at += part as u64;
        }
        let started = Instant::now();
        for _ in 0..operations {
            let (page, word) = walk.step();
            file.read_exact_at(&mut buffer, page * PAGE as u64)?;
            walk.saw(page, word, corpus::word(&buffer, word));
        }
        let took = started.elapsed();
        walk.check()?;
        Ok(took)
    }))
}

/// Makes a closure capture all of `value`: it would take the fields that it names one by one, and
/// drop them in the order of naming.
pub(crate) fn whole<T>(value: &T) -> &T {
    value
}

/// How a tree's files are named to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `dir/name` relative to the tree: two names are looked up.
    Path,
    /// `name` relative to the open directory: one name is looked up.
    Name,
}

/// stat of random files of the tree that [`corpus::write_tree`] made at `top`.
///
/// # Errors
/// The tree is not there.
pub fn stat<T: 'static>(top: &Path, naming: Naming, keep: Rc<T>) -> anyhow::Result<Side> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| {
        openat(CWD, path, flags, Mode::empty()).with_context(|| path.display().to_string())
    };
    let mut leaves = corpus::leaves()?;
    let directory = match naming {
        Naming::Path => open(top)?,
        Naming::Name => {
            let dir = leaves[0].dir.clone();
            leaves.retain(|leaf| leaf.dir == dir);
            open(&top.join(dir))?
        }
    };
    let mut walk = Walk::new(leaves.len() as u64);
    let held = In { open: directory, _mount: keep };
    Ok(Side::batch(move |operations| {
        let In { open: directory, .. } = whole(&held);
        let started = Instant::now();
        for _ in 0..operations {
            let leaf = &leaves[walk.step().0 as usize];
            let name = if naming == Naming::Path { &leaf.path } else { &leaf.name };
            let found = statat(directory, name.as_c_str(), AtFlags::empty())?;
            walk.saw_instead(found.st_size as u64, leaf.size);
        }
        let took = started.elapsed();
        walk.check()?;
        Ok(took)
    }))
}

/// The limit of reading by reference: one word of a random page of this process's own memory.
pub fn memory_access(mut walk: Walk) -> Side {
    let memory = pages_in_memory(walk.pages());
    Side::batch(move |operations| {
        let started = Instant::now();
        for _ in 0..operations {
            let (page, word) = walk.step();
            walk.saw(page, word, memory[page as usize * WORDS + word]);
        }
        let took = started.elapsed();
        walk.check()?;
        Ok(took)
    })
}

/// The limit of reading by copy: a random page of this process's own memory, copied.
pub fn memory_copy(mut walk: Walk) -> Side {
    let memory = pages_in_memory(walk.pages());
    let mut buffer = vec![0; WORDS];
    Side::batch(move |operations| {
        let started = Instant::now();
        for _ in 0..operations {
            let (page, word) = walk.step();
            buffer.copy_from_slice(&memory[page as usize * WORDS..][..WORDS]);
            // The whole copy counts as used, or the compiler would copy the one word only.
            walk.saw(page, word, std::hint::black_box(&mut buffer)[word]);
        }
        let took = started.elapsed();
        walk.check()?;
        Ok(took)
    })
}

fn pages_in_memory(pages: u64) -> Vec<u64> {
    (0..pages).flat_map(|page| (0..WORDS).map(move |word| corpus::expected(page, word))).collect()
}

#[cfg(test)]
mod tests;
