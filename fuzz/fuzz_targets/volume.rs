//! A whole small image with the input's changes: open it and look at everything.
#![no_main]

use std::time::Duration;

use cfs::engine::{Options, Volume, read_superblock};
use cfs::mmp;
use fuzz::{Input, image, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let image = image::choose(image::volumes(), input.byte());
    let source = image.changed(input);
    if let Ok(superblock) = read_superblock(&*source) {
        let options = mmp::Options { second: Duration::ZERO, ..mmp::Options::default() };
        let _ = mmp::check(&*source, &superblock, &options);
    }
    let options = Options { metadata_cache: 1 << 20, ..Options::default() };
    if let Ok(volume) = Volume::open(source, &options) {
        walk::volume(&volume);
    }
});
