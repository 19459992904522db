//! The memory of OSlets that have all read the same data.

use anyhow::Result;
use bench::processes::Memory;
use bench::{Environment, Side};

use super::cluster::Partners;
use super::pages::{Images, NAME};

/// On huge pages: page tables alone would be 0.2 % of the data for each OSlet otherwise.
const HUGE: bool = true;

pub(super) fn side(environment: &Environment, images: &Images, oslets: usize) -> Result<Side> {
    let bytes = environment.sizes.large;
    let image = images.of(environment, bytes)?;
    Ok(Side::probe(move || {
        let mut partners = Partners::start(oslets, oslets, bytes, HUGE)?;
        partners.serve(&image)?;
        partners.read_all(NAME, bytes)?;
        let memory = Memory::of(&partners.pids())?;
        Ok(memory.total() as f64 / bytes as f64)
    }))
}
