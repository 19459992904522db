//! Journals by themselves: a log whose first blocks are the input, every other one zero.
#![no_main]

use cfs::journal::fast_commit;
use cfs::journal::format::{RawHeader, RawSuperblock, Superblock};
use cfs::journal::replay::{self, ReadLog};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromBytes as _, IntoBytes as _};

const BLOCK: usize = 1024;
/// Blocks of the journals that the seeds are cut from.
const BLOCKS: u32 = 1024;

struct Log<'a>(&'a [u8]);

impl ReadLog for Log<'_> {
    fn read_log(&self, position: u32, block: &mut [u8]) -> cfs::Result<()> {
        let from = self.0.len().min(position as usize * BLOCK);
        let here = &self.0[from..self.0.len().min(from + BLOCK)];
        block[..here.len()].copy_from_slice(here);
        block[here.len()..].fill(0);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let log = Log(data);
    let mut first = [0; BLOCK];
    if log.read_log(0, &mut first).is_err() {
        return;
    }
    let _ = Superblock::parse(&first, BLOCK as u32, BLOCKS);
    // The checksum would stop nearly every change.
    let Ok((mut raw, _)) = RawSuperblock::read_from_prefix(&first) else { return };
    raw.checksum = raw.compute_checksum().into();
    let Ok(superblock) = Superblock::parse(raw.as_bytes(), BLOCK as u32, BLOCKS) else { return };
    for block in data.chunks(BLOCK) {
        let _ = RawHeader::parse(block);
        superblock.tags(block).for_each(drop);
        let _ = superblock.revoked(block).map(Iterator::count);
        let _ = superblock.tail_is_valid(block);
        let _ = superblock.commit_is_valid(block);
    }
    if let Ok(plan) = replay::plan(&superblock, 1 << 20, &log) {
        let mut block = [0; BLOCK];
        for (&home, copied) in plan.copies.iter().take(64) {
            assert!(home < 1 << 20 && copied.position < superblock.last);
            let _ = copied.read(&log, &mut block);
        }
        let _ = fast_commit::pending(&superblock, plan.end, &log);
    }
});
