//! What programs see through a mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cfs::mount::{Config, Invalidate, NodeId};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::fixture::{Fixture, SOON, Via, over_each};
use crate::memfs::{Content, MemFs, STATFS, pattern};

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn the_tree_is_as_it_is() {
    over_each(|via| {
        for ttl in [Duration::ZERO, LONG] {
            let fixture = Fixture::new(via, ttl);
            compare(&fixture, 1, fixture.root());
            let listed = Command::new("ls").arg("-lR").arg(fixture.root()).output().unwrap();
            assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
            let files = listed.stdout.windows(5).filter(|window| window == b"file-").count();
            assert_eq!(files, 3000);
            fixture.end();
        }
    });
}

fn compare(fixture: &Fixture, node: u64, path: &Path) {
    let seen = std::fs::symlink_metadata(path).unwrap();
    let nodes = fixture.fs.nodes.lock();
    let attr = nodes[&node].attr;
    assert_eq!(seen.ino(), attr.ino);
    assert_eq!((seen.mode(), seen.nlink()), (attr.mode, u64::from(attr.nlink)));
    assert_eq!((seen.size(), seen.blocks()), (attr.size, attr.blocks));
    assert_eq!((seen.uid(), seen.gid()), (attr.uid, attr.gid));
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (-5, 123_456_789));
    assert_eq!((seen.ctime(), seen.ctime_nsec()), (5_000_000_000, 123_456_789));
    assert_eq!(seen.atime(), attr.atime.secs);
    if seen.file_type().is_char_device() {
        let rdev = (rustix::fs::major(seen.rdev()), rustix::fs::minor(seen.rdev()));
        assert_eq!(rdev, attr.rdev);
    }
    let expected: BTreeMap<Vec<u8>, u64> = match &nodes[&node].content {
        Content::Dir(names) => names.clone(),
        Content::Link(target) => {
            let target = target.clone();
            drop(nodes);
            assert_eq!(std::fs::read_link(path).unwrap().as_os_str().as_bytes(), target);
            return;
        }
        _ => return,
    };
    drop(nodes);
    let seen: BTreeMap<Vec<u8>, u64> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().as_bytes().to_vec(), entry.ino()))
        .collect();
    assert_eq!(seen, expected);
    for (name, child) in expected {
        compare(fixture, child, &path.join(OsStr::from_bytes(&name)));
    }
}

#[test]
fn bytes_are_what_they_are() {
    over_each(|via| {
        let fixture = Fixture::new(via, LONG);
        let expected: Vec<u8> = (0..(8 << 20) + 123).map(pattern).collect();
        assert!(std::fs::read(fixture.path("large")).unwrap() == expected);
        let large = File::open(fixture.path("large")).unwrap();
        for (offset, len) in [(0, 1), (4095, 2), (131_071, 70_000), (expected.len() - 5, 100)] {
            let mut buffer = vec![0; len];
            let read = large.read_at(&mut buffer, offset as u64).unwrap();
            assert_eq!(read, len.min(expected.len() - offset));
            assert!(buffer[..read] == expected[offset..offset + read]);
        }
        assert_eq!(std::fs::read(fixture.path("link")).unwrap(), b"hello\n");
        assert_eq!(std::fs::read(fixture.path("empty")).unwrap(), b"");
        // Answered by another thread than the one that was asked.
        let later: Vec<u8> = (0..100_000).map(pattern).collect();
        assert!(std::fs::read(fixture.path("later")).unwrap() == later);
        // A program runs from mapped pages.
        let cat = fixture.path("cat");
        let ran = Command::new(cat).arg(fixture.path("large")).output().unwrap();
        assert!(ran.status.success() && ran.stdout == expected);
        // Direct reads ask for more than one page at a time and bypass the cache.
        let direct = File::from(
            rustix::fs::open(fixture.path("large"), OFlags::RDONLY | OFlags::DIRECT, Mode::empty())
                .unwrap(),
        );
        let mut buffer = vec![0; 3 << 20];
        assert_eq!(direct.read_at(&mut buffer, 4096).unwrap(), buffer.len());
        assert!(buffer == expected[4096..4096 + buffer.len()]);
        drop((large, direct));
        fixture.end();
    });
}

