use proptest::prelude::*;

use super::super::format::Compat;
use super::super::replay::{self, ReadLog};
use super::super::testlog::{self, TestLog};
use super::*;

/// Features that shape transactions.
const FEATURES: [Incompat; 6] = [
    Incompat::REVOKE,
    Incompat::REVOKE.union(Incompat::BITS64),
    Incompat::REVOKE.union(Incompat::CSUM_V2),
    Incompat::REVOKE.union(Incompat::CSUM_V2).union(Incompat::BITS64),
    Incompat::REVOKE.union(Incompat::CSUM_V3),
    Incompat::REVOKE.union(Incompat::CSUM_V3).union(Incompat::BITS64),
];

fn contents(seed: u8, size: usize) -> Vec<u8> {
    let mut bytes = vec![seed; size];
    if seed < 100 {
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    }
    bytes
}

proptest! {
    /// What the replay finds is what was written, whatever the features.
    #[test]
    fn a_transaction_is_read_as_it_was_written(
        features in 0..FEATURES.len(),
        large in any::<bool>(),
        homes in proptest::collection::btree_map(0_u64..4000, any::<u8>(), 0..300),
        revoked in proptest::collection::btree_set(4000_u64..8000, 0..400),
    ) {
        let block_size = if large { 4096 } else { 1024 };
        let shape = testlog::Shape {
            block_size,
            len: 2000,
            compat: Compat::empty(),
            incompat: FEATURES[features],
            ..testlog::Shape::default()
        };
        let mut log = TestLog::new(shape);
        let sb = log.superblock();
        let shape = Shape::new(&sb);
        let writes: Vec<_> = homes
            .iter()
            .map(|(home, seed)| (*home, contents(*seed, block_size as usize)))
            .collect();
        let borrowed: Vec<_> = writes.iter().map(|(home, block)| (*home, &block[..])).collect();
        let revoked: Vec<_> = revoked.into_iter().collect();
        let mut blocks = shape.body(sb.sequence, &borrowed, &revoked);
        blocks.extend(shape.commit(sb.sequence, (1_800_000_000, 5)));
        let count = blocks.len() / block_size as usize;
        prop_assert_eq!(count, shape.blocks(writes.len(), revoked.len()));
        for (position, block) in (sb.start..).zip(blocks.chunks_exact(block_size as usize)) {
            log.block_mut(position).copy_from_slice(block);
        }
        let plan = replay::plan(&sb, 8000, &log).unwrap();
        prop_assert_eq!(plan.end, sb.sequence.next());
        prop_assert_eq!(plan.copies.len(), writes.len());
        let mut block = vec![0; block_size as usize];
        for ((home, copied), (written, bytes)) in plan.copies.iter().zip(&writes) {
            prop_assert_eq!(home, written);
            log.read_log(copied.position, &mut block).unwrap();
            prop_assert_ne!(block.first_chunk(), Some(&MAGIC.to_be_bytes()), "not escaped");
            copied.read(&log, &mut block).unwrap();
            prop_assert!(block == *bytes);
        }
        // The same once more, with a later transaction that revokes them all.
        let next = sb.sequence.next();
        let all: Vec<_> = homes.keys().copied().collect();
        let mut later = shape.body(next, &[], &all);
        later.extend(shape.commit(next, (1_800_000_001, 0)));
        let start = sb.start + count as u32;
        for (position, block) in (start..).zip(later.chunks_exact(block_size as usize)) {
            log.block_mut(position).copy_from_slice(block);
        }
        let plan = replay::plan(&sb, 8000, &log).unwrap();
        prop_assert_eq!(plan.end, next.next());
        prop_assert!(plan.copies.is_empty());
    }
}
