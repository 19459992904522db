//! The native interface: a volume from any OSlet, without copies, and without system calls where
//! it is cached.
//!
//! Names, attributes and pages are looked up in what the owner publishes; only a miss asks it. A
//! volume whose owner is gone stays readable as far as it is cached; what is not waits for a new
//! owner for [`limits::OWNER_WAIT`], then fails with EIO.

mod change;
mod file;
mod identity;
mod join;
mod names;
mod view;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::Region;
use oslet::rpc::{self, Channel};
use parking_lot::Mutex;

use crate::cache::{Head, InodeRecord, Name};
use crate::disk::inode::Kind;
use crate::engine::{Attr, StatFs};
use crate::id::Ino;
use crate::owner::{Answer, Owner};
use crate::wire::{self, kind};
use crate::{Error, Result, limits};

pub use file::{File, Page};
pub use join::join;
use names::Known;
use view::{Route, View};

/// How a client reaches the owners of volumes.
pub trait Connect: Send + Sync {
    /// The owner in this very process, if that is where a volume is served.
    fn local(&self, object: u64) -> Option<Arc<Owner>>;

    /// A channel to an OSlet's runtime in that incarnation.
    fn channel(&self, oslet: OsletId, epoch: Epoch) -> oslet::Result<Arc<Channel>>;

    /// Frames of the own segment, for data that go to owners by reference. Without them data go in
    /// messages.
    fn arena(&self) -> Option<&Arc<Arena>> {
        None
    }
}

/// A volume as one process uses it. Any number of threads may use it at once.
pub struct Client {
    region: Arc<Region>,
    object: u64,
    connect: Arc<dyn Connect>,
    view: ArcSwap<View>,
    refreshing: Mutex<()>,
    /// The one incarnation of one owner that it believes; none for a client that follows them.
    only: Option<u64>,
}

/// An owner's runtime, and its incarnation.
type Answerer = (ParticipantId, Epoch);

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// What it names.
    pub ino: Ino,
    /// Its type, if the directory says.
    pub kind: Option<Kind>,
    /// Where to go on after it.
    pub next: u64,
    /// Its name.
    pub name: Vec<u8>,
}

impl Client {
    /// Volume number `object`, whether somebody serves it already or not.
    pub fn new(region: &Arc<Region>, object: u64, connect: Arc<dyn Connect>) -> Result<Arc<Self>> {
        if object >= oslet::limits::MAX_OWNED_OBJECTS as u64 {
            return Err(Error::Invalid(format!("there is no volume number {object}")));
        }
        Ok(Arc::new(Self {
            region: Arc::clone(region),
            object,
            connect,
            view: ArcSwap::from_pointee(View::none(region, object)),
            refreshing: Mutex::new(()),
            only: None,
        }))
    }

    /// The volume through its present owner alone: once there is another incarnation, everything
    /// fails with [`Error::Moved`] and nothing is sent. Inodes have their numbers, and holds count,
    /// with one incarnation; who keeps either over a change of owners looks whether the number is
    /// still the same inode's ([`Self::hold`]) before it is used through the next one.
    ///
    /// Waits for an owner for [`limits::OWNER_WAIT`], unless what the last one published is in use.
    pub fn present(&self) -> Result<Arc<Self>> {
        let view = self.view.load();
        let view = if view.is_current() { Arc::clone(&view) } else { self.view_to_ask()? };
        Ok(self.bound(view))
    }

    /// As [`Self::present`], without waiting.
    pub(crate) fn present_at_once(&self) -> Option<Arc<Self>> {
        self.refresh(false).ok().map(|view| self.bound(view))
    }

    fn bound(&self, view: Arc<View>) -> Arc<Self> {
        Arc::new(Self {
            region: Arc::clone(&self.region),
            object: self.object,
            connect: Arc::clone(&self.connect),
            only: Some(view.tag()),
            view: ArcSwap::new(view),
            refreshing: Mutex::new(()),
        })
    }

    /// Whether the owner is the one that this client believes.
    pub(crate) fn is_present(&self) -> bool {
        self.view.load().is_current()
    }

    /// Whether that one can be asked now.
    fn is_reachable(&self) -> bool {
        let view = self.view.load();
        view.is_current() && !view.is_cut_off()
    }

