//! Volumes with blocks larger than a page, which no kernel here can mount: what mke2fs put in is
//! what the engine finds.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use tests::fsdiff::populate::{Plan, populate};
use tests::fsdiff::{ClientView, EngineView, Field, HostView, Image, Listing, Scratch, is_root};

#[test]
fn blocks_over_a_page() -> Result<()> {
    if !is_root("blocks_over_a_page") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let source = scratch.subdir("source")?;
    // Offsets for 1 KiB blocks, so that all of every file can be read.
    let plan = Plan { large_offsets: false, nothing: false, names: 3000, ..Plan::new(1024) };
    populate(&source, &plan)?;
    // mke2fs 1.47.0 keeps 32 bits of times, and with inline_data cuts off what a file was extended
    // by without being written.
    std::fs::remove_dir_all(source.join("times"))?;
    std::fs::remove_file(source.join("contents/grown"))?;
    let theirs = listing(&HostView::new(&source)).context("the source")?;
    for block in [8192, 16384, 32768, 65536] {
        for kind in ["ext4", "ext4 -O ^metadata_csum", "ext4 -O inline_data", "ext2"] {
            let case = format!("-t {kind} -b {block}");
            let path = scratch.path("image");
            Image::make(&path, 768, &case, Some(&source)).context(case.clone())?;
            let engine = EngineView::open(&path).context(case.clone())?;
            let ours = listing(&engine).context(case.clone())?;
            if let Some(difference) = theirs.difference(&ours) {
                anyhow::bail!("{case}: the source's view and ours: {difference}");
            }
            let client = ClientView::open(&path).context(case.clone())?;
            for time in ["first", "second"] {
                let found = listing(&client).with_context(|| format!("{case}: {time}"))?;
                if let Some(difference) = theirs.difference(&found) {
                    anyhow::bail!("{case}: the source's view and a client's {time}: {difference}");
                }
            }
            println!("{case}: {} objects equal", ours.entries.len());
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn listing<V: tests::fsdiff::View>(view: &V) -> Result<Listing> {
    let mut listing = Listing::without_holes(view)?;
    listing.remove(b"/lost+found");
    listing.entries.remove(&Vec::new());
    listing.forget(&[
        Field::Ino,
        Field::Blocks,
        Field::Directories,
        Field::OtherTimes,
        Field::Nanoseconds,
    ]);
    Ok(listing)
}
