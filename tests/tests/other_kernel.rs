//! Partitioning and isolation under a kernel that is not the host's: eight CPUs in four nodes and a
//! fifth node of memory alone, control groups of version 2 with cpusets, huge pages. Runs in the
//! step `kernel`, which sets `OSLET_GUEST`, or when `OSLET_KERNEL` names a kernel.
//! `OSLET_GUEST_SCRIPT` names another script to run there, whose output is shown.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster;
use tests::guest::Guest;

const SCRIPT: &str = include_str!("other_kernel/script.sh");
/// Checks at least that the script must have made.
const LEAST: usize = 137;
const LIMIT: Duration = Duration::from_secs(400);

#[test]
fn partitions_are_kept_by_another_kernel() -> Result<()> {
    let wanted = ["OSLET_GUEST", "OSLET_KERNEL"].iter().any(|n| std::env::var_os(n).is_some());
    if !wanted {
        println!(
            "skipped: boots another kernel: in the step kernel of --full, or with OSLET_GUEST=1"
        );
        return Ok(());
    }
    let guest = match Guest::find() {
        Ok(guest) => guest,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    let oslet = cluster::program()?;
    let [mke2fs, e2fsck] = ["mke2fs", "e2fsck"].map(|name| {
        let places = ["/sbin", "/usr/sbin"].map(|dir| PathBuf::from(dir).join(name));
        places.into_iter().find(|path| path.is_file()).context("needs e2fsprogs")
    });
    if let Some(path) = std::env::var_os("OSLET_GUEST_SCRIPT") {
        let script = std::fs::read_to_string(&path).context("OSLET_GUEST_SCRIPT")?;
        println!("{}", guest.run(&script, &[&oslet, &mke2fs?, &e2fsck?], LIMIT)?);
        return Ok(());
    }
    let text = guest.run(SCRIPT, &[&oslet, &mke2fs?, &e2fsck?], LIMIT)?;
    let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    ensure!(lines("FAIL ") == 0 && lines("guest: done") == 1, "{text}");
    let (checks, sections) = (lines("ok "), lines("guest: "));
    ensure!(checks >= LEAST, "{checks} checks, at least {LEAST} should be: {text}");
    println!("ran: {checks} checks in {sections} sections under another kernel");
    Ok(())
}