    /// The incarnation that it believes; zero for a client that follows them.
    pub(crate) fn incarnation(&self) -> u64 {
        self.only.unwrap_or(0)
    }

    /// The region that pages lie in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// An inode's attributes.
    pub fn stat(&self, ino: Ino) -> Result<Attr> {
        self.record(ino).map(|record| record.attr)
    }

    /// An inode's attributes and what else is published of it.
    #[inline]
    pub fn record(&self, ino: Ino) -> Result<InodeRecord> {
        if let Some(record) = self.cached_record(ino) {
            return Ok(record);
        }
        let answer = self.ask(kind::GETATTR, ino, 0, &[])?;
        record_in(&answer, Some(ino))
    }

    /// The same if it is published: the owner is not asked.
    #[inline]
    pub fn cached_record(&self, ino: Ino) -> Option<InodeRecord> {
        self.cached(|view| view.inodes.as_ref()?.find(ino))
    }

    /// What a name in a directory leads to, if that is published: the owner is not asked.
    #[inline]
    pub fn cached_lookup(&self, dir: Ino, name: &[u8]) -> Option<Result<InodeRecord>> {
        let key = Name::new(dir, name)?;
        let found = self.cached(|view| {
            let Some(ino) = view.names(&key)?.find(&key)? else { return Some(None) };
            view.inodes.as_ref()?.find(ino).map(Some)
        });
        found.map(|record| record.ok_or(Error::NotFound))
    }

    /// What a name in a directory leads to.
    #[inline]
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<InodeRecord> {
        if name.len() > limits::MAX_NAME {
            return Err(Error::NameTooLong);
        }
        let key = Name::new(dir, name).ok_or(Error::NotFound)?;
        let mut head = Head::default();
        let known = self.cached(|view| Some(view.look_up(&key, &mut head)));
        match known.unwrap_or(Known::Unknown) {
            Known::Record(ino) => match InodeRecord::from_head(&head) {
                Some(record) => Ok(record),
                None => self.record(ino),
            },
            Known::Inode(ino) => self.record(ino),
            Known::Absent => Err(Error::NotFound),
            Known::Unknown => self.ask_for_name(dir, name),
        }
    }

    #[cold]
    fn ask_for_name(&self, dir: Ino, name: &[u8]) -> Result<InodeRecord> {
        // The directory's own error comes before that of a name that it could not have.
        let answer = self.ask(kind::LOOKUP, dir, 0, name)?;
        record_in(&answer, None)
    }

    /// The inode at a path from the root, through symbolic links.
    #[inline]
    pub fn resolve(&self, path: &[u8]) -> Result<InodeRecord> {
        let mut head = Head::default();
        let known = self.cached(|view| view.walk(path, &mut head).then_some(()));
        match known.and_then(|()| InodeRecord::from_head(&head)) {
            Some(record) => Ok(record),
            None => self.resolve_from(Ino::ROOT, path, &mut 0),
        }
    }

    /// Step by step, for paths of which not all is published or where symbolic links are.
    fn resolve_from(&self, start: Ino, path: &[u8], links: &mut usize) -> Result<InodeRecord> {
        let mut dir = if path.first() == Some(&b'/') { Ino::ROOT } else { start };
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        let mut record = None;
        while let Some(name) = names.next() {
            let last = names.peek().is_none();
            if !last && let Some(next) = self.cached_directory(dir, name) {
                dir = next;
                continue;
            }
            let mut found = self.lookup(dir, name)?;
            if found.attr.kind == Kind::Symlink {
                *links += 1;
                if *links > limits::MAX_SYMLINKS {
                    return Err(Error::Owner(rustix::io::Errno::LOOP.raw_os_error()));
                }
                let target = self.readlink(found.attr.ino)?;
                found = self.resolve_from(dir, &target, links)?;
            }
            if last {
                record = Some(found);
            } else if found.attr.kind == Kind::Directory {
                dir = found.attr.ino;
            } else {
                return Err(Error::NotADirectory);
            }
        }
        match record {
            Some(record) => Ok(record),
            None => self.record(dir),
        }
    }

    /// The directory that a name leads to, if all that is published.
    fn cached_directory(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        let key = Name::new(dir, name)?;
        self.cached(|view| view.directory(&key))
    }

