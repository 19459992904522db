//! Runs on mounts: a disk that fails under a filesystem of the kernel's or under `oslet mount`.

use std::path::Path;

use anyhow::{Result, ensure};

use super::native::Setting;
use super::{Fault, Outcomes, Watch, judge, run};
use crate::crash::Recording;
use crate::crash::disk::Disk;
use crate::opfuzz::Subject;
use crate::opfuzz::dir::{DirSubject, Ways};
use crate::opfuzz::op::{Allocate, Op};
use crate::opfuzz::volumes::Mounter;

/// Does the workload on a mount of a disk with that fault. Whether there was such a request.
///
/// # Errors
/// What was answered or left otherwise than it should be.
pub fn fails_well(
    setting: &Setting,
    fault: Fault,
    (mounter, ways): (&Mounter, Ways),
    dir: &Path,
) -> Result<bool> {
    let disk = Disk::new(&dir.join("disk"), setting.base.to_vec())?;
    disk.rules().set([fault.rule()]);
    let has_failed = || disk.rules().failed() > 0;
    let outcomes = match mounter(&disk.path(), &dir.join("mounted")) {
        Err(error) => {
            ensure!(has_failed(), "mounting: {error:#}");
            Outcomes { ops: Vec::new(), failed: Vec::new(), stop: Some(format!("{error:#}")) }
        }
        Ok(mounted) => {
            let root = mounted.dir().to_owned();
            let mut subject = DirSubject::new("mounted", &root, None)?.with(ways);
            let told = std::cell::Cell::new(false);
            let watch = Watch {
                traits: setting.traits,
                fault,
                has_failed: &has_failed,
                // The mount does not say: an error may be the sign of it.
                is_given_up: &|| told.get(),
                mark: &|done| {
                    told.set(has_failed());
                    disk.log().mark(done);
                },
            };
            // Without a mount in the midst: the kernel would have to be asked twice. What takes
            // ranges out of files it does not pass on.
            let left_out = |op: &&Op| {
                matches!(op, Op::Remount | Op::Allocate { what: Allocate::Collapse, .. })
            };
            let ops: Vec<_> = setting.ops.iter().filter(|op| !left_out(op)).cloned().collect();
            let outcomes = run(&mut subject, &ops, &watch);
            subject.close_all();
            drop(subject);
            let stopped = mounted.unmount();
            let stop = stopped.err().map(|error| format!("{error:#}"));
            Outcomes { stop, ..outcomes? }
        }
    };
    let recording = Recording { base: setting.base.to_vec(), events: disk.log().take() };
    judge(&recording, &outcomes, setting.traits, dir, fault.first)?;
    Ok(has_failed())
}
