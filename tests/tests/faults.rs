//! Devices that fail at any request: nothing that was promised is lost, and nobody is left without
//! an answer.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use tests::crash::check::recover_by_us;
use tests::crash::dirty_image;
use tests::faults::native::Setting;
use tests::faults::workload::everything;
use tests::faults::{Fault, Requests, bounded, mounted, native};
use tests::kernel::{self, LoopMount, arg};
use tests::opfuzz::dir::Ways;
use tests::opfuzz::model::Traits;
use tests::opfuzz::op::pattern;
use tests::opfuzz::volumes::{Mounted, Mounter};
use tests::program::{OurMount, ours};

/// Kinds of volumes: arguments of mke2fs, mebibytes, what they are like.
const KINDS: [(&str, usize, Traits); 2] = [
    ("-t ext4 -b 1024 -J size=1", 8, Traits::ext4(1024)),
    ("-t ext4 -b 4096 -J size=4", 16, Traits::ext4(4096)),
];

const REQUESTS: [Requests; 3] = [Requests::Reads, Requests::Writes, Requests::Flushes];

/// Of so many requests one fails by default.
fn stride(usual: usize) -> usize {
    let asked = std::env::var("OSLET_STRIDE").ok().and_then(|stride| stride.parse().ok());
    asked.unwrap_or(if std::env::var_os("OSLET_FULL").is_some() { 1 } else { usual })
}

/// Kinds of faults: which requests, and whether only one of them fails.
fn kinds() -> impl Iterator<Item = (Requests, bool)> {
    REQUESTS.into_iter().flat_map(|requests| [(requests, true), (requests, false)])
}

/// One in `stride` requests fails, in each way; what went wrong is shown, and counted.
fn faults(
    kind: &str,
    on: &str,
    stride: usize,
    fails_well: impl Fn(Fault) -> Result<bool>,
) -> Result<()> {
    let mut bad = 0;
    for (requests, once) in kinds() {
        let (mut runs, mut first) = (0, 0);
        loop {
            let errno = if first % 2 == 0 { Errno::IO } else { Errno::NOSPC };
            let fault = Fault { requests, first, once, errno };
            match fails_well(fault) {
                Ok(true) => runs += 1,
                Ok(false) => break,
                Err(error) => {
                    println!("{kind}: {fault:?}: {error:#}");
                    bad += 1;
                    // A defect that is always met ends it.
                    ensure!(bad < 20, "{bad} runs went wrong");
                }
            }
            first += stride as u64;
        }
        println!("ran: {runs} faults of {requests:?}, once: {once}, on {on}, {kind}");
    }
    ensure!(bad == 0, "{bad} of these runs went wrong");
    Ok(())
}

fn setting(dir: &Path, (kind, megabytes, traits): (&str, usize, Traits)) -> Result<Setting> {
    let base = dirty_image(&dir.join("base.img"), megabytes, kind)?;
    Ok(Setting { base: base.into(), traits, ops: everything().into() })
}

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("faults-").tempdir_in("/dev/shm")?)
}

/// In this process, where every request can be tried.
#[test]
fn any_request_may_fail() -> Result<()> {
    let dir = scratch()?;
    for kind in KINDS {
        let setting = setting(dir.path(), kind)?;
        faults(kind.0, "a volume in this process", stride(8), |fault| {
            let (setting, dir) = (setting.clone(), dir.path().to_owned());
            bounded(move || native::fails_well(&setting, fault, &dir))
        })?;
    }
    Ok(())
}

/// A mount of the disk that fails, by the kernel or by the program.
fn on_mounts(on: &str, stride: usize, mounter: fn() -> (Mounter, Ways)) -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = scratch()?;
    let setting = setting(dir.path(), KINDS[0])?;
    faults(KINDS[0].0, on, stride, |fault| {
        let (setting, dir) = (setting.clone(), dir.path().to_owned());
        bounded(move || {
            let (mounter, ways) = mounter();
            mounted::fails_well(&setting, fault, (&mounter, ways), &dir)
        })
    })
}

#[test]
fn kernel_ext4_fails_well() -> Result<()> {
    on_mounts("kernel ext4", stride(199), || {
        let mounter: Mounter = Rc::new(|image, dir| {
            let options = "noatime,nodioread_nolock,errors=remount-ro";
            Ok(Box::new(LoopMount::new(image, dir, options)?))
        });
        (mounter, Ways::default())
    })
}

#[test]
fn our_mounts_fail_well() -> Result<()> {
    on_mounts("a mount of ours", stride(149), || {
        (ours("cache=32M"), Ways { ticks: true, sync_each: true })
    })
}

/// A filesystem of so many mebibytes in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(dir: PathBuf, megabytes: u32) -> Result<Self> {
        std::fs::create_dir(&dir)?;
        let size = format!("size={megabytes}m");
        kernel::run("mount", &["-t", "tmpfs", "-o", &size, "small", arg(&dir)])?;
        Ok(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if let Err(error) = kernel::run("umount", &[arg(&self.0)]) {
            eprintln!("{error:#}");
        }
    }
}

/// An image larger than what it lies on: when that is full, whoever makes something durable hears
/// of it, and what was durable before stays.
#[test]
fn a_sparse_image_on_a_full_disk_keeps_what_is_durable() -> Result<()> {
    const LEN: usize = 300_000;
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = scratch()?;
    let small = Small::new(dir.path().join("small"), 24)?;
    let image = small.0.join("image");
    kernel::mke2fs(&image, 128, &["-t", "ext4", "-b", "4096", "-J", "size=4"])?;
    let mount = Box::new(OurMount::new(&image, &dir.path().join("mounted"), "cache=32M")?);
    let write = |number: u8| -> std::io::Result<()> {
        let path = mount.dir().join(number.to_string());
        std::fs::write(&path, pattern(number, 0, LEN))?;
        std::fs::File::open(&path)?.sync_all()
    };
    let mut durable = Vec::new();
    let mut errors = Vec::new();
    for number in 0..150 {
        match write(number) {
            Ok(()) => durable.push(number),
            Err(error) => errors.extend(error.raw_os_error()),
        }
        if errors.len() == 4 {
            break;
        }
    }
    let expected = [Errno::IO, Errno::NOSPC, Errno::ROFS].map(Errno::raw_os_error);
    ensure!(
        !errors.is_empty() && errors.iter().all(|errno| expected.contains(errno)),
        "{errors:?}"
    );
    println!("{} files were durable, then {errors:?}", durable.len());
    // It need not go well: the log may not have room any more.
    let stopped = Mounted::unmount(mount);
    println!("the end: {stopped:?}");
    let whole = dir.path().join("whole");
    let copied = Command::new("cp").args(["--sparse=always", arg(&image), arg(&whole)]).status()?;
    ensure!(copied.success(), "cp: {copied}");
    let found = recover_by_us(std::fs::read(&whole)?, &whole)?;
    for number in &durable {
        let file = found.get(&number.to_string()).context("a durable file is missing")?;
        ensure!(file.bytes == pattern(*number, 0, LEN), "file {number} is another");
    }
    println!("ran: {} files on a full disk", durable.len());
    Ok(())
}
