//! Random cached pages of another OSlet's volume, by reference and by copy.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bench::corpus::{self, PAGE, Walk};
use bench::{Environment, Side};
use cfs::client::File;

use super::cluster::Reader;

/// The file in the images.
pub(super) const NAME: &str = "pages";

/// Images with one file of so many bytes each, made once a run.
#[derive(Default)]
pub(super) struct Images(RefCell<BTreeMap<u64, PathBuf>>);

impl Images {
    pub(super) fn of(&self, environment: &Environment, bytes: u64) -> Result<PathBuf> {
        if let Some(image) = self.0.borrow().get(&bytes) {
            return Ok(image.clone());
        }
        let source = environment.scratch.dir("source")?;
        corpus::write_pages(&source.join(NAME), bytes)?;
        let image = environment.scratch.image(bytes + bytes / 16 + (32 << 20), Some(&source))?;
        std::fs::remove_dir_all(&source).with_context(|| source.display().to_string())?;
        self.0.borrow_mut().insert(bytes, image.clone());
        Ok(image)
    }
}

/// What a side needs while it is measured; dropped in this order.
struct Reading {
    file: File,
    _reader: Reader,
}

pub(super) fn side(
    environment: &Environment,
    images: &Images,
    walk: Walk,
    copied: bool,
    huge: bool,
) -> Result<Side> {
    let bytes = walk.pages() * PAGE as u64;
    let image = images.of(environment, bytes)?;
    let reader = Reader::of(&image, bytes, huge)?;
    let pages = reader.member.read_through(NAME)?;
    ensure!(pages * PAGE as u64 == bytes, "{pages} pages of {bytes} bytes were read");
    let file = reader.member.client()?.open(NAME.as_bytes())?;
    let reading = Reading { file, _reader: reader };
    Ok(if copied { by_copy(reading, walk) } else { by_reference(reading, walk) })
}

fn by_reference(reading: Reading, mut kept: Walk) -> Side {
    Side::batch(move |operations| {
        let Reading { file, .. } = { &reading };
        // Of its own: what is noted in memory is stored before a pin is taken back, and waited for.
        let mut walk = kept.clone();
        let started = Instant::now();
        for _ in 0..operations {
            let (page, word) = walk.step();
            // Taken apart here: a page that is passed on is copied, and the copies are waited for.
            match file.read_ref(page) {
                Ok(Some(found)) => {
                    walk.saw(page, word, found.word(word * 8).unwrap_or_default());
                }
                Ok(None) => bail!("the file ends too early"),
                Err(error) => return Err(error.into()),
            }
        }
        let took = started.elapsed();
        walk.check()?;
        kept = walk;
        Ok(took)
    })
}

fn by_copy(reading: Reading, mut walk: Walk) -> Side {
    let mut buffer = vec![0; PAGE];
    Side::batch(move |operations| {
        let Reading { file, .. } = { &reading };
        let started = Instant::now();
        for _ in 0..operations {
            let (page, word) = walk.step();
            let read = file.read(page * PAGE as u64, &mut buffer)?;
            ensure!(read == PAGE, "{read} bytes of page {page}");
            walk.saw(page, word, corpus::word(std::hint::black_box(&buffer), word));
        }
        let took = started.elapsed();
        walk.check()?;
        Ok(took)
    })
}
