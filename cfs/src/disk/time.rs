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

    /// The first moment that an inode can hold.
    pub const MIN: Self = Self { seconds: i32::MIN as i64, nanoseconds: 0 };

    /// The nearest moment that an inode can hold: `wide` says whether it has extra bits, without
    /// which times end in 2038 and have no fractions.
    pub fn clamped(self, wide: bool) -> Self {
        let last = if wide { (3 << 32) + i64::from(i32::MAX) } else { i32::MAX.into() };
        if self.seconds < Self::MIN.seconds {
            Self::MIN
        } else if self.seconds > last {
            Self { seconds: last, nanoseconds: 0 }
        } else {
            Self { nanoseconds: if wide { self.nanoseconds } else { 0 }, ..self }
        }
    }

    /// The field of 32 bits and the extra bits, which [`Self::decode`] takes apart again. Without
    /// room for the extra bits, clamp first.
    pub fn encode(self, wide: bool) -> (u32, u32) {
        let Self { seconds, nanoseconds } = self.clamped(wide);
        let low = seconds as i32;
        let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
        (low as u32, epoch | nanoseconds << 2)
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

    #[test]
    fn what_is_encoded_is_decoded() {
        let last = (3 << 32) + i64::from(i32::MAX);
        for seconds in [i64::from(i32::MIN), -1, 0, 1 << 31, (1 << 32) - 1, 1 << 32, last] {
            let time = Timestamp { seconds, nanoseconds: 999_999_999 };
            let time = time.clamped(true);
            let (low, extra) = time.encode(true);
            assert_eq!(Timestamp::decode(low, Some(extra)), time);
        }
        let late = Timestamp { seconds: last + 1, nanoseconds: 5 };
        assert_eq!(late.clamped(true), Timestamp { seconds: last, nanoseconds: 0 });
        assert_eq!(late.encode(false), (i32::MAX as u32, 0));
        let early = Timestamp { seconds: i64::MIN, nanoseconds: 5 };
        assert_eq!(early.encode(true), (0x8000_0000, 0));
    }
}
