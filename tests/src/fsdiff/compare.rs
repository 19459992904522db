//! An image as the kernel and as the engine see it.

use anyhow::{Context, Result, ensure};

use super::{EngineView, HostView, Image, Listing, Scratch, View};

/// Compares what the kernel and the engine see, and says how many objects that is.
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
    Ok(ours.entries.len())
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
