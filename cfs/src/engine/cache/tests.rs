use std::cell::Cell;

use super::*;

#[test]
fn the_budget_holds_and_used_blocks_stay() {
    let cache = BlockCache::new(SHARDS * 8 * 1024, 1024);
    let reads = Cell::new(0);
    let get = |block: u64| {
        let read = || {
            reads.set(reads.get() + 1);
            Ok(block.to_le_bytes().into())
        };
        let found = cache.get(Block(block), read).unwrap();
        assert_eq!(found.bytes[..], block.to_le_bytes());
    };
    for block in 0..10_000 {
        get(block);
        get(0);
    }
    assert_eq!(reads.get(), 10_000, "block 0 was read again although it was in use");
    let held: usize = cache.shards.iter().map(|shard| shard.lock().clean.slots.len()).sum();
    assert_eq!(held, SHARDS * 8);
}

#[test]
fn a_check_is_done_once_for_each_claim() {
    let cache = BlockCache::new(0, 1024);
    let block = cache.get(Block(1), || Ok(Box::new([0]))).unwrap();
    let checks = Cell::new(0);
    let check = |role, ino| {
        block.check(role, Ino(ino), |_| {
            checks.set(checks.get() + 1);
            Ok(())
        })
    };
    check(Role::Extents, 12).unwrap();
    check(Role::Extents, 12).unwrap();
    assert_eq!(checks.get(), 1);
    check(Role::Extents, 13).unwrap();
    check(Role::Directory, 13).unwrap();
    assert_eq!(checks.get(), 3);
}

fn block_of(cache: &BlockCache, block: u64) -> Arc<CachedBlock> {
    cache.get(Block(block), || Ok(Box::new([9; 8]))).unwrap()
}

#[test]
fn a_version_that_somebody_holds_never_changes() {
    let cache = BlockCache::new(0, 8);
    assert_eq!(cache.put(Block(3), Tid(1), 0, &[1]), None, "it is not here yet");
    let clean = block_of(&cache, 3);
    assert_eq!(cache.put(Block(3), Tid(1), 0, &[1]), Some(true));
    assert_eq!(clean.bytes[0], 9);
    let held = block_of(&cache, 3);
    assert_eq!(cache.put(Block(3), Tid(1), 1, &[2, 2]), Some(false));
    assert_eq!(held.bytes[..4], [1, 9, 9, 9]);
    let before = Arc::as_ptr(&block_of(&cache, 3));
    assert_eq!(cache.put(Block(3), Tid(1), 3, &[3]), Some(false));
    let newest = block_of(&cache, 3);
    assert_eq!(Arc::as_ptr(&newest), before, "copied although nobody held it");
    assert_eq!(newest.bytes[..5], [1, 2, 2, 3, 9]);
    drop(newest);
    let committed = cache.take_changes(Tid(1));
    assert_eq!(cache.put(Block(3), Tid(2), 0, &[7]), Some(true));
    assert_eq!(committed.versions[0].1.bytes[..5], [1, 2, 2, 3, 9]);
    assert_eq!(block_of(&cache, 3).bytes[0], 7);
}

#[test]
fn dirty_blocks_stay_until_their_newest_version_is_home() {
    let cache = BlockCache::new(0, 8);
    assert!(cache.create(Block(0), Tid(1), Box::new([1; 8])));
    assert!(!cache.create(Block(0), Tid(1), Box::new([2; 8])));
    for block in 1..1000 {
        drop(block_of(&cache, block));
    }
    assert_eq!(block_of(&cache, 0).bytes[..], [2; 8]);
    assert_eq!(cache.take_changes(Tid(1)).versions.len(), 1);
    assert_eq!(cache.put(Block(0), Tid(2), 0, &[3]), Some(true));
    cache.clean(Block(0), Tid(1));
    assert_eq!(cache.dirty_blocks(), 1, "there is a newer version");
    assert_eq!(cache.take_changes(Tid(2)).versions.len(), 1);
    cache.clean(Block(0), Tid(2));
    assert_eq!(cache.dirty_blocks(), 0);
    assert_eq!(block_of(&cache, 0).bytes[..2], [3, 2], "it is clean and still here");
    assert!(cache.create(Block(0), Tid(3), Box::new([4; 8])));
    assert_eq!(cache.take_changes(Tid(3)).versions.len(), 1);
    assert!(cache.create(Block(0), Tid(4), Box::new([5; 8])), "another transaction's change");
    assert_eq!(cache.take_changes(Tid(4)).versions.len(), 1);
    cache.clean(Block(0), Tid(4));
    cache.invalidate(Block(0));
    assert_eq!(block_of(&cache, 0).bytes[..2], [9, 9]);
}

#[test]
fn forgotten_blocks_are_revoked_unless_created_again() {
    let cache = BlockCache::new(0, 8);
    for block in [30, 10, 20] {
        assert!(cache.create(Block(block), Tid(1), Box::new([1; 8])));
    }
    cache.forget(Block(10));
    cache.forget(Block(20));
    assert!(cache.create(Block(20), Tid(1), Box::new([2; 8])));
    let changes = cache.take_changes(Tid(1));
    let homes: Vec<_> = changes.versions.iter().map(|(block, _)| block.0).collect();
    assert_eq!(homes, [20, 30]);
    assert_eq!(changes.revoked, [Block(10)]);
    assert_eq!(cache.dirty_blocks(), 2);
    let next = cache.take_changes(Tid(2));
    assert!(next.versions.is_empty() && next.revoked.is_empty());
}

#[test]
fn what_was_read_before_a_change_is_not_kept() {
    let cache = BlockCache::new(0, 8);
    let reads = Cell::new(0_u8);
    let read = || {
        reads.set(reads.get() + 1);
        if reads.get() == 1 {
            // Changed, brought home and evicted while this reader was on its way.
            cache.create(Block(16), Tid(1), Box::new([5; 8]));
            cache.take_changes(Tid(1));
            cache.clean(Block(16), Tid(1));
            cache.invalidate(Block(16));
        }
        Ok(Box::new([reads.get(); 8]) as Box<[u8]>)
    };
    let found = cache.get(Block(16), read).unwrap();
    assert_eq!((found.bytes[0], reads.get()), (2, 2));
}
