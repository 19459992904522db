//! What a loop device stands for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The file behind a loop device, as stat(2) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The device that the file lies on: major and minor number.
    pub device: (u32, u32),
    /// The file's inode.
    pub inode: u64,
}

/// `LOOP_GET_STATUS64` of linux/loop.h.
const LOOP_GET_STATUS64: u32 = 0x4c05;
/// 64-bit words of `struct loop_info64`; the first two are the device and the inode.
const INFO_WORDS: usize = 29;

/// Asks the kernel for the file behind an open loop device.
///
/// # Errors
/// `ENXIO` when there is none, `ENOTTY` when the file is no loop device.
pub fn backing(device: impl AsFd) -> io::Result<Backing> {
    let mut info = [0_u64; INFO_WORDS];
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open and the buffer is as large as the structure that this request
    // fills.
    let done = unsafe { libc::ioctl(fd, LOOP_GET_STATUS64.into(), info.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let number = info[0];
    let major = (number >> 8) as u32 & 0xfff;
    let minor = number as u32 & 0xff | (number >> 12) as u32 & 0x000f_ff00;
    Ok(Backing { device: (major, minor), inode: info[1] })
}
