//! What the kernel is told of names, and gives back when it forgets them.

use std::sync::Arc;

use super::present::behind_change;
use super::shown::{attr, errno, ino, node};
use super::{Sharing, Shown};
use crate::cache::InodeRecord;
use crate::client::Client;
use crate::mount::{Entry, Lookup, NodeId, Reply};
use crate::{Error, Result};

/// What a name leads to, and who has said so.
pub(super) struct Found {
    record: InodeRecord,
    by: Arc<Client>,
}

impl Found {
    pub(super) fn new(record: InodeRecord, by: &Arc<Client>) -> Self {
        Self { record, by: Arc::clone(by) }
    }
}

impl Shown {
    /// A name that was looked up, and is one more of those that the kernel gives back.
    pub(super) fn entry(&self, found: &Found) -> Result<Entry> {
        let node = node(&found.record.attr);
        match self.sharing {
            Sharing::ReadOnly => {}
            Sharing::Alone => self.known.count(node),
            Sharing::Shared => self.known.hold_and_count(&found.by, node)?,
        }
        Ok(self.plain_entry(&found.record))
    }

    /// The same of a file that is new and that its maker holds.
    pub(super) fn adopt(&self, made: &Found) -> Entry {
        self.known.adopt(&made.by, node(&made.record.attr));
        self.plain_entry(&made.record)
    }

    /// The same where the owner need not be asked.
    pub(super) fn entry_at_once(&self, client: &Client, record: &InodeRecord) -> Option<Entry> {
        let node = node(&record.attr);
        let counted = match self.sharing {
            Sharing::ReadOnly => true,
            Sharing::Alone => {
                self.known.count(node);
                true
            }
            Sharing::Shared => self.known.count_held(client, node),
        };
        counted.then(|| self.plain_entry(record))
    }

    /// What a name leads to stays while the kernel knows it, although the name may go.
    pub(super) fn keep(&self, client: &Client, dir: NodeId, name: &[u8]) -> Result<()> {
        match client.lookup(ino(dir), name) {
            Ok(record) => self.known.hold(client, node(&record.attr)),
            Err(Error::Moved) => Err(Error::Moved),
            // Who takes the name away says what is wrong.
            Err(_) => Ok(()),
        }
    }

    pub(super) fn plain_entry(&self, record: &InodeRecord) -> Entry {
        Entry {
            node: node(&record.attr),
            generation: u64::from(record.attr.generation),
            attr: attr(record),
            entry_ttl: self.ttl(),
            attr_ttl: self.ttl(),
        }
    }

    pub(super) fn answer_lookup(&self, found: Result<Found>, reply: Reply<Lookup>) {
        self.answer_entry(found.and_then(|found| self.entry(&found)), reply);
    }

    pub(super) fn answer_made(&self, made: Result<Found>, reply: Reply<Lookup>) {
        self.answer_entry(made.and_then(|made| behind_change(self.entry(&made))), reply);
    }

    pub(super) fn answer_entry(&self, entry: Result<Entry>, reply: Reply<Lookup>) {
        match entry {
            Ok(entry) => reply.entry(&entry),
            Err(Error::NotFound) => reply.absent(self.ttl()),
            Err(error) => reply.error(errno(&error)),
        }
    }
}