#[test]
fn holes_are_found_and_read_as_zeros() {
    over_each(|via| {
        let fixture = Fixture::new(via, LONG);
        let file = File::open(fixture.path("sparse")).unwrap();
        let seek = |from| rustix::fs::seek(&file, from);
        assert_eq!(seek(SeekFrom::Data(0)), Ok(65_536));
        assert_eq!(seek(SeekFrom::Data(65_540)), Ok(65_540));
        assert_eq!(seek(SeekFrom::Hole(65_540)), Ok(69_632));
        assert_eq!(seek(SeekFrom::Data(69_632)), Ok(1 << 30));
        assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
        assert_eq!(seek(SeekFrom::Hole(1 << 30)), Ok((1 << 30) + 10));
        assert_eq!(seek(SeekFrom::Data((1 << 30) + 10)), Err(Errno::NXIO));
        let mut buffer = vec![1; 200_000];
        file.read_exact_at(&mut buffer, 0).unwrap();
        for (at, byte) in buffer.iter().enumerate() {
            let data = (65_536..69_632).contains(&at);
            assert_eq!(*byte, if data { pattern(at as u64) } else { 0 }, "at {at}");
        }
        drop(file);
        fixture.end();
    });
}

#[test]
fn extended_attributes_birth_time_and_statfs() {
    over_each(|via| {
        let fixture = Fixture::new(via, LONG);
        let large = fixture.path("large");
        let get = |name: &str, room: usize| {
            let mut buffer = vec![0; room];
            let len = rustix::fs::getxattr(&large, name, &mut buffer[..])?;
            buffer.truncate(len);
            Ok(buffer)
        };
        assert_eq!(get("user.one", 100), Ok(b"value".to_vec()));
        assert_eq!(get("user.one", 3), Err(Errno::RANGE));
        assert_eq!(get("user.big", 65_536), Ok(vec![7; 60_000]));
        assert_eq!(get("user.empty", 10), Ok(vec![]));
        assert_eq!(get("user.none", 10), Err(Errno::NODATA));
        let mut names = vec![0; 1000];
        let len = rustix::fs::listxattr(&large, &mut names[..]).unwrap();
        assert_eq!(&names[..len], b"user.big\0user.empty\0user.one\0");

        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let seen = rustix::fs::statx(CWD, &large, AtFlags::empty(), mask).unwrap();
        assert_eq!((seen.stx_btime.tv_sec, seen.stx_btime.tv_nsec), (77, 88));

        let seen = rustix::fs::statfs(fixture.root()).unwrap();
        assert_eq!((seen.f_blocks, seen.f_bfree, seen.f_bavail), (1000, 600, 500));
        assert_eq!((seen.f_files, seen.f_ffree), (70, 30));
        assert_eq!((seen.f_frsize as u32, seen.f_namelen), (STATFS.frsize, 255));
        fixture.end();
    });
}

#[test]
fn nothing_can_be_changed() {
    over_each(|via| {
        for read_only in [true, false] {
            let fixture =
                Fixture::with(via, MemFs::new(LONG), |options| options.read_only = read_only);
            refused(&fixture);
            let long = fixture.path(&"n".repeat(256));
            assert_eq!(rustix::fs::stat(&long).err(), Some(Errno::NAMETOOLONG));
            assert_eq!(rustix::fs::mkdir(&long, Mode::RWXU), Err(Errno::NAMETOOLONG));
            // Reading goes on.
            assert_eq!(std::fs::read(fixture.path("small")).unwrap(), b"hello\n");
            fixture.end();
        }
    });
}

fn refused(fixture: &Fixture) {
    let (small, dir, new) = (&fixture.path("small"), &fixture.path("dir"), &fixture.path("new"));
    let open = |path: &Path, flags| rustix::fs::open(path, flags, Mode::RUSR).map(drop);
    let answers = [
        ("create", open(new, OFlags::WRONLY | OFlags::CREATE)),
        ("open", open(small, OFlags::WRONLY)),
        ("append", open(small, OFlags::RDWR | OFlags::APPEND)),
        ("truncate", open(small, OFlags::WRONLY | OFlags::TRUNC)),
        ("tmpfile", open(dir, OFlags::WRONLY | OFlags::TMPFILE)),
        ("mkdir", rustix::fs::mkdir(new, Mode::RWXU)),
        ("symlink", rustix::fs::symlink("x", new)),
        ("link", rustix::fs::link(small, new)),
        ("unlink", rustix::fs::unlink(small)),
        ("rmdir", rustix::fs::rmdir(dir)),
        ("rename", rustix::fs::rename(small, new)),
        ("rename2", rustix::fs::renameat_with(CWD, small, CWD, new, RenameFlags::NOREPLACE)),
        ("chmod", rustix::fs::chmod(small, Mode::RUSR)),
        ("setxattr", rustix::fs::setxattr(small, "user.x", b"y", XattrFlags::empty())),
        ("removexattr", rustix::fs::removexattr(small, "user.x")),
    ];
    for (what, answer) in answers {
        assert_eq!(answer, Err(Errno::ROFS), "{what}");
    }
}

