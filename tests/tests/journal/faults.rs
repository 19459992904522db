//! A write or flush that fails: the journal is given up, whoever waits hears of it, and nothing
//! that was promised is lost.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::Error;
use cfs::engine::store::{BlockSource, MemSource};
use proxydev::layer::{Rule, Rules};
use rustix::io::Errno;

use crate::load::{CASES, Case, Load, full, image, open, seed};
use crate::{bytes, compare_with_others};

const COMMITS: u64 = 12;

/// Fails the change with that number; false when there were fewer.
fn fail(case: &Case, base: &[u8], number: u64, compare: bool) -> Result<bool> {
    let rules = Rules::new();
    let mut load = Load::new(base.to_vec(), seed(), &rules)?;
    rules.set([Rule::nth_change(number, Errno::IO)]);
    let ended = load.go(COMMITS);
    if rules.failed() == 0 {
        ensure!(ended.is_ok(), "{ended:?} though nothing failed");
        return Ok(false);
    }
    let error = ended.err().context("nobody heard of the error")?;
    let known = error.downcast_ref::<Error>().map(Error::errno);
    let expected = [Errno::IO, Errno::ROFS].map(Errno::raw_os_error);
    ensure!(known.is_some_and(|errno| expected.contains(&errno)), "{error:#}");
    if load.journal.aborted().is_none() {
        // It was no request of the journal.
        load.journal.stop()?;
        let events = load.history.log.now();
        return load.history.boundary(&*load.history.storage, events).map(|_| true);
    }
    ensure!(matches!(load.journal.begin(1), Err(Error::ReadOnly)), "changes are still taken");
    let after = rules.changes();
    ensure!(load.journal.flush_all().is_err(), "more is durable");
    drop(load.journal.stop());
    ensure!(rules.changes() == after, "something was written after the journal was given up");
    let history = load.history;
    let events = history.log.now();
    let before = bytes(&*history.storage)?;
    let state = u16::from_le_bytes([before[1024 + 0x3a], before[1024 + 0x3b]]);
    ensure!(state & 2 != 0, "the superblock knows of no error");
    let source: Arc<dyn BlockSource> = Arc::new(MemSource::new(before.clone()));
    let report = cfs::journal::recover(&source)?;
    history.boundary(&*source, events)?;
    // Without a report everything was at home when the error came.
    ensure!(report.is_none_or(|report| report.aborted == -Errno::IO.raw_os_error()));
    if compare {
        let dir = tempfile::tempdir()?;
        compare_with_others(dir.path(), &history, &before, events)?;
    }
    let (_, journal) = open(source, std::time::Duration::from_secs(3600))?;
    journal.stop().with_context(|| format!("{} goes on", case.name))?;
    Ok(true)
}

#[test]
fn any_write_may_fail() {
    let mut failed = 0;
    for case in CASES.iter().take(if full() { CASES.len() } else { 2 }) {
        let base = image(case).unwrap();
        for number in 0.. {
            match fail(case, &base, number, number % 20 == 7) {
                Ok(true) => {}
                Ok(false) => {
                    println!("{}: {number} writes and flushes", case.name);
                    break;
                }
                Err(error) => {
                    println!("{}, change {number}: {error:#}", case.name);
                    failed += 1;
                }
            }
        }
    }
    assert_eq!(failed, 0);
}
