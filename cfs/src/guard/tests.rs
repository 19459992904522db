use std::io::Write;
use std::process::Command;

use super::*;

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F"]).arg(&path).status();
    assert!(made.expect("these tests need mke2fs (package e2fsprogs)").success());
    path
}

/// Claims what is free. Between fork and exec the children of other tests hold copies of our
/// descriptors, and with them the locks.
fn free(path: &Path, writable: bool) -> Claim {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match claim(path, writable) {
            Err(Error::Busy(_)) if std::time::Instant::now() < deadline => {}
            result => return result.unwrap(),
        }
    }
}

fn says(result: Result<Claim>, words: &[&str]) {
    let error = result.unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn writers_exclude_all_and_readers_writers() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let own = format!("process {}", std::process::id());
    let writer = free(&path, true);
    says(claim(&path, true), &["disk.img", &own]);
    says(claim(&path, false), &["disk.img", &own]);
    drop(writer);
    let readers = [free(&path, false), free(&path, false)];
    says(claim(&path, true), &["disk.img", &own]);
    drop(readers);
    // A second name is the same file.
    let other = dir.path().join("other.img");
    std::fs::hard_link(&path, &other).unwrap();
    let _writer = free(&other, true);
    says(claim(&path, false), &["disk.img", &own]);
}

#[test]
fn a_claim_ends_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let mut child =
        Command::new("flock").arg("-x").arg(&path).args(["sleep", "100"]).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while claim(&path, true).is_ok() {
        assert!(std::time::Instant::now() < deadline, "flock does not lock");
    }
    says(claim(&path, true), &[&format!("process {} (flock)", child.id())]);
    // flock(1) runs the command as its child, which shares the lock.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()));
    for pid in children.unwrap_or_default().split_whitespace() {
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
    }
    child.wait().unwrap();
    while claim(&path, true).is_err() {
        assert!(std::time::Instant::now() < deadline, "the lock outlives its holder");
    }
}

#[test]
fn a_writer_can_write_and_a_reader_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let claimed = free(&path, true);
    let mut bytes = [0; 4];
    claimed.write_at(8, b"abcd").unwrap();
    claimed.flush().unwrap();
    claimed.read_at(8, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
    assert!(claimed.write_at(claimed.size() - 3, b"abcd").is_err());
    assert!(claimed.read_at(u64::MAX, &mut bytes).is_err());
    drop(claimed);
    let claimed = free(&path, false);
    assert!(matches!(claimed.write_at(8, b"abcd"), Err(Error::ReadOnly)));
    let flags = rustix::io::fcntl_getfd(&claimed).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn what_is_no_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.img");
    let put = |bytes: &[u8]| File::create(&path).unwrap().write_all(bytes).unwrap();
    says(claim(&path, false), &["x.img", "No such file"]);
    says(claim(dir.path(), false), &["a directory"]);
    says(claim(Path::new("/dev/null"), true), &["/dev/null", "a special file"]);
    put(b"");
    says(claim(&path, false), &["x.img", "empty"]);
    put(&[7; 500]);
    says(claim(&path, false), &["x.img", "500 bytes"]);
    put(&[0; 5000]);
    says(claim(&path, false), &["x.img", "no ext2", "zeros"]);
    let mut xfs = vec![0; 8192];
    xfs[..4].copy_from_slice(b"XFSB");
    put(&xfs);
    says(claim(&path, false), &["x.img", "XFS"]);
    let whole = image(dir.path());
    let bytes = std::fs::read(&whole).unwrap();
    put(&bytes[..bytes.len() - 1024]);
    says(claim(&path, false), &["x.img", "truncated"]);
    put(&[0; 1 << 20]);
    let mut broken = bytes;
    broken[1024 + 0x18] = 77;
    put(&broken);
    assert!(claim(&path, false).is_err());
}
