//! OSlets that write to one volume: what an operation has done in one, the next operation in any
//! other finds, and the kernel finds all of it in the image afterwards.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FallocateFlags, Mode, RenameFlags, XattrFlags};
use tests::cluster::Cluster;
use tests::kernel::{self, LoopMount};

const OSLETS: usize = 3;

/// A cluster over a fresh image.
fn up(arguments: &str) -> Result<Cluster> {
    let cluster = Cluster::new()?;
    let arguments: Vec<_> = arguments.split(' ').collect();
    kernel::mke2fs(&cluster.path("disk.img"), 256, &arguments)?;
    cluster.configure(OSLETS, "disk.img")?;
    cluster.ok(&["up", "-d"])?;
    Ok(cluster)
}

/// Stops it; the image is as after an unmount.
fn down(cluster: &Cluster) -> Result<()> {
    let connections = cluster.connections(OSLETS)?;
    cluster.ok(&["down"])?;
    cluster.assert_gone(&connections)?;
    let image = cluster.path("disk.img");
    kernel::assert_clean(&image)?;
    let text = kernel::run("dumpe2fs", &["-h", kernel::arg(&image)])?;
    ensure!(!text.contains("needs_recovery"), "not brought home: {text}");
    ensure!(text.contains("Last mounted on:          /global"), "{text}");
    Ok(())
}

fn roots(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    (0..OSLETS).map(|oslet| cluster.inside(oslet, "/global")).collect()
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// Names: made, linked, renamed and removed by `here`, after `there` has seen what was before.
fn names(here: &Path, there: &Path) -> Result<()> {
    let (mine, theirs) = (|name: &str| here.join(name), |name: &str| there.join(name));
    for name in ["n", "d", "l", "h", "moved", "fifo"] {
        ensure!(is_missing(&theirs(name)), "{name} is there");
    }
    fs::write(mine("n"), "one")?;
    ensure!(contents(&theirs("n"))? == b"one");
    fs::create_dir(mine("d"))?;
    ensure!(fs::metadata(theirs("d"))?.is_dir());
    symlink("n", mine("l"))?;
    ensure!(fs::read_link(theirs("l"))? == Path::new("n"));
    fs::hard_link(mine("n"), mine("h"))?;
    ensure!(fs::metadata(theirs("n"))?.nlink() == 2);
    ensure!(fs::metadata(theirs("h"))?.ino() == fs::metadata(theirs("n"))?.ino());
    rustix::fs::mkfifoat(CWD, mine("fifo"), Mode::from_raw_mode(0o600))?;
    ensure!(fs::symlink_metadata(theirs("fifo"))?.mode() & 0o170_000 == 0o010_000);
    fs::rename(mine("n"), mine("d/moved"))?;
    ensure!(is_missing(&theirs("n")) && contents(&theirs("d/moved"))? == b"one");
    // What is listed is what is there.
    let list = |dir: PathBuf| -> Result<Vec<_>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    ensure!(list(theirs(""))? == ["d", "fifo", "h", "l"], "{:?}", list(theirs(""))?);
    fs::write(mine("x"), "exchanged")?;
    rustix::fs::renameat_with(CWD, mine("x"), CWD, mine("h"), RenameFlags::EXCHANGE)?;
    ensure!(contents(&theirs("h"))? == b"exchanged" && contents(&theirs("x"))? == b"one");
    for name in ["x", "h", "l", "fifo", "d/moved"] {
        fs::remove_file(mine(name))?;
        ensure!(is_missing(&theirs(name)), "{name} is still there");
    }
    fs::remove_dir(mine("d"))?;
    ensure!(is_missing(&theirs("d")));
    // In a directory that the other has as its working directory, and removes.
    fs::create_dir(mine("gone"))?;
    let dir = File::open(theirs("gone"))?;
    fs::remove_dir(mine("gone"))?;
    let made = rustix::fs::mkdirat(&dir, "in", Mode::from_raw_mode(0o700));
    ensure!(made == Err(rustix::io::Errno::NOENT), "{made:?}");
    Ok(())
}

/// Attributes, extended ones and lists, of a file that `there` has open.
fn attributes(here: &Path, there: &Path) -> Result<()> {
    let (mine, theirs) = (here.join("a"), there.join("a"));
    fs::write(&mine, "")?;
    let open = File::open(&theirs)?;
    fs::set_permissions(&mine, Permissions::from_mode(0o4711))?;
    ensure!(open.metadata()?.mode() & 0o7777 == 0o4711);
    std::os::unix::fs::chown(&mine, Some(12), Some(34))?;
    ensure!((open.metadata()?.uid(), open.metadata()?.gid()) == (12, 34));
    kernel::run("touch", &["-d", "2001-02-03 04:05:06 UTC", kernel::arg(&mine)])?;
    ensure!((open.metadata()?.mtime(), open.metadata()?.mtime_nsec()) == (981_173_106, 0));
    rustix::fs::setxattr(&mine, "user.k", b"value", XattrFlags::CREATE)?;
    let mut value = [0; 16];
    ensure!(
        rustix::fs::getxattr(&theirs, "user.k", &mut value)? == 5 && value.starts_with(b"value")
    );
    rustix::fs::setxattr(&mine, "user.k", b"other", XattrFlags::REPLACE)?;
    ensure!(
        rustix::fs::getxattr(&theirs, "user.k", &mut value)? == 5 && value.starts_with(b"other")
    );
    rustix::fs::removexattr(&mine, "user.k")?;
    ensure!(rustix::fs::getxattr(&theirs, "user.k", &mut value).is_err());
    fs::remove_file(&mine)?;
    ensure!(open.metadata()?.nlink() == 0);
    Ok(())
}

/// Contents and sizes, of a file that both have open all the time.
fn bytes(here: &Path, there: &Path) -> Result<()> {
    let both = OpenOptions::new().read(true).write(true).create(true).to_owned();
    let (mine, theirs) = (both.open(here.join("b"))?, both.open(there.join("b"))?);
    let seen = |len: usize| -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = theirs.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    for round in 0..5u8 {
        // The same bytes again and again, so that only their contents tell them apart.
        mine.write_all_at(&[round; 9000], 0)?;
        ensure!(seen(10_000)? == [round; 9000], "round {round}");
        mine.write_all_at(&[100 + round], 4096)?;
        ensure!(seen(10_000)?[4096] == 100 + round, "round {round}");
    }
    mine.set_len(4100)?;
    ensure!(theirs.metadata()?.len() == 4100 && seen(10_000)?.len() == 4100);
    mine.set_len(20_000)?;
    ensure!(seen(30_000)?[4101..] == [0; 15_899]);
    ensure!((&theirs).seek(SeekFrom::End(0))? == 20_000);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&mine, punch, 0, 4096)?;
    ensure!(seen(4097)? == [&[0; 4096][..], &[104]].concat());
    rustix::fs::fallocate(&mine, FallocateFlags::empty(), 0, 30_000)?;
    ensure!(theirs.metadata()?.len() == 30_000);
    // From both sides, each behind what the other has appended.
    let append = OpenOptions::new().append(true).create(true).to_owned();
    let (mut first, mut second) = (append.open(here.join("log"))?, append.open(there.join("log"))?);
    let mut expected = Vec::new();
    for line in 0..50 {
        let (writer, text) = match line % 2 {
            0 => (&mut first, format!("{line} here\n")),
            _ => (&mut second, format!("{line} there\n")),
        };
        writer.write_all(text.as_bytes())?;
        expected.extend(text.into_bytes());
        ensure!(contents(&here.join("log"))? == expected, "line {line}");
        ensure!(contents(&there.join("log"))? == expected, "line {line}");
    }
    fs::remove_file(here.join("log"))?;
    fs::remove_file(there.join("b"))?;
    Ok(())
}

