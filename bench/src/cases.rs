//! The table of work: who takes part, what sets the limit, and what ours should reach.

mod changes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::case::{Case, Peer, Side, Target, Unit};
use crate::changing::Change;
use crate::corpus::{self, PAGE, Walk};
use crate::peers::{self, Naming};
use crate::scratch::{Mount, Place};
use crate::through::{self, Access, Mounter};
use crate::{Environment, Sizes};

/// A kind of work that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A 64-byte message to another OSlet and its answer, both ends spinning.
    MessageRoundTrip,
    /// A random cached page of another OSlet's volume by reference, in 8 MiB.
    ReferenceSmall,
    /// The same in 1 GiB.
    ReferenceLarge,
    /// In 8 MiB, where each page tells which is next: no two reads overlap.
    ReferenceChain,
    /// The page copied out, in 8 MiB.
    CopySmall,
    /// The same in 1 GiB.
    CopyLarge,
    /// Attributes of a file by its path, both cached.
    Stat,
    /// Attributes of a file by its name in an open directory.
    Lookup,
    /// Memory when 2 OSlets have read the same 1 GiB.
    MemoryOfTwo,
    /// The same for 8.
    MemoryOfEight,
    /// CPU time that one OSlet takes when nothing happens.
    Idle,
    /// Reading through a mount what is not cached.
    MountCold(Access),
    /// Reading through a mount what is cached.
    MountCached(Access),
    /// Changing what is in a mount.
    MountChange(Through, Change),
    /// The same through the native interface.
    NativeChange(Native, Change),
}

/// Which mount of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Through {
    /// Of one image, by a process of its own (`oslet mount`).
    Image,
    /// /global in the OSlet that owns the volume.
    Owner,
    /// /global in another OSlet.
    Other,
}

impl Through {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Image, Self::Owner, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Image => "mount",
            Self::Owner => "mount in o0, the owner",
            Self::Other => "mount in o1",
        }
    }
}

/// Which user of the native interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Native {
    /// The process that owns the volume.
    Owner,
    /// A process of another OSlet.
    Other,
}

impl Native {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Owner, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Owner => "native",
            Self::Other => "native in o1",
        }
    }
}

impl Work {
    /// What only reads, and what is no work at all.
    const READING: [Self; 17] = [
        Self::MessageRoundTrip,
        Self::ReferenceSmall,
        Self::ReferenceLarge,
        Self::ReferenceChain,
        Self::CopySmall,
        Self::CopyLarge,
        Self::Stat,
        Self::Lookup,
        Self::MemoryOfTwo,
        Self::MemoryOfEight,
        Self::Idle,
        Self::MountCold(Access::Sequential),
        Self::MountCached(Access::Sequential),
        Self::MountCold(Access::Random),
        Self::MountCached(Access::Random),
        Self::MountCold(Access::Stat),
        Self::MountCached(Access::Stat),
    ];

    /// All of it, in the order of the table.
    pub fn all() -> Vec<Self> {
        let native = |native| {
            let changes = Change::ALL.into_iter().filter(|&change| change != Change::Untar);
            changes.map(move |change| Self::NativeChange(native, change))
        };
        let mounts = |through| {
            let changes = Change::ALL.into_iter().filter(|&change| change != Change::Overwrite);
            changes.map(move |change| Self::MountChange(through, change))
        };
        let writing = Native::ALL.into_iter().flat_map(native);
        let writing = writing.chain(Through::ALL.into_iter().flat_map(mounts));
        Self::READING.into_iter().chain(writing).collect()
    }

    /// Which cached pages are read, where the work is to read them.
    pub fn walk(self, sizes: Sizes) -> Walk {
        let bytes = match self {
            Self::ReferenceLarge | Self::CopyLarge => sizes.large,
            _ => sizes.small,
        };
        let pages = bytes / PAGE as u64;
        if self == Self::ReferenceChain { Walk::chain(pages) } else { Walk::new(pages) }
    }

