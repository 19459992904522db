use zerocopy::IntoBytes;

use super::*;
use crate::Error;
use crate::journal::testlog::{Shape, TestLog};

#[test]
fn transactions_wrap() {
    assert!(Tid(0).at_least(Tid(u32::MAX)));
    assert!(!Tid(u32::MAX).at_least(Tid(0)));
    assert!(Tid(5).at_least(Tid(5)));
    assert_eq!(Tid(u32::MAX).next(), Tid(0));
}

#[test]
fn tag_sizes() {
    let size = |incompat: Incompat| incompat.tag_size();
    assert_eq!(size(Incompat::empty()), 8);
    assert_eq!(size(Incompat::BITS64), 12);
    assert_eq!(size(Incompat::CSUM_V2), 10);
    assert_eq!(size(Incompat::CSUM_V2 | Incompat::BITS64), 14);
    assert_eq!(size(Incompat::CSUM_V3), 16);
    assert_eq!(size(Incompat::CSUM_V3 | Incompat::BITS64), 16);
}

fn changed(change: impl FnOnce(&mut RawSuperblock), sign: bool) -> crate::Result<Superblock> {
    let log = TestLog::new(Shape::default());
    let (mut raw, _) = RawSuperblock::read_from_prefix(&log.bytes).unwrap();
    change(&mut raw);
    if sign {
        raw.checksum = U32::new(raw.compute_checksum());
    }
    Superblock::parse(raw.as_bytes(), 1024, 64)
}

#[test]
fn superblocks_that_are_good() {
    let sb = changed(|_| {}, false).unwrap();
    assert_eq!((sb.first, sb.last, sb.max_len), (1, 64, 64));
    let fast = changed(
        |raw| {
            raw.incompat = U32::new(raw.incompat.get() | 0x20);
            raw.fast_commit_blocks = U32::new(16);
        },
        true,
    );
    assert_eq!(fast.unwrap().last, 48);
    let v1 = TestLog::new(Shape { v1: true, ..Shape::default() });
    assert_eq!(v1.superblock().incompat, Incompat::empty());
}

#[test]
fn superblocks_that_are_refused() {
    let corrupt = |change: fn(&mut RawSuperblock), sign, says: &str| {
        let error = changed(change, sign).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    corrupt(|raw| raw.header.magic = U32::new(1), true, "magic 0x00000001");
    corrupt(|raw| raw.header.kind = U32::new(5), true, "Revoke");
    corrupt(|raw| raw.sequence = U32::new(1), false, "checksum");
    corrupt(|raw| raw.block_size = U32::new(4096), true, "block size 4096");
    corrupt(|raw| raw.max_len = U32::new(65), true, "length 65");
    corrupt(|raw| raw.first = U32::new(0), true, "first block 0");
    corrupt(|raw| raw.first = U32::new(64), true, "first block 64");
    corrupt(|raw| raw.start = U32::new(64), true, "start 64");
    corrupt(|raw| raw.incompat = U32::new(0x18), true, "two kinds");
    corrupt(|raw| raw.compat = U32::new(1), true, "two kinds");
    corrupt(|raw| raw.incompat = U32::new(0x30), true, "256 for fast commits");
    let refused = |change: fn(&mut RawSuperblock), says: &str| {
        let error = changed(change, true).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(|raw| raw.incompat = U32::new(0x50), "incompatible features 0x40");
    refused(|raw| raw.ro_compat = U32::new(2), "features 0x2");
    refused(|raw| raw.users = U32::new(2), "2 filesystems");
    refused(|raw| raw.header.kind = U32::new(9), "version 9");
    refused(|raw| raw.checksum_type = 1, "checksum type 1");
}

#[test]
fn the_log_is_a_circle() {
    let sb = changed(|raw| (raw.first, raw.start) = (U32::new(4), U32::new(4)), true).unwrap();
    assert_eq!(sb.advance(4, 1), Some(5));
    assert_eq!(sb.advance(63, 1), Some(4));
    assert_eq!(sb.advance(60, 10), Some(10));
    assert_eq!(sb.advance(10, 60), Some(10));
    assert_eq!(sb.advance(10, 61), None);
    assert_eq!(sb.advance(64, 1), None);
}

#[test]
fn an_emptied_log_is_valid() {
    let log = TestLog::new(Shape { start: 5, ..Shape::default() });
    let raw = log.superblock().restarted(0, Tid(99), 0);
    let sb = Superblock::parse(raw.as_bytes(), 1024, 64).unwrap();
    assert_eq!((sb.start, sb.sequence), (0, Tid(99)));
}

#[test]
fn tags_stop_at_the_end_of_the_block() {
    // No LAST flag anywhere: the tags fill the block up to its checksum, the last without a UUID.
    let log = TestLog::new(Shape::default());
    let sb = log.superblock();
    let block = vec![0; 1024];
    assert_eq!(sb.tags(&block).count(), (1024 - 12 - 4 + 16) / 32);
    assert_eq!(sb.tags(&block[..11]).count(), 0);
    assert_eq!(sb.tags(&[]).count(), 0);
}

#[test]
fn revoke_counts_are_bounded() {
    let sb = TestLog::new(Shape::default()).superblock();
    let mut block = vec![0; 1024];
    let mut count = |used: u32| {
        block[12..16].copy_from_slice(&used.to_be_bytes());
        sb.revoked(&block).map(Iterator::count).ok()
    };
    assert_eq!(count(0), Some(0));
    assert_eq!(count(16), Some(0));
    assert_eq!(count(23), Some(0));
    assert_eq!(count(24), Some(1));
    assert_eq!(count(1020), Some(125));
    assert_eq!(count(1021), None);
    assert_eq!(count(u32::MAX), None);
}
