//! The control page: the few words that all runtimes may change, by compare-and-swap only.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};

use super::Backing;
use super::layout::{self, control};
use super::map::{Mapping, One, Rw};
use crate::id::{Epoch, OsletId};
use crate::member::word::Membership;
use crate::sync::{AtomicU64, Ordering};
use crate::{Error, Result, limits};

/// The random identity of one run of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterId(pub [u64; 2]);

impl ClusterId {
    /// A new identity from the kernel's random numbers.
    pub fn random() -> Result<Self> {
        let mut bytes = [0u8; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(Error::io("getrandom"))?;
        let (low, high) = bytes.split_at(8);
        let word = |half: &[u8]| u64::from_ne_bytes(half.try_into().unwrap_or_default());
        Ok(Self([word(low), word(high)]))
    }
}

/// Who serves an object, complete in one word.
///
/// Bits 0-31 the owner's epoch, 32-39 the owner plus one (zero: nobody), 40-47 the owner before it
/// plus one, 48 set while the owner recovers and does not serve yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ownership {
    /// The owner and the incarnation in which it took the object.
    pub owner: Option<(OsletId, Epoch)>,
    /// Who owned it before.
    pub predecessor: Option<OsletId>,
    /// Taken, but not served yet.
    pub recovering: bool,
    /// Served to be read only. Others cache for ever then, so no successor may change that.
    pub read_only: bool,
}

/// The bits of an ownership word that say who and in which incarnation.
const OWNER_TAG: u64 = (1 << 40) - 1;

impl Ownership {
    /// As the control page has it.
    pub fn to_word(self) -> u64 {
        let (owner, epoch) =
            self.owner.map_or((0, 0), |(oslet, epoch)| (oslet.index() as u64 + 1, epoch.0));
        let predecessor = self.predecessor.map_or(0, |oslet| oslet.index() as u64 + 1);
        let flags = u64::from(self.recovering) | u64::from(self.read_only) << 1;
        u64::from(epoch) | owner << 32 | predecessor << 40 | flags << 48
    }

    /// The owner and its incarnation as one number, zero for nobody: to see whether it changed.
    pub fn tag(self) -> u64 {
        self.to_word() & OWNER_TAG
    }

    fn from_word(word: u64) -> Result<Self> {
        let oslet = |byte: u8| match byte {
            0 => Ok(None),
            n => match OsletId::new(n as usize - 1) {
                Some(oslet) => Ok(Some(oslet)),
                None => Err(()),
            },
        };
        let parse = || -> std::result::Result<Self, ()> {
            let owner = oslet((word >> 32) as u8)?.map(|owner| (owner, Epoch(word as u32)));
            let predecessor = oslet((word >> 40) as u8)?;
            if word >> 50 != 0 {
                return Err(());
            }
            let flag = |bit: u32| word >> bit & 1 == 1;
            Ok(Self { owner, predecessor, recovering: flag(48), read_only: flag(49) })
        };
        parse().map_err(|()| Error::Corrupt {
            peer: "control page".into(),
            what: format!("{word:#x} is no ownership"),
        })
    }
}

/// The word that says who owns an object.
#[derive(Debug)]
pub struct OwnerWord(One);

impl OwnerWord {
    /// [`Ownership::to_word`] of who owns it now.
    #[inline(always)]
    pub fn word(&self) -> u64 {
        // SYNC POINT: ownership
        self.0.load(Ordering::SeqCst)
    }

    /// [`Ownership::tag`] of who owns it now.
    #[inline(always)]
    pub fn tag(&self) -> u64 {
        self.word() & OWNER_TAG
    }
}

/// The control page as one process has it mapped.
#[derive(Debug)]
pub struct ControlPage {
    file: File,
    members: Rw<AtomicU64>,
    owners: Rw<AtomicU64>,
    cluster: ClusterId,
    oslets: usize,
    name: String,
    /// Unlinked when the process that made it drops it.
    path: Option<PathBuf>,
}

