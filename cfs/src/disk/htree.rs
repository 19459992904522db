//! Hashed directories: the hash of names.

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
}
