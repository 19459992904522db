//! Runs in this process: a volume on storage in memory that fails.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use cfs::engine::store::layer::{FaultSource, RecordSource};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::engine::write::{Writer, WriterOptions};
use cfs::engine::{Options, Volume};
use cfs::id::Ino;
use cfs::journal::JournalOptions;
use cfs::local::LocalVolume;
use proxydev::layer::{Log, Rules};
use rustix::io::Errno;

use super::{Fault, Outcomes, Watch, judge, run};
use crate::crash::Recording;
use crate::opfuzz::Subject;
use crate::opfuzz::model::Traits;
use crate::opfuzz::native::{NativeSubject, Open};
use crate::opfuzz::op::{Op, Outcome};

const CACHE: u64 = 1 << 20;

/// A volume that is open, and its writer.
type Opened = Rc<RefCell<Option<Arc<Writer>>>>;

fn open(source: &Arc<dyn BlockSource>, opened: &Opened) -> Result<LocalVolume> {
    cfs::journal::recover(source)?;
    let volume = Arc::new(Volume::open(Arc::clone(source), &Options::default())?);
    // Nothing is committed but what somebody asks for, so that requests are the same each time.
    let journal =
        JournalOptions { commit_interval: Duration::from_secs(3600), ..JournalOptions::default() };
    let writer = Writer::open(volume, &WriterOptions { journal, ..WriterOptions::default() })?;
    writer.space().set_discard(true);
    *opened.borrow_mut() = Some(Arc::clone(&writer));
    Ok(LocalVolume::write(writer, CACHE)?)
}

/// What the runs of one volume have in common.
#[derive(Clone)]
pub struct Setting {
    /// The image at first.
    pub base: Arc<[u8]>,
    /// What it is like.
    pub traits: Traits,
    /// What is done.
    pub ops: Arc<[Op]>,
}

/// Does the workload on a device with that fault. Whether there was such a request.
///
/// # Errors
/// What was answered or left otherwise than it should be.
pub fn fails_well(setting: &Setting, fault: Fault, dir: &Path) -> Result<bool> {
    let (log, rules) = (Log::new(), Rules::new());
    let disk = FaultSource::new(MemSource::new(setting.base.to_vec()), &rules);
    let source: Arc<dyn BlockSource> = Arc::new(RecordSource::new(disk, &log));
    rules.set([fault.rule()]);
    let opened = Opened::default();
    let outcomes = match open(&source, &opened) {
        Ok(volume) => work(setting, fault, volume, &opened, (&source, &rules, &log))?,
        Err(error) => {
            ensure!(rules.failed() > 0, "opening: {error:#}");
            Outcomes { ops: Vec::new(), failed: Vec::new(), stop: Some(error.to_string()) }
        }
    };
    let failed = rules.failed() > 0;
    ensure!(failed || !outcomes.is_told(), "an error, though nothing has failed");
    let recording = Recording { base: setting.base.to_vec(), events: log.take() };
    judge(&recording, &outcomes, setting.traits, dir, fault.first)?;
    Ok(failed)
}

fn work(
    setting: &Setting,
    fault: Fault,
    volume: LocalVolume,
    opened: &Opened,
    (source, rules, log): (&Arc<dyn BlockSource>, &Arc<Rules>, &Arc<Log>),
) -> Result<Outcomes> {
    let mounted: Open = Rc::new(RefCell::new(Some(volume)));
    let (again, theirs) = (Arc::clone(source), Rc::clone(opened));
    let reopen = Box::new(move || open(&again, &theirs));
    let mut subject = NativeSubject::new("native", &mounted, Ino::ROOT, Some(reopen))?;
    let is_given_up =
        || opened.borrow().as_ref().is_some_and(|writer| writer.journal().aborted().is_some());
    let watch = Watch {
        traits: setting.traits,
        fault,
        has_failed: &|| rules.failed() > 0,
        is_given_up: &is_given_up,
        mark: &|done| log.mark(done),
    };
    let mut outcomes = run(&mut subject, &setting.ops, &watch)?;
    if is_given_up() && mounted.borrow().is_some() {
        let outcome = subject.apply(&Op::Mkdir { path: "late".into(), mode: 0o755 });
        let expected = Outcome::Error(Errno::ROFS.raw_os_error());
        ensure!(outcome == expected, "after the journal was given up: {outcome:?}");
        if fault.once {
            ensure!(knows_of_error(&**source)?, "the superblock knows of no error");
        }
    }
    subject.close_all();
    drop(subject);
    let volume = mounted.borrow_mut().take();
    outcomes.stop = match volume.map(LocalVolume::close) {
        Some(Ok(())) => None,
        Some(Err(error)) => Some(error.to_string()),
        // The clean stop in the midst has failed.
        None => Some("closed before".into()),
    };
    Ok(outcomes)
}

/// Whether the superblock says that there was an error, and when.
fn knows_of_error(source: &dyn BlockSource) -> Result<bool> {
    let mut bytes = [0; cfs::disk::superblock::SIZE];
    source.read_at(cfs::disk::superblock::OFFSET, &mut bytes)?;
    // s_state, s_error_count and s_first_error_time of the format.
    let word = |at: usize| bytes[at..at + 4].iter().any(|byte| *byte != 0);
    Ok(bytes[0x3a] & 2 != 0 && word(0x194) && word(0x198))
}