/// What is open stays what it was when its name goes, whoever takes it away.
fn open_files(here: &Path, there: &Path) -> Result<()> {
    fs::write(here.join("o"), "open")?;
    let mut open = OpenOptions::new().read(true).write(true).open(there.join("o"))?;
    fs::remove_file(here.join("o"))?;
    ensure!(is_missing(&there.join("o")));
    open.write_all_at(b"still", 0)?;
    let mut text = String::new();
    open.read_to_string(&mut text)?;
    ensure!(text == "still", "{text}");
    // Another of that name is another file.
    fs::write(here.join("o"), "new")?;
    ensure!(contents(&there.join("o"))? == b"new");
    let mut old = File::open(there.join("o"))?;
    fs::write(here.join("o.tmp"), "newer")?;
    fs::rename(here.join("o.tmp"), here.join("o"))?;
    ensure!(contents(&there.join("o"))? == b"newer");
    text.clear();
    old.read_to_string(&mut text)?;
    ensure!(text == "new", "replaced: {text}");
    ensure!((old.metadata()?.nlink(), open.metadata()?.nlink()) == (0, 0));
    fs::remove_file(there.join("o"))?;
    Ok(())
}

/// Each kind of operation, returned in one OSlet, is seen by the others at once: the owner and
/// another, two that are not the owner, and the other way round.
#[test]
fn what_one_oslet_has_done_the_others_see_at_once() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    // With times of whole seconds a change is seen as well.
    for arguments in ["-t ext4 -b 4096", "-t ext4 -b 1024 -I 128"] {
        let cluster = up(arguments)?;
        let roots = roots(&cluster)?;
        let pairs = [(0, 1), (1, 0), (1, 2)];
        for (here, there) in pairs {
            let dir = format!("{here}{there}");
            let (here, there) = (roots[here].join(&dir), roots[there].join(&dir));
            fs::create_dir(&here)?;
            names(&here, &there).with_context(|| format!("{arguments}: names, {dir}"))?;
            attributes(&here, &there).with_context(|| format!("{arguments}: attributes, {dir}"))?;
            bytes(&here, &there).with_context(|| format!("{arguments}: bytes, {dir}"))?;
            open_files(&here, &there).with_context(|| format!("{arguments}: open, {dir}"))?;
            ensure!(fs::read_dir(&there)?.count() == 0, "{dir}: something is left");
        }
        down(&cluster)?;
    }
    println!("ran: 3 pairs of OSlets on 2 volumes");
    Ok(())
}

