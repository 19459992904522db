//! Programs that people use, in an OSlet that does not own the volume: a crate of crates.io is
//! unpacked, built and tested, git keeps a repository, sqlite3 a database in each of its journals'
//! modes. The other OSlet and the kernel then find the same files.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, finish, finish_within, said};
use tests::fsdiff::{Field, HostView, Listing};
use tests::kernel::{self, LoopMount};

/// A crate without dependencies, but for those that are optional or for its benchmarks.
const CRATE: &str = "semver";
const VERSION: &str = "1.0.28";
/// What `cargo test` runs of it.
const TESTS: usize = 34;
/// What building it may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn programs_work_where_the_volume_is_not_owned() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let cluster = Cluster::new()?;
    kernel::mke2fs(&cluster.path("disk.img"), 512, &[])?;
    cluster.configure(2, "disk.img")?;
    let sources = sources(&cluster)?;
    cluster.ok(&["up", "-d"])?;

    crate_is_built(&cluster, &sources)?;
    git_keeps_history(&cluster)?;
    for mode in ["delete", "truncate", "persist", "wal"] {
        sqlite_keeps_rows(&cluster, mode)?;
    }

    let views = (0..2).map(|oslet| listing(&cluster.inside(oslet, "/global")?));
    let views = views.collect::<Result<Vec<_>>>()?;
    let connections = cluster.connections(2)?;
    cluster.ok(&["down"])?;
    cluster.assert_gone(&connections)?;
    let image = cluster.path("disk.img");
    kernel::assert_clean(&image)?;
    let mount = LoopMount::new(&image, &cluster.path("kernel"), "ro,noatime")?;
    let kernels = listing(mount.dir())?;
    mount.unmount()?;
    for (oslet, view) in views.iter().enumerate() {
        let difference = kernels.difference(view);
        ensure!(difference.is_none(), "o{oslet}: {}", difference.unwrap_or_default());
    }
    println!("ran: {} files of cargo, git and sqlite3 compared", kernels.text().lines().count());
    Ok(())
}

/// What is to be the same in each view. Access times are not written by mounts of a cluster, and
/// what has no place on the disk yet has no blocks that tell of it.
fn listing(root: &Path) -> Result<Listing> {
    let mut listing = Listing::of(&HostView::new(root))?;
    listing.forget(&[Field::OtherTimes, Field::Blocks]);
    Ok(listing)
}