impl ControlPage {
    /// Makes the control page of a new cluster of `oslets` OSlets.
    ///
    /// A named region file is locked (flock) for as long as any process has it open, so that a
    /// second cluster is refused; leftovers of a crashed one are taken over when they have this
    /// layout version.
    pub fn create(backing: &Backing, name: &str, oslets: usize) -> Result<Self> {
        if oslets == 0 || oslets > limits::MAX_OSLETS {
            return Err(Error::Invalid(format!(
                "{oslets} OSlets: a cluster has 1 to {}",
                limits::MAX_OSLETS
            )));
        }
        if name.len() > limits::MAX_NAME {
            return Err(Error::Invalid(format!(
                "cluster name \"{name}\": {} bytes, at most {} are possible",
                name.len(),
                limits::MAX_NAME
            )));
        }
        let (file, path) = match backing {
            Backing::Memfd | Backing::Hugetlb => (control_memfd()?, None),
            Backing::File(path) => (claim_region_file(path)?, Some(path.clone())),
        };
        let reserve = || -> rustix::io::Result<()> {
            rustix::fs::ftruncate(&file, control::LEN as u64)?;
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, control::LEN as u64)
        };
        reserve().map_err(Error::io("control page: reserve"))?;
        if path.is_none() {
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals).map_err(Error::io("control page: seal"))?;
        }
        let map = Arc::new(Mapping::new(&file, control::LEN, true, "control page")?);
        let words = map.words_mut::<AtomicU64>(0, control::LEN / 8)?;
        for index in 0..words.len() {
            words.store(index, 0, Ordering::Relaxed);
        }
        let cluster = ClusterId::random()?;
        words.store(control::VERSION / 8, layout::version_word(), Ordering::Relaxed);
        words.store(control::CLUSTER / 8, cluster.0[0], Ordering::Relaxed);
        words.store(control::CLUSTER / 8 + 1, cluster.0[1], Ordering::Relaxed);
        words.store(control::OSLETS / 8, oslets as u64, Ordering::Relaxed);
        for (index, chunk) in name.as_bytes().chunks(8).enumerate() {
            let mut bytes = [0u8; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            words.store(control::NAME / 8 + index, u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        // SYNC POINT: control page made
        words.store(control::MAGIC / 8, layout::CONTROL_MAGIC, Ordering::Release);
        Self::from_map(file, &map, path)
    }

    /// Maps the control page of a running cluster from a descriptor of it.
    pub fn open(file: File) -> Result<Self> {
        let map = Arc::new(Mapping::new(&file, control::LEN, true, "control page")?);
        Self::from_map(file, &map, None)
    }

    fn from_map(file: File, map: &Arc<Mapping>, path: Option<PathBuf>) -> Result<Self> {
        let words = map.words::<AtomicU64>(0, control::LEN / 8)?;
        let word = |offset: usize| words.load(offset / 8, Ordering::Relaxed);
        // SYNC POINT: control page made
        if words.load(control::MAGIC / 8, Ordering::Acquire) != layout::CONTROL_MAGIC {
            return Err(Error::Invalid("control page: this is no region of oslet".into()));
        }
        check_version(word(control::VERSION), "control page")?;
        let oslets = word(control::OSLETS);
        if oslets == 0 || oslets > limits::MAX_OSLETS as u64 {
            return Err(Error::Corrupt {
                peer: "control page".into(),
                what: format!("it says {oslets} OSlets"),
            });
        }
        let mut name = Vec::with_capacity(limits::MAX_NAME);
        for index in 0..limits::MAX_NAME / 8 {
            name.extend_from_slice(&word(control::NAME + 8 * index).to_ne_bytes());
        }
        name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
        Ok(Self {
            file,
            members: map.words_mut(control::MEMBERS, limits::MAX_OSLETS)?,
            owners: map.words_mut(control::OWNERS, limits::MAX_OWNED_OBJECTS)?,
            cluster: ClusterId([word(control::CLUSTER), word(control::CLUSTER + 8)]),
            oslets: oslets as usize,
            name: String::from_utf8_lossy(&name).into_owned(),
            path,
        })
    }

    /// The cluster's identity.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many OSlets this cluster has.
    pub fn oslets(&self) -> usize {
        self.oslets
    }

    /// All its OSlets' ids.
    pub fn oslet_ids(&self) -> impl Iterator<Item = OsletId> + use<> {
        (0..self.oslets).filter_map(OsletId::new)
    }

    /// The descriptor, to pass to other processes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The membership of an OSlet.
    pub fn member(&self, oslet: OsletId) -> Result<Membership> {
        // SYNC POINT: membership
        Membership::from_word(self.members.load(oslet.index(), Ordering::SeqCst))
    }

    /// Changes a membership if it is still `current`; otherwise says what it is. Returns whether it
    /// was changed.
    pub fn change_member(
        &self,
        oslet: OsletId,
        current: Membership,
        new: Membership,
    ) -> Result<std::result::Result<(), Membership>> {
        let (from, to) = (current.to_word(), new.to_word());
        // SYNC POINT: membership
        match self.members.compare_exchange(oslet.index(), from, to, Ordering::SeqCst) {
            Ok(_) => Ok(Ok(())),
            Err(found) => Membership::from_word(found).map(Err),
        }
    }

    /// Who owns object number `object`.
    ///
    /// # Panics
    /// If `object` is not below [`limits::MAX_OWNED_OBJECTS`].
    pub fn owner(&self, object: usize) -> Result<Ownership> {
        // SYNC POINT: ownership
        Ownership::from_word(self.owners.load(object, Ordering::SeqCst))
    }

    /// The word of object number `object`, to look at it often.
    ///
    /// # Panics
    /// If `object` is not below [`limits::MAX_OWNED_OBJECTS`].
    pub fn owner_word(&self, object: usize) -> OwnerWord {
        OwnerWord(self.owners.read_only().one(object))
    }

    /// Changes an ownership if it is still `current`; otherwise says what it is.
    ///
    /// # Panics
    /// If `object` is not below [`limits::MAX_OWNED_OBJECTS`].
    pub fn change_owner(
        &self,
        object: usize,
        current: Ownership,
        new: Ownership,
    ) -> Result<std::result::Result<(), Ownership>> {
        let (from, to) = (current.to_word(), new.to_word());
        // SYNC POINT: ownership
        match self.owners.compare_exchange(object, from, to, Ordering::SeqCst) {
            Ok(_) => Ok(Ok(())),
            Err(found) => Ownership::from_word(found).map(Err),
        }
    }
}

impl Drop for ControlPage {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing can be done here about a file that is gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Refuses a layout that this build does not read.
pub(super) fn check_version(word: u64, what: &str) -> Result<()> {
    if word == layout::version_word() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{what}: layout version {} with frames of {} bytes; this build has version {} with {}: \
         start all OSlets from one version",
        word as u32,
        word >> 32,
        layout::LAYOUT_VERSION,
        limits::FRAME_SIZE
    )))
}

