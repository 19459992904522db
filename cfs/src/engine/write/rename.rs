//! Names that move: rename, over what is there, and in exchange.

use std::sync::Arc;

use bitflags::bitflags;
use parking_lot::RwLockWriteGuard;

use super::budget::Budget;
use super::dir::{Place, Sought, Spot};
use super::names::{
    Effects, Report, check_dir, check_name, is_dots, is_sync, may_add, may_remove, touch,
};
use super::{Cell, Live, Writer, now};
use crate::disk::dirent::edit::NewEntry;
use crate::disk::inode::Kind;
use crate::disk::time::Timestamp;
use crate::id::Ino;
use crate::journal::Handle;
use crate::{Caller, Error, Result};

bitflags! {
    /// `RENAME_*` of renameat2(2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RenameFlags: u32 {
        /// The new name must not exist.
        const NOREPLACE = 1;
        /// Both names exist and change places.
        const EXCHANGE = 2;
        const _ = !0;
    }
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The directory.
    pub dir: Ino,
    /// The name.
    pub name: &'a [u8],
}

/// Both directories, locked; one if they are the same.
struct Dirs<'a> {
    from: RwLockWriteGuard<'a, Live>,
    to: Option<RwLockWriteGuard<'a, Live>>,
}

impl Dirs<'_> {
    fn to(&mut self) -> &mut Live {
        match &mut self.to {
            Some(to) => to,
            None => &mut self.from,
        }
    }

    fn to_ref(&self) -> &Live {
        self.to.as_deref().unwrap_or(&self.from)
    }
}

/// What a rename has found and locked.
struct Move<'a> {
    dirs: Dirs<'a>,
    old: At<'a>,
    new: At<'a>,
    /// Where the old name is.
    spot: Spot,
    source: RwLockWriteGuard<'a, Live>,
    /// What the new name leads to until now.
    target: Option<(Spot, RwLockWriteGuard<'a, Live>)>,
    /// Where the new name goes if it is not there.
    place: Option<Place>,
    /// The entries ".." of directories that change their parent.
    parents: [Option<Spot>; 2],
}

/// How two directories lie.
#[derive(Clone, Copy, Default)]
struct Relation {
    /// What lies in the first and leads to the second, or is it.
    below_from: Option<Ino>,
    /// What lies in the second and leads to the first, or is it.
    below_to: Option<Ino>,
}

/// Directories one in the other that a walk upwards follows.
const MOST_DEPTH: usize = 1 << 16;

