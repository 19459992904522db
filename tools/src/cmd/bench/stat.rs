//! Attributes of cached files of another OSlet's volume, by path and by name.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bench::corpus::{self, Walk};
use bench::{Environment, Side};
use cfs::client::Client;

use super::cluster::Reader;

pub(super) use bench::peers::Naming;

/// Bytes of the image.
const IMAGE: u64 = 64 << 20;
/// Bytes of the cache: the tables of names and inodes are made in proportion, and the peer's have
/// no bound.
const CACHE: u64 = 512 << 20;

/// What a side needs while it is measured; dropped in this order.
struct Asking {
    client: Arc<Client>,
    _reader: Reader,
}

pub(super) fn side(environment: &Environment, naming: Naming) -> Result<Side> {
    let source = environment.scratch.dir("source")?;
    corpus::write_tree(&source)?;
    let image = environment.scratch.image(IMAGE, Some(&source))?;
    std::fs::remove_dir_all(&source).with_context(|| source.display().to_string())?;
    let reader = Reader::of(&image, CACHE, false)?;
    let client = reader.member.client()?;
    let mut leaves = corpus::leaves()?;
    let first = leaves.first().context("an empty tree")?.dir.clone();
    let dir = client.resolve(first.as_bytes())?.attr.ino;
    if naming == Naming::Name {
        leaves.retain(|leaf| leaf.dir == first);
    }
    for leaf in &leaves {
        client.resolve(leaf.path.as_bytes())?;
    }
    let mut walk = Walk::new(leaves.len() as u64);
    let asking = Asking { client, _reader: reader };
    Ok(Side::batch(move |operations| {
        let Asking { client, .. } = { &asking };
        let started = Instant::now();
        for _ in 0..operations {
            let leaf = &leaves[walk.step().0 as usize];
            let found = match naming {
                Naming::Path => client.resolve(leaf.path.as_bytes())?,
                Naming::Name => client.lookup(dir, leaf.name.as_bytes())?,
            };
            walk.saw_instead(found.attr.size, leaf.size);
        }
        let took = started.elapsed();
        walk.check()?;
        Ok(took)
    }))
}
