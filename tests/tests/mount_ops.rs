//! What a mount of ours does beyond names and bytes - files without names, whiteouts, trims, times
//! of reading, durable changes, errors - beside kernel ext4 where that does the same.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tests::kernel::{arg, assert_clean, missing, run};
use tests::world::World;

fn skipped() -> bool {
    let why = missing();
    if let Some(why) = &why {
        println!("skipped: {why}");
    }
    why.is_some()
}

/// Does the same to both, whose answers must be the same and whose volumes sound.
fn on_both(
    arguments: &[&str],
    (ours, kernel): (&str, &str),
    work: impl Fn(&Path) -> Result<Vec<String>>,
) -> Result<()> {
    let mut answers = Vec::new();
    for (is_ours, options) in [(true, ours), (false, kernel)] {
        let mut world = World::new(is_ours, arguments, options)?;
        answers.push(work(&world.root()).with_context(|| format!("ours: {is_ours}"))?);
        world.unmount()?;
        assert_clean(&world.image)?;
    }
    for (ours, kernel) in answers[0].iter().zip(&answers[1]) {
        ensure!(ours == kernel, "ours: {ours}; the kernel: {kernel}");
    }
    ensure!(answers[0].len() == answers[1].len(), "{answers:?}");
    Ok(())
}

fn tmpfile(dir: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | flags;
    rustix::fs::open(dir, flags, Mode::from_raw_mode(0o640))
}

/// Gives an open file a name as linkat(2) does without privileges.
fn name_it(file: &OwnedFd, to: &Path) -> std::result::Result<(), Errno> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, from.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn files_without_names_get_one_or_go() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    on_both(&["-t", "ext4"], ("commit=300", "noatime"), |root| {
        let mut said = Vec::new();
        let free = || rustix::fs::statvfs(root).map(|stat| stat.f_ffree);
        let before = free()?;
        std::fs::create_dir(root.join("d"))?;
        run("setfacl", &["-d", "-m", "u:1000:rwx", arg(&root.join("d"))])?;
        for dir in ["", "d"] {
            let dir = root.join(dir);
            let times = dir.metadata().map(|meta| (meta.mtime(), meta.mtime_nsec()))?;
            let file = tmpfile(&dir, OFlags::empty())?;
            let stat = rustix::fs::fstat(&file)?;
            said.push(format!("{:o} {} {}", stat.st_mode, stat.st_nlink, stat.st_size));
            rustix::io::write(&file, b"first")?;
            rustix::fs::fsync(&file)?;
            let after = dir.metadata().map(|meta| (meta.mtime(), meta.mtime_nsec()))?;
            said.push(format!("directory changed: {}", times != after));
            name_it(&file, &dir.join("named"))?;
            let stat = rustix::fs::fstat(&file)?;
            said.push(format!("{} {:?}", stat.st_nlink, std::fs::read(dir.join("named"))?));
            said.push(format!("again: {:?}", name_it(&file, &dir.join("named"))));
            said.push(format!("second: {:?}", name_it(&file, &dir.join("second"))));
            // By its descriptor alone.
            let file = tmpfile(&dir, OFlags::empty())?;
            let empty = dir.join("by-descriptor");
            let linked = rustix::fs::linkat(&file, "", CWD, &empty, AtFlags::EMPTY_PATH);
            said.push(format!("{linked:?} {}", empty.metadata()?.nlink()));
            // One that gave its name away gets none.
            std::fs::remove_file(&empty)?;
            said.push(format!("removed: {:?}", name_it(&file, &empty)));
            let file = tmpfile(&dir, OFlags::EXCL)?;
            said.push(format!("exclusive: {:?}", name_it(&file, &empty)));
        }
        let gone = root.join("gone");
        std::fs::create_dir(&gone)?;
        let open = File::open(&gone)?;
        std::fs::remove_dir(&gone)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let made = rustix::fs::openat(&open, ".", flags, Mode::from_raw_mode(0o600));
        said.push(format!("in one that has gone: {:?}", made.map(drop)));
        run("chattr", &["+i", arg(&root.join("d"))])?;
        let made = tmpfile(&root.join("d"), OFlags::empty()).map(drop);
        said.push(format!("in an immutable one: {made:?}"));
        run("chattr", &["-i", arg(&root.join("d"))])?;
        drop(open);
        // The kernel lets what nobody has open go when it has the time.
        let deadline = Instant::now() + Duration::from_secs(5);
        while before - free()? != 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        said.push(format!("inodes: {}", before - free()?));
        Ok(said)
    })
}

