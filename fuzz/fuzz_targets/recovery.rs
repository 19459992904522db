//! A whole image whose journal is to be replayed, with the input's changes: replay it twice, then
//! look at everything.
#![no_main]

use cfs::engine::{Options, Volume};
use cfs::journal;
use fuzz::{Input, image, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let image = image::choose(image::unclean(), input.byte());
    let source = image.changed(input);
    let replayed = journal::recover_at(&source, 1_700_000_000);
    if replayed.is_ok() {
        let again = journal::recover_at(&source, 1_700_000_000);
        assert!(!matches!(again, Ok(Some(_))), "a replayed journal is empty: {again:?}");
    }
    let options = Options { ignore_journal: replayed.is_err(), metadata_cache: 1 << 20 };
    if let Ok(volume) = Volume::open(source, &options) {
        walk::volume(&volume);
    }
});
