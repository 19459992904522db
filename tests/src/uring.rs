//! The kernel's switch for FUSE over io_uring.

use std::fs::File;

use anyhow::{Context, Result};
use oslet::sys::fusectl::ENABLE_URING;
use rustix::fs::FlockOperation;

/// The switch in a wanted position while this lives, and put back then. It counts when a mount is
/// made. One process at a time.
pub struct Switch {
    before: Option<String>,
    _lock: File,
}

impl Switch {
    /// Whether this kernel has the switch and we may turn it.
    #[must_use]
    pub fn usable() -> bool {
        File::options().write(true).open(ENABLE_URING).is_ok()
    }

    /// Turns it on or off. Where there is no switch, it is off.
    ///
    /// # Errors
    /// When it cannot be turned.
    pub fn set(on: bool) -> Result<Self> {
        // All tests that turn it take this lock.
        let path = std::env::temp_dir().join("cfs-test-enable-uring.lock");
        let lock = File::create(&path).with_context(|| path.display().to_string())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let wanted = if on { "Y" } else { "N" };
        let before = match std::fs::read_to_string(ENABLE_URING) {
            Ok(before) if before.trim() != wanted => {
                std::fs::write(ENABLE_URING, wanted).context(ENABLE_URING)?;
                Some(before.trim().to_owned())
            }
            Err(error) if on => return Err(error).context(ENABLE_URING),
            _ => None,
        };
        Ok(Self { before, _lock: lock })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = std::fs::write(ENABLE_URING, before)
        {
            eprintln!("{ENABLE_URING}: {error}");
        }
    }
}
