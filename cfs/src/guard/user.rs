//! Who uses an image: from /proc and /sys, as far as they tell.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;

use oslet::sys::loopdev;
use rustix::fs::{major, minor};

/// Where a device is mounted in our mount namespace.
pub(super) fn mounted(device: (u32, u32)) -> Option<String> {
    let number = format!("{}:{}", device.0, device.1);
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let found = fields.nth(2)? == number;
        let place = fields.nth(1)?;
        found.then(|| place.replace("\\040", " "))
    })
}

/// The process that holds a lock on the file, as /proc/locks has it.
pub(super) fn holder(meta: &Metadata) -> Option<String> {
    let wanted = format!("{:02x}:{:02x}:{}", major(meta.dev()), minor(meta.dev()), meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 551 fe:00:10027010 0 EOF"; who waits has "->" second.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let lock = fields.get(1..6)?;
        (lock[0] == "FLOCK" && lock[4] == wanted).then(|| lock[3].to_owned())
    })?;
    // -1 and 0 stand for a process of another PID namespace.
    if pid.parse::<u32>().unwrap_or(0) == 0 {
        return None;
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim();
    let shown = if name.is_empty() { String::new() } else { format!(" ({name})") };
    Some(format!("process {pid}{shown}"))
}

/// Says so if the file is behind a loop device, under whatever name.
pub(super) fn loop_device(meta: &Metadata) -> Option<String> {
    if !meta.is_file() {
        return None;
    }
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else { continue };
        // There only while a file is behind the device.
        let Ok(shown) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        if is_behind(name, shown.trim_end_matches('\n'), meta) {
            let number = fs::read_to_string(entry.path().join("dev")).unwrap_or_default();
            let number = number.trim().split_once(':');
            let number = number.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            return Some(match number.and_then(mounted) {
                Some(place) => format!("mounted by the kernel on {place} through /dev/{name}"),
                None => format!("in use by the kernel as /dev/{name} (losetup -d /dev/{name})"),
            });
        }
    }
    None
}

/// The kernel's own answer decides where we may ask for it. The path in /sys may be of another
/// mount namespace, renamed or deleted.
fn is_behind(name: &str, shown: &str, meta: &Metadata) -> bool {
    let device = (major(meta.dev()), minor(meta.dev()));
    if let Ok(backing) = File::open(format!("/dev/{name}")).and_then(loopdev::backing) {
        return backing.inode == meta.ino() && backing.device == device;
    }
    fs::metadata(shown).is_ok_and(|found| found.dev() == meta.dev() && found.ino() == meta.ino())
}
