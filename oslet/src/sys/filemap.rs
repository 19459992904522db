//! Files mapped for reading, as programs map them: for load on mounts.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

/// A file's bytes in memory, shared with the page cache. A page that cannot be had (the file has
/// become shorter, or its filesystem answers with an error) kills whoever touches it by SIGBUS.
#[derive(Debug)]
pub struct FileMap {
    map: MmapRaw,
}

impl FileMap {
    /// Maps all of a file. It may be closed afterwards.
    pub fn new(file: &File) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().map_raw_read_only(file)? })
    }

    /// Bytes of the file when it was mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes from `offset` on.
    ///
    /// # Panics
    /// If they are not all within the map.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let end = offset.checked_add(out.len());
        assert!(end.is_some_and(|end| end <= self.len()), "{offset} + {} bytes", out.len());
        let start = self.map.as_ptr();
        for (index, byte) in out.iter_mut().enumerate() {
            // SAFETY: within the map, as asserted above. Others may write to the file at any time,
            // so no reference is made, and every byte is read once.
            *byte = unsafe { start.add(offset + index).read_volatile() };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn all_bytes_are_there_and_none_beyond() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..9000).map(|n| n as u8).collect();
        file.write_all(&bytes).unwrap();
        let map = FileMap::new(&file).unwrap();
        drop(file);
        let mut found = vec![0; 5000];
        map.copy_to(4000, &mut found);
        assert_eq!((map.len(), &found[..]), (9000, &bytes[4000..]));
        let beyond = std::panic::AssertUnwindSafe(|| map.copy_to(8999, &mut [0; 2]));
        assert!(std::panic::catch_unwind(beyond).is_err());
    }
}
