//! What programs are answered through a mount of ours equals what the kernel's ext4, mounted `ro`,
//! answers them: listings of tools, and system call by system call.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags, SeekFrom, Timespec};
use rustix::fs::{Timestamps, XattrFlags};
use rustix::io::Errno;
use tests::kernel::{LoopMount, arg, missing, mke2fs, run};
use tests::opfuzz::volumes::Mounted as _;
use tests::ours::Ours;

/// The same volume, mounted by us and by the kernel.
struct Both {
    ours: Ours,
    kernel: LoopMount,
    _dir: tempfile::TempDir,
}

impl Both {
    /// Makes a volume with `mke2fs arguments` and fills it by a script that runs in its root.
    fn new(arguments: &[&str], script: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
        mke2fs(&image, 64, arguments)?;
        let filled = LoopMount::new(&image, &dir.path().join("filled"), "")?;
        let output = Command::new("sh").args(["-ec", script]).current_dir(filled.dir()).output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        filled.unmount()?;
        ensure!(output.status.success(), "{script}: {words}");
        std::fs::copy(&image, &copy)?;
        let ours = Ours::read_only(&image, &dir.path().join("ours"))?;
        let kernel = LoopMount::new(&copy, &dir.path().join("kernel"), "ro")?;
        Ok(Self { ours, kernel, _dir: dir })
    }

    /// Asks both the same.
    fn same<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        ask: impl Fn(&Path) -> T,
    ) -> Result<()> {
        let (ours, theirs) = (ask(self.ours.dir()), ask(self.kernel.dir()));
        ensure!(ours == theirs, "{what}: ours {ours:?}, the kernel's {theirs:?}");
        Ok(())
    }
}

fn skipped(test: &str) -> bool {
    let why = missing();
    if let Some(why) = &why {
        println!("{test}: SKIPPED, {why}");
    }
    why.is_some()
}

const TREE: &str = "
    mkdir d empty; echo hi > d/small; head -c 300000 /dev/urandom > d/large
    truncate -s 10M d/sparse
    dd if=/dev/urandom of=d/sparse bs=4k seek=100 count=3 conv=notrunc status=none
    dd if=/dev/urandom of=d/sparse bs=4k seek=1000 count=1 conv=notrunc status=none
    fallocate -l 1M d/allocated
    ln -s small d/link; ln -s nowhere d/dangling; ln d/small d/again
    mkfifo d/fifo; mknod d/null c 1 3; mknod d/block b 8 700
    touch old; touch -d '1901-12-14' old
    touch future; touch -d '2200-01-01 00:00:00.123456789' future
    touch immutable append nodump sync noatime
    mkdir top; chattr +T top
    setfattr -n user.one -v value d/small
    setfattr -n trusted.t -v value d/large
    setfattr -n security.s -v value d/large
    setfacl -m u:1000:rwx,g:2000:r d/large; setfacl -d -m u:1000:rwx d
    chmod 4755 d/large
    chattr +i immutable; chattr +a append; chattr +d nodump; chattr +S sync; chattr +A noatime
";

const NAMES: [&str; 22] = [
    ".",
    "d",
    "empty",
    "lost+found",
    "d/small",
    "d/again",
    "d/large",
    "d/sparse",
    "d/allocated",
    "d/link",
    "d/dangling",
    "d/fifo",
    "d/null",
    "d/block",
    "old",
    "future",
    "immutable",
    "append",
    "nodump",
    "top",
    "missing",
    "d/small/below",
];

#[test]
fn system_calls_are_answered_as_by_ext4() -> Result<()> {
    if skipped("system_calls_are_answered_as_by_ext4") {
        return Ok(());
    }
    for arguments in [&["-t", "ext4", "-b", "4096"][..], &["-t", "ext4", "-O", "inline_data"]] {
        let both = Both::new(arguments, TREE)?;
        for name in NAMES {
            looked_at(&both, name).with_context(|| name.to_owned())?;
            changed(&both, name).with_context(|| name.to_owned())?;
        }
        for name in ["d/small", "d/large", "d/sparse", "d/allocated", "append"] {
            opened(&both, name).with_context(|| name.to_owned())?;
        }
        for len in [255, 256] {
            let name = "n".repeat(len);
            looked_at(&both, &name)?;
            changed(&both, &name)?;
        }
    }
    Ok(())
}