/// Runs a shell script in o1, below `/global`; what it printed.
fn script(cluster: &Cluster, text: &str) -> Result<String> {
    let mut command = cluster.command(&["run", "o1", "--", "sh", "-euc"]);
    command.arg(format!("cd /global; {text}"));
    // Nobody's configuration, and no hooks of whoever runs the tests.
    command.env("HOME", "/global").env("GIT_CONFIG_NOSYSTEM", "1");
    let output = finish_within(&mut command, LIMIT)?;
    ensure!(output.status.success(), "{text}: {}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// The sources of the crate in a tar file, without what would need other crates.
fn sources(cluster: &Cluster) -> Result<PathBuf> {
    let asking = cluster.path("asking");
    std::fs::create_dir_all(asking.join("src"))?;
    std::fs::write(asking.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"asking\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
         [dependencies]\n{CRATE} = \"={VERSION}\"\n"
    );
    std::fs::write(asking.join("Cargo.toml"), manifest)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = finish(
        Command::new(cargo).args(["metadata", "--format-version", "1"]).current_dir(&asking),
    )?;
    ensure!(output.status.success(), "cargo metadata: {}", said(&output));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    let package = packages.iter().find(|package| package["name"] == CRATE);
    let path = package.and_then(|package| package["manifest_path"].as_str());
    let path = Path::new(path.context("cargo metadata: no such package")?);

    let copy = cluster.path(CRATE);
    let from = path.parent().context("a manifest without a directory")?;
    kernel::run("cp", &["-r", kernel::arg(from), kernel::arg(&copy)])?;
    std::fs::write(copy.join("Cargo.toml"), independent(&std::fs::read_to_string(path)?))?;
    for left in ["Cargo.lock", "Cargo.toml.orig"] {
        std::fs::remove_file(copy.join(left))?;
    }
    let tar = cluster.path("sources.tar");
    let top = kernel::arg(cluster.top());
    kernel::run("tar", &["-cf", kernel::arg(&tar), "-C", top, CRATE])?;
    Ok(tar)
}

/// The manifest without dependencies, which are optional or for benchmarks, and without those.
fn independent(manifest: &str) -> String {
    let mut kept = String::new();
    let mut keeping = true;
    for line in manifest.lines() {
        if line.starts_with('[') {
            keeping = !line.contains("dependencies") && !line.starts_with("[[bench]]");
        }
        if keeping && !line.contains("dep:") {
            kept += line;
            kept.push('\n');
        }
    }
    kept + "[workspace]\n"
}

/// Unpacks, builds and tests the crate.
fn crate_is_built(cluster: &Cluster, sources: &Path) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let home = |name: &str, default: &str| -> Result<String> {
        let home = std::env::var("HOME").context("HOME is not set")?;
        Ok(std::env::var(name).unwrap_or_else(|_| format!("{home}/{default}")))
    };
    let (rustup, registry) = (home("RUSTUP_HOME", ".rustup")?, home("CARGO_HOME", ".cargo")?);
    // The programs' own environment only: that of the test run names other build directories.
    let environment = format!(
        "export RUSTUP_HOME='{rustup}' CARGO_HOME='{registry}' CARGO_TARGET_DIR=/global/build; \
         unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_MANIFEST_DIR"
    );
    // A script's standard input is nobody's; the OSlet has a root of its own, without /tmp's files.
    let mut unpack = cluster.command(&["run", "o1", "--", "tar", "-xf", "-", "-C", "/global"]);
    let output = finish(unpack.stdin(std::fs::File::open(sources)?))?;
    ensure!(output.status.success(), "tar: {}", said(&output));
    let said = script(
        cluster,
        &format!(
            "{environment}; cd {CRATE}; '{cargo}' build --offline 2>&1; \
             '{cargo}' test --offline --lib --tests 2>&1"
        ),
    )?;
    let passed: usize = said
        .lines()
        .filter_map(|line| {
            line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<usize>().ok()
        })
        .sum();
    ensure!(passed == TESTS && !said.contains("FAILED"), "{passed} tests passed: {said}");
    println!("ran: {passed} tests of {CRATE} {VERSION}, built in another OSlet's /global");
    Ok(())
}

/// A repository with some history, packed, checked and cloned.
fn git_keeps_history(cluster: &Cluster) -> Result<()> {
    const COMMITS: usize = 12;
    let text = script(
        cluster,
        &format!(
            "git init -q repository; cd repository; \
             git config user.email nobody@example.org; git config user.name nobody; \
             cp -r ../{CRATE}/. .; git add -A; git commit -qm first; \
             for i in $(seq 2 {COMMITS}); do \
                 echo $i >> README.md; echo $i > src/file-$i; \
                 git rm -qf --ignore-unmatch src/file-$((i - 2)); \
                 git add -A; git commit -qm $i; \
             done; \
             git gc -q; git fsck --strict; git status --porcelain; cd ..; \
             git clone -q repository clone; git -C clone log --oneline"
        ),
    )?;
    ensure!(text.lines().count() == COMMITS, "{text}");
    println!("ran: {COMMITS} commits of git, packed, checked and cloned");
    Ok(())
}

/// A database in that journal mode, written in several transactions of several processes.
fn sqlite_keeps_rows(cluster: &Cluster, mode: &str) -> Result<()> {
    // But for WAL the mode is the connection's, so each one says it.
    let sql = |text: &str| {
        format!(
            "sqlite3 -cmd '.output /dev/null' -cmd 'pragma journal_mode={mode}' \
             -cmd '.output stdout' {mode}.db '{text}'"
        )
    };
    let make = sql("create table t(a integer primary key, b)");
    let fill =
        sql("begin; with recursive n(i) as (select 1 union all select i + 1 from n where i < 50) \
         insert into t(b) select hex(randomblob(100)) from n; commit");
    let check = sql("begin; delete from t; rollback; delete from t where a % 4 = 0; vacuum; \
         select count(*) from t; pragma integrity_check; pragma journal_mode");
    let all = format!("{make}; for i in $(seq 1 20); do {fill}; done; {check}");
    let text = script(cluster, &all)?;
    ensure!(text == format!("750\nok\n{mode}\n"), "{mode}: {text}");
    println!("ran: 20 transactions of sqlite3, journal_mode={mode}");
    Ok(())
}
