//! Many threads at once.

use std::sync::atomic::AtomicBool;

use super::*;

/// Which blocks some thread has.
struct Owned(Box<[AtomicBool]>);

impl Owned {
    fn take(&self, start: u64, len: u64) {
        for block in start..start + len {
            let before = self.0[block as usize].swap(true, Ordering::AcqRel);
            assert!(!before, "block {block} was given to two threads");
        }
    }

    fn give(&self, start: u64, len: u64) {
        for block in start..start + len {
            assert!(self.0[block as usize].swap(false, Ordering::AcqRel), "block {block}");
        }
    }
}

fn work(open: &Open, owned: &Owned, seed: u64) -> (Vec<(u64, u64)>, Vec<u32>) {
    let (mut random, mut runs, mut inodes) = (Random(seed), Vec::new(), Vec::new());
    let space = &open.space;
    for round in 0..1500u64 {
        let want = 1 + random.below(60) as u32;
        let goal = Block(random.below(open.volume.superblock().blocks_count));
        space.reserve(want.into(), &Caller::ROOT).unwrap();
        let ino = Ino(seed as u32 * 10 + random.below(3) as u32);
        let claim = space.claim_for(ino, round, goal, want, true).unwrap();
        space.release((want - claim.len()).into());
        let (start, len) = (claim.start().0, u64::from(claim.len()));
        owned.take(start, len);
        if random.below(4) == 0 {
            owned.give(start, len);
            drop(claim);
            space.release(len);
        } else {
            open.with(|handle| claim.commit(handle).unwrap());
            runs.push((start, len));
        }
        if runs.len() > 40 {
            let (start, len) = runs.swap_remove(random.below(runs.len() as u64) as usize);
            // Others may have them as soon as the transaction has committed, so before that.
            owned.give(start, len);
            open.with(|handle| space.free(handle, Block(start), len).unwrap());
        }
        let made = open.with(|handle| space.new_inode(handle, Ino::ROOT, false, false).unwrap());
        inodes.push(made.0);
        if inodes.len() > 20 {
            let ino = inodes.swap_remove(random.below(20) as usize);
            open.with(|handle| space.free_inode(handle, Ino(ino), false).unwrap());
        }
        if round % 50 == seed {
            open.commit();
        }
        if round % 300 == 0 {
            space.trim(Block(0)..Block(u64::MAX), 100).unwrap();
        }
    }
    (runs, inodes)
}

#[test]
fn threads_never_share_a_block() {
    let source = image(64 << 10, &["-t", "ext4", "-b", "1024", "-g", "4096", "-J", "size=4"]);
    let open = Open::new(&source);
    let count = open.volume.superblock().blocks_count;
    let owned = Owned((0..count).map(|_| AtomicBool::new(false)).collect());
    let before = open.space.statfs();
    let (mut blocks, mut inodes) = (BTreeSet::new(), BTreeSet::new());
    std::thread::scope(|scope| {
        let (open, owned) = (&open, &owned);
        let threads: Vec<_> =
            (0..4).map(|seed| scope.spawn(move || work(open, owned, seed))).collect();
        for thread in threads {
            let (runs, made) = thread.join().unwrap();
            for (start, len) in runs {
                (start..start + len).for_each(|block| assert!(blocks.insert(block)));
            }
            made.into_iter().for_each(|ino| assert!(inodes.insert(ino), "inode {ino} twice"));
        }
    });
    open.commit();
    assert_eq!(open.space.statfs().free, before.free - blocks.len() as u64);
    open.stop();
    let verdict = e2fsck(&source);
    assert_eq!(verdict.blocks, blocks);
    assert_eq!(verdict.inodes, inodes);
}