#[test]
fn sixteen_read_at_once() {
    over_each(|via| {
        let fixture = Fixture::new(via, Duration::ZERO);
        std::thread::scope(|scope| {
            for reader in 0..16u64 {
                let fixture = &fixture;
                scope.spawn(move || {
                    let large = File::open(fixture.path("large")).unwrap();
                    let mut buffer = vec![0; 50_000];
                    for round in 0..40 {
                        let offset = (reader * 7919 + round * 104_729 * 3) % (8 << 20);
                        let read = large.read_at(&mut buffer, offset).unwrap();
                        let right = buffer[..read]
                            .iter()
                            .zip(offset..)
                            .all(|(byte, at)| *byte == pattern(at));
                        assert!(read > 0 && right, "at {offset}");
                        let name = format!("dir/file-{:04}-", (reader * 60 + round * 60) % 3000);
                        assert!(std::fs::metadata(fixture.path(&name)).unwrap().is_file());
                    }
                });
            }
        });
        fixture.end();
    });
}

#[test]
fn callers_on_foreign_cpus_are_served_too() {
    over_each(|via| {
        let config = Config { cpus: vec![0], entries_per_queue: 1, ..Config::default() };
        let fixture = Fixture::configured(via, MemFs::new(Duration::ZERO), |_| {}, config);
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
            let mut one = CpuSet::new();
            one.set(cpu);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            for _ in 0..50 {
                assert_eq!(std::fs::read(fixture.path("small")).unwrap(), b"hello\n", "CPU {cpu}");
            }
            assert_eq!(std::fs::read(fixture.path("large")).unwrap().len(), (8 << 20) + 123);
        }
        rustix::thread::sched_setaffinity(None, &all).unwrap();
        fixture.end();
    });
}

#[test]
fn requests_are_served_where_they_are_made() {
    over_each(|via| {
        // By what callers are bound to, and by looking at them in a proc filesystem.
        for looks in [false, true] {
            let fixture = Fixture::new(via, Duration::ZERO);
            if looks {
                fixture.session().set_proc("/proc".into());
            }
            let file = File::open(fixture.path("small")).unwrap();
            let all = rustix::thread::sched_getaffinity(None).unwrap();
            let cpus: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
            // Each CPU twice: who is where callers were goes on to where they are.
            for &cpu in cpus.iter().chain(&cpus) {
                let mut one = CpuSet::new();
                one.set(cpu);
                rustix::thread::sched_setaffinity(None, &one).unwrap();
                served_on(&fixture, &file, cpu);
            }
            rustix::thread::sched_setaffinity(None, &all).unwrap();
            drop(file);
            fixture.end();
        }
    });
}

/// All threads see it within some requests of theirs. One alone serves many in a row now and then,
/// not so many.
fn served_on(fixture: &Fixture, file: &File, cpu: usize) {
    const REQUESTS: usize = 2000;
    let until = Instant::now() + SOON;
    loop {
        fixture.fs.served_on.lock().clear();
        for _ in 0..REQUESTS {
            rustix::fs::fstat(file).unwrap();
        }
        let here = fixture.fs.served_on.lock().iter().filter(|on| **on == cpu).count();
        if here * 100 >= REQUESTS * 99 {
            return;
        }
        assert!(Instant::now() < until, "CPU {cpu} serves {here} of {REQUESTS} of its requests");
    }
}

