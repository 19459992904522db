use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::journal::testlog::{Shape, TestLog, Transaction};

const HOME: u64 = 1 << 33;

/// What the filesystem holds afterwards, by block.
fn replayed(log: &TestLog) -> Result<BTreeMap<u64, Vec<u8>>> {
    let plan = plan(&log.superblock(), HOME, log)?;
    let mut block = vec![0; log.shape.block_size as usize];
    plan.copies
        .iter()
        .map(|(home, copied)| copied.read(log, &mut block).map(|()| (*home, block.clone())))
        .collect()
}

/// The model: transaction after transaction, a revoke takes away what is pending.
fn model(transactions: &[Transaction], block_size: u32) -> BTreeMap<u64, Vec<u8>> {
    let mut pending = BTreeMap::new();
    for transaction in transactions {
        for (home, contents) in &transaction.writes {
            let mut contents = contents.clone();
            contents.resize(block_size as usize, 0);
            pending.insert(*home, contents);
        }
        for home in &transaction.revokes {
            pending.remove(home);
        }
    }
    pending
}

fn write(home: u64, byte: u8) -> (u64, Vec<u8>) {
    (home, vec![byte; 1024])
}

fn transaction(writes: &[(u64, u8)], revokes: &[u64], seconds: u64) -> Transaction {
    let writes = writes.iter().map(|(home, byte)| write(*home, *byte)).collect();
    Transaction { writes, revokes: revokes.to_vec(), seconds }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let sums = prop_oneof![
        Just((Compat::empty(), Incompat::empty())),
        Just((Compat::CHECKSUM, Incompat::empty())),
        Just((Compat::CHECKSUM, Incompat::ASYNC_COMMIT)),
        Just((Compat::empty(), Incompat::CSUM_V2)),
        Just((Compat::empty(), Incompat::CSUM_V3)),
        Just((Compat::empty(), Incompat::CSUM_V3 | Incompat::ASYNC_COMMIT)),
    ];
    let sequence = prop_oneof![Just(1), Just(u32::MAX - 2), any::<u32>()];
    (sums, any::<(bool, bool, bool)>(), 20_u32..90, 0_u32..8, sequence, any::<u32>()).prop_map(
        |((compat, sums), (wide, v1, uuid_first), len, fast, sequence, start)| {
            let mut incompat = sums | Incompat::REVOKE;
            incompat.set(Incompat::BITS64, wide);
            incompat.set(Incompat::FAST_COMMIT, fast > 0);
            let last = if v1 { len } else { len - fast };
            let start = 1 + start % (last - 1);
            let (block_size, fast_blocks) = (1024, fast);
            Shape {
                block_size,
                len,
                v1,
                compat,
                incompat,
                fast_blocks,
                start,
                sequence,
                uuid_first,
            }
        },
    )
}

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let contents = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte; 1024]),
        any::<u8>().prop_map(|byte| [MAGIC.to_be_bytes().to_vec(), vec![byte; 9]].concat()),
        // A copy that looks like a block of the log itself.
        any::<[u8; 16]>().prop_map(|bytes| [MAGIC.to_be_bytes().as_slice(), &bytes].concat()),
    ];
    let writes = prop::collection::btree_map(0_u64..24, contents, 0..14);
    let revokes = prop::collection::vec(0_u64..24, 0..4);
    let one = (writes, revokes).prop_map(|(writes, revokes)| Transaction {
        writes: writes.into_iter().collect(),
        revokes,
        seconds: 1000,
    });
    prop::collection::vec(one, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn replay_is_the_model(
        shape in shapes(),
        transactions in transactions(),
        torn in any::<bool>(),
    ) {
        let mut log = TestLog::new(shape);
        let mut written = Vec::new();
        for transaction in &transactions {
            if !log.append(transaction) {
                break;
            }
            written.push(transaction.clone());
        }
        if torn {
            log.append_open(&transaction(&[(1, 1), (2, 2)], &[3], 1000));
        }
        prop_assert_eq!(replayed(&log).unwrap(), model(&written, 1024));
        let plan = plan(&log.superblock(), HOME, &log).unwrap();
        prop_assert_eq!(plan.transactions as usize, written.len());
        prop_assert_eq!(plan.end, log.tid);
    }

    /// Whatever the bytes are: an error, or a state that some prefix of the transactions left.
    #[test]
    fn damage_is_seen(
        transactions in transactions(),
        damage in prop::collection::vec((1024_usize..64 * 1024, any::<u8>()), 1..6),
    ) {
        let mut log = TestLog::new(Shape::default());
        let mut states = vec![BTreeMap::new()];
        for at in 0..transactions.len() {
            if !log.append(&transactions[at]) {
                break;
            }
            states.push(model(&transactions[..=at], 1024));
        }
        for (at, byte) in damage {
            log.bytes[at] = byte;
        }
        if let Ok(found) = replayed(&log) {
            prop_assert!(states.contains(&found));
        }
    }

    /// No checksums: anything may come out, but it comes out.
    #[test]
    fn damage_without_checksums_ends(
        transactions in transactions(),
        damage in prop::collection::vec((0_usize..64 * 256, any::<u32>()), 1..40),
        incompat in 0_u32..4,
    ) {
        let incompat = Incompat::from_bits_retain(incompat);
        let mut log = TestLog::new(Shape { incompat, ..Shape::default() });
        for transaction in &transactions {
            log.append(transaction);
        }
        for (at, word) in damage {
            log.bytes[at * 4..][..4].copy_from_slice(&(word % 6).to_be_bytes());
        }
        if let Ok(sb) = Superblock::parse(&log.bytes, 1024, 64) {
            let _ = plan(&sb, HOME, &log);
        }
    }
}

