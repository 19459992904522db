//! Times of inodes.

/// A moment since 1970 began, before it if `seconds` is negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// From a field of 32 signed bits and, in large inodes, its extra bits: two that count further
    /// 2^32 seconds each (so that times reach to 2446), then 30 of nanoseconds.
    pub fn decode(seconds: u32, extra: Option<u32>) -> Self {
        let extra = extra.unwrap_or(0);
        Self {
            seconds: i64::from(seconds as i32) + (i64::from(extra & 3) << 32),
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_kernel_document() {
        let seconds = |seconds, extra| Timestamp::decode(seconds, extra).seconds;
        assert_eq!(seconds(0xffff_ffff, None), -1);
        assert_eq!(seconds(0x8000_0000, Some(0)), -0x8000_0000);
        assert_eq!(seconds(0x8000_0000, Some(1)), 0x8000_0000);
        assert_eq!(seconds(0x7fff_ffff, Some(1)), 0x1_7fff_ffff);
        assert_eq!(seconds(0x7fff_ffff, Some(3)), 0x3_7fff_ffff);
        let nanoseconds = Timestamp::decode(0, Some(123_456_789 << 2)).nanoseconds;
        assert_eq!(nanoseconds, 123_456_789);
    }
}
