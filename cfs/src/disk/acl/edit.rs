//! POSIX ACLs as they are set: what setxattr(2) gives, what modes make of them, and what is
//! inherited. The rules are those of acl(5) and of the kernel's `posix_acl`.

use super::{ATTRIBUTE_VERSION, DISK_VERSION, UNDEFINED_ID, take};

/// An ACL that is complete: owner, group and others are there once, and a mask if anybody is
/// named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    rights: u16,
    id: u32,
}

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
const ALL: u16 = 7;

/// Why an attribute's value makes no ACL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It has a version that is unknown.
    Version(u32),
    /// Its entries contradict the rules.
    Entries(String),
}

impl Acl {
    /// From the value that setxattr(2) takes; `None` for one without entries, which removes.
    pub fn from_attribute(value: &[u8]) -> Result<Option<Self>, Refusal> {
        let acl = Self::parse(value)?;
        if let Some(acl) = &acl {
            acl.check().map_err(Refusal::Entries)?;
        }
        Ok(acl)
    }

    /// The same, but whether it is complete is still to be [`Self::check`]ed.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, Refusal> {
        let (version, rest) = take(value).map_err(Refusal::Entries)?;
        let version = u32::from_le_bytes(version);
        if version != ATTRIBUTE_VERSION {
            return Err(Refusal::Version(version));
        }
        let (heads, rest) = rest.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Refusal::Entries("acl that ends in an entry".into()));
        }
        if heads.is_empty() {
            return Ok(None);
        }
        let entries = heads.iter().map(|&[t0, t1, r0, r1, i0, i1, i2, i3]| Entry {
            tag: u16::from_le_bytes([t0, t1]),
            rights: u16::from_le_bytes([r0, r1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
        });
        let acl = Self { entries: entries.collect() };
        let known = |entry: &Entry| match entry.tag {
            USER | NAMED_GROUP => entry.id != UNDEFINED_ID,
            OWNER | GROUP | MASK | OTHERS => true,
            _ => false,
        };
        if let Some(entry) = acl.entries.iter().find(|entry| !known(entry)) {
            let Entry { tag, id, .. } = entry;
            return Err(Refusal::Entries(format!("acl entry of type {tag:#x} for id {id}")));
        }
        Ok(Some(acl))
    }

    /// From its bytes on disk.
    pub fn from_disk(disk: &[u8]) -> Result<Option<Self>, String> {
        Self::from_attribute(&super::to_attribute(disk)?).map_err(|refusal| match refusal {
            Refusal::Version(version) => format!("acl of version {version}"),
            Refusal::Entries(why) => why,
        })
    }

    /// Owner, named users, group, named groups, mask, others: in this order.
    pub fn check(&self) -> Result<(), String> {
        let mut last = 0;
        for entry in &self.entries {
            let named = matches!(entry.tag, USER | NAMED_GROUP);
            if entry.rights & !ALL != 0 {
                let Entry { tag, rights, .. } = entry;
                return Err(format!("acl entry of type {tag:#x} with rights {rights:#o}"));
            }
            if entry.tag < last || (entry.tag == last && !named) {
                return Err("acl entries out of order".into());
            }
            last = entry.tag;
        }
        let has = |tag| self.entries.iter().any(|entry| entry.tag == tag);
        let masked = has(MASK) || !(has(USER) || has(NAMED_GROUP));
        if has(OWNER) && has(GROUP) && has(OTHERS) && masked {
            Ok(())
        } else {
            Err("acl without an owner, a group, others, or a mask for who is named".into())
        }
    }

    /// Its bytes on disk.
    pub fn to_disk(&self) -> Vec<u8> {
        let mut disk = DISK_VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            disk.extend(entry.tag.to_le_bytes());
            disk.extend(entry.rights.to_le_bytes());
            if matches!(entry.tag, USER | NAMED_GROUP) {
                disk.extend(entry.id.to_le_bytes());
            }
        }
        disk
    }

    /// The permissions that a mode shows for it, and whether they say all of it.
    pub fn mode(&self) -> (u16, bool) {
        let rights = |tag| self.find(tag).map_or(0, |at| self.entries[at].rights);
        let group = if self.find(MASK).is_some() { rights(MASK) } else { rights(GROUP) };
        let mode = rights(OWNER) << 6 | group << 3 | rights(OTHERS);
        (mode, self.entries.len() == 3)
    }

    /// What it becomes when the mode of its inode does.
    pub fn set_mode(&mut self, mode: u16) {
        let group = self.find(MASK).or(self.find(GROUP));
        for (at, shift) in [(self.find(OWNER), 6), (group, 3), (self.find(OTHERS), 0)] {
            if let Some(at) = at {
                self.entries[at].rights = mode >> shift & ALL;
            }
        }
    }

    /// The access ACL, and the mode, of an inode that is made with `mode` under this default ACL.
    /// The ACL is `None` if the mode says all of it.
    pub fn inherit(&self, mode: u16) -> (Option<Self>, u16) {
        let mut acl = self.clone();
        let (own, plain) = acl.mode();
        let rights = own & mode & 0o777;
        acl.set_mode(rights);
        ((!plain).then_some(acl), mode & !0o777 | rights)
    }

    fn find(&self, tag: u16) -> Option<usize> {
        self.entries.iter().position(|entry| entry.tag == tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(rights.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const NONE: u32 = u32::MAX;

    fn named() -> Acl {
        let entries = [
            (1, 7, NONE),
            (2, 6, 1000),
            (4, 5, NONE),
            (8, 4, 50),
            (0x10, 6, NONE),
            (0x20, 1, NONE),
        ];
        Acl::from_attribute(&value(&entries)).unwrap().unwrap()
    }

    #[test]
    fn to_disk_and_back() {
        let acl = named();
        assert_eq!(acl.to_disk().len(), 4 + 4 * 4 + 2 * 8);
        assert_eq!(Acl::from_disk(&acl.to_disk()), Ok(Some(acl)));
        assert_eq!(Acl::from_attribute(&value(&[])), Ok(None));
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        for entries in [
            &[(1, 7, NONE)][..],
            &[(1, 7, NONE), (4, 5, NONE), (0x20, 8, NONE)],
            &[(4, 5, NONE), (1, 7, NONE), (0x20, 1, NONE)],
            &[(1, 7, NONE), (1, 7, NONE), (4, 5, NONE), (0x20, 1, NONE)],
            &[(1, 7, NONE), (2, 7, 5), (4, 5, NONE), (0x20, 1, NONE)],
            &[(1, 7, NONE), (2, 7, NONE), (4, 5, NONE), (0x10, 7, NONE), (0x20, 1, NONE)],
            &[(1, 7, NONE), (4, 5, NONE), (0x20, 1, NONE), (0x40, 1, NONE)],
        ] {
            let refused = Acl::from_attribute(&value(entries));
            assert!(matches!(refused, Err(Refusal::Entries(_))), "{entries:?}");
        }
        assert_eq!(Acl::from_attribute(&[1, 0, 0, 0]), Err(Refusal::Version(1)));
        assert!(Acl::from_attribute(&[2, 0, 0, 0, 1]).is_err());
        assert!(Acl::from_attribute(&[2, 0]).is_err());
    }

    #[test]
    fn a_mode_shows_the_mask_as_the_group() {
        let mut acl = named();
        assert_eq!(acl.mode(), (0o761, false));
        acl.set_mode(0o640);
        assert_eq!(acl.mode(), (0o640, false));
        let plain = value(&[(1, 7, NONE), (4, 5, NONE), (0x20, 1, NONE)]);
        let plain = Acl::from_attribute(&plain).unwrap().unwrap();
        assert_eq!(plain.mode(), (0o751, true));
    }

    #[test]
    fn new_inodes_get_what_both_allow() {
        let (acl, mode) = named().inherit(0o100_666);
        assert_eq!(mode, 0o100_660);
        assert_eq!(acl.unwrap().mode(), (0o660, false));
        let plain = value(&[(1, 7, NONE), (4, 5, NONE), (0x20, 5, NONE)]);
        let plain = Acl::from_attribute(&plain).unwrap().unwrap();
        assert_eq!(plain.inherit(0o042_770), (None, 0o042_750));
    }
}