#[test]
fn a_revoke_takes_its_own_transaction_and_earlier_ones() {
    let mut log = TestLog::new(Shape::default());
    assert!(log.append(&transaction(&[(10, 1), (11, 1), (12, 1)], &[], 5)));
    assert!(log.append(&transaction(&[(11, 2)], &[10, 11], 6)));
    assert!(log.append(&transaction(&[(10, 3)], &[], 7)));
    let found = replayed(&log).unwrap();
    assert_eq!(found, BTreeMap::from([write(10, 3), write(12, 1)]));
}

#[test]
fn escaped_blocks_get_their_magic_back() {
    let mut log = TestLog::new(Shape::default());
    let contents = [MAGIC.to_be_bytes().to_vec(), vec![7; 1020]].concat();
    let whole = Transaction { writes: vec![(5, contents.clone())], revokes: vec![], seconds: 1 };
    assert!(log.append(&whole));
    assert_eq!(log.bytes[3 * 1024 - 1024..][..4], [0; 4]);
    assert_eq!(replayed(&log).unwrap()[&5], contents);
}

#[test]
fn an_empty_log_says_nothing() {
    let mut log = TestLog::new(Shape { start: 0, ..Shape::default() });
    log.append(&transaction(&[(10, 1)], &[], 5));
    assert_eq!(replayed(&log).unwrap(), BTreeMap::new());
}

/// Appends three transactions, damages the second, and says what a replay does.
fn damaged(shape: Shape, block: u32, seconds: [u64; 3]) -> Result<Vec<u64>> {
    let mut log = TestLog::new(shape);
    for (at, seconds) in (0_u64..).zip(seconds) {
        assert!(log.append(&transaction(&[(10 + at, 1)], &[100], seconds)));
    }
    // Each is: revoke, descriptor, copy, commit.
    log.block_mut(1 + 4 + block)[600] ^= 1;
    replayed(&log).map(|found| found.into_keys().collect())
}

#[test]
fn a_wrong_checksum_is_corruption_unless_it_is_stale() {
    let refused = |shape: &Shape, block, says: &str| {
        let error = damaged(shape.clone(), block, [5, 6, 7]).unwrap_err().to_string();
        assert!(error.contains("transaction 8") && error.contains(says), "{error}");
    };
    let v3 = Shape::default();
    for block in [0, 1] {
        refused(&v3, block, "descriptor or revoke block");
        assert_eq!(damaged(v3.clone(), block, [5, 4, 7]).unwrap(), [10]);
    }
    refused(&v3, 2, "copy of block 11");
    refused(&v3, 3, "commit block");
    assert_eq!(damaged(v3.clone(), 3, [5, 4, 7]).unwrap(), [10]);
    let v2 = Shape { incompat: Incompat::REVOKE | Incompat::CSUM_V2, ..Shape::default() };
    refused(&v2, 2, "copy of block 11");
    let lazy = Shape { incompat: v3.incompat | Incompat::ASYNC_COMMIT, ..Shape::default() };
    assert_eq!(damaged(lazy, 3, [5, 6, 7]).unwrap(), [10]);
}

#[test]
fn the_old_checksum_covers_the_transaction() {
    let old = Shape { compat: Compat::CHECKSUM, incompat: Incompat::REVOKE, ..Shape::default() };
    for block in [1, 2] {
        let error = damaged(old.clone(), block, [5, 6, 7]).unwrap_err().to_string();
        assert!(error.contains("transaction 8"), "{error}");
        assert_eq!(damaged(old.clone(), block, [5, 4, 7]).unwrap(), [10]);
    }
    // Revoke blocks and the rest of the commit block are not covered.
    assert_eq!(damaged(old.clone(), 0, [5, 6, 7]).unwrap(), [10, 11, 12]);
    assert_eq!(damaged(old.clone(), 3, [5, 6, 7]).unwrap(), [10, 11, 12]);
    let lazy = Shape { incompat: old.incompat | Incompat::ASYNC_COMMIT, ..old };
    assert!(damaged(lazy, 2, [5, 6, 7]).is_err());
}

#[test]
fn homes_outside_the_device_are_refused() {
    let mut log = TestLog::new(Shape::default());
    assert!(log.append(&transaction(&[(500, 1)], &[], 5)));
    let error = plan(&log.superblock(), 500, &log).unwrap_err().to_string();
    assert!(error.contains("block 500"), "{error}");
    assert!(plan(&log.superblock(), 501, &log).is_ok());
}

#[test]
fn a_circle_of_revokes_ends() {
    let mut log = TestLog::new(Shape { incompat: Incompat::REVOKE, ..Shape::default() });
    while log.append_open(&transaction(&[], &[1], 5)) {}
    assert_eq!(replayed(&log).unwrap(), BTreeMap::new());
}