#[test]
fn a_file_without_a_name_goes_with_a_crash() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for arguments in [&["-t", "ext4"][..], &["-t", "ext3"], &["-t", "ext4", "-O", "^orphan_file"]] {
        let mut world = World::new(true, arguments, "commit=300")?;
        let file = tmpfile(&world.root(), OFlags::empty())?;
        let mut file = File::from(file);
        file.write_all(&[7; 3 << 20])?;
        file.sync_all()?;
        let copy = world.recovered()?;
        let found = run("debugfs", &["-R", "ls -l /", arg(&copy)])?;
        ensure!(found.lines().filter(|line| !line.trim().is_empty()).count() == 3, "{found}");
        assert_clean(&copy)?;
        drop(file);
        world.unmount()?;
        assert_clean(&world.image)?;
    }
    Ok(())
}

#[test]
fn whiteouts_take_the_old_name() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    on_both(&["-t", "ext4"], ("noatime", "noatime"), |root| {
        let mut said = Vec::new();
        std::fs::create_dir_all(root.join("d/sub"))?;
        run("setfacl", &["-d", "-m", "u:1000:rwx", arg(&root.join("d"))])?;
        for name in ["a", "b", "d/c"] {
            std::fs::write(root.join(name), name)?;
        }
        let white = RenameFlags::WHITEOUT;
        for (from, to, flags) in [
            ("a", "new", white),
            ("new", "b", white),
            ("d/c", "c", white),
            ("d/sub", "sub", white),
            ("b", "c", white | RenameFlags::NOREPLACE),
            ("b", "c", white | RenameFlags::EXCHANGE),
            ("none", "c", white),
        ] {
            let done = rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), flags);
            said.push(format!("{from} to {to}: {done:?}"));
        }
        for name in ["a", "new", "b", "c", "d/c", "d/sub", "sub", "d"] {
            let meta = root.join(name).symlink_metadata()?;
            said.push(format!("{name}: {:o} {} {}", meta.mode(), meta.nlink(), meta.rdev()));
        }
        Ok(said)
    })
}

#[test]
fn free_space_is_trimmed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (options, by_hand) in [("commit=300", true), ("commit=300,discard", false)] {
        let mut world = World::new(true, &["-t", "ext4"], options)?;
        let (file, kept) = (world.path("file"), world.path("kept"));
        std::fs::write(&kept, vec![9; 3 << 20])?;
        std::fs::write(&file, vec![7; 20 << 20])?;
        File::open(&file)?.sync_all()?;
        File::open(&kept)?.sync_all()?;
        let full = world.allocated()?;
        std::fs::remove_file(&file)?;
        // The kernel lets the file go when it has the time; then its transaction has to commit.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut tick = File::create(world.path("tick"))?;
            tick.write_all(b"tick")?;
            tick.sync_all()?;
            if by_hand {
                let before = world.allocated()?;
                ensure!(full.saturating_sub(before) < 10 << 20, "given back already");
                run("fstrim", &[arg(&world.root())])?;
            }
            let left = world.allocated()?;
            if full.saturating_sub(left) >= 18 << 20 {
                break;
            }
            let late = Instant::now() > deadline;
            ensure!(!late, "{options}: {full} bytes, then {left}");
        }
        ensure!(std::fs::read(&kept)? == vec![9; 3 << 20], "trimmed what is in use");
        world.unmount()?;
        assert_clean(&world.image)?;
    }
    Ok(())
}

/// Reads, and says whether the time of that changed.
fn reading<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<bool> {
    let time = || path.symlink_metadata().map(|meta| (meta.atime(), meta.atime_nsec()));
    let before = time()?;
    std::thread::sleep(Duration::from_millis(12));
    read()?;
    Ok(time()? != before)
}

fn set_times(path: &Path, read: i64, written: i64) -> Result<()> {
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 5 };
    let times = Timestamps { last_access: time(read), last_modification: time(written) };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn read_file(path: &Path, flags: OFlags) -> Result<()> {
    let file = rustix::fs::open(path, OFlags::RDONLY | flags, Mode::empty())?;
    File::from(file).read_to_end(&mut Vec::new())?;
    Ok(())
}

