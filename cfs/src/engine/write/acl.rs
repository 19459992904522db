//! POSIX ACLs: set, followed by the mode, and inherited.

use super::xattr::{Key, Layout, XattrFlags};
use super::{Live, Writer, now};
use crate::disk::acl::edit::{Acl, Refusal};
use crate::disk::inode::Kind;
use crate::disk::xattr::NameIndex;
use crate::{Caller, Error, Result};

/// What a new inode gets from its directory's default ACL, or else from the umask.
pub(super) struct Inherited<'a> {
    pub(super) mode: u16,
    /// Where the attributes lie in the new inode; none if it has none.
    pub(super) layout: Option<Layout<'a>>,
}

const ACCESS: Key<'_> = Key { index: NameIndex::ACL_ACCESS, name: b"" };
const DEFAULT: Key<'_> = Key { index: NameIndex::ACL_DEFAULT, name: b"" };
const RIGHTS: u16 = 0o777;
const SETGID: u16 = 0o2000;

impl Writer {
    /// Sets an ACL, or removes it: without a value, or by one without entries.
    pub(super) fn set_acl(
        &self,
        caller: &Caller,
        live: &mut Live,
        index: NameIndex,
        acl: Option<Acl>,
    ) -> Result<()> {
        if live.inode.kind == Kind::Symlink {
            return Err(Error::Unsupported(format!("{}: a link has no acl", live.inode.ino)));
        }
        if index == NameIndex::ACL_DEFAULT && live.inode.kind != Kind::Directory {
            return if acl.is_some() { Err(Error::AccessDenied) } else { Ok(()) };
        }
        if !caller.privileged && caller.uid != live.inode.uid {
            return Err(Error::NotPermitted);
        }
        if let Some(acl) = &acl {
            acl.check().map_err(Error::Invalid)?;
        }
        if index == NameIndex::ACL_DEFAULT {
            return self.put_acl(caller, live, DEFAULT, acl, None);
        }
        let Some(acl) = acl else { return self.put_acl(caller, live, ACCESS, None, None) };
        let (rights, plain) = acl.mode();
        let mut mode = live.inode.mode & !RIGHTS | rights;
        if !caller.privileged && caller.gid != live.inode.gid {
            mode &= !SETGID;
        }
        let acl = Some(acl).filter(|_| !plain);
        self.put_acl(caller, live, ACCESS, acl, Some(mode))
    }

    fn put_acl(
        &self,
        caller: &Caller,
        live: &mut Live,
        key: Key<'_>,
        acl: Option<Acl>,
        mode: Option<u16>,
    ) -> Result<()> {
        let disk = acl.map(|acl| acl.to_disk());
        let mode = mode.unwrap_or(live.inode.mode);
        match self.lay_out(caller, live, key, disk.as_deref(), XattrFlags::empty())? {
            Some(layout) => {
                self.change_attributes(caller, live, layout, |live| live.inode.mode = mode)
            }
            None => {
                live.inode.mode = mode;
                live.inode.ctime = now();
                let mut handle = self.begin(Self::STORE_CREDITS)?;
                self.store(&mut handle, live)
            }
        }
    }

    /// How the attributes lie when the access ACL follows a new mode; `None` without such an ACL.
    pub(super) fn follow_mode(
        &self,
        caller: &Caller,
        live: &Live,
        mode: u16,
    ) -> Result<Option<Layout<'_>>> {
        let Some(mut acl) = self.acl(live, ACCESS)? else { return Ok(None) };
        acl.set_mode(mode);
        self.lay_out(caller, live, ACCESS, Some(&acl.to_disk()), XattrFlags::empty())
    }

    fn acl(&self, live: &Live, key: Key<'_>) -> Result<Option<Acl>> {
        match self.attribute(live, key)? {
            Some(disk) => Acl::from_disk(&disk).map_err(|why| Error::corrupt(live.inode.ino, why)),
            None => Ok(None),
        }
    }

    /// What an inode that is made in a directory gets.
    pub(super) fn inherited(
        &self,
        caller: &Caller,
        dir: &Live,
        mode: u16,
        umask: u16,
    ) -> Result<Inherited<'_>> {
        let kind = Kind::from_mode(mode);
        let masked = |mode| Inherited { mode, layout: None };
        if kind == Some(Kind::Symlink) {
            return Ok(masked(mode));
        }
        let Some(default) = self.acl(dir, DEFAULT)? else {
            return Ok(masked(mode & !(umask & RIGHTS)));
        };
        let (access, mode) = default.inherit(mode);
        let mut attributes = Vec::new();
        if kind == Some(Kind::Directory) {
            attributes.push((DEFAULT, default.to_disk()));
        }
        attributes.extend(access.iter().map(|acl| (ACCESS, acl.to_disk())));
        let layout = match &attributes[..] {
            [] => None,
            some => Some(self.first_layout(caller, &dir.inode, some, self.new_room())?),
        };
        Ok(Inherited { mode, layout })
    }

    /// Bytes for attributes in a new inode.
    fn new_room(&self) -> usize {
        let superblock = self.volume.superblock();
        superblock.inode_size as usize
            - crate::limits::MIN_INODE_SIZE as usize
            - superblock.new_extra_isize as usize
    }
}

/// The ACL in an attribute's value; whether it is complete is still to be checked.
pub(super) fn parse(value: Option<&[u8]>) -> Result<Option<Acl>> {
    match value {
        Some(value) if !value.is_empty() => Acl::parse(value).map_err(refused),
        _ => Ok(None),
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Version(version) => {
            Error::Unsupported(format!("acl of version {version} is unknown"))
        }
        Refusal::Entries(why) => Error::Invalid(why),
    }
}
