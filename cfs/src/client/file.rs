//! Reading a file, by reference and by copy.

use std::sync::Arc;

use oslet::id::PageRef;
use oslet::region::{PageGuard, RawSlice, Region};

use super::Client;
use super::identity::Identity;
use super::view::View;
use crate::cache::{FileKey, Key};
use crate::change::{WriteOptions, Written};
use crate::engine::Attr;
use crate::id::Ino;
use crate::wire::{self, kind};
use crate::{Error, Result};
use oslet::rpc;

const PAGE: u64 = oslet::limits::FRAME_SIZE as u64;
/// How often a page is looked for again when its frame was reused between the answer and the pin.
const TRIES: usize = 8;
/// Pages asked for at a time beyond the one that is needed.
const BATCH: u64 = 256;

/// A regular file.
#[derive(Clone)]
pub struct File {
    client: Arc<Client>,
    ino: Ino,
    key: FileKey,
    /// The client's view when the file was opened: while it is current, no counter is touched.
    view: Arc<View>,
    /// What it is, where more than its number is known.
    identity: Option<Arc<Identity>>,
}

/// A page of a file, by reference where it is cached.
pub enum Page<'r> {
    /// Pinned in shared memory.
    Shared(PageGuard<'r>),
    /// A copy, when the cache is too small for references to last.
    Copied(Vec<u8>),
}

impl Page<'_> {
    /// Copies bytes of the page from `offset` on.
    ///
    /// # Panics
    /// If they are not all within the page.
    #[inline]
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        match self {
            Self::Shared(guard) => guard.bytes().copy_to(offset, out),
            Self::Copied(bytes) => out.copy_from_slice(&bytes[offset..offset + out.len()]),
        }
    }

    /// The bytes in shared memory; `None` for a copy.
    #[inline]
    pub fn shared(&self) -> Option<RawSlice> {
        match self {
            Self::Shared(guard) => Some(guard.bytes()),
            Self::Copied(_) => None,
        }
    }

    /// The eight bytes at `offset` in the machine's order; `None` outside the page.
    #[inline]
    pub fn word(&self, offset: usize) -> Option<u64> {
        match self {
            Self::Shared(guard) => guard.bytes().word(offset),
            Self::Copied(bytes) => {
                let end = offset.checked_add(8)?;
                Some(u64::from_ne_bytes(bytes.get(offset..end)?.try_into().ok()?))
            }
        }
    }
}

impl File {
    pub(super) fn new(client: &Arc<Client>, ino: Ino) -> Self {
        let view = client.view.load_full();
        Self { client: Arc::clone(client), ino, key: FileKey::new(ino), view, identity: None }
    }

    /// A file with those attributes, which it was found with at the present owner.
    pub(super) fn known(client: &Arc<Client>, present: &Arc<Client>, attr: &Attr) -> Self {
        let identity = Arc::new(Identity::new(client, present, attr));
        Self { identity: Some(identity), ..Self::new(present, attr.ino) }
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Its attributes.
    pub fn stat(&self) -> Result<Attr> {
        self.ask(|client| client.stat(self.ino))
    }

    /// Has the owner keep the file while this, or a clone of it, is there: without names too, and
    /// when the owner is started again. A file that is known by its number alone is held by
    /// [`Client::hold`].
    pub fn hold(&self) -> Result<()> {
        self.identity()?.hold()
    }

    /// As [`Client::write`].
    pub fn write(&self, offset: u64, bytes: &[u8], options: WriteOptions) -> Result<Written> {
        self.ask(|client| client.write(self.ino, offset, bytes, options))
    }

    /// As [`Client::truncate`].
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.ask(|client| client.truncate(self.ino, size)).map(drop)
    }

    /// As [`Client::sync`], of a file that is held then: tells each error once.
    pub fn sync(&self, data_alone: bool) -> Result<()> {
        self.identity()?.ask_held(|client, seen| client.sync(self.ino, data_alone, seen))
    }

    fn identity(&self) -> Result<&Identity> {
        let by_number = || Error::Invalid(format!("{} is known by its number alone", self.ino));
        self.identity.as_deref().ok_or_else(by_number)
    }

