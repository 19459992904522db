//! One owner's tables and the way to it, as long as it is the owner.

use std::sync::Arc;

use oslet::id::{Epoch, ParticipantId};
use oslet::region::{Home, Lines, OwnerWord, PageGuard, Region, Ro};
use oslet::rpc::Channel;
use oslet::sync::AtomicU64;

use super::Connect;
use crate::cache::{FileKey, InodeTable, Key, Name, NameIndex, PageIndex, kind};
use crate::owner::Owner;
use crate::{Error, Result};

/// How requests reach the owner.
pub(super) enum Route {
    Local(Arc<Owner>),
    Remote(Arc<Channel>),
    Nowhere,
}

/// What one incarnation of one owner publishes.
pub(super) struct View {
    /// Whose it is, as [`oslet::region::Ownership::tag`] has it; of nobody [`NOBODY`].
    owner: u64,
    /// The same with all else that the control page said of the volume then.
    word: u64,
    /// Whose the volume is now.
    now: OwnerWord,
    /// The runtime that it is of, and the incarnation.
    pub(super) home: Option<ParticipantId>,
    pub(super) epoch: Epoch,
    pub(super) route: Route,
    pages: Option<Pages>,
    pub(super) inodes: Option<InodeTable<Ro<AtomicU64>>>,
    short: Option<NameIndex<Ro<AtomicU64>>>,
    long: Option<NameIndex<Ro<AtomicU64>>>,
}

/// Pages that are cached, and the frames that they are in.
struct Pages {
    index: PageIndex<Lines>,
    frames: Home,
}

/// No owner's tag.
const NOBODY: u64 = u64::MAX;

impl View {
    /// Before anybody is known to serve the volume.
    pub(super) fn none(region: &Region, object: u64) -> Self {
        Self {
            owner: NOBODY,
            word: NOBODY,
            now: region.control().owner_word(object as usize),
            home: None,
            epoch: Epoch(0),
            route: Route::Nowhere,
            pages: None,
            inodes: None,
            short: None,
            long: None,
        }
    }

    /// Of the present owner, if it serves.
    pub(super) fn of(region: &Arc<Region>, object: u64, connect: &dyn Connect) -> Result<Self> {
        let nobody = |why: &str| Error::NoOwner(format!("volume {object}: {why}"));
        let ownership = region.control().owner(object as usize)?;
        let (oslet, epoch) = ownership.owner.ok_or_else(|| nobody("it has no owner"))?;
        if ownership.recovering {
            return Err(nobody("its owner is recovering it"));
        }
        let who = ParticipantId::runtime(oslet);
        let segment = region.segment(who).filter(|segment| segment.epoch() == epoch);
        let segment = segment.ok_or_else(|| nobody("its owner is not mapped"))?;
        let table = |kind: u64| -> Result<(Ro<AtomicU64>, usize)> {
            let table = segment.table(kind, object).ok_or_else(|| nobody("no tables"))?;
            Ok((segment.words(table.offset, table.len / 8)?, table.len))
        };
        let (pages, inodes) = (table(kind::PAGES)?, table(kind::INODES)?);
        let (short, long) = (table(kind::SHORT_NAMES)?, table(kind::LONG_NAMES)?);
        let own = region.own();
        let route = match connect.local(object) {
            Some(owner) if (own.participant(), own.epoch()) == (who, epoch) => Route::Local(owner),
            _ => {
                let channel = connect.channel(oslet, epoch)?;
                // A later incarnation may take requests before it says that it serves.
                if channel.server() != (who, epoch) {
                    return Err(nobody("its owner has been started again"));
                }
                Route::Remote(channel)
            }
        };
        // A table that is too small holds nothing: what is not found is asked for.
        let pages = pages.0.lines().and_then(|lines| {
            Some(Pages { index: PageIndex::read(lines), frames: region.home(who, epoch)? })
        });
        Ok(Self {
            owner: ownership.tag(),
            word: ownership.to_word(),
            now: region.control().owner_word(object as usize),
            home: Some(who),
            epoch,
            route,
            pages,
            inodes: InodeTable::new(inodes.0, inodes.1),
            short: NameIndex::new(short.0, short.1, false),
            long: NameIndex::new(long.0, long.1, true),
        })
    }

    /// Which incarnation of which owner it is of.
    pub(super) fn tag(&self) -> u64 {
        self.owner
    }

    /// Whether this still is the owner, and the way to it open.
    #[inline(always)]
    pub(super) fn is_current(&self) -> bool {
        self.now.tag() == self.owner
    }

    /// The frame that one of a file's first 2^32 pages is cached in, pinned, if nothing has
    /// changed and the page is where most are. If not, there are [`Self::pin`] and others to ask.
    #[inline(always)]
    pub(super) fn pin_at_once(&self, file: FileKey, page: u32) -> Option<PageGuard<'_>> {
        if self.now.word() != self.word {
            return None;
        }
        let Pages { index, frames } = self.pages.as_ref()?;
        let found = index.glance(file.near(page))?;
        frames.pin_if(found.word, || found.still())
    }

    /// The frame that a page is cached in, pinned.
    pub(super) fn pin(&self, key: Key) -> Option<PageGuard<'_>> {
        let Pages { index, frames } = self.pages.as_ref()?;
        let found = index.find(key)?;
        frames.pin_if(found.word, || found.still())
    }

    /// As [`Self::pin`], for guards that outlive this view.
    pub(super) fn pin_in<'r>(&self, region: &'r Region, key: Key) -> Option<PageGuard<'r>> {
        let found = self.pages.as_ref()?.index.find(key)?;
        region.pin_if(found.page(), self.epoch, || found.still())
    }

    /// Whether the owner can no longer be asked this way.
    pub(super) fn is_cut_off(&self) -> bool {
        matches!(&self.route, Route::Remote(channel) if channel.is_closed())
    }

    /// The index that holds names as long as this one.
    pub(super) fn names(&self, name: &Name<'_>) -> Option<&NameIndex<Ro<AtomicU64>>> {
        if name.is_long() { self.long.as_ref() } else { self.short.as_ref() }
    }
}
