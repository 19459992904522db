//! Contents that go through the journal: `data=journal` and `chattr +j`, as the kernel and
//! e2fsprogs find them after a crash.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cfs::engine::write::{DataMode, WriterOptions};
use tests::kernel::{LoopMount, arg, assert_clean, missing, mke2fs, run};
use tests::opfuzz::volumes::Mounted as _;
use tests::ours::Ours;

/// What a block must not begin with in the log: the journal's magic number.
const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// A volume under a mount of ours that does not commit by itself.
struct World {
    dir: tempfile::TempDir,
    mount: Ours,
}

impl World {
    fn new(arguments: &[&str], data: DataMode) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("data-").tempdir_in("/dev/shm")?;
        let image = dir.path().join("image");
        mke2fs(&image, 64, arguments)?;
        let mut options = WriterOptions { data, ..WriterOptions::default() };
        options.journal.commit_interval = std::time::Duration::from_secs(300);
        options.journal.mount_point = Some("/ours".into());
        let mount = Ours::with(&image, &dir.path().join("ours"), options, 32 << 20)?;
        Ok(Self { dir, mount })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.dir().join(name)
    }

    /// The image as it would be found if the power failed now.
    fn crashed(&self) -> Result<PathBuf> {
        let copy = self.dir.path().join("crashed");
        std::fs::copy(self.dir.path().join("image"), &copy)?;
        Ok(copy)
    }

    fn end(self) -> Result<()> {
        Box::new(self.mount).unmount()?;
        assert_clean(&self.dir.path().join("image"))
    }
}

/// Contents of a file in an image, what the journal has left aside.
fn in_place(image: &Path, name: &str) -> Result<Vec<u8>> {
    let out = image.with_extension("dump");
    run("debugfs", &["-R", &format!("dump /{name} {}", arg(&out)), arg(image)])?;
    Ok(std::fs::read(out)?)
}

/// The same after the kernel, and after e2fsck, have replayed the journal.
fn recovered(image: &Path, name: &str) -> Result<Vec<u8>> {
    let (kernels, fscks) = (image.with_extension("kernel"), image.with_extension("fsck"));
    std::fs::copy(image, &kernels)?;
    std::fs::copy(image, &fscks)?;
    let mount = LoopMount::new(&kernels, &image.with_extension("mounted"), "")?;
    let theirs = std::fs::read(mount.dir().join(name))?;
    mount.unmount()?;
    assert_clean(&kernels)?;
    let output = std::process::Command::new("e2fsck").args(["-fy", arg(&fscks)]).output()?;
    ensure!(matches!(output.status.code(), Some(0 | 1)), "e2fsck: {}", output.status);
    ensure!(in_place(&fscks, name)? == theirs, "{name}: e2fsck and the kernel differ");
    Ok(theirs)
}

/// Bytes of which every block begins with the magic number.
fn contents(seed: u8, len: usize) -> Vec<u8> {
    let byte = |at: usize| MAGIC.get(at % 1024).copied().unwrap_or((at / 7) as u8 ^ seed);
    (0..len).map(byte).collect()
}

const KINDS: [&[&str]; 3] = [
    &["-t", "ext4", "-b", "4096", "-J", "size=4"],
    &["-t", "ext4", "-b", "1024", "-J", "size=4"],
    &["-t", "ext3", "-b", "1024", "-J", "size=4"],
];

#[test]
fn contents_go_through_the_journal() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for arguments in KINDS {
        let world = World::new(arguments, DataMode::Journal)?;
        // More than the journal has room for at once, and the last part of it.
        let bytes = contents(1, 10_000_000);
        std::fs::write(world.path("large"), &bytes)?;
        let file = File::options().read(true).write(true).open(world.path("large"))?;
        file.sync_all()?;
        let found = recovered(&world.crashed()?, "large")?;
        ensure!(found == bytes, "{arguments:?}: large");
        let small = contents(2, 50_000);
        file.write_all_at(&small, 3000)?;
        file.sync_data()?;
        let image = world.crashed()?;
        let there = in_place(&image, "large")?;
        ensure!(there[3000..53_000] != small[..], "{arguments:?}: written in place");
        let mut bytes = bytes;
        bytes[3000..53_000].copy_from_slice(&small);
        ensure!(recovered(&image, "large")? == bytes, "{arguments:?}: overwritten");
        // What is not at home yet is read all the same, when it is in no page any more.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        std::fs::write(world.path("other"), vec![7; 33 << 20])?;
        let mut again = Vec::new();
        File::open(world.path("large"))?.read_to_end(&mut again)?;
        ensure!(again == bytes, "{arguments:?}: read again");
        drop(file);
        world.end()?;
    }
    Ok(())
}

