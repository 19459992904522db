//! The three hashes of names: the format's first one, half of MD4, and TEA.

/// How a volume hashes names: the seed, and whether bytes over 127 count as negative numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashSeed {
    /// The seed; all zero stands for the algorithm's own.
    pub seed: [u32; 4],
    /// Whether bytes are unsigned.
    pub unsigned: bool,
}

const FLAG_SIGNED_HASH: u32 = 1;
const FLAG_UNSIGNED_HASH: u32 = 2;

impl HashSeed {
    /// From the superblock's seed and flags. A volume that says neither is taken to have been
    /// written where it is read, by whose `char` it goes.
    pub fn new(seed: [u32; 4], flags: u32) -> Self {
        let unsigned = match (flags & FLAG_UNSIGNED_HASH != 0, flags & FLAG_SIGNED_HASH != 0) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => std::ffi::c_char::MIN == 0,
        };
        Self { seed, unsigned }
    }

    /// A byte as a number.
    fn value(&self, byte: u8) -> u32 {
        if self.unsigned { byte.into() } else { byte as i8 as u32 }
    }
}

/// A hash of names with all that it depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashVersion {
    algorithm: Algorithm,
    seed: HashSeed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Algorithm {
    Legacy,
    HalfMd4,
    Tea,
    /// A name's first byte alone: so that many names have the same hash.
    #[cfg(test)]
    Coarse,
}

/// The largest hash marks the end of a directory and is never a name's.
const END: u32 = 0xffff_fffe;

impl HashVersion {
    /// The algorithm with that number in a directory's root, if it is known.
    pub fn new(number: u8, seed: &HashSeed) -> Option<Self> {
        let algorithm = match number {
            0 => Algorithm::Legacy,
            1 => Algorithm::HalfMd4,
            2 => Algorithm::Tea,
            _ => return None,
        };
        Some(Self { algorithm, seed: *seed })
    }

    /// A hash under which many names are alike.
    #[cfg(test)]
    pub(crate) fn coarse(seed: &HashSeed) -> Self {
        Self { algorithm: Algorithm::Coarse, seed: *seed }
    }

    /// What it was made with.
    pub fn seed(&self) -> &HashSeed {
        &self.seed
    }

    /// The hash of a name; its bit 0 is 0.
    pub fn hash(&self, name: &[u8]) -> u32 {
        let hash = match self.algorithm {
            Algorithm::Legacy => self.legacy(name),
            Algorithm::HalfMd4 => {
                let mut state = self.start();
                for words in self.chunks::<8>(name) {
                    half_md4(&mut state, &words);
                }
                state[1]
            }
            Algorithm::Tea => {
                let mut state = self.start();
                for words in self.chunks::<4>(name) {
                    tea(&mut state, &words);
                }
                state[0]
            }
            #[cfg(test)]
            Algorithm::Coarse => name.first().map_or(0, |&byte| u32::from(byte) << 24),
        } & !1;
        if hash == END { END - 2 } else { hash }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
        for &byte in name {
            let product = self.seed.value(byte).wrapping_mul(7_152_373);
            let mut next = before.wrapping_add(last ^ product);
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(0x7fff_ffff);
            }
            (before, last) = (last, next);
        }
        last << 1
    }

    /// The state before the first chunk: MD4's own where the volume has no seed.
    fn start(&self) -> [u32; 4] {
        if self.seed.seed == [0; 4] {
            [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
        } else {
            self.seed.seed
        }
    }

    /// A name in chunks of `N` words; the last one is padded with the count of bytes left.
    fn chunks<'a, const N: usize>(&'a self, name: &'a [u8]) -> impl Iterator<Item = [u32; N]> + 'a {
        (0..name.len()).step_by(N * 4).map(move |start| {
            let rest = &name[start..];
            let count = rest.len() as u32 & 0xff;
            let pad = (count | count << 8) | (count | count << 8) << 16;
            let mut words = [pad; N];
            for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
                for &byte in bytes {
                    *word = self.seed.value(byte).wrapping_add(*word << 8);
                }
            }
            words
        })
    }
}

/// The first three rounds of MD4 over eight words, as "half MD4" has them.
fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, &word) in order.iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(words[word].wrapping_add(constant))
                .rotate_left(shifts[step % 4]);
            // The next step works on d, then c, then b, then a again.
            (a, b, c, d) = (d, sum, b, c);
        }
    }
    for (word, mixed) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(mixed);
    }
}

/// Sixteen rounds of the Tiny Encryption Algorithm with the words as its key.
fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [mut x, mut y, ..] = *state;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(
            (y << 4).wrapping_add(key[0]) ^ y.wrapping_add(sum) ^ (y >> 5).wrapping_add(key[1]),
        );
        y = y.wrapping_add(
            (x << 4).wrapping_add(key[2]) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(key[3]),
        );
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

#[cfg(test)]
mod tests;