impl Writer {
    /// Gives an inode another name in the place of one.
    ///
    /// # Errors
    /// `EINVAL` when a directory would come below itself; `EEXIST`, `ENOTEMPTY`, `EISDIR`,
    /// `ENOTDIR` for what is in the new place; `EPERM`, `EMLINK`, `ENOSPC` as for other names.
    /// Nothing has changed then.
    pub fn rename(
        &self,
        caller: &Caller,
        old: At<'_>,
        new: At<'_>,
        flags: RenameFlags,
        report: Report<'_>,
    ) -> Result<()> {
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        if !known.contains(flags) || flags == known {
            return Err(Error::Invalid(format!("rename with flags {:#x}", flags.bits())));
        }
        if is_dots(old.name) || is_dots(new.name) {
            let exists = flags.contains(RenameFlags::NOREPLACE) && !is_dots(old.name);
            let busy = || Error::Busy("\".\" and \"..\" cannot be renamed".into());
            return Err(if exists { Error::Exists } else { busy() });
        }
        check_name(old.name)?;
        let apart = old.dir != new.dir;
        let _order = apart.then(|| self.lock_renames());
        let relation = if apart { self.relation(old.dir, new.dir)? } else { Relation::default() };
        let from_cell = self.live(old.dir)?;
        let to_cell = self.live(new.dir)?;
        let dirs = lock_dirs(&from_cell, &to_cell, relation);
        let spot = self.seek_there(&dirs.from, old.name)?;
        let sought = self.seek_dest(&dirs, new.name)?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let found = match &sought {
            Sought::Found(_) if flags.contains(RenameFlags::NOREPLACE) => {
                return Err(Error::Exists);
            }
            Sought::Found(spot) => Some(*spot),
            Sought::Absent(_) if exchange => return Err(Error::NotFound),
            Sought::Absent(_) => None,
        };
        relation.check(spot.ino, found.map(|spot| spot.ino), exchange)?;
        if found.is_some_and(|found| found.ino == spot.ino) {
            return Ok(());
        }
        let source_cell = self.live(spot.ino)?;
        let target_cell = found.map(|found| self.live(found.ino)).transpose()?;
        let (source, target) = lock_children(&source_cell, target_cell.as_ref());
        let mut moving = Move {
            dirs,
            old,
            new,
            spot,
            source,
            target: found.zip(target),
            place: match sought {
                Sought::Absent(place) => Some(place),
                Sought::Found(_) => None,
            },
            parents: [None; 2],
        };
        self.check_move(&mut moving, exchange)?;
        if exchange {
            self.exchange(&mut moving)?;
        } else {
            self.replace(caller, &mut moving)?;
        }
        let cells = [&from_cell, &to_cell, &source_cell];
        moving.report(cells, target_cell.as_ref(), exchange, report);
        let unnamed = moving.target.as_ref().is_some_and(|(_, live)| live.inode.links == 0);
        drop(moving);
        if let Some(cell) = target_cell.filter(|_| unnamed) {
            self.let_rest(&cell);
        }
        Ok(())
    }

    fn seek_dest(&self, dirs: &Dirs<'_>, name: &[u8]) -> Result<Sought> {
        check_dir(dirs.to_ref())?;
        check_name(name)?;
        self.seek(&dirs.to_ref().inode, name)
    }

    /// How two directories lie; the rename lock is held, so that they stay there.
    fn relation(&self, from: Ino, to: Ino) -> Result<Relation> {
        let below_from = self.child_towards(from, to)?;
        let below_to = if below_from.is_none() { self.child_towards(to, from)? } else { None };
        Ok(Relation { below_from, below_to })
    }

    /// What lies in directory `above` and leads to `below`, or is it.
    fn child_towards(&self, above: Ino, below: Ino) -> Result<Option<Ino>> {
        let mut at = below;
        for _ in 0..MOST_DEPTH {
            if at == Ino::ROOT {
                return Ok(None);
            }
            let cell = self.live(at)?;
            let parent = {
                let live = cell.read();
                check_dir(&live)?;
                self.parent_entry(&live.inode)?.ino
            };
            if parent == above {
                return Ok(Some(at));
            }
            at = parent;
        }
        Err(Error::corrupt(below, "the directories above it form a circle"))
    }

    /// Refuses what must not be, before anything changes.
    fn check_move(&self, moving: &mut Move<'_>, exchange: bool) -> Result<()> {
        let apart = moving.dirs.to.is_some();
        let is_dir = |live: &Live| live.inode.kind == Kind::Directory;
        let source_dir = is_dir(&moving.source);
        may_remove(&moving.dirs.from, &moving.source)?;
        match &moving.target {
            None => may_add(moving.dirs.to_ref())?,
            Some((_, target)) => {
                may_remove(moving.dirs.to_ref(), target)?;
                match (source_dir, is_dir(target)) {
                    _ if exchange => {}
                    (true, false) => return Err(Error::NotADirectory),
                    (false, true) => return Err(Error::IsADirectory),
                    (true, true) if !self.is_empty_dir(&target.inode)? => {
                        return Err(Error::NotEmpty);
                    }
                    _ => {}
                }
            }
        }
        let target_dir = moving.target.as_ref().is_some_and(|(_, target)| is_dir(target));
        if apart && source_dir && !target_dir {
            self.check_dir_links(moving.dirs.to_ref())?;
        }
        if apart && exchange && target_dir && !source_dir {
            self.check_dir_links(&moving.dirs.from)?;
        }
        if apart && source_dir {
            moving.parents[0] = Some(self.parent_entry(&moving.source.inode)?);
        }
        if apart
            && exchange
            && let Some((_, target)) = &moving.target
            && target_dir
        {
            moving.parents[1] = Some(self.parent_entry(&target.inode)?);
        }
        Ok(())
    }