fn looked_at(both: &Both, name: &str) -> Result<()> {
    both.same("statx", |root| {
        let mask = rustix::fs::StatxFlags::ALL;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statx(CWD, root.join(name), nofollow, mask).map(|found| {
            let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
            let times = [found.stx_atime, found.stx_btime, found.stx_ctime, found.stx_mtime];
            (
                (found.stx_mode, found.stx_nlink, found.stx_uid, found.stx_gid, found.stx_ino),
                (found.stx_size, found.stx_blocks, found.stx_blksize),
                (found.stx_rdev_major, found.stx_rdev_minor),
                times.map(time),
            )
        })
    })?;
    both.same("readlink", |root| rustix::fs::readlink(root.join(name), Vec::new()))?;
    both.same("listxattr", |root| {
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(root.join(name), &mut names[..])?;
        let mut names: Vec<_> = names[..len].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        names.sort();
        Ok::<_, Errno>(names)
    })?;
    for attribute in [
        "user.one",
        "user.none",
        "user.",
        "trusted.t",
        "trusted.",
        "security.s",
        "security.",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "system.data",
        "system.",
        "other.name",
        "other",
    ] {
        both.same(attribute, |root| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(root.join(name), attribute, &mut value[..])?;
            value.truncate(len);
            Ok::<_, Errno>(value)
        })?;
    }
    for access in [Access::EXISTS, Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK] {
        both.same("access", |root| rustix::fs::access(root.join(name), access))?;
    }
    for question in ["-d", "-dv", "-dp"] {
        both.same(question, |root| lsattr(root, question, name))?;
    }
    Ok(())
}

/// What lsattr says of one name, without the name.
fn lsattr(root: &Path, option: &str, name: &str) -> (bool, String) {
    let output = Command::new("lsattr").args([option, "--", name]).current_dir(root).output();
    let output = output.expect("lsattr is of e2fsprogs, as mke2fs is");
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&words).into_owned())
}

/// Everything that would change something.
fn changed(both: &Both, name: &str) -> Result<()> {
    let open = |flags| {
        move |root: &Path| {
            let flags = flags | OFlags::NONBLOCK;
            rustix::fs::open(root.join(name), flags, Mode::RUSR | Mode::WUSR).map(drop)
        }
    };
    for flags in [
        OFlags::RDONLY,
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::RDONLY | OFlags::TRUNC,
        OFlags::WRONLY | OFlags::CREATE,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
        OFlags::RDWR | OFlags::TMPFILE,
        OFlags::RDONLY | OFlags::NOATIME,
        OFlags::RDONLY | OFlags::DIRECT,
        OFlags::RDONLY | OFlags::DIRECTORY,
        OFlags::RDONLY | OFlags::NOFOLLOW,
        OFlags::PATH,
    ] {
        both.same(&format!("open {flags:?}"), open(flags))?;
    }
    let now = Timestamps {
        last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    let (other, new) = ("d/small", "new");
    type Change<'a> = (&'a str, Box<dyn Fn(&Path) -> rustix::io::Result<()> + 'a>);
    let changes: [Change<'_>; 13] = [
        ("chmod", Box::new(|root| rustix::fs::chmod(root.join(name), Mode::RUSR))),
        (
            "chown",
            Box::new(|root| {
                rustix::fs::chownat(CWD, root.join(name), None, None, AtFlags::SYMLINK_NOFOLLOW)
            }),
        ),
        (
            "touch",
            Box::new(|root| rustix::fs::utimensat(CWD, root.join(name), &now, AtFlags::empty())),
        ),
        ("unlink", Box::new(|root| rustix::fs::unlink(root.join(name)))),
        ("rmdir", Box::new(|root| rustix::fs::rmdir(root.join(name)))),
        ("mkdir", Box::new(|root| rustix::fs::mkdir(root.join(name), Mode::RWXU))),
        ("rename", Box::new(|root| rustix::fs::rename(root.join(name), root.join(new)))),
        ("rename to", Box::new(|root| rustix::fs::rename(root.join(other), root.join(name)))),
        ("link", Box::new(|root| rustix::fs::link(root.join(name), root.join(new)))),
        ("link to", Box::new(|root| rustix::fs::link(root.join(other), root.join(name)))),
        ("symlink", Box::new(|root| rustix::fs::symlink("x", root.join(name)))),
        (
            "setxattr",
            Box::new(|root| {
                rustix::fs::setxattr(root.join(name), "user.x", b"y", XattrFlags::empty())
            }),
        ),
        ("removexattr", Box::new(|root| rustix::fs::removexattr(root.join(name), "user.one"))),
    ];
    for (what, change) in changes {
        both.same(what, change)?;
    }
    Ok(())
}

/// What can be done with a file that is open for reading.
fn opened(both: &Both, name: &str) -> Result<()> {
    let file = |root: &Path| File::open(root.join(name)).expect("it was there before");
    for offset in [0, 1, 4095, 409_600, 409_601, 421_888, 4_096_000, 10 << 20, 1 << 40] {
        for from in [SeekFrom::Data(offset), SeekFrom::Hole(offset)] {
            both.same(&format!("lseek {from:?}"), |root| rustix::fs::seek(file(root), from))?;
        }
    }
    both.same("seek to the end", |root| rustix::fs::seek(file(root), SeekFrom::End(-1)))?;
    both.same("write", |root| rustix::io::write(file(root), b"x"))?;
    both.same("ftruncate", |root| rustix::fs::ftruncate(file(root), 1))?;
    both.same("fsync", |root| rustix::fs::fsync(file(root)))?;
    both.same("syncfs", |root| rustix::fs::syncfs(file(root)))?;
    both.same("flock", |root| {
        rustix::fs::flock(file(root).as_fd(), FlockOperation::NonBlockingLockExclusive)
    })?;
    both.same("chattr", |root| {
        let path = root.join(name);
        let output = Command::new("chattr").args([OsStr::new("+d"), path.as_os_str()]).output();
        output.expect("chattr is of e2fsprogs").status.code()
    })?;
    both.same("copy of the holes", |root| {
        let copy = tempfile::NamedTempFile::new().expect("a scratch file");
        run("cp", &["--sparse=auto", arg(&root.join(name)), arg(copy.path())]).expect("cp");
        std::fs::read(copy.path()).expect("just written")
    })?;
    Ok(())
}

#[test]
fn tools_show_what_they_show_of_ext4() -> Result<()> {
    if skipped("tools_show_what_they_show_of_ext4") {
        return Ok(());
    }
    let both = Both::new(&["-t", "ext4", "-b", "1024"], TREE)?;
    for script in [
        "ls -lR",
        "find . -ls | sort",
        "tar --sort=name -c --xattrs --xattrs-include='*' --acls . | sha256sum",
        "getfattr -Rhd -m - . | sort",
        "getfacl -Rn . | sort",
        "lsattr -Ra . 2>&1 | sort",
        "find . -type f | sort | xargs sha256sum",
        "df -i . | tail -1 | awk '{print $2, $3, $4}'",
        "stat -f -c '%b %f %a %c %d %l %s %S' .",
        "setpriv --reuid 1000 --regid 1000 --clear-groups sh -c \
            'cat d/large | sha256sum; ls lost+found; test -w d/large; echo $?' 2>&1",
    ] {
        both.same(script, |root| {
            let output = Command::new("sh").args(["-c", script]).current_dir(root).output();
            let output = output.expect("there is a shell");
            assert!(!output.stdout.is_empty(), "{script}: nothing shown");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })?;
    }
    Ok(())
}

/// Names of a directory with where they were found.
fn positions(dir: &Path) -> Result<Vec<(Vec<u8>, u64, i64)>> {
    let mut found = Vec::new();
    let mut entries = rustix::fs::Dir::new(File::open(dir)?)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        found.push((entry.file_name().to_bytes().to_vec(), entry.ino(), entry.offset()));
    }
    Ok(found)
}