    /// Its name in the table.
    pub fn name(self) -> String {
        match self {
            Self::MessageRoundTrip => "message round trip",
            Self::ReferenceSmall => "cached 4 KiB by reference, 8 MiB",
            Self::ReferenceLarge => "cached 4 KiB by reference, 1 GiB",
            Self::ReferenceChain => "cached 4 KiB by reference, chained",
            Self::CopySmall => "cached 4 KiB by copy, 8 MiB",
            Self::CopyLarge => "cached 4 KiB by copy, 1 GiB",
            Self::Stat => "stat by path",
            Self::Lookup => "stat by name",
            Self::MemoryOfTwo => "memory, 2 OSlets read 1 GiB",
            Self::MemoryOfEight => "memory, 8 OSlets read 1 GiB",
            Self::Idle => "idle OSlet",
            Self::MountCold(Access::Sequential) => "mount: sequential read, cold",
            Self::MountCold(Access::Random) => "mount: random 4 KiB, cold",
            Self::MountCold(Access::Stat) => "mount: stat, cold",
            Self::MountCached(Access::Sequential) => "mount: sequential read, cached",
            Self::MountCached(Access::Random) => "mount: random 4 KiB, cached",
            Self::MountCached(Access::Stat) => "mount: stat, cached",
            Self::MountChange(through, change) => {
                return format!("{}: {}", through.name(), change.name());
            }
            Self::NativeChange(native, change) => {
                return format!("{}: {}", native.name(), change.name());
            }
        }
        .to_owned()
    }
}

/// Makes our side of some work.
pub type Provider = Box<dyn FnOnce(&Environment) -> anyhow::Result<Side>>;

/// Our side of each work, as far as it is there.
#[derive(Default)]
pub struct Ours {
    providers: BTreeMap<Work, Provider>,
    mounter: Option<Mounter>,
    writable: Option<Mounter>,
}

impl Ours {
    /// Nothing of ours: the peers and limits alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds our side of `work`.
    pub fn with(
        mut self,
        work: Work,
        provider: impl FnOnce(&Environment) -> anyhow::Result<Side> + 'static,
    ) -> Self {
        self.providers.insert(work, Box::new(provider));
        self
    }

    /// Adds our way to mount an image read-only, which serves all work that goes through a mount.
    pub fn with_mount(mut self, mount: impl Fn(&Path) -> Result<Mount, String> + 'static) -> Self {
        self.mounter = Some(Rc::new(mount));
        self
    }

    /// Adds our way to mount an image for reading and writing, which serves all work that changes
    /// what is in a mount.
    pub fn with_writable_mount(
        mut self,
        mount: impl Fn(&Path) -> Result<Mount, String> + 'static,
    ) -> Self {
        self.writable = Some(Rc::new(mount));
        self
    }

    fn side(&mut self, work: Work, environment: &Environment) -> anyhow::Result<Side> {
        match self.providers.remove(&work) {
            Some(provider) => provider(environment),
            None => Ok(Side::absent("this measures the peers alone")),
        }
    }
}

