//! Asynchronous access: fio drives files of a mount by libaio and io_uring, through the cache and
//! past it; what it reads it checks, and what it leaves is what kernel ext4 has after the same.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::kernel::{self, LoopMount, arg, assert_clean, mke2fs};
use tests::opfuzz::volumes::{Mounter, kernel_ext4};
use tests::program::ours;

const ENGINES: [&str; 3] = ["psync", "libaio", "io_uring"];
/// Bytes of a request.
const SIZES: [u32; 2] = [1024, 20_480];

/// Why fio cannot be used here.
fn missing() -> Option<String> {
    let fio = Command::new("fio").arg("--version").output();
    kernel::missing().or_else(|| fio.err().map(|_| "needs fio (package fio)".to_owned()))
}

/// Writes a file at random, many requests in flight, reads it back and checks it.
fn fio(dir: &Path, engine: &str, direct: bool, size: u32, seed: u64) -> Result<String> {
    let name = format!("{engine}-{}-{size}", if direct { "direct" } else { "cached" });
    let file = dir.join(&name);
    let arguments = [
        format!("--name={name}"),
        format!("--filename={}", arg(&file)),
        format!("--ioengine={engine}"),
        format!("--direct={}", u8::from(direct)),
        format!("--bs={size}"),
        format!("--randseed={seed}"),
        // What is not a multiple of the requests is left a hole at the end.
        "--rw=randwrite --filesize=1m --iodepth=16 --percentage_random=80".into(),
        "--verify=pattern --verify_pattern=%o --do_verify=1 --verify_fatal=1 --fsync=100".into(),
        "--fallocate=none --output-format=terse".into(),
    ];
    let arguments = arguments.iter().flat_map(|argument| argument.split(' '));
    let output = Command::new("fio").args(arguments).current_dir(dir).output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&said));
    Ok(name)
}

/// All ways of access on one volume; the names of the files.
fn everything(top: &Path, image: &Path, mounter: &Mounter) -> Result<Vec<String>> {
    mke2fs(image, 128, &["-t", "ext4", "-b", "1024"])?;
    let mounted = mounter(image, &top.join("mounted"))?;
    let mut names = Vec::new();
    for engine in ENGINES {
        for direct in [false, true] {
            for size in SIZES {
                names.push(fio(mounted.dir(), engine, direct, size, u64::from(size))?);
            }
        }
    }
    mounted.unmount()?;
    assert_clean(image)?;
    Ok(names)
}

#[test]
fn asynchronous_access_leaves_what_kernel_ext4_has() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("access-").tempdir_in("/dev/shm")?;
    let images = ["theirs", "ours"].map(|name| dir.path().join(name));
    let names = everything(dir.path(), &images[0], &kernel_ext4())?;
    everything(dir.path(), &images[1], &ours("cache=32M"))?;
    let mounts = ["a", "b"].map(|name| dir.path().join(name));
    let [theirs, ours] = [
        LoopMount::new(&images[0], &mounts[0], "ro")?,
        LoopMount::new(&images[1], &mounts[1], "ro")?,
    ];
    for name in &names {
        let (a, b) =
            (std::fs::read(theirs.dir().join(name))?, std::fs::read(ours.dir().join(name))?);
        ensure!(!a.is_empty() && a == b, "{name} differs");
    }
    println!("ran: {} files by fio on both", names.len());
    ours.unmount()?;
    theirs.unmount()
}