#[test]
fn what_is_cached_stays_until_told_otherwise() {
    over_each(|via| {
        let fixture = Fixture::new(via, LONG);
        let notifier = fixture.session().notifier();
        let small = fixture.path("small");
        let node = NodeId(std::fs::metadata(&small).unwrap().ino());
        assert_eq!(std::fs::read(&small).unwrap(), b"hello\n");
        {
            let mut nodes = fixture.fs.nodes.lock();
            let node = nodes.get_mut(&node.0).unwrap();
            node.content = Content::Bytes(b"HELLO, you\n".to_vec());
            node.attr.size = 11;
        }
        let size = || std::fs::metadata(&small).unwrap().size();
        assert_eq!(size(), 6, "cached");
        assert!(notifier.inode(node, Invalidate::Attributes).unwrap());
        assert_eq!(size(), 11);
        assert!(notifier.inode(node, Invalidate::Data { offset: 0, len: None }).unwrap());
        assert_eq!(std::fs::read(&small).unwrap(), b"HELLO, you\n");
        assert!(!notifier.inode(NodeId(999_999), Invalidate::Attributes).unwrap());

        // A name that is not there is remembered too.
        let new = fixture.path("new");
        assert!(!new.exists());
        {
            let mut nodes = fixture.fs.nodes.lock();
            let Content::Dir(names) = &mut nodes.get_mut(&1).unwrap().content else { panic!() };
            names.insert(b"new".to_vec(), node.0);
        }
        assert!(!new.exists(), "cached");
        assert!(notifier.entry(NodeId::ROOT, b"new").unwrap());
        assert!(new.exists());
        let lookups = || fixture.fs.lookups.load(Ordering::Relaxed);
        let before = lookups();
        assert!(new.exists());
        assert_eq!(lookups(), before, "cached");
        if fixture.session().agreed().kernel_minor >= 44 {
            notifier.all_entries().unwrap();
            assert!(new.exists());
            assert_eq!(lookups(), before + 1);
        } else {
            eprintln!("skipped FUSE_NOTIFY_INC_EPOCH: the kernel is older than 6.17");
        }
        fixture.end();
        let gone = notifier.inode(node, Invalidate::Attributes).unwrap_err();
        assert_eq!(gone.to_string(), "the mount is gone");
    });
}

#[test]
fn what_was_used_once_costs_no_message_and_lookups_are_taken_back() {
    over_each(|via: Via| {
        let fixture = Fixture::new(via, LONG);
        let fs = &fixture.fs;
        let asked = || (fs.lookups.load(Ordering::Relaxed), fs.getattrs.load(Ordering::Relaxed));
        let round = || {
            assert_eq!(std::fs::read(fixture.path("link")).unwrap(), b"hello\n");
            assert_eq!(std::fs::read_dir(fixture.path("dir")).unwrap().count(), 3000);
        };
        round();
        let before = asked();
        round();
        round();
        assert_eq!(asked(), before);

        assert_eq!(fs.forgotten.load(Ordering::Relaxed), 0);
        assert!(fixture.session().notifier().entry(NodeId::ROOT, b"small").unwrap());
        let until = Instant::now() + SOON;
        while fs.forgotten.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < until, "no FORGET came");
            std::thread::sleep(Duration::from_millis(1));
        }
        let fs = fs.clone();
        fixture.end();
        assert_eq!(fs.destroyed.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn the_kernel_checks_permissions_and_access_lists() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root reads as other users");
        return;
    }
    over_each(|via| {
        let mut fs = MemFs::new(LONG);
        let bytes = || Content::Bytes(b"secret\n".to_vec());
        fs.add(1, b"plain", 0o100_640, bytes());
        let listed = fs.add(1, b"listed", 0o100_640, bytes());
        fs.nodes
            .get_mut()
            .get_mut(&listed)
            .unwrap()
            .xattrs
            .insert(b"system.posix_acl_access".to_vec(), access_list(65_533));
        let fixture = Fixture::with(via, fs, |_| {});
        // The temporary directory around the mount point belongs to root alone, so go in first.
        let reads = |user: &str, name: &str| {
            Command::new("setpriv")
                .args(["--reuid", user, "--regid", user, "--clear-groups", "cat", name])
                .current_dir(fixture.root())
                .output()
                .unwrap()
                .stdout
                == b"secret\n"
        };
        assert!(reads("65533", "listed"));
        assert!(!reads("65532", "listed"));
        assert!(!reads("65533", "plain"));
        fixture.end();
    });
}

/// `user:ID:r--` beside the usual, as `linux/posix_acl_xattr.h` has it.
fn access_list(user: u32) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, NOBODY), (2, 4, user), (4, 0, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}