    /// The new name leads to the source, and the old one is gone.
    fn replace(&self, caller: &Caller, moving: &mut Move<'_>) -> Result<()> {
        let Move { dirs, old, new, spot, source, target, place, parents } = moving;
        let (ino, kind) = (source.inode.ino, source.inode.kind);
        let fresh = match place {
            Some(place) => self.fresh_blocks(&dirs.to_ref().inode, place)?,
            None => 0,
        };
        let mut budget = Budget::new(&self.space, caller, fresh)?;
        let credits = self.enter_credits(dirs.to_ref(), fresh) + REPLACE_CREDITS;
        let handle = &mut self.begin(credits)?;
        let claims = budget.claim(self.dir_goal(dirs.to_ref(), fresh), fresh)?;
        let entered = place.take();
        let moved = entered.is_some() && dirs.to.is_none();
        match (entered, &*target) {
            (Some(place), _) => {
                let file_type = self.dir_format().file_type(kind);
                let entry = NewEntry { ino: ino.0, name: new.name, file_type };
                self.enter(handle, &mut budget, dirs.to(), place, &entry, claims)?;
            }
            (None, Some((spot, _))) => {
                self.redirect(handle, &dirs.to_ref().inode, spot, ino, kind)?;
            }
            (None, None) => {}
        }
        if moved {
            // The new entry may have moved the old one, or lie before it.
            *spot = self.seek_there(&dirs.from, old.name).map_err(|error| handle.fail(error))?;
        }
        self.take_out(handle, &dirs.from.inode, spot)?;
        if let Some(parent) = parents[0] {
            self.redirect(handle, &source.inode, &parent, new.dir, Kind::Directory)?;
        }
        let now = now();
        let replaced_dir =
            target.as_ref().is_some_and(|(_, live)| live.inode.kind == Kind::Directory);
        if kind == Kind::Directory && (dirs.to.is_some() || replaced_dir) {
            self.remove_subdir(&mut dirs.from);
            if !replaced_dir {
                self.add_subdir(dirs.to());
            }
        }
        source.inode.ctime = now;
        self.store(handle, source)?;
        self.store_dirs(handle, dirs, now)?;
        if let Some((_, target)) = target {
            target.inode.ctime = now;
            self.drop_link(handle, target)?;
        }
        Ok(())
    }

    /// Both names lead to what the other one led to.
    fn exchange(&self, moving: &mut Move<'_>) -> Result<()> {
        let Move { dirs, old, new, spot, source, target, parents, .. } = moving;
        let Some((target_spot, target)) = target else { return Err(Error::NotFound) };
        let handle = &mut self.begin(EXCHANGE_CREDITS)?;
        let (kind, other) = (source.inode.kind, target.inode.kind);
        self.redirect(handle, &dirs.to_ref().inode, target_spot, source.inode.ino, kind)?;
        self.redirect(handle, &dirs.from.inode, spot, target.inode.ino, other)?;
        if let Some(parent) = parents[0] {
            self.redirect(handle, &source.inode, &parent, new.dir, Kind::Directory)?;
        }
        if let Some(parent) = parents[1] {
            self.redirect(handle, &target.inode, &parent, old.dir, Kind::Directory)?;
        }
        if dirs.to.is_some() && (kind == Kind::Directory) != (other == Kind::Directory) {
            if kind == Kind::Directory {
                self.remove_subdir(&mut dirs.from);
                self.add_subdir(dirs.to());
            } else {
                self.add_subdir(&mut dirs.from);
                self.remove_subdir(dirs.to());
            }
        }
        let now = now();
        (source.inode.ctime, target.inode.ctime) = (now, now);
        self.store(handle, source)?;
        self.store(handle, target)?;
        self.store_dirs(handle, dirs, now)
    }

