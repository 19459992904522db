//! Indirect maps: the way from a logical block to the word that holds its place.

/// Pointers in the inode to blocks of data.
pub const DIRECT: u64 = 12;
/// Levels of pointers at most.
pub const MAX_LEVELS: usize = 4;

/// The way to one block's pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    indexes: [u32; MAX_LEVELS],
    levels: usize,
    per_block_bits: u32,
}

impl Path {
    /// The way to a logical block with `2^per_block_bits` pointers in a block; `None` beyond the
    /// reach of three levels.
    pub fn new(logical: u64, per_block_bits: u32) -> Option<Self> {
        let mut indexes = [0; MAX_LEVELS];
        if logical < DIRECT {
            indexes[0] = logical as u32;
            return Some(Self { indexes, levels: 1, per_block_bits });
        }
        let mut rest = logical - DIRECT;
        for level in 1..MAX_LEVELS {
            let reach = 1u64 << (per_block_bits * level as u32);
            if rest < reach {
                indexes[0] = (DIRECT as u32) + level as u32 - 1;
                for (i, index) in indexes.iter_mut().enumerate().take(level + 1).skip(1) {
                    let shift = per_block_bits * (level - i) as u32;
                    *index = ((rest >> shift) & ((1 << per_block_bits) - 1)) as u32;
                }
                return Some(Self { indexes, levels: level + 1, per_block_bits });
            }
            rest -= reach;
        }
        None
    }

    /// The index of the pointer at each level: first of the 15 in the inode, then within blocks.
    pub fn indexes(&self) -> &[u32] {
        &self.indexes[..self.levels]
    }

    /// How many pointers to data, this one and those after it, lie together in its table, with
    /// `per_block` of them in a block.
    pub fn together(&self, per_block: u32) -> u64 {
        let last = self.indexes[self.levels - 1];
        let end = if self.levels == 1 { DIRECT as u32 } else { per_block };
        (end - last).into()
    }

    /// How many logical blocks, this one and those after it, hang below the pointer at a level.
    pub fn blocks_below(&self, level: usize) -> u64 {
        let below = &self.indexes[level + 1..self.levels];
        let offset =
            below.iter().fold(0u64, |sum, &index| (sum << self.per_block_bits) | u64::from(index));
        (1u64 << (self.per_block_bits * below.len() as u32)) - offset
    }
}

/// Logical blocks that a map can have.
pub fn reach(per_block_bits: u32) -> u64 {
    DIRECT + (1..MAX_LEVELS as u32).map(|levels| 1u64 << (per_block_bits * levels)).sum::<u64>()
}

/// Tables of a map whose first `blocks` blocks are all there.
pub fn tables(blocks: u64, per_block_bits: u32) -> u64 {
    let mut rest = blocks.saturating_sub(DIRECT);
    let mut tables = 0;
    for levels in 1..MAX_LEVELS as u32 {
        let here = rest.min(1 << (per_block_bits * levels));
        tables +=
            (1..=levels).map(|level| here.div_ceil(1 << (per_block_bits * level))).sum::<u64>();
        rest -= here;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_counted_at_all_levels() {
        assert_eq!(reach(8), 12 + 256 + 65536 + (1 << 24));
        assert_eq!([0, 12, 13, 268, 269].map(|blocks| tables(blocks, 8)), [0, 0, 1, 1, 3]);
        assert_eq!(tables(268 + 65536, 8), 1 + 257);
        assert_eq!(tables(268 + 65536 + 1, 8), 1 + 257 + 3);
    }

    #[test]
    fn the_ways_of_a_volume_with_1_kib_blocks() {
        let way = |logical| Path::new(logical, 8).map(|path| path.indexes().to_vec());
        assert_eq!(way(0), Some(vec![0]));
        assert_eq!(way(11), Some(vec![11]));
        assert_eq!(way(12), Some(vec![12, 0]));
        assert_eq!(way(267), Some(vec![12, 255]));
        assert_eq!(way(268), Some(vec![13, 0, 0]));
        assert_eq!(way(268 + 65535), Some(vec![13, 255, 255]));
        assert_eq!(way(268 + 65536), Some(vec![14, 0, 0, 0]));
        assert_eq!(way(268 + 65536 + (1 << 24) - 1), Some(vec![14, 255, 255, 255]));
        assert_eq!(way(268 + 65536 + (1 << 24)), None);
    }

    #[test]
    fn a_missing_pointer_hides_the_rest_of_its_subtree() {
        let path = Path::new(268 + 257, 8).unwrap();
        assert_eq!(path.indexes(), [13, 1, 1]);
        assert_eq!([0, 1, 2].map(|level| path.blocks_below(level)), [65536 - 257, 255, 1]);
    }
}