    /// The page that holds the bytes from `page * 4096` on, pinned, without a copy. What lies
    /// beyond the file's end within its last page is zero. `None` beyond the last page.
    ///
    /// It pins memory, not a version: concurrent writes show through, as in any page cache.
    #[inline(always)]
    pub fn read_ref(&self, page: u64) -> Result<Option<Page<'_>>> {
        self.read_ref_of(page, page + 1)
    }

    /// As [`Self::read_ref`], for one of the pages up to before `end` that will all be wanted: on a
    /// miss they are asked for together.
    #[inline(always)]
    pub fn read_ref_of(&self, page: u64, end: u64) -> Result<Option<Page<'_>>> {
        if let Some(guard) = self.pin_here(page) {
            return Ok(Some(Page::Shared(guard)));
        }
        *self.miss(page, end)
    }

    /// The page if it is cached: the owner is not asked.
    #[inline]
    pub fn cached_ref(&self, page: u64) -> Option<Page<'_>> {
        let guard = self.pin_here(page).or_else(|| self.pin_cached(self.key.page(page)?));
        guard.map(Page::Shared)
    }

    /// Fills `buf` with the bytes from `offset` on, copied. Returns how many there were: fewer only
    /// at the file's end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let size = match self.cached(|view| view.inodes.as_ref()?.size(self.ino)) {
            Some(size) => size,
            None => self.stat()?.size,
        };
        let len = size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let part = (len - done).min(PAGE as usize - within);
            let out = &mut buf[done..done + part];
            match self.pin_here(at / PAGE) {
                Some(guard) => guard.bytes().copy_to(within, out),
                None => match (*self.miss(at / PAGE, (offset + len as u64).div_ceil(PAGE)))? {
                    Some(page) => page.copy_to(within, out),
                    None => break,
                },
            }
            done += part;
        }
        Ok(done)
    }

    /// The page if it is cached where most are, and the owner who it was when the file was opened.
    #[inline(always)]
    fn pin_here(&self, page: u64) -> Option<PageGuard<'_>> {
        self.view.pin_at_once(self.key, u32::try_from(page).ok()?)
    }

    /// The page if it is cached.
    fn pin_cached(&self, key: Key) -> Option<PageGuard<'_>> {
        if self.view.is_current() {
            return self.view.pin(key);
        }
        let region: &Region = &self.client.region;
        self.later(|view| view.pin_in(region, key))
    }

    /// As [`Self::fetch`], for a page that [`Self::pin_here`] has not found, of those up to before
    /// `end`. Boxed: where both ways of getting a page meet, what is passed on then is in
    /// registers.
    #[cold]
    #[inline(never)]
    fn miss(&self, page: u64, end: u64) -> Box<Result<Option<Page<'_>>>> {
        let Some(key) = self.key.page(page) else { return Box::new(Ok(None)) };
        Box::new(match self.pin_cached(key) {
            Some(guard) => Ok(Some(Page::Shared(guard))),
            None => self.fetch(key, page, end.saturating_sub(page)),
        })
    }

    /// As [`Client::cached`].
    #[inline(always)]
    fn cached<T>(&self, find: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        if self.view.is_current() {
            return find(&self.view);
        }
        self.later(find)
    }

    /// Looks something up in what a later owner publishes, where the file is known.
    fn later<T>(&self, find: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        match &self.identity {
            Some(identity) => identity.present_at_once()?.cached(find),
            None => self.client.cached(find),
        }
    }

    /// Asks the owner about this file.
    fn ask<T>(&self, ask: impl Fn(&Client) -> Result<T>) -> Result<T> {
        match &self.identity {
            Some(identity) => identity.ask(ask),
            None => ask(&self.client),
        }
    }

    /// Asks the owner for a page (and some behind it that will be wanted).
    fn fetch(&self, key: Key, page: u64, wanted: u64) -> Result<Option<Page<'_>>> {
        for _ in 0..TRIES {
            let count = wanted.clamp(1, BATCH);
            let ask = |client: &Client| client.ask_whom(kind::READ, self.ino, page | count << 48);
            let (answer, from) = self.ask(ask)?;
            let body = rpc::access::<wire::ArchivedPages>(&answer.body, "volume's owner")?;
            let Some(word) = body.refs.first() else { return Ok(None) };
            let page_ref = PageRef::from_word(word.to_native());
            let page_ref = page_ref.ok_or_else(|| {
                Error::corrupt("an answer from the volume's owner", "it is no reference")
            })?;
            if let Some(guard) = self.client.region.pin_from(page_ref, from)? {
                return Ok(Some(Page::Shared(guard)));
            }
            if let Some(guard) = self.pin_cached(key) {
                return Ok(Some(Page::Shared(guard)));
            }
        }
        let answer = self.ask(|client| client.ask(kind::READ_COPY, self.ino, page, &[]))?;
        let whole = answer.body.len() == PAGE as usize;
        if !whole {
            return Err(Error::corrupt("an answer from the volume's owner", "it is no page"));
        }
        Ok((answer.args[0] > 0).then(|| Page::Copied(answer.body.to_vec())))
    }
}
