//! The FUSE device and the files that control its connections.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl;

use crate::{Error, Result};

/// Where requests come from.
pub const DEVICE: &str = "/dev/fuse";
/// Whether the kernel offers FUSE over io_uring to new connections: `Y` or `N`.
pub const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, uint32_t)`.
const IOC_CLONE: ioctl::Opcode = ioctl::opcode::read::<u32>(229, 0);

/// Opens /dev/fuse for a new connection. In a user namespace the process that opens it must be in
/// the one that mounts: the kernel compares the two.
pub fn open_device() -> Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let way_out = match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::NXIO => {
                "not here: load the module (modprobe fuse) and, in a container, pass the device in"
            }
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
                "not permitted: its mode must let this user read and write it, and a container's \
                 device policy must allow it"
            }
            _ => "cannot be opened",
        };
        Error::io(format!("{DEVICE}: {way_out}"))(errno)
    })
}

/// A second descriptor of the same connection, with a queue of its own for the requests it has
/// read. The connection must be mounted.
pub fn clone_device(device: impl AsFd) -> Result<OwnedFd> {
    let clone = open_device()?;
    let from = device.as_fd().as_raw_fd() as u32;
    // SAFETY: the request reads the 32-bit descriptor number it is given and nothing else.
    unsafe { ioctl::ioctl(&clone, ioctl::Setter::<IOC_CLONE, u32>::new(from)) }
        .map_err(Error::io(format!("{DEVICE}: FUSE_DEV_IOC_CLONE")))?;
    Ok(clone)
}

/// Whether FUSE over io_uring is switched on; an error where this kernel does not have it.
pub fn uring_enabled() -> io::Result<bool> {
    Ok(std::fs::read_to_string(ENABLE_URING)?.trim() == "Y")
}

/// The connection that a descriptor of /dev/fuse serves, where the kernel tells (6.18 and later).
pub fn connection_of(device: impl AsFd) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    line.trim().parse().ok()
}

/// The connection mounted on `target`, from a mountinfo file (`/proc/PID/mountinfo` of a process
/// that sees the mount). Asks the kernel only, never the server.
pub fn connection_at(mountinfo: &Path, target: &Path) -> Result<Option<u32>> {
    let text = std::fs::read(mountinfo).map_err(Error::file(mountinfo, "read"))?;
    Ok(find_connection(&text, target))
}

fn find_connection(mountinfo: &[u8], target: &Path) -> Option<u32> {
    use std::os::unix::ffi::OsStrExt;
    let target = target.as_os_str().as_bytes();
    // The last match is the mount on top.
    mountinfo.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let place = unescape(fields.nth(1)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let fuse = kind == b"fuse" || kind.starts_with(b"fuse.") || kind == b"fuseblk";
        if !fuse || place != target {
            return None;
        }
        std::str::from_utf8(device).ok()?.strip_prefix("0:")?.parse().ok()
    })
}

/// Undoes the kernel's `\040` for a blank and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) if byte == b'\\' => {
                let value = digits.iter().fold(0u32, |value, d| value * 8 + u32::from(d - b'0'));
                out.push(value as u8);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// Ends a connection: every waiting and every later request fails. This is what frees callers
/// whose request a dead server had already read. Needs fusectl mounted on /sys/fs/fuse/connections
/// and write permission there; a connection that is already gone is success.
pub fn abort(connection: u32) -> Result<()> {
    let root = Path::new(CONNECTIONS);
    let path = root.join(connection.to_string()).join("abort");
    match File::options().write(true).open(&path).and_then(|mut file| file.write_all(b"1")) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_fusectl(root) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Invalid(format!(
            "{CONNECTIONS}: fusectl is not mounted: mount -t fusectl fusectl {CONNECTIONS}"
        ))),
        Err(error) => Err(Error::file(&path, "write")(error)),
    }
}

fn is_fusectl(path: &Path) -> bool {
    const FUSE_CTL_MAGIC: rustix::fs::FsWord = 0x6573_5543;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == FUSE_CTL_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
40 22 0:51 / /mnt/a\\040b rw - fuse.cfs one rw,user_id=0\n\
41 22 0:52 / /mnt/a\\040b rw shared:7 master:1 - fuse.cfs two rw,user_id=0\n\
42 22 0:53 / /mnt/c rw - tmpfs tmpfs rw\n\
43 22 0:54 /\n";

    #[test]
    fn the_mount_on_top_is_found_and_nothing_else() {
        assert_eq!(find_connection(MOUNTINFO, Path::new("/mnt/a b")), Some(52));
        assert_eq!(find_connection(MOUNTINFO, Path::new("/mnt/c")), None);
        assert_eq!(find_connection(MOUNTINFO, Path::new("/mnt/a")), None);
        assert_eq!(find_connection(MOUNTINFO, Path::new("/")), None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\134b\\9\\1"), b"a\\b\\9\\1");
    }
}