/// Makes the sides of some work: files are written, peers started, filesystems mounted.
///
/// # Errors
/// What should be possible here has failed.
pub fn build(work: Work, environment: &Environment, ours: &mut Ours) -> anyhow::Result<Case> {
    let name = work.name();
    match work {
        Work::MessageRoundTrip => messages(environment, ours),
        Work::ReferenceSmall => pages(work, environment, ours, Target::TimesPeer(20.0)),
        Work::ReferenceLarge => pages(work, environment, ours, Target::TimesPeer(10.0)),
        Work::ReferenceChain => pages(work, environment, ours, Target::None),
        Work::CopySmall => pages(work, environment, ours, Target::TimesPeer(5.0)),
        Work::CopyLarge => pages(work, environment, ours, Target::TimesPeer(1.5)),
        Work::Stat => stats(work, environment, ours, Naming::Path),
        Work::Lookup => stats(work, environment, ours, Naming::Name),
        Work::MemoryOfTwo | Work::MemoryOfEight => {
            let peer = "a page cache each";
            let theirs = Side::absent("kernels that share nothing hold one copy each");
            let peers = vec![Peer { name: peer, side: theirs, target: Target::AtMost(1.02) }];
            let ours = ours.side(work, environment)?;
            let limit = Side::absent("");
            Ok(Case { name, unit: Unit::TimesData, ours, peers, limit, max_rounds: 1, note: "" })
        }
        Work::Idle => {
            let peers =
                vec![Peer { name: "-", side: Side::absent(""), target: Target::AtMost(1.0) }];
            let ours = ours.side(work, environment)?;
            let limit = Side::absent("");
            Ok(Case { name, unit: Unit::CpuPercent, ours, peers, limit, max_rounds: 1, note: "" })
        }
        Work::MountCold(access) => {
            mounts(work, access, environment, ours, |access, image, mounter| {
                Ok(through::cold(access, image, mounter))
            })
        }
        Work::MountCached(access) => mounts(work, access, environment, ours, through::cached),
        Work::MountChange(_, change) => changes::through_mount(work, change, environment, ours),
        Work::NativeChange(_, change) => changes::native(work, change, environment, ours),
    }
}

fn messages(environment: &Environment, ours: &mut Ours) -> anyhow::Result<Case> {
    let (work, cpus) = (Work::MessageRoundTrip, environment.cpus);
    let target = Target::TimesLimit(1.5);
    let peer = |name, side| Peer { name, side, target };
    Ok(Case {
        name: work.name(),
        unit: Unit::Nanoseconds,
        ours: ours.side(work, environment)?,
        peers: vec![
            peer("Unix socket", peers::unix_socket(cpus)?),
            peer("futex", peers::futex(cpus)?),
            peer("iceoryx2", peers::iceoryx2(cpus, &environment.scratch)?),
            Peer {
                name: "a line each way",
                side: peers::line_each_way(cpus)?,
                target: Target::None,
            },
        ],
        limit: peers::line(cpus)?,
        max_rounds: u32::MAX,
        note: "",
    })
}

/// Random cached pages, beside pread on kernel ext4 and on tmpfs.
fn pages(
    work: Work,
    environment: &Environment,
    ours: &mut Ours,
    beside_ext4: Target,
) -> anyhow::Result<Case> {
    let (scratch, walk) = (&environment.scratch, work.walk(environment.sizes));
    let bytes = walk.pages() * PAGE as u64;
    let limit = match work {
        Work::CopySmall | Work::CopyLarge => peers::memory_copy(walk.clone()),
        _ => peers::memory_access(walk.clone()),
    };
    // Room for the file, the inode tables and the journal.
    let ext4 = on_pages(scratch.ext4(bytes + bytes / 8 + (96 << 20)), walk.clone())?;
    let tmpfs = on_pages(scratch.tmpfs(), walk)?;
    Ok(Case {
        name: work.name(),
        unit: Unit::Nanoseconds,
        ours: ours.side(work, environment)?,
        peers: vec![
            Peer { name: "pread on ext4", side: ext4, target: beside_ext4 },
            Peer { name: "pread on tmpfs", side: tmpfs, target: Target::None },
        ],
        limit,
        max_rounds: u32::MAX,
        note: "",
    })
}

fn on_pages(place: Place, walk: Walk) -> anyhow::Result<Side> {
    match place {
        Err(why) => Ok(Side::absent(why)),
        Ok(mount) => {
            let path = mount.dir().join("pages");
            corpus::write_pages(&path, walk.pages() * PAGE as u64)?;
            peers::pread(&path, walk, mount)
        }
    }
}

