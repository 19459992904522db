//! Which incarnation of a volume's owner a request goes to.
//!
//! Where owners come and go, each request goes to one incarnation, at which all its nodes are held
//! as the inodes that the kernel knows. What has not been sent when another takes its place is
//! asked of that one, in the same way.

use std::sync::Arc;
use std::time::Instant;

use super::shown::ino;
use super::{Sharing, Shown};
use crate::client::Client;
use crate::mount::NodeId;
use crate::{Error, Result, limits};

impl Shown {
    /// Whether the volume's owner may become another while this is mounted.
    pub(super) fn follows_owners(&self) -> bool {
        self.sharing == Sharing::Shared
    }

    /// The client of the present incarnation; waits for one.
    fn present(&self) -> Result<Arc<Client>> {
        if !self.follows_owners() {
            return Ok(Arc::clone(&self.client));
        }
        if let Some(present) = self.present.load_full().filter(|client| client.is_present()) {
            return Ok(present);
        }
        let present = self.client.present()?;
        self.present.store(Some(Arc::clone(&present)));
        Ok(present)
    }

    /// The same if there is one.
    pub(super) fn present_at_once(&self) -> Option<Arc<Client>> {
        if let Some(present) = self.present.load_full().filter(|client| client.is_present()) {
            return Some(present);
        }
        let present = self.client.present_at_once()?;
        self.present.store(Some(Arc::clone(&present)));
        Some(present)
    }

    /// The client of that incarnation, if it is the last one that was present here.
    pub(super) fn client_at(&self, incarnation: u64) -> Option<Arc<Client>> {
        match self.follows_owners() {
            true => self.present.load_full().filter(|client| client.incarnation() == incarnation),
            false => Some(Arc::clone(&self.client)),
        }
    }

    /// The incarnation at which what the kernel knows is held.
    pub(super) fn held_at(&self, node: NodeId) -> Option<u64> {
        if self.follows_owners() { self.known.held_at(node) } else { Some(0) }
    }

    /// Whether an inode is known to have no extended attributes.
    pub(super) fn has_no_xattr(&self, node: NodeId) -> bool {
        let client = self.at_once(&[node]);
        let record = client.and_then(|client| client.cached_record(ino(node)));
        record.is_some_and(|record| !record.has_xattr)
    }

    /// Whom to ask about nodes that are all held at the present incarnation; none where that has to
    /// be asked for first.
    pub(super) fn at_once(&self, nodes: &[NodeId]) -> Option<Arc<Client>> {
        if !self.follows_owners() {
            return Some(Arc::clone(&self.client));
        }
        let present = self.present.load_full().filter(|client| client.is_present())?;
        self.known.are_settled(&present, nodes).then_some(present)
    }

    /// Asks about nodes, which may wait: of the present incarnation, and once more of the next one
    /// if nothing had been sent when that came.
    pub(super) fn ask<T>(
        &self,
        nodes: &[NodeId],
        mut ask: impl FnMut(&Shown, &Arc<Client>) -> Result<T>,
    ) -> Result<T> {
        let end = Instant::now() + limits::OWNER_WAIT;
        loop {
            let asked = self.present().and_then(|client| {
                if self.follows_owners() {
                    self.known.settle(&client, nodes)?;
                }
                ask(self, &client)
            });
            match asked {
                Err(Error::Moved) if Instant::now() < end => {}
                asked => return asked,
            }
        }
    }
}

/// Behind a change that was made: what could not be said of it is lost with its owner.
pub(super) fn behind_change<T>(asked: Result<T>) -> Result<T> {
    match asked {
        Err(Error::Moved) => Err(Error::Owner(rustix::io::Errno::IO.raw_os_error())),
        asked => asked,
    }
}
