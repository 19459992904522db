//! Paths, as the kernel follows them.

use cfs::cache::InodeRecord;
use cfs::disk::inode::Kind;
use cfs::id::Ino;
use rustix::io::Errno;

use super::{NativeSubject, Result, errno};

/// Links that are followed on one path.
const MAX_FOLLOWED: u32 = 40;

/// Where a path leads: its last name in a directory, and what that is.
pub(super) struct Found {
    pub(super) dir: Ino,
    pub(super) name: String,
    pub(super) record: Option<InodeRecord>,
}

impl NativeSubject {
    /// Where a path leads; a link at its end is followed with `follow`.
    pub(super) fn find(&self, path: &str, follow: bool) -> Result<Found> {
        self.walk(self.root, path, follow, &mut 0)
    }

    fn walk(&self, from: Ino, path: &str, follow: bool, followed: &mut u32) -> Result<Found> {
        let client = self.client()?;
        let mut dir = from;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.check_dir(dir)?;
            let record = match client.lookup(dir, part.as_bytes()) {
                Ok(record) => Some(record),
                Err(cfs::Error::NotFound) => None,
                Err(error) => return Err(errno(error)),
            };
            let link = record.as_ref().filter(|record| record.attr.kind == Kind::Symlink);
            let link = link.filter(|_| !last || follow).map(|record| record.attr.ino);
            let mut found = Found { dir, name: part.to_owned(), record };
            if let Some(link) = link {
                *followed += 1;
                if *followed > MAX_FOLLOWED {
                    return Err(Errno::LOOP);
                }
                // Targets are relative to the link's directory.
                let target = client.readlink(link).map_err(errno)?;
                let target = String::from_utf8_lossy(&target).into_owned();
                found = self.walk(dir, &target, true, followed)?;
            }
            if last {
                return Ok(found);
            }
            dir = found.record.ok_or(Errno::NOENT)?.attr.ino;
        }
        Err(Errno::NOENT)
    }

    fn check_dir(&self, ino: Ino) -> Result<()> {
        match self.client()?.stat(ino).map_err(errno)?.kind {
            Kind::Directory => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// What a path leads to.
    pub(super) fn lookup(&self, path: &str, follow: bool) -> Result<InodeRecord> {
        if path == "." {
            return self.client()?.record(self.root).map_err(errno);
        }
        self.find(path, follow)?.record.ok_or(Errno::NOENT)
    }

    /// The directory of a path's last name, which need not be there nor valid.
    pub(super) fn parent<'p>(&self, path: &'p str) -> Result<(Ino, &'p str)> {
        match path.rsplit_once('/') {
            None => Ok((self.root, path)),
            Some((dir, name)) => {
                let ino = self.lookup(dir, true)?.attr.ino;
                self.check_dir(ino)?;
                Ok((ino, name))
            }
        }
    }
}
