//! Power lost at each point of a recorded history.

use std::sync::Arc;

use cfs::Result;
use cfs::engine::store::{BlockSource, MemSource, Overlay};
use proxydev::layer::{Change, Event, What};

/// Goes through a history, one write or flush after the other.
pub struct Cuts {
    events: Vec<Event>,
    /// Bytes that the disk writes as a whole even when it loses power.
    atom: usize,
    durable: Arc<MemSource>,
    /// Changes before this event are durable.
    flushed: usize,
    at: usize,
}

/// How much of a write that was not flushed reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it.
    Whole,
    /// Nothing.
    Lost,
    /// Those of its atoms of which the number's bit is set, round and round.
    Torn(u64),
}

impl Cuts {
    /// A disk that held `base` before these events, and writes `atom` bytes as a whole.
    #[must_use]
    pub fn new(base: Vec<u8>, events: Vec<Event>, atom: usize) -> Self {
        Self { events, atom, durable: Arc::new(MemSource::new(base)), flushed: 0, at: 0 }
    }

    /// Goes one event on. Returns how many have happened, or `None` at the end.
    pub fn step(&mut self) -> Result<Option<usize>> {
        let Some(event) = self.events.get(self.at) else { return Ok(None) };
        self.at += 1;
        if let Event::Flush { covers } = event {
            for event in self.events.get(self.flushed..*covers).unwrap_or(&[]) {
                if let Event::Change(Change { offset, what: What::Bytes(data), .. }) = event {
                    self.durable.write_at(*offset, data)?;
                }
            }
            self.flushed = self.flushed.max(*covers);
        }
        Ok(Some(self.at))
    }

    /// Writes that may be lost now, those under way included.
    fn pending(&self) -> impl Iterator<Item = &Change> {
        let changes = self.events.iter().enumerate().skip(self.flushed);
        changes.filter_map(|(index, event)| match event {
            Event::Change(change) if index < self.at || change.submitted <= self.at => Some(change),
            _ => None,
        })
    }

    /// Whether any may be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.pending().next().is_none()
    }

    /// What the disk holds when power is lost here and `kept` says what became of each write that
    /// was not flushed.
    pub fn image(&self, mut kept: impl FnMut() -> Kept) -> Result<Arc<dyn BlockSource>> {
        let image = Overlay::new(Arc::clone(&self.durable));
        for change in self.pending() {
            let What::Bytes(data) = &change.what else { continue };
            match kept() {
                Kept::Whole => image.write_at(change.offset, data)?,
                Kept::Lost => {}
                Kept::Torn(bits) => {
                    for (index, atom) in data.chunks(self.atom).enumerate() {
                        if bits >> (index % 64) & 1 == 1 {
                            image.write_at(change.offset + (index * self.atom) as u64, atom)?;
                        }
                    }
                }
            }
        }
        Ok(Arc::new(image))
    }
}