    /// Stores both directories, whose entries changed.
    fn store_dirs(
        &self,
        handle: &mut Handle<'_>,
        dirs: &mut Dirs<'_>,
        now: Timestamp,
    ) -> Result<()> {
        let mut sync = false;
        for dir in std::iter::once(&mut dirs.from).chain(&mut dirs.to) {
            touch(dir, now);
            self.store(handle, dir)?;
            sync |= is_sync(dir);
        }
        if sync {
            handle.sync();
        }
        Ok(())
    }
}

/// Beside the new entry and its directory: the old entry and its directory, the source with its
/// entry "..", and the target.
const REPLACE_CREDITS: u32 = 2 + 3 * Writer::STORE_CREDITS + Writer::ORPHAN_CREDITS + 1;
const EXCHANGE_CREDITS: u32 = 4 + 4 * Writer::STORE_CREDITS;

impl Relation {
    /// Refuses to bring a directory below itself, and to replace one by what lies in it.
    fn check(self, source: Ino, target: Option<Ino>, exchange: bool) -> Result<()> {
        let below = || Error::Invalid("a directory cannot come below itself".into());
        if self.below_from == Some(source) {
            return Err(below());
        }
        match target {
            Some(target) if self.below_to == Some(target) => {
                Err(if exchange { below() } else { Error::NotEmpty })
            }
            _ => Ok(()),
        }
    }
}

/// Locks both directories, the upper one first.
fn lock_dirs<'a>(from: &'a Arc<Cell>, to: &'a Arc<Cell>, relation: Relation) -> Dirs<'a> {
    if from.ino() == to.ino() {
        return Dirs { from: from.write(), to: None };
    }
    if relation.below_to.is_some() {
        let to = to.write();
        Dirs { from: from.write(), to: Some(to) }
    } else {
        let from = from.write();
        Dirs { from, to: Some(to.write()) }
    }
}

/// Locks what the names lead to: directories before others, then by number.
fn lock_children<'a>(
    source: &'a Arc<Cell>,
    target: Option<&'a Arc<Cell>>,
) -> (RwLockWriteGuard<'a, Live>, Option<RwLockWriteGuard<'a, Live>>) {
    let rank = |cell: &Cell| (cell.read().inode.kind != Kind::Directory, cell.ino());
    match target {
        Some(target) if rank(target) < rank(source) => {
            let target = target.write();
            (source.write(), Some(target))
        }
        target => {
            let source = source.write();
            (source, target.map(|target| target.write()))
        }
    }
}

impl Move<'_> {
    fn report(
        &self,
        [from, to, source]: [&Arc<Cell>; 3],
        target: Option<&Arc<Cell>>,
        exchange: bool,
        report: Report<'_>,
    ) {
        let mut inodes: [(&Arc<Cell>, &Live); 4] = [(from, &self.dirs.from); 4];
        inodes[1] = (source, &self.source);
        let mut count = 2;
        if let Some(dir) = &self.dirs.to {
            inodes[count] = (to, dir);
            count += 1;
        }
        let mut back = None;
        if let (Some(cell), Some((spot, live))) = (target, &self.target) {
            inodes[count] = (cell, live);
            count += 1;
            back = Some(spot.ino).filter(|_| exchange);
        }
        let there = (self.new.dir, self.new.name, self.source.inode.ino);
        let here = (self.old.dir, self.old.name);
        match back {
            Some(ino) => report(&Effects {
                inodes: &inodes[..count],
                appeared: &[there, (here.0, here.1, ino)],
                vanished: &[],
            }),
            None => {
                report(&Effects { inodes: &inodes[..count], appeared: &[there], vanished: &[here] })
            }
        }
    }
}
