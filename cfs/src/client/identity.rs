//! What an open file is beyond its number, which one incarnation of an owner gives a meaning.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::Client;
use crate::engine::Attr;
use crate::id::Ino;
use crate::{Error, Result};

/// A file by number and generation, found again at each incarnation of the owner before it is used
/// there.
pub(super) struct Identity {
    /// Follows the owners.
    client: Arc<Client>,
    ino: Ino,
    generation: u32,
    /// The incarnation at which the number is known to be this file's.
    present: ArcSwapOption<Client>,
    hold: Mutex<Option<Hold>>,
}

/// The owner keeps the file.
struct Hold {
    at: Arc<Client>,
    /// Where its errors of writebacks begin that have not been told.
    errors: u64,
}

impl Identity {
    /// The file with those attributes at the incarnation `present`.
    pub(super) fn new(client: &Arc<Client>, present: &Arc<Client>, attr: &Attr) -> Self {
        Self {
            client: Arc::clone(client),
            ino: attr.ino,
            generation: attr.generation,
            present: ArcSwapOption::from(Some(Arc::clone(present))),
            hold: Mutex::new(None),
        }
    }

    /// Asks the present owner about this file, and the next one if that comes before. A client of
    /// one incarnation alone has no next one.
    pub(super) fn ask<T>(&self, ask: impl Fn(&Client) -> Result<T>) -> Result<T> {
        loop {
            match self.present().and_then(|client| ask(&client)) {
                Err(Error::Moved) if self.client.incarnation() == 0 => {}
                asked => return asked,
            }
        }
    }

    /// The present incarnation, if the file is known there already.
    pub(super) fn present_at_once(&self) -> Option<Arc<Client>> {
        self.present.load_full().filter(|client| client.is_present())
    }

    fn present(&self) -> Result<Arc<Client>> {
        if let Some(client) = self.present_at_once() {
            return Ok(client);
        }
        let mut hold = self.hold.lock();
        // Another thread may have found it meanwhile.
        if let Some(client) = self.present_at_once() {
            return Ok(client);
        }
        let client = self.client.present()?;
        match &mut *hold {
            Some(hold) => *hold = self.hold_at(&client)?,
            None => {
                let record = client.record(self.ino)?;
                if record.attr.generation != self.generation {
                    let generation = self.generation;
                    return Err(Error::Stale(format!("{} of generation {generation}", self.ino)));
                }
            }
        }
        self.present.store(Some(Arc::clone(&client)));
        Ok(client)
    }

    fn hold_at(&self, client: &Arc<Client>) -> Result<Hold> {
        let errors = client.hold_known(self.ino, self.generation)?;
        Ok(Hold { at: Arc::clone(client), errors })
    }

    /// Has the owner keep the file, without names too, until this is dropped.
    pub(super) fn hold(&self) -> Result<()> {
        self.ask_held(|_, _| Ok(()))
    }

    /// As [`Self::ask`], with the file held, and where errors begin that have not been told.
    pub(super) fn ask_held<T>(&self, ask: impl Fn(&Client, &mut u64) -> Result<T>) -> Result<T> {
        self.ask(|_| {
            let client = self.present_at_once().ok_or(Error::Moved)?;
            let mut hold = self.hold.lock();
            let there = |hold: &Hold| hold.at.incarnation() == client.incarnation();
            if !hold.as_ref().is_some_and(there) {
                *hold = Some(self.hold_at(&client)?);
            }
            match &mut *hold {
                Some(Hold { errors, .. }) => ask(&client, errors),
                None => Err(Error::Moved),
            }
        })
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some(Hold { at, .. }) = self.hold.get_mut()
            && at.is_reachable()
        {
            // An owner that is gone has let everything go.
            let _ = at.let_go(self.ino, 1);
        }
    }
}