#[test]
fn times_of_reading_are_as_ext4s() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    for options in ["relatime", "noatime", "strictatime", "relatime,nodiratime"] {
        on_both(&["-t", "ext4"], (options, options), |root| {
            let mut said = Vec::new();
            let file = root.join("file");
            std::fs::write(&file, vec![1; 10_000])?;
            let mut note = |what: &str, changed: bool| said.push(format!("{what}: {changed}"));
            let plain = OFlags::empty();
            note("written", reading(&file, || read_file(&file, plain))?);
            if options != "strictatime" {
                // ext4 then changes it at each reading, which the kernel's cache answers here.
                note("again", reading(&file, || read_file(&file, plain))?);
            }
            set_times(&file, now + 100, now - 10)?;
            note("newer than all", reading(&file, || read_file(&file, plain))?);
            set_times(&file, now - 3 * 86_400, now - 4 * 86_400)?;
            note("opened alone", reading(&file, || Ok(File::open(&file)?))?);
            note("O_NOATIME", reading(&file, || read_file(&file, OFlags::NOATIME))?);
            note("old", reading(&file, || read_file(&file, plain))?);
            std::fs::write(&file, b"other")?;
            note("written anew", reading(&file, || read_file(&file, plain))?);
            run("chattr", &["+A", arg(&file)])?;
            std::fs::write(&file, b"once more")?;
            note("chattr +A", reading(&file, || read_file(&file, plain))?);
            let dir = root.join("dir");
            std::fs::create_dir(&dir)?;
            std::fs::write(dir.join("in it"), b"")?;
            let list = || Ok(std::fs::read_dir(&dir)?.count());
            note("directory", reading(&dir, list)?);
            let link = root.join("link");
            std::os::unix::fs::symlink("nowhere", &link)?;
            note("link", reading(&link, || Ok(std::fs::read_link(&link)?))?);
            Ok(said)
        })
        .with_context(|| options.to_owned())?;
    }
    Ok(())
}

#[test]
fn times_of_reading_reach_the_disk() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut world = World::new(true, &["-t", "ext4"], "relatime")?;
    let file = world.path("file");
    std::fs::write(&file, b"bytes")?;
    std::thread::sleep(Duration::from_millis(12));
    read_file(&file, OFlags::empty())?;
    let shown = file.metadata()?;
    ensure!(shown.atime_nsec() != shown.mtime_nsec(), "not read");
    world.unmount()?;
    world.mount(false, "noatime")?;
    let stored = file.metadata()?;
    let times = |meta: &std::fs::Metadata| (meta.atime(), meta.atime_nsec());
    ensure!(times(&shown) == times(&stored), "{:?}, not {:?}", times(&stored), times(&shown));
    world.unmount()?;
    assert_clean(&world.image)
}

#[test]
fn changes_are_durable_where_they_are_to_be() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (options, file_flag, dir_flag) in
        [("commit=300,sync", "", ""), ("commit=300,dirsync", "+S", ""), ("commit=300", "+S", "+D")]
    {
        let mut world = World::new(true, &["-t", "ext4"], options)?;
        let (dir, file) = (world.path("dir"), world.path("dir/file"));
        std::fs::create_dir(&dir)?;
        File::create(&file)?;
        for (flag, path) in [(file_flag, &file), (dir_flag, &dir)] {
            if !flag.is_empty() {
                run("chattr", &[flag, arg(path)])?;
            }
        }
        std::fs::write(&file, b"durable")?;
        std::fs::create_dir(dir.join("below"))?;
        std::fs::rename(dir.join("below"), dir.join("moved"))?;
        let copy = world.recovered()?;
        let found = run("debugfs", &["-R", "cat /dir/file", arg(&copy)])?;
        ensure!(found == "durable", "{options}: {found:?}");
        let found = run("debugfs", &["-R", "ls /dir", arg(&copy)])?;
        ensure!(found.contains("moved"), "{options}: {found:?}");
        world.unmount()?;
        assert_clean(&world.image)?;
    }
    Ok(())
}

/// Lines of `dumpe2fs -h` that are neither times nor places.
fn superblock(image: &Path) -> Result<Vec<String>> {
    let text = run("dumpe2fs", &["-h", arg(image)])?;
    let other = ["UUID", "time:", "Hash Seed", "Checksum:", "created:", "checked:", "Lifetime"];
    let kept = |line: &&str| !other.iter().any(|word| line.contains(word));
    Ok(text.lines().filter(kept).map(str::to_owned).collect())
}