#[test]
fn a_file_changes_its_way_to_the_disk() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for arguments in KINDS {
        let world = World::new(arguments, DataMode::Ordered)?;
        let path = world.path("file");
        let (first, second, third) =
            (contents(1, 40_000), contents(2, 40_000), contents(3, 40_000));
        std::fs::write(&path, &first)?;
        run("chattr", &["+j", arg(&path)])?;
        ensure!(in_place(&world.crashed()?, "file")? == first, "written before the change");
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(&second, 0)?;
        file.sync_all()?;
        let image = world.crashed()?;
        ensure!(in_place(&image, "file")? == first, "{arguments:?}: not journaled");
        ensure!(recovered(&image, "file")? == second, "{arguments:?}: not in the journal");
        run("chattr", &["-j", arg(&path)])?;
        ensure!(in_place(&world.crashed()?, "file")? == second, "{arguments:?}: not at home");
        file.write_all_at(&third, 0)?;
        file.sync_all()?;
        let image = world.crashed()?;
        ensure!(in_place(&image, "file")? == third, "{arguments:?}: not in place");
        // What the journal had of it does not come back.
        ensure!(recovered(&image, "file")? == third, "{arguments:?}: replayed over");
        drop(file);
        // A directory passes it on.
        std::fs::create_dir(world.path("dir"))?;
        run("chattr", &["+j", arg(&world.path("dir"))])?;
        std::fs::write(world.path("dir/file"), b"passed on")?;
        let flags = run("lsattr", &[arg(&world.path("dir/file"))])?;
        ensure!(flags.split(' ').next().is_some_and(|flags| flags.contains('j')), "{flags}");
        world.end()?;
    }
    Ok(())
}

#[test]
fn freed_blocks_of_journaled_files_do_not_come_back() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for arguments in KINDS {
        let world = World::new(arguments, DataMode::Ordered)?;
        let old = world.path("old");
        std::fs::write(&old, b"")?;
        run("chattr", &["+j", arg(&old)])?;
        let file = File::options().write(true).open(&old)?;
        file.write_all_at(&contents(1, 1_500_000), 0)?;
        file.sync_all()?;
        drop(file);
        std::fs::remove_file(&old)?;
        // The whole volume, so that every block that was freed is somebody's again.
        let (name, mut bytes) = ("new", vec![0x55; 1 << 20]);
        let file = File::create(world.path(name))?;
        file.sync_all()?;
        let mut len = 0;
        while !bytes.is_empty() {
            match file.write_at(&bytes, len) {
                Ok(done) => len += done as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                    bytes.truncate(bytes.len() / 2);
                }
                Err(error) => return Err(error).context("fill the volume"),
            }
        }
        file.sync_all()?;
        let found = recovered(&world.crashed()?, name)?;
        ensure!(found.len() as u64 == len, "{arguments:?}: {} of {len} bytes", found.len());
        let wrong = found.iter().position(|byte| *byte != 0x55);
        ensure!(wrong.is_none(), "{arguments:?}: byte {wrong:?} came back");
        drop(file);
        world.end()?;
    }
    Ok(())
}

#[test]
fn a_volume_without_a_journal_has_no_such_mode() -> Result<()> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let error = World::new(&["-t", "ext2"], DataMode::Journal).err().context("mounted")?;
    ensure!(format!("{error:#}").contains("data=journal: the volume has no journal"), "{error:#}");
    Ok(())
}
