//! Names and paths, looked up in what is published. On the way nothing is made of a record: its
//! words are copied once, and the caller makes an [`InodeRecord`](crate::cache::InodeRecord) of
//! them where it is wanted.

use super::view::View;
use crate::cache::{Head, Name, has_target};
use crate::disk::inode::Kind;
use crate::id::Ino;

/// What is published of a name.
pub(super) enum Known {
    /// It leads to an inode, whose record's head has been copied.
    Record(Ino),
    /// It leads to an inode, of which more must be looked for.
    Inode(Ino),
    /// There is no such name.
    Absent,
    /// Nothing.
    Unknown,
}

impl View {
    /// What a name leads to.
    #[inline(always)]
    pub(super) fn look_up(&self, name: &Name<'_>, head: &mut Head) -> Known {
        match self.names(name).and_then(|names| names.find(name)) {
            None => Known::Unknown,
            Some(None) => Known::Absent,
            Some(Some(ino)) => match &self.inodes {
                Some(inodes) if inodes.read(ino, head) && !has_target(head) => Known::Record(ino),
                _ => Known::Inode(ino),
            },
        }
    }

    /// Follows a path from the root whose names lead through directories to something other than a
    /// symbolic link. Returns whether all that is published; if so, the head of the last one's
    /// record has been copied.
    #[inline]
    pub(super) fn walk(&self, path: &[u8], head: &mut Head) -> bool {
        let (mut dir, mut rest) = (Ino::ROOT, path);
        loop {
            let (name, behind) = split(rest);
            rest = behind;
            if name.is_empty() {
                // A slash at the start, or two; or at the end, where there is no last name.
                if rest.is_empty() {
                    return false;
                }
                continue;
            }
            let Some(name) = Name::new(dir, name) else { return false };
            if rest.is_empty() {
                return matches!(self.look_up(&name, head), Known::Record(_))
                    && Kind::from_mode(head[1] as u16) != Some(Kind::Symlink);
            }
            match self.directory(&name) {
                Some(ino) => dir = ino,
                None => return false,
            }
        }
    }

    /// The directory that a name leads to.
    #[inline(always)]
    pub(super) fn directory(&self, name: &Name<'_>) -> Option<Ino> {
        let ino = self.names(name)?.find(name)??;
        self.inodes.as_ref()?.is_directory(ino)?.then_some(ino)
    }
}

/// What lies before the first slash of a path, and what behind it.
#[inline(always)]
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let mut at = 0;
    while let Some(eight) = path[at..].first_chunk::<8>() {
        let differs = u64::from_le_bytes(*eight) ^ (ONES * b'/' as u64);
        // The lowest byte that is zero has its high bit set; those above it may have.
        let slashes = differs.wrapping_sub(ONES) & !differs & HIGHS;
        if slashes != 0 {
            at += slashes.trailing_zeros() as usize / 8;
            return (&path[..at], &path[at + 1..]);
        }
        at += 8;
    }
    match path[at..].iter().position(|&byte| byte == b'/') {
        Some(found) => (&path[..at + found], &path[at + found + 1..]),
        None => (path, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_path_is_split_at_its_first_slash(path in "[a/\\x00\\x2e\\x30\\u{00af}]{0,40}") {
            let path = path.as_bytes();
            let mut parts = path.splitn(2, |&byte| byte == b'/');
            let expected = (parts.next().unwrap(), parts.next().unwrap_or(&[]));
            prop_assert_eq!(split(path), expected);
        }
    }
}