#[test]
fn the_superblock_says_what_the_kernels_says() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let journal =
        |line: &String| !line.starts_with("Journal s") && !line.starts_with("Journal check");
    for arguments in [&["-t", "ext4"][..], &["-t", "ext3"], &["-t", "ext2"]] {
        let mut found = Vec::new();
        for ours in [true, false] {
            let mut world = World::unmounted(arguments)?;
            for _ in 0..2 {
                world.mount(ours, "")?;
                std::fs::write(world.path("file"), vec![1; 100_000])?;
                File::open(world.path("file"))?.sync_all()?;
                if arguments[1] != "ext2" {
                    let copy = world.beside("used");
                    std::fs::copy(&world.image, &copy)?;
                    found.push(superblock(&copy)?.into_iter().filter(journal).collect::<Vec<_>>());
                }
                world.unmount()?;
                let lines = superblock(&world.image)?;
                let place = |line: &String| !line.contains("mounted on") && journal(line);
                found.push(lines.into_iter().filter(place).collect());
                let text = run("dumpe2fs", &["-h", arg(&world.image)])?;
                let last = text.lines().find(|line| line.starts_with("Last mounted on:"));
                ensure!(last.is_some_and(|line| line.ends_with("/mounted")), "{last:?}");
                let written = text.lines().find(|line| line.starts_with("Lifetime writes:"));
                ensure!(written.is_some_and(|line| !line.ends_with(" 0 kB")), "{written:?}");
            }
        }
        let (ours, kernel) = found.split_at(found.len() / 2);
        for (ours, kernel) in ours.iter().zip(kernel) {
            for (ours, kernel) in ours.iter().zip(kernel) {
                let same = ours == kernel || ours.starts_with("Free blocks");
                ensure!(same || ours.contains("mounted on"), "{arguments:?}: {ours}; {kernel}");
            }
        }
    }
    Ok(())
}

/// A volume with a file whose map is nonsense, and that file's number.
fn damaged() -> Result<(World, u64)> {
    let mut world = World::unmounted(&["-t", "ext4", "-O", "^metadata_csum"])?;
    world.mount(false, "")?;
    std::fs::write(world.path("file"), vec![1; 100_000])?;
    let ino = world.path("file").metadata()?.ino();
    world.unmount()?;
    run("debugfs", &["-w", "-R", &format!("sif <{ino}> block[0] 0x1234"), arg(&world.image)])?;
    Ok((world, ino))
}

#[test]
fn corrupt_metadata_are_noted_as_the_kernel_does() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (options, read_only) in [("errors=continue", false), ("errors=remount-ro", true)] {
        let mut notes = Vec::new();
        for ours in [true, false] {
            let (mut world, ino) = damaged()?;
            world.mount(ours, options)?;
            let read = std::fs::read(world.path("file")).err().and_then(|it| it.raw_os_error());
            ensure!(read == Some(Errno::UCLEAN.raw_os_error()), "ours {ours}: {read:?}");
            let made = std::fs::write(world.path("other"), b"");
            let refused = made.err().and_then(|error| error.raw_os_error());
            let wanted = read_only.then(|| Errno::ROFS.raw_os_error());
            ensure!(refused == wanted, "ours {ours}, {options}: {refused:?}");
            // What is left of a volume that was given up is as after a crash.
            let unmounted = world.unmount();
            ensure!(unmounted.is_ok() || (ours && read_only), "{unmounted:?}");
            let text = run("dumpe2fs", &["-h", arg(&world.image)])?;
            let wanted = ["Filesystem state", "First error inode", "Last error inode", "err:"];
            let line = |line: &&str| wanted.iter().any(|word| line.contains(word));
            let lines: Vec<_> = text.lines().filter(line).map(str::to_owned).collect();
            ensure!(text.contains("FS Error count"), "ours {ours}: {text}");
            ensure!(lines.iter().any(|line| line.ends_with(&format!(" {ino}"))), "{lines:?}");
            notes.push(lines);
        }
        ensure!(notes[0] == notes[1], "{options}: ours {:?}; the kernel {:?}", notes[0], notes[1]);
    }
    Ok(())
}

#[test]
fn what_is_not_served_is_refused_by_name() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut world = World::new(true, &["-t", "ext4"], "")?;
    let file = world.path("file");
    std::fs::write(&file, b"")?;
    let output = Command::new("chattr").args(["-p", "7", arg(&file)]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("not supported"), "chattr -p: {said}");
    ensure!(file.metadata()?.permissions().mode() & 0o7777 == 0o644, "changed");
    let open = File::open(world.root())?;
    let kind = rustix::fs::fstatfs(open.as_fd())?.f_type;
    ensure!(kind == 0x6573_5546, "{kind:#x}");
    drop(open);
    world.unmount()?;
    Ok(())
}
