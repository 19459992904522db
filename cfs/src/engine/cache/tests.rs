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
