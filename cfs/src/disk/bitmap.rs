//! Bitmaps of a group's blocks and inodes: bit `n` is bit `n % 8` of byte `n / 8`, and set while
//! the block or inode is in use.
//!
//! Bits without a block or an inode, up to the end of the bitmap's block, are set. The checksum
//! of a bitmap lies in the group's descriptor and covers the whole bytes of the group's bits.

use std::ops::Range;
use std::sync::LazyLock;

use super::checksum::crc32c;
use super::superblock::Superblock;
use crate::limits::MAX_BITMAP_BITS;

/// Whether a bit is set; bits beyond the bitmap are.
pub fn is_set(bytes: &[u8], bit: u32) -> bool {
    bytes.get((bit / 8) as usize).is_none_or(|byte| byte >> (bit % 8) & 1 == 1)
}

/// Sets bits that lie within the bitmap.
pub fn set(bytes: &mut [u8], bits: Range<u32>) {
    each(bits, |at, mask| bytes[at] |= mask);
}

/// Clears bits that lie within the bitmap.
pub fn clear(bytes: &mut [u8], bits: Range<u32>) {
    each(bits, |at, mask| bytes[at] &= !mask);
}

/// Whether all these bits, which lie within the bitmap, are set.
pub fn all_set(bytes: &[u8], bits: Range<u32>) -> bool {
    let mut missing = 0;
    each(bits, |at, mask| missing |= mask & !bytes[at]);
    missing == 0
}

/// Whether all these bits, which lie within the bitmap, are clear.
pub fn all_clear(bytes: &[u8], bits: Range<u32>) -> bool {
    let mut found = 0;
    each(bits, |at, mask| found |= mask & bytes[at]);
    found == 0
}

/// The first clear bit of a range that lies within the bitmap.
pub fn next_clear(bytes: &[u8], bits: Range<u32>) -> Option<u32> {
    let mut at = bits.start;
    while at < bits.end {
        let free = !bytes[(at / 8) as usize] >> (at % 8);
        if free != 0 {
            return Some(at + free.trailing_zeros()).filter(|found| *found < bits.end);
        }
        at = (at / 8 + 1) * 8;
    }
    None
}

/// Clear bits of the first `bits`, which lie within the bitmap.
pub fn count_clear(bytes: &[u8], bits: u32) -> u32 {
    let whole = (bits / 8) as usize;
    let clear: u32 = bytes[..whole].iter().map(|byte| byte.count_zeros()).sum();
    let rest = bits % 8;
    let last = if rest == 0 { 0 } else { (!bytes[whole] & ((1 << rest) - 1)).count_ones() };
    clear + last
}

/// Calls `change` with each byte that holds bits of the range, and which of its bits.
fn each(bits: Range<u32>, mut change: impl FnMut(usize, u8)) {
    if bits.is_empty() {
        return;
    }
    let (first, last) = ((bits.start / 8) as usize, ((bits.end - 1) / 8) as usize);
    let head = 0xff << (bits.start % 8);
    let tail = 0xff >> (7 - (bits.end - 1) % 8);
    if first == last {
        return change(first, head & tail);
    }
    change(first, head);
    (first + 1..last).for_each(|at| change(at, 0xff));
    change(last, tail);
}

/// The checksum of the bitmap of a group's clusters.
pub fn block_sum(bytes: &[u8], superblock: &Superblock) -> u32 {
    sum(bytes, superblock.blocks_per_group / superblock.cluster_ratio, superblock)
}

/// The checksum of the bitmap of a group's inodes.
pub fn inode_sum(bytes: &[u8], superblock: &Superblock) -> u32 {
    sum(bytes, superblock.inodes_per_group, superblock)
}

fn sum(bytes: &[u8], bits: u32, superblock: &Superblock) -> u32 {
    let covered = (bits / 8) as usize;
    crc32c(superblock.checksum_seed, bytes.get(..covered).unwrap_or(bytes))
}

/// By what the checksum of a bitmap of `bits` bits changes (exclusive or) when every bit of a
/// range changes.
///
/// CRC is linear: the change is the sum over the bits, and that of a bit depends on its distance
/// from the end alone. So the change of a run is a difference of two sums over last bits.
pub fn sum_change(bits: u32, changed: Range<u32>) -> u32 {
    let covered = bits / 8 * 8;
    let last = |bit: u32| LAST_BITS[(covered - bit.min(covered)) as usize];
    last(changed.start) ^ last(changed.end)
}

/// At `n` the CRC-32C, from the seed 0, of any number of zero bits and then `n` set ones.
static LAST_BITS: LazyLock<Box<[u32]>> = LazyLock::new(|| {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut sums = Vec::with_capacity(MAX_BITMAP_BITS as usize + 1);
    let (mut sum, mut one) = (0, POLYNOMIAL);
    for _ in 0..=MAX_BITMAP_BITS {
        sums.push(sum);
        sum ^= one;
        one = (one >> 1) ^ (POLYNOMIAL & (one & 1).wrapping_neg());
    }
    sums.into()
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_their_bits(
            mut bytes in proptest::collection::vec(any::<u8>(), 64),
            range in (0u32..512, 0u32..=512),
            value in any::<bool>(),
        ) {
            let range = range.0.min(range.1)..range.1;
            let model: Vec<bool> = (0..512).map(|bit| is_set(&bytes, bit)).collect();
            let within = |wanted| range.clone().all(|bit| model[bit as usize] == wanted);
            prop_assert_eq!(all_set(&bytes, range.clone()), within(true));
            prop_assert_eq!(all_clear(&bytes, range.clone()), within(false));
            prop_assert_eq!(
                next_clear(&bytes, range.clone()),
                range.clone().find(|bit| !model[*bit as usize])
            );
            let clear_bits = model[..range.end as usize].iter().filter(|set| !**set).count();
            prop_assert_eq!(count_clear(&bytes, range.end) as usize, clear_bits);
            if value { set(&mut bytes, range.clone()) } else { clear(&mut bytes, range.clone()) }
            for bit in 0..512 {
                let expected = if range.contains(&bit) { value } else { model[bit as usize] };
                prop_assert_eq!(is_set(&bytes, bit), expected);
            }
            prop_assert!(is_set(&bytes, 512));
        }

        #[test]
        fn a_sum_carries_on(
            seed in any::<u32>(),
            mut bytes in proptest::collection::vec(any::<u8>(), 0..4097),
            range in (0u32..32768, 0u32..32768),
        ) {
            let bits = bytes.len() as u32 * 8;
            let range = range.0.min(bits)..range.1.min(bits).max(range.0.min(bits));
            let before = crc32c(seed, &bytes);
            each(range.clone(), |at, mask| bytes[at] ^= mask);
            prop_assert_eq!(before ^ sum_change(bits, range), crc32c(seed, &bytes));
        }
    }

    #[test]
    fn bits_outside_the_sum_change_nothing() {
        assert_eq!(sum_change(12, 8..12), 0);
        assert_eq!(sum_change(12, 4..12), sum_change(12, 4..8));
    }
}