/// Everybody's temporary files, whatever was there under that name.
#[test]
fn gtmp_is_for_all() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let cluster = up("-t ext4")?;
    let text = |oslet: &str, script: &str| cluster.ok(&["run", oslet, "--", "sh", "-c", script]);
    ensure!(
        text("o1", "stat -c '%a %U %F' /gtmp /global/.gtmp")?.matches("1777 root dir").count() == 2
    );
    let nobody = "exec 2>&1; setpriv --reuid 65534 --clear-groups --regid 65534 --";
    text("o1", &format!("{nobody} sh -c 'echo nobody > /gtmp/theirs'"))?;
    ensure!(text("o2", "cat /gtmp/theirs; stat -c %u /gtmp/theirs")? == "nobody\n65534\n");
    text("o0", "echo root > /gtmp/ours; chmod 666 /gtmp/ours")?;
    let refused = text("o1", &format!("{nobody} rm -f /gtmp/ours || echo refused"))?;
    ensure!(refused.contains("refused"), "another's file was removed: {refused}");
    down(&cluster)?;
    // It is the user's: what stands there stays.
    let mount = LoopMount::new(&cluster.path("disk.img"), &cluster.path("kernel"), "")?;
    ensure!(contents(&mount.dir().join(".gtmp/theirs"))? == b"nobody\n");
    fs::set_permissions(mount.dir().join(".gtmp"), Permissions::from_mode(0o700))?;
    mount.unmount()?;
    let said = cluster.ok(&["up", "-d"])?;
    ensure!(said.contains("/global/.gtmp has mode 700 and keeps it"), "{said}");
    ensure!(text("o1", "stat -c %a /gtmp; echo more > /gtmp/more")? == "700\n");
    down(&cluster)?;
    let mount = LoopMount::new(&cluster.path("disk.img"), &cluster.path("kernel"), "")?;
    fs::rename(mount.dir().join(".gtmp"), mount.dir().join("was"))?;
    symlink("was", mount.dir().join(".gtmp"))?;
    mount.unmount()?;
    let said = cluster.ok(&["up", "-d"])?;
    ensure!(said.contains("/global/.gtmp is no directory"), "{said}");
    ensure!(text("o1", "ls /gtmp; touch /gtmp/x 2>/dev/null || echo refused")? == "refused\n");
    down(&cluster)
}

/// What keeps a volume from being written is said, and keeps everybody from it.
#[test]
fn a_volume_that_is_only_read_says_why() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for (arguments, more, expected) in [
        ("-t ext4", &["--read-only"][..], "read-only: the configuration wants it so"),
        ("-t ext4 -O bigalloc", &[], "read-only: its bigalloc"),
    ] {
        let cluster = Cluster::new()?;
        let image = cluster.path("disk.img");
        kernel::mke2fs(&image, 64, &arguments.split(' ').collect::<Vec<_>>())?;
        let before = fs::read(&image)?;
        cluster.configure(OSLETS, "disk.img")?;
        let said = cluster.ok(&[&["up", "-d"][..], more].concat())?;
        ensure!(said.contains(expected), "{said}");
        let shown = cluster.ok(&["show", "o0"])?;
        ensure!(
            shown.contains("disk.img, read-only (") && shown.contains("read-only over"),
            "{shown}"
        );
        for root in roots(&cluster)? {
            let error = fs::write(root.join("x"), "").expect_err("written");
            ensure!(
                error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error()),
                "{error}"
            );
        }
        cluster.ok(&["down"])?;
        kernel::assert_clean(&image)?;
        ensure!(fs::read(&image)? == before, "{arguments}: the image has changed");
    }
    Ok(())
}