    /// Opens the file at a path from the root. It stays that file: should its number be another's
    /// after its owner was started again, using it fails with ESTALE. That it stays at all while it
    /// is open is [`File::hold`]'s.
    pub fn open(self: &Arc<Self>, path: &[u8]) -> Result<File> {
        if self.only.is_some() {
            return self.open_at(self, path);
        }
        loop {
            match self.present().and_then(|client| self.open_at(&client, path)) {
                Err(Error::Moved) => {}
                opened => return opened,
            }
        }
    }

    fn open_at(self: &Arc<Self>, present: &Arc<Self>, path: &[u8]) -> Result<File> {
        let record = present.resolve(path)?;
        match record.attr.kind {
            Kind::Regular => Ok(File::known(self, present, &record.attr)),
            Kind::Directory => Err(Error::IsADirectory),
            _ => Err(Error::Invalid(format!("{} is no regular file", record.attr.ino))),
        }
    }

    /// The file with that inode number, whichever that is when it is used.
    pub fn file(self: &Arc<Self>, ino: Ino) -> File {
        File::new(self, ino)
    }

    /// A symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let record = self.record(ino)?;
        if record.attr.kind != Kind::Symlink {
            return Err(Error::Invalid(format!("{ino} is no symbolic link")));
        }
        match record.target {
            Some(target) => Ok(target),
            None => Ok(self.ask(kind::READLINK, ino, 0, &[])?.body.to_vec()),
        }
    }

    /// Entries of a directory from a position on (0, or the `next` of one), "." and ".." too, and
    /// whether nothing follows them.
    pub fn readdir(&self, dir: Ino, position: u64) -> Result<(Vec<DirEntry>, bool)> {
        let answer = self.ask(kind::READDIR, dir, position, &[])?;
        let listing = rpc::access::<wire::ArchivedListing>(&answer.body, "volume's owner")?;
        let entries = listing.entries.iter().map(|entry| DirEntry {
            ino: Ino(entry.ino.to_native()),
            kind: Kind::from_mode(u16::from(entry.kind) << 12),
            next: entry.next.to_native(),
            name: entry.name.to_vec(),
        });
        Ok((entries.collect(), listing.end))
    }

    /// The value of an extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if !self.record(ino)?.has_xattr {
            return Err(Error::NoAttribute);
        }
        self.in_parts(ino, |position| match position {
            0 => self.ask(kind::GETXATTR, ino, 0, name),
            _ => self.ask(kind::GETXATTR_MORE, ino, position, name),
        })
    }

    /// The names of an inode's extended attributes, each with a zero behind it.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        if !self.record(ino)?.has_xattr {
            return Ok(Vec::new());
        }
        self.in_parts(ino, |position| self.ask(kind::LISTXATTR, ino, position, &[]))
    }

    fn in_parts(&self, ino: Ino, ask: impl Fn(u64) -> Result<Answer>) -> Result<Vec<u8>> {
        let mut value = Vec::new();
        loop {
            let answer = ask(value.len() as u64)?;
            let total = answer.args[0];
            value.extend_from_slice(&answer.body);
            if value.len() as u64 >= total {
                return Ok(value);
            }
            if answer.body.is_empty() || total > limits::MAX_XATTR_VALUE as u64 {
                return Err(Error::corrupt(ino, "its owner sends attributes without an end"));
            }
        }
    }

    /// What statfs(2) tells of the volume.
    pub fn statfs(&self) -> Result<StatFs> {
        let answer = self.ask(kind::STATFS, Ino::ROOT, 0, &[])?;
        let body = rpc::access::<wire::ArchivedStatFsBody>(&answer.body, "volume's owner")?;
        let word = |index: usize| body.words[index].to_native();
        Ok(StatFs {
            block_size: word(0) as u32,
            blocks: word(1),
            free: word(2),
            available: word(3),
            inodes: word(4),
            free_inodes: word(5),
            name_max: word(6) as u32,
            id: word(7),
        })
    }

    /// The offset of the first data (or hole) at or after `offset`.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        if offset >> 63 != 0 {
            return Err(Error::NoSuchOffset);
        }
        let answer = self.ask(kind::SEEK, ino, offset | u64::from(data) << 63, &[])?;
        Ok(answer.args[0])
    }

    /// Looks something up in what is published; `None` where nobody serves the volume yet.
    #[inline(always)]
    fn cached<T>(&self, find: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        let view = self.view.load();
        if view.is_current() {
            return find(&view);
        }
        drop(view);
        find(&*self.refresh(false).ok()?)
    }

    /// The view of the present owner; if asked for, one through which it can be asked. What a dead
    /// owner has published stays in use until there is another.
    fn refresh(&self, to_ask: bool) -> Result<Arc<View>> {
        let _one = self.refreshing.lock();
        let view = self.view.load_full();
        if view.is_current() && !(to_ask && view.is_cut_off()) {
            return Ok(view);
        }
        if self.only.is_some() && !view.is_current() {
            return Err(Error::Moved);
        }
        let view = Arc::new(View::of(&self.region, self.object, &*self.connect)?);
        if self.only.is_some_and(|only| only != view.tag()) {
            return Err(Error::Moved);
        }
        self.view.store(Arc::clone(&view));
        Ok(view)
    }

    /// Asks the owner, whoever that is by then.
    fn ask(&self, request: u16, ino: Ino, argument: u64, body: &[u8]) -> Result<Answer> {
        self.ask_owners(request, ino, argument, body).map(|(answer, _)| answer)
    }

    /// As [`Self::ask`]; also which incarnation of which OSlet has answered.
    fn ask_whom(&self, request: u16, ino: Ino, argument: u64) -> Result<(Answer, Answerer)> {
        let (answer, view) = self.ask_owners(request, ino, argument, &[])?;
        let nobody = || Error::NoOwner(format!("volume {}: nobody has answered", self.object));
        Ok((answer, (view.home.ok_or_else(nobody)?, view.epoch)))
    }

    fn ask_owners(
        &self,
        request: u16,
        ino: Ino,
        argument: u64,
        body: &[u8],
    ) -> Result<(Answer, Arc<View>)> {
        let deadline = Instant::now() + limits::OWNER_WAIT;
        loop {
            let error = match self.refresh(true) {
                Ok(view) => match self.ask_owner(&view, request, ino, argument, body) {
                    Err(Error::Cluster(error @ oslet::Error::Gone(_))) => Error::Cluster(error),
                    answer => return Ok((answer?, view)),
                },
                Err(error @ (Error::NoOwner(_) | Error::Cluster(oslet::Error::Gone(_)))) => error,
                Err(error) => return Err(error),
            };
            // Reading is idempotent: it is asked again, of a successor or a new incarnation. So is
            // holding: what an owner held has gone with it.
            if Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(limits::OWNER_POLL);
        }
    }

    fn ask_owner(
        &self,
        view: &View,
        request: u16,
        ino: Ino,
        argument: u64,
        body: &[u8],
    ) -> Result<Answer> {
        self.ask_owner_with(view, request, [self.object, u64::from(ino.0), argument], body)
    }

    fn ask_owner_with(
        &self,
        view: &View,
        request: u16,
        args: [u64; 3],
        body: &[u8],
    ) -> Result<Answer> {
        match &view.route {
            Route::Local(owner) => {
                let own = self.region.own();
                owner.answer((own.participant(), own.epoch()), request, args, body)
            }
            Route::Remote(channel) => {
                let reply = channel.call(request, args, body, limits::REQUEST_LIMIT)?;
                match i32::from(reply.status) {
                    0 => Ok(Answer { args: reply.args, body: reply.body }),
                    errno => Err(Error::from_owner(errno)),
                }
            }
            Route::Nowhere => Err(Error::NoOwner(format!("volume {} has no owner", self.object))),
        }
    }
}

fn record_in(answer: &Answer, ino: Option<Ino>) -> Result<InodeRecord> {
    let body = rpc::access::<wire::ArchivedRecord>(&answer.body, "volume's owner")?;
    let words = body.words.map(|word| word.to_native());
    InodeRecord::from_words(&words)
        .filter(|record| ino.is_none_or(|ino| record.attr.ino == ino))
        .ok_or_else(|| Error::corrupt("a record from the volume's owner", "it is none"))
}