fn stats(
    work: Work,
    environment: &Environment,
    ours: &mut Ours,
    naming: Naming,
) -> anyhow::Result<Case> {
    let ext4 = match environment.scratch.ext4(64 << 20) {
        Err(why) => Side::absent(why),
        Ok(mount) => {
            let tree = mount.dir().join("tree");
            corpus::write_tree(&tree)?;
            peers::stat(&tree, naming, mount)?
        }
    };
    let target = Target::TimesPeer(5.0);
    Ok(Case {
        name: work.name(),
        unit: Unit::Nanoseconds,
        ours: ours.side(work, environment)?,
        peers: vec![Peer { name: "stat on ext4", side: ext4, target }],
        limit: Side::absent(""),
        max_rounds: u32::MAX,
        note: "",
    })
}

/// Ours, fuse2fs and kernel ext4, each on a copy of one image.
fn mounts(
    work: Work,
    access: Access,
    environment: &Environment,
    ours: &Ours,
    side: impl Fn(Access, &Path, &Mounter) -> anyhow::Result<Side>,
) -> anyhow::Result<Case> {
    let cached = matches!(work, Work::MountCached(_));
    let image = through::image(&environment.scratch, environment.sizes.stream)?;
    let copy = |name: &str| -> anyhow::Result<PathBuf> {
        let copy = environment.scratch.dir(name)?.join("disk.img");
        std::fs::copy(&image, &copy)?;
        // Pages that are not yet stored cannot be forgotten.
        std::fs::File::open(&copy)?.sync_all()?;
        Ok(copy)
    };
    let our_side = match &ours.mounter {
        Some(mounter) => side(access, &copy("ours")?, mounter)?,
        None => Side::absent("this measures the peers alone"),
    };
    let scratch = environment.scratch.clone();
    let fuse2fs: Mounter = Rc::new(move |image| scratch.mount_fuse2fs(image));
    let scratch = environment.scratch.clone();
    let ext4: Mounter = Rc::new(move |image| scratch.mount_ext4(image, &["ro", "noload"]));
    let fuse2fs = side(access, &copy("fuse2fs")?, &fuse2fs)?;
    let ext4 = side(access, &image, &ext4)?;
    // What the kernel has cached costs no request, so nothing may be lost against ext4 itself.
    let (beside_fuse2fs, beside_ext4) = match cached {
        true => (Target::None, Target::TimesPeer(0.95)),
        false => (Target::None, Target::None),
    };
    let unit = match access {
        Access::Sequential => Unit::Megabytes { operation: through::CHUNK },
        Access::Random | Access::Stat => Unit::Nanoseconds,
    };
    Ok(Case {
        name: work.name(),
        unit,
        ours: our_side,
        peers: vec![
            Peer { name: "fuse2fs", side: fuse2fs, target: beside_fuse2fs },
            Peer { name: "kernel ext4", side: ext4, target: beside_ext4 },
        ],
        limit: Side::absent(""),
        max_rounds: if cached { u32::MAX } else { 5 },
        note: "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    #[test]
    fn names_are_told_apart() {
        let all = Work::all();
        let names: BTreeSet<_> = all.iter().map(|work| work.name()).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(all.len(), 17 + 2 * 6 + 3 * 6);
    }

    #[test]
    fn ours_takes_its_place_beside_the_peers() {
        let options = crate::Options {
            json: true,
            only: vec![Work::MessageRoundTrip.name()],
            rounds: 1,
            quick: true,
            scratch: None,
            record: None,
            runs: PathBuf::new(),
            list: false,
        };
        let ours = Ours::none().with(Work::MessageRoundTrip, |_| {
            Ok(Side::batch(|operations| Ok(Duration::from_nanos(operations))))
        });
        let rows = crate::run(&options, ours).unwrap();
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().all(|row| row.ours == Some(1.0) && row.theirs.is_some() || {
            println!("skipped: {}", row.note);
            row.note.contains("two CPUs")
        }));
        let nothing = crate::Options { only: vec!["no such work".to_owned()], ..options };
        assert!(crate::run(&nothing, Ours::none()).is_err());
    }
}
