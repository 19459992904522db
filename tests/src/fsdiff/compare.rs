//! An image as the kernel, the engine and a client see it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{ClientView, EngineView, HostView, Image, Listing, Scratch, View, VolumeInfo};

/// Compares what the kernel, the engine and a client see, and says how many objects that is.
pub fn compare(scratch: &Scratch, image: &Image) -> Result<usize> {
    let mount = image.mount(&scratch.path("mount"), "ro")?;
    let host = HostView::new(mount.path());
    let theirs = Listing::of(&host).context("the kernel's view")?;
    let their_volume = host.volume()?;
    mount.unmount()?;
    let engine = EngineView::open(&image.path)?;
    let ours = Listing::of(&engine).context("the engine's view")?;
    if let Some(difference) = theirs.difference(&ours) {
        anyhow::bail!("the kernel's view and ours: {difference}");
    }
    let our_volume = engine.volume()?;
    ensure!(their_volume == our_volume, "statfs: {their_volume:?}, ours {our_volume:?}");
    no_other_names(&engine)?;
    same_to_a_client(&image.path, &theirs, &their_volume)?;
    Ok(ours.entries.len())
}

/// Compares a listing with what a client sees: at first, and with `OSLET_FULL` when much is
/// published.
pub fn same_to_a_client(image: &Path, theirs: &Listing, volume: &VolumeInfo) -> Result<()> {
    let client = ClientView::open(image)?;
    let full = std::env::var_os("OSLET_FULL").is_some();
    for time in &["first", "second"][..if full { 2 } else { 1 }] {
        let found = Listing::of(&client).with_context(|| format!("a client's {time} view"))?;
        if let Some(difference) = theirs.difference(&found) {
            anyhow::bail!("the kernel's view and a client's {time}: {difference}");
        }
    }
    let found = client.volume()?;
    ensure!(*volume == found, "statfs: {volume:?}, a client's {found:?}");
    Ok(())
}

/// Names that are not there are not found either.
fn no_other_names(engine: &EngineView) -> Result<()> {
    let mut pending = vec![engine.root()?];
    while let Some(dir) = pending.pop() {
        for (name, _, kind) in engine.names(&dir)? {
            let longer = [&name[..name.len().min(250)], b"~"].concat();
            let found = engine.volume.lookup(&dir, &longer);
            ensure!(matches!(found, Err(cfs::Error::NotFound)), "{longer:?}: {found:?}");
            if kind == 0o040_000 {
                pending.push(engine.child(&dir, &name)?);
            }
        }
    }
    Ok(())
}
