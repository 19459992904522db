//! The CPU time of a whole cluster in which nothing happens.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::processes::cpu_percent;
use bench::{Environment, Side};

use super::up::Up;

const OSLETS: usize = 2;
const CONFIGURATION: &str = "[region]\nsize = \"64M\"\n[[oslet]]\nname = \"o0\"\n\
                             [[oslet]]\nname = \"o1\"\n";
/// Until what starting has left to do is done.
const SETTLE: Duration = Duration::from_secs(2);
/// The kernel counts CPU time in ticks of 10 ms or so.
const WATCH: Duration = Duration::from_secs(10);
const TRIAL_WATCH: Duration = Duration::from_secs(1);

/// Percent of one CPU that one OSlet takes, its share of the launcher included.
pub(super) fn side(environment: &Environment) -> Result<Side> {
    let watch = if environment.batch < Duration::from_millis(10) { TRIAL_WATCH } else { WATCH };
    let up = match Up::start(environment, CONFIGURATION)? {
        Ok(up) => up,
        Err(why) => return Ok(Side::absent(why)),
    };
    Ok(Side::probe(move || {
        let pids = pids(&up)?;
        std::thread::sleep(SETTLE.min(watch));
        Ok(cpu_percent(&pids, watch)? / OSLETS as f64)
    }))
}

/// The runtimes, what started them, and what they have started.
fn pids(up: &Up) -> Result<Vec<u32>> {
    let listed = up.oslet(&["ls", "--json"])?.stdout;
    let listed: serde_json::Value = serde_json::from_slice(&listed).context("oslet ls")?;
    let rows = listed.as_array().context("oslet ls: no array")?;
    let runtimes: BTreeSet<u32> =
        rows.iter().filter_map(|row| u32::try_from(row.get("pid")?.as_u64()?).ok()).collect();
    ensure!(runtimes.len() == OSLETS, "{} of {OSLETS} OSlets run", runtimes.len());
    let mut pids = runtimes.clone();
    for runtime in &runtimes {
        // 1 is who adopts orphans, and no part of the cluster.
        pids.extend(parent(*runtime).filter(|&launcher| launcher > 1));
    }
    loop {
        let before = pids.len();
        for pid in processes()? {
            if parent(pid).is_some_and(|parent| pids.contains(&parent)) {
                pids.insert(pid);
            }
        }
        if pids.len() == before {
            return Ok(pids.into_iter().collect());
        }
    }
}

fn processes() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").context("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    // The name in parentheses may hold anything; the state and the parent follow its end.
    stat.ok()?.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
