//! Images that the kernel uses: a claim names where.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cfs::engine::read_superblock;
use cfs::engine::store::BlockSource;
use cfs::guard::claim;
use cfs::mmp;
use tests::kernel::{self, LoopMount, mke2fs, run};

fn refused(path: &Path, words: &[&str]) {
    for writable in [false, true] {
        let error = claim(path, writable).unwrap_err();
        assert!(matches!(error, cfs::Error::Busy(_)), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

#[test]
fn what_the_kernel_mounts_is_busy() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, other) = (dir.path().join("disk.img"), dir.path().join("other.img"));
    mke2fs(&image, 16, &["-t", "ext4"]).unwrap();
    std::fs::hard_link(&image, &other).unwrap();
    let mount = LoopMount::new(&image, &dir.path().join("the place"), "").unwrap();
    let place = mount.dir().to_str().unwrap().to_owned();
    let device = format!("/dev/{}", mount.device());
    refused(&image, &["disk.img", &place, &device]);
    refused(&other, &["other.img", &place]);
    refused(Path::new(&device), &[&device, &place]);
    // The kernel's name for the file is gone; the file is the same.
    std::fs::remove_file(&image).unwrap();
    refused(&other, &["other.img", &place]);
    mount.unmount().unwrap();
    drop(claim(&other, true).unwrap());
}

#[test]
fn a_loop_device_alone_is_busy_too_and_can_be_claimed_itself() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    mke2fs(&image, 16, &["-t", "ext4"]).unwrap();
    let device = run("losetup", &["--find", "--show", kernel::arg(&image)]).unwrap();
    let device = Path::new(device.trim());
    let checked = std::panic::catch_unwind(|| {
        refused(&image, &["in use by the kernel as", device.to_str().unwrap()]);
        let held = claim(device, true).unwrap();
        assert_eq!(held.size(), 16 << 20);
        refused(device, &["in use by process"]);
    });
    run("losetup", &["-d", device.to_str().unwrap()]).unwrap();
    checked.unwrap();
}

#[test]
fn e2fsprogs_read_our_multi_mount_protection() {
    if let Some(why) = kernel::missing() {
        println!("nothing checked: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    mke2fs(&image, 16, &["-t", "ext4", "-O", "mmp"]).unwrap();
    let source: Arc<dyn BlockSource> = Arc::new(claim(&image, true).unwrap());
    let sb = read_superblock(&*source).unwrap();
    let second = Duration::from_secs(1);
    let options =
        mmp::Options { node: "a-node".into(), device: "hda".into(), take_over: false, second };
    let held = mmp::hold(&source, &sb, &options).unwrap().unwrap();
    let shown = run("debugfs", &["-R", "dump_mmp", kernel::arg(&image)]).unwrap();
    for line in ["node_name: a-node", "device_name: hda", "magic: 0x4d4d50"] {
        assert!(shown.contains(line), "{shown}");
    }
    held.release().unwrap();
    drop(source);
    // The kernel verifies the checksum, and a volume left clean is mounted without a wait.
    let start = std::time::Instant::now();
    LoopMount::new(&image, &dir.path().join("m"), "").unwrap().unmount().unwrap();
    assert!(start.elapsed() < Duration::from_secs(8));
}