#[test]
fn a_large_directory_can_be_read_from_anywhere() -> Result<()> {
    if skipped("a_large_directory_can_be_read_from_anywhere") {
        return Ok(());
    }
    let script = "mkdir d; cd d; seq -f 'name-%06g-of-a-file-that-is-not-so-short' 20000 | \
                  xargs -n 1000 touch";
    let both = Both::new(&["-t", "ext4", "-b", "4096", "-N", "30000"], script)?;
    let dir = both.ours.dir().join("d");
    let ours = positions(&dir)?;
    let names: BTreeMap<_, _> = ours.iter().map(|(name, ino, _)| (name, ino)).collect();
    let theirs = positions(&both.kernel.dir().join("d"))?;
    let expected: BTreeMap<_, _> = theirs.iter().map(|(name, ino, _)| (name, ino)).collect();
    ensure!(names == expected && names.len() == ours.len(), "other names, or some twice");
    let listed: Vec<_> = std::fs::read_dir(&dir)?.collect::<std::io::Result<_>>()?;
    ensure!(listed.len() == ours.len() - 2 && listed.iter().all(|entry| entry.ino() > 0));
    // Programs with 32-bit offsets must be able to keep them.
    ensure!(ours.iter().all(|(_, _, next)| i32::try_from(*next).is_ok_and(|next| next > 0)));
    let file = File::open(&dir)?;
    for at in (0..ours.len() - 1).step_by(997) {
        rustix::fs::seek(&file, SeekFrom::Start(ours[at].2 as u64))?;
        let mut buffer = Vec::with_capacity(512);
        let mut raw = rustix::fs::RawDir::new(&file, buffer.spare_capacity_mut());
        let next = raw.next().context("nothing behind it")??;
        ensure!(next.file_name().to_bytes() == ours[at + 1].0, "entry {at} leads elsewhere");
    }
    Ok(())
}
