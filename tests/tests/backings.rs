//! Clusters on the machine's pool of huge pages: what they take and give back, and what is said
//! when there are too few. Clusters on a named file are in `bad_input.rs` and, under another
//! kernel, in `other_kernel.rs`.

#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, said};
use tests::kernel;

const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// Pages of 2 MiB that are added to the pool.
const PAGES: u64 = 24;

/// More huge pages while this lives; what was there before, afterwards.
struct Pool {
    before: u64,
}

impl Pool {
    /// Why there can be none here.
    fn grow() -> Result<std::result::Result<Self, String>> {
        if meminfo("Hugepagesize:")? != 2048 {
            return Ok(Err("needs huge pages of 2 MiB".into()));
        }
        // Eight times what is taken: no other test is to feel it.
        if meminfo("MemAvailable:")? < PAGES * 2048 * 8 {
            return Ok(Err("needs more free memory".into()));
        }
        let before = fs::read_to_string(POOL)?.trim().parse()?;
        let pool = Self { before };
        fs::write(POOL, (before + PAGES).to_string()).context(POOL)?;
        match meminfo("HugePages_Free:")? {
            free if free < PAGES => Ok(Err(format!("needs {PAGES} huge pages, {free} to be had"))),
            _ => Ok(Ok(pool)),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = fs::write(POOL, self.before.to_string()) {
            eprintln!("{POOL}: {error}");
        }
    }
}

fn meminfo(field: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("/proc/meminfo: no {field}"))?.parse()?)
}

#[test]
fn huge_pages_are_taken_and_given_back() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let _pool = match Pool::grow()? {
        Ok(pool) => pool,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    let cluster = Cluster::new()?;
    let free = || meminfo("HugePages_Free:");
    let before = free()?;
    let configure = |size: &str, more: &str| {
        let text = format!("{more}[region]\nbacking = \"hugetlb\"\nsize = \"{size}\"\n");
        fs::write(cluster.path("oslet.toml"), text)
    };
    configure("24M", "")?;
    cluster.ok(&["up", "-d"])?;
    let taken = before - free()?;
    ensure!((12..=14).contains(&taken), "{taken} pages are taken for 24 MiB");
    for oslet in ["o0", "o1"] {
        let text = cluster.ok(&["run", oslet, "cat", "/global/README"])?;
        ensure!(text.contains("the global filesystem"), "{oslet}: {text}");
        let shown: String = cluster.ok(&["show", oslet])?;
        let huge = shown.lines().find(|line| line.starts_with("huge pages"));
        ensure!(huge.is_some_and(|line| line.ends_with("true")), "{shown}");
    }
    cluster.ok(&["down"])?;
    cluster.assert_gone(&[])?;
    ensure!(free()? == before, "{} of {before} pages are back", free()?);

    // Too few, for the size and for so many OSlets: what to do is said.
    let size = format!("{}M", (before + 8) * 2);
    let total = meminfo("HugePages_Total:")? + 8;
    configure(&size, "")?;
    let output = cluster.output(&["up", "-d"])?;
    let text = said(&output);
    ensure!(output.status.code() == Some(2), "{text}");
    ensure!(text.contains("oslet.toml:3: region: size: "), "{text}");
    ensure!(text.contains(&format!("reserve them: sysctl vm.nr_hugepages={total}")), "{text}");
    cluster.assert_gone(&[])?;
    ensure!(free()? == before, "{} of {before} pages are back", free()?);
    Ok(())
}
