//! Access control lists (POSIX 1003.1e draft 17), and how they and permissions follow each other.

use rustix::io::Errno;

use super::Result;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// Entries of tag, permissions and id, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct List(Vec<(u16, u16, u32)>);

impl List {
    /// A valid list.
    pub(crate) fn new(entries: &[(u16, u16, u32)]) -> Result<Self> {
        let count = |tag: u16| entries.iter().filter(|entry| entry.0 == tag).count();
        let named = count(USER) + count(GROUP) > 0;
        let once = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1);
        let valid = once && count(MASK) <= 1 && (!named || count(MASK) == 1);
        if valid { Ok(Self(entries.to_vec())) } else { Err(Errno::INVAL) }
    }

    pub(crate) fn entries(&self) -> &[(u16, u16, u32)] {
        &self.0
    }

    fn permissions(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|entry| entry.0 == tag).map(|entry| entry.1)
    }

    fn set(&mut self, tag: u16, permissions: u16) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.0 == tag) {
            entry.1 = permissions;
        }
    }

    /// Whether permissions alone do not say all of it.
    pub(crate) fn is_extended(&self) -> bool {
        self.0.iter().any(|entry| matches!(entry.0, USER | GROUP | MASK))
    }

    /// Who the permissions of the group stand for.
    fn group_class(&self) -> u16 {
        if self.permissions(MASK).is_some() { MASK } else { GROUP_OBJ }
    }

    /// The permissions that an inode with this list has.
    pub(crate) fn mode(&self) -> u16 {
        let bits = |tag| self.permissions(tag).unwrap_or(0);
        bits(USER_OBJ) << 6 | bits(self.group_class()) << 3 | bits(OTHER)
    }

    /// Follows chmod(2).
    pub(crate) fn chmod(&mut self, mode: u16) {
        self.set(USER_OBJ, mode >> 6 & 7);
        self.set(self.group_class(), mode >> 3 & 7);
        self.set(OTHER, mode & 7);
    }

    /// Turns a default list into that of a new inode, made with `mode`; its permissions.
    pub(crate) fn created(&mut self, mode: u16) -> u16 {
        let before = self.mode();
        self.chmod(before & mode);
        self.mode()
    }
}