fn control_memfd() -> Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("oslet:control", flags).map_err(Error::io("memfd_create"))?;
    Ok(File::from(fd))
}

fn claim_region_file(path: &Path) -> Result<File> {
    use std::io::Read;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(Error::file(path, "open region file"))?;
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(Error::Invalid(format!(
                "{}: in use by another cluster; stop that one or choose another file",
                path.display()
            )));
        }
        Err(e) => return Err(Error::file(path, "lock region file")(e)),
    }
    let mut head = Vec::new();
    (&file).take(16).read_to_end(&mut head).map_err(Error::file(path, "read region file"))?;
    let word = |at: usize| head.get(at..at + 8).map(|b| b.try_into().unwrap_or_default());
    match (word(0).map(u64::from_ne_bytes), word(8).map(u64::from_ne_bytes)) {
        (None, _) if head.is_empty() => {}
        (Some(layout::CONTROL_MAGIC), Some(version)) => {
            check_version(version, &path.display().to_string())?;
        }
        _ => {
            return Err(Error::Invalid(format!(
                "{}: not a region file and not empty; it is left alone: choose another file",
                path.display()
            )));
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::word::MemberState;

    fn oslet(index: usize) -> OsletId {
        OsletId::new(index).unwrap()
    }

    #[test]
    fn words_survive() {
        let member = Membership {
            state: MemberState::Fencing,
            epoch: Epoch(u32::MAX),
            fencer: Some(oslet(63)),
        };
        assert_eq!(Membership::from_word(member.to_word()).unwrap(), member);
        let owner = Ownership {
            owner: Some((oslet(63), Epoch(7))),
            predecessor: Some(oslet(0)),
            recovering: true,
            read_only: true,
        };
        assert_eq!(Ownership::from_word(owner.to_word()).unwrap(), owner);
        assert_eq!(Ownership::from_word(0).unwrap(), Ownership::default());
        for word in [5 << 32, 65 << 40, 1 << 48] {
            assert!(Membership::from_word(word).is_err(), "{word:#x}");
        }
        assert!(Ownership::from_word(65 << 32).is_err());
        assert!(Ownership::from_word(1 << 50).is_err());
    }

    #[test]
    fn only_one_of_two_changes_wins() {
        let page = ControlPage::create(&Backing::Memfd, "test", 2).unwrap();
        let other = ControlPage::open(page.file().try_clone().unwrap()).unwrap();
        assert_eq!(other.cluster(), page.cluster());
        assert_eq!((other.name(), other.oslets()), ("test", 2));
        let vacant = page.member(oslet(1)).unwrap();
        let alive = Membership { state: MemberState::Alive, epoch: Epoch(1), fencer: None };
        assert_eq!(page.change_member(oslet(1), vacant, alive).unwrap(), Ok(()));
        assert_eq!(other.change_member(oslet(1), vacant, alive).unwrap(), Err(alive));
        assert_eq!(other.member(oslet(1)).unwrap(), alive);
    }

    #[test]
    fn a_region_file_is_claimed_once_and_foreign_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("region file");
        let backing = Backing::File(path.clone());
        let page = ControlPage::create(&backing, "a", 2).unwrap();
        let refused = ControlPage::create(&backing, "b", 2).unwrap_err().to_string();
        assert!(refused.contains("in use by another cluster"), "{refused}");
        drop(page);
        assert!(!path.exists());

        std::fs::write(&path, "my diary, not a region").unwrap();
        let refused = ControlPage::create(&backing, "b", 2).unwrap_err().to_string();
        assert!(refused.contains("not a region file"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"my diary, not a region");

        let mut old = layout::CONTROL_MAGIC.to_ne_bytes().to_vec();
        old.extend_from_slice(&(layout::version_word() + 1).to_ne_bytes());
        std::fs::write(&path, &old).unwrap();
        let refused = ControlPage::create(&backing, "b", 2).unwrap_err().to_string();
        let other = format!("layout version {}", layout::LAYOUT_VERSION + 1);
        assert!(refused.contains(&other), "{refused}");
    }
}
