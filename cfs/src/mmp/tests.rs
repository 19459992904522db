use std::process::Command;
use std::time::Instant;

use super::*;
use crate::engine::read_superblock;
use crate::engine::store::MemSource;

fn volume(args: &[&str]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F"]).args(args).arg(file.path()).status();
    assert!(made.expect("these tests need mke2fs (package e2fsprogs)").success());
    std::fs::read(file.path()).unwrap()
}

fn with_mmp() -> (Arc<dyn BlockSource>, Superblock) {
    let source: Arc<dyn BlockSource> =
        Arc::new(MemSource::new(volume(&["-t", "ext4", "-O", "mmp"])));
    let sb = read_superblock(&*source).unwrap();
    (source, sb)
}

fn options(node: &str) -> Options {
    let second = Duration::from_millis(4);
    Options { node: node.into(), device: "hda".into(), take_over: false, second }
}

fn sequence(source: &Arc<dyn BlockSource>, sb: &Superblock) -> u32 {
    Block::new(sb).unwrap().read(&**source).unwrap().sequence.get()
}

fn set_sequence(source: &Arc<dyn BlockSource>, sb: &Superblock, sequence: u32) {
    let block = Block::new(sb).unwrap();
    let mut raw = block.read(&**source).unwrap();
    raw.sequence = sequence.into();
    block.write(&**source, &mut raw).unwrap();
}

#[test]
fn a_volume_without_it_is_free() {
    let source: Arc<dyn BlockSource> = Arc::new(MemSource::new(volume(&["-t", "ext4"])));
    let sb = read_superblock(&*source).unwrap();
    assert!(hold(&source, &sb, &options("a")).unwrap().is_none());
    check(&*source, &sb, &options("a")).unwrap();
}

#[test]
fn one_at_a_time() {
    let (source, sb) = with_mmp();
    assert_eq!(sequence(&source, &sb), CLEAN);
    let held = hold(&source, &sb, &options("first")).unwrap().unwrap();
    let error = hold(&source, &sb, &options("second")).err().unwrap();
    assert!(error.to_string().contains("first uses it as hda"), "{error}");
    let error = check(&*source, &sb, &options("second")).unwrap_err();
    assert!(matches!(error, Error::Busy(_)), "{error}");
    assert!(!held.is_lost());
    held.release().unwrap();
    assert_eq!(sequence(&source, &sb), CLEAN);
    let start = Instant::now();
    drop(hold(&source, &sb, &options("second")).unwrap());
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_a_crash_left_is_waited_for() {
    let (source, sb) = with_mmp();
    drop(hold(&source, &sb, &options("heir")).unwrap());
    set_sequence(&source, &sb, 77);
    let start = Instant::now();
    check(&*source, &sb, &options("next")).unwrap();
    // The block says 10 s, so 21 of them.
    assert!(start.elapsed() >= Duration::from_millis(4 * 21));
    assert_eq!(sequence(&source, &sb), 77);
    // Who claims to succeed another waits all the same.
    let start = Instant::now();
    drop(hold(&source, &sb, &Options { take_over: true, ..options("stranger") }).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(4 * 21));
    drop(hold(&source, &sb, &options("heir")).unwrap());
    set_sequence(&source, &sb, 77);
    let start = Instant::now();
    let slow = Options { second: Duration::from_secs(100), take_over: true, ..options("heir") };
    let held = hold(&source, &sb, &slow).unwrap();
    assert!(start.elapsed() < Duration::from_secs(50));
    assert_ne!(sequence(&source, &sb), 77);
    drop(held);
}

#[test]
fn fsck_is_respected_and_nonsense_named() {
    let (source, sb) = with_mmp();
    set_sequence(&source, &sb, FSCK);
    for take_over in [false, true] {
        let options = Options { take_over, ..options("a") };
        let error = hold(&source, &sb, &options).err().unwrap();
        assert!(error.to_string().contains("e2fsck"), "{error}");
    }
    set_sequence(&source, &sb, FSCK + 9);
    let error = check(&*source, &sb, &options("a")).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let offset = Block::new(&sb).unwrap().offset;
    source.write_at(offset + 8, &[1]).unwrap();
    let error = check(&*source, &sb, &options("a")).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    source.write_at(offset, &[1]).unwrap();
    let error = check(&*source, &sb, &options("a")).unwrap_err().to_string();
    assert!(error.contains("magic"), "{error}");
}

#[test]
fn a_thief_is_seen() {
    let (source, sb) = with_mmp();
    let held = hold(&source, &sb, &options("first")).unwrap().unwrap();
    set_sequence(&source, &sb, 5);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !held.is_lost() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
        // Our own change may have come between.
        if sequence(&source, &sb) != 5 && !held.is_lost() {
            set_sequence(&source, &sb, 5);
        }
    }
    assert!(held.release().is_err());
    assert_eq!(sequence(&source, &sb), 5, "the thief's number stays");
}
