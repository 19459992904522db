//! Small images by mke2fs, and volumes made of them.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use cfs::disk::superblock::{OFFSET, RawSuperblock, SIZE};
use cfs::engine::store::{BlockSource, MemSource, Overlay};
use cfs::engine::{Options, Volume};
use cfs::id::Block;
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::Input;

/// Blocks at the end of every image that belong to no file: the input's own blocks lie there.
pub const SCRATCH_BLOCKS: u64 = 8;
/// Changes are counted in places of this many bytes that are not all zero.
const CHUNK: usize = 64;

/// An image that never changes.
pub struct Image {
    /// Its name: what is special about it.
    pub name: String,
    below: Arc<MemSource>,
    size: u64,
    /// Where it is not zero.
    used: Vec<u64>,
}

/// An image's bytes with what is written over them in memory.
pub type Source = Arc<dyn BlockSource>;

/// The volumes, in the order of their names.
pub fn volumes() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| load("volume-"))
}

/// The volumes whose journals are to be replayed, in the order of their names.
pub fn unclean() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| load("journal-"))
}

/// One of the images, as a byte of the input says.
pub fn choose(images: &'static [Image], byte: u8) -> &'static Image {
    &images[usize::from(byte) % images.len()]
}

fn load(prefix: &str) -> Vec<Image> {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/images");
    let dir = std::env::var_os("OSLET_FUZZ_IMAGES").map_or_else(here, PathBuf::from);
    let missing = format!("{}: run `cargo xtask fuzz --seeds`", dir.display());
    let mut paths: Vec<_> =
        dir.read_dir().expect(&missing).map(|entry| entry.expect(&missing).path()).collect();
    paths.sort();
    let mut images = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            images.push(Image::new(name, std::fs::read(&path).expect(&missing)));
        }
    }
    assert!(!images.is_empty(), "{missing}");
    images
}

impl Image {
    fn new(name: String, bytes: Vec<u8>) -> Self {
        let chunks = bytes.chunks(CHUNK).enumerate();
        let used = chunks.filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0));
        let used = used.map(|(index, _)| (index * CHUNK) as u64).collect();
        Self { name, size: bytes.len() as u64, below: Arc::new(MemSource::new(bytes)), used }
    }

    /// The image to write over.
    pub fn source(&self) -> Source {
        Arc::new(Overlay::new(Arc::clone(&self.below)))
    }

    /// The image with all of the input as changes: records of a place (32 bits), a length and the
    /// bytes. With the place's upper bit it counts from the start of the image, else among the
    /// bytes in use. The superblock's checksum is made right again.
    pub fn changed(&self, mut input: Input<'_>) -> Source {
        let source = self.source();
        while !input.is_empty() {
            let place = input.word();
            let bytes = {
                let count = usize::from(input.byte() % 16) + 1;
                input.bytes(count)
            };
            let at = if place >> 31 == 1 {
                u64::from(place & !(1 << 31)) % self.size
            } else {
                let place = place as usize;
                self.used[place / CHUNK % self.used.len()] + (place % CHUNK) as u64
            };
            let room = (self.size - at).min(bytes.len() as u64) as usize;
            source.write_at(at, &bytes[..room]).expect("inside the image");
        }
        seal(&source);
        source
    }
}

/// Makes the superblock's checksum right, which would stop nearly every change to it.
fn seal(source: &Source) {
    let mut bytes = [0; SIZE];
    source.read_at(OFFSET, &mut bytes).expect("a superblock");
    let mut raw = RawSuperblock::read_from_bytes(&bytes).expect("the size of one");
    raw.update_checksum();
    source.write_at(OFFSET, raw.as_bytes()).expect("a superblock");
}

/// The unchanged volume in `source`, with `contents` in its scratch blocks; their first one.
pub fn with_scratch(image: &Image, contents: &[u8]) -> (Volume, Block) {
    let source = image.source();
    let options = Options { metadata_cache: 1 << 20, ..Options::default() };
    let volume = Volume::open(source.clone(), &options).expect("the image is sound");
    let superblock = volume.superblock();
    let first = superblock.blocks_count - SCRATCH_BLOCKS;
    let room = contents.len().min((SCRATCH_BLOCKS as usize) << superblock.block_bits);
    source.write_at(first << superblock.block_bits, &contents[..room]).expect("inside the image");
    (volume, Block(first))
}
