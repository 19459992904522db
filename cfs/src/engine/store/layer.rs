//! Wrappers around storage, for tests of what writes to it. They are the counterparts of
//! `proxydev::layer` for code that reaches storage as [`BlockSource`], and share its logs and
//! rules.

use std::sync::Arc;

use proxydev::layer::fault::Kind;
use proxydev::layer::{Log, Rules, What};

use super::BlockSource;
use crate::{Error, Result};

/// A source, and a log of what changes it.
pub struct RecordSource<S> {
    below: S,
    log: Arc<Log>,
}

impl<S: BlockSource> RecordSource<S> {
    /// Logs what is done to `below` through this.
    pub fn new(below: S, log: &Arc<Log>) -> Self {
        Self { below, log: Arc::clone(log) }
    }
}

impl<S: BlockSource> BlockSource for RecordSource<S> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        self.below.is_writable()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let submitted = self.log.now();
        self.below.write_at(offset, data)?;
        Ok(self.log.change(offset, What::Bytes(data.into()), false, submitted)?)
    }

    fn flush(&self) -> Result<()> {
        let submitted = self.log.now();
        self.below.flush()?;
        self.log.flushed(submitted);
        Ok(())
    }

    fn can_discard(&self) -> bool {
        self.below.can_discard()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let submitted = self.log.now();
        self.below.discard(offset, len)?;
        Ok(self.log.change(offset, What::Discard(len), false, submitted)?)
    }
}

/// A source whose requests fail by rules; what fails does not reach the source below.
pub struct FaultSource<S> {
    below: S,
    rules: Arc<Rules>,
}

impl<S: BlockSource> FaultSource<S> {
    /// Applies rules to what is asked of `below` through this.
    pub fn new(below: S, rules: &Arc<Rules>) -> Self {
        Self { below, rules: Arc::clone(rules) }
    }

    fn judge(&self, kind: Kind, what: &str, offset: u64, len: usize) -> Result<()> {
        match self.rules.judge(kind, offset, len as u64) {
            None => Ok(()),
            Some(errno) => Err(Error::io(format!("{what} of {len} bytes at {offset}"))(errno)),
        }
    }
}

impl<S: BlockSource> BlockSource for FaultSource<S> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.judge(Kind::Read, "read", offset, buf.len())?;
        self.below.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        self.below.is_writable()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.judge(Kind::Write, "write", offset, data.len())?;
        self.below.write_at(offset, data)
    }

    fn flush(&self) -> Result<()> {
        self.judge(Kind::Flush, "flush", 0, 0)?;
        self.below.flush()
    }

    fn can_discard(&self) -> bool {
        self.below.can_discard()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.judge(Kind::Write, "discard", offset, len as usize)?;
        self.below.discard(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use proxydev::layer::{Event, Rule};
    use rustix::io::Errno;

    use super::super::MemSource;
    use super::*;

    #[test]
    fn a_record_makes_the_image_again_and_lacks_what_failed() {
        let (log, rules) = (Log::new(), Rules::new());
        let below = Arc::new(MemSource::new(vec![0; 8192]));
        let source = RecordSource::new(FaultSource::new(below.clone(), &rules), &log);
        rules.set([Rule::nth_change(2, Errno::NOSPC)]);
        source.write_at(100, &[1; 3000]).unwrap();
        source.flush().unwrap();
        let error = source.write_at(0, &[2; 512]).unwrap_err();
        assert_eq!(error.errno(), Errno::NOSPC.raw_os_error(), "{error}");
        source.write_at(2000, &[3; 600]).unwrap();
        rules.set([Rule { writes: false, reads: false, ..Rule::all() }]);
        assert_eq!(source.flush().unwrap_err().errno(), Errno::IO.raw_os_error());
        let mut image = vec![0; 8192];
        let events = log.take();
        assert_eq!(events.len(), 3, "{events:?}");
        assert_eq!(events[1], Event::Flush { covers: 1 });
        for event in events {
            if let Event::Change(change) = event {
                change.apply(&mut image, 0..change.sectors());
            }
        }
        let mut found = vec![0; 8192];
        source.read_at(0, &mut found).unwrap();
        assert!(found == image);
        assert_eq!((found[99], found[100], found[2000], found[3099]), (0, 1, 3, 1));
        rules.set([Rule { writes: false, flushes: false, ..Rule::all() }]);
        source.read_at(0, &mut found).unwrap_err();
    }
}
