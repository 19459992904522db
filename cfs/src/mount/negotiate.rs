//! INIT: what kernel and server agree on.

use oslet::{Error, Result};

use super::abi::{self, InitFlags};
use super::ops::{Agreed, Features};

/// Requests that the kernel keeps in flight in the background (reads of pages) over /dev/fuse.
/// While so many wait for a slow device, all others do too, whatever is cached: so, many.
const MAX_BACKGROUND: u16 = 1024;
/// Above so many it reads ahead no more.
const CONGESTION: u16 = 64;

/// The outcome of INIT.
pub(super) enum Outcome {
    /// The kernel speaks a newer major version: answer ours, and it asks again.
    AskAgain(abi::InitOut),
    /// Agreed.
    Agreed(Agreement),
}

/// What INIT is answered with, and what it means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreement {
    /// The kernel offers FUSE over io_uring.
    pub(super) offers_uring: bool,
    /// What the filesystem is told.
    pub(super) agreed: Agreed,
    /// Bytes of the largest write.
    pub(super) max_write: u32,
    flags: InitFlags,
    max_pages: u16,
}

/// Looks at the kernel's INIT. `max_io` bounds one read or write, in bytes.
pub(super) fn negotiate(
    init: &abi::InitIn,
    features: Features,
    max_io: u32,
    page_size: u32,
) -> Result<Outcome> {
    if init.major > abi::MAJOR {
        let answer = abi::InitOut { major: abi::MAJOR, minor: abi::MINOR, ..Default::default() };
        return Ok(Outcome::AskAgain(answer));
    }
    if init.major < abi::MAJOR || init.minor < abi::MINOR_MIN {
        return Err(Error::Invalid(format!(
            "this kernel speaks FUSE {}.{}, and {}.{} (Linux 5.4) is needed",
            init.major,
            init.minor,
            abi::MAJOR,
            abi::MINOR_MIN
        )));
    }
    let mut offered = InitFlags::from_bits_retain(u64::from(init.flags));
    if offered.contains(InitFlags::INIT_EXT) {
        offered |= InitFlags::from_bits_retain(u64::from(init.flags2) << 32);
    }
    let flags = offered & wanted(features);
    let pages = if flags.contains(InitFlags::MAX_PAGES) { max_io / page_size } else { 32 };
    let max_pages = pages.clamp(1, u32::from(u16::MAX)) as u16;
    let max_io = u32::from(max_pages) * page_size;
    Ok(Outcome::Agreed(Agreement {
        offers_uring: offered.contains(InitFlags::OVER_IO_URING),
        agreed: Agreed {
            kernel_minor: init.minor,
            max_read: max_io,
            max_readahead: init.max_readahead,
            posix_acl: flags.contains(InitFlags::POSIX_ACL),
            direct_mappings: flags.contains(InitFlags::DIRECT_IO_ALLOW_MMAP),
        },
        max_write: max_io,
        flags,
        max_pages,
    }))
}

impl Agreement {
    /// The answer to INIT.
    pub(super) fn answer(&self, over_uring: bool) -> abi::InitOut {
        let uring = if over_uring { InitFlags::OVER_IO_URING } else { InitFlags::empty() };
        let flags = (self.flags | uring).bits();
        abi::InitOut {
            major: abi::MAJOR,
            minor: abi::MINOR.min(self.agreed.kernel_minor),
            max_readahead: self.agreed.max_readahead,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: CONGESTION,
            max_write: self.max_write,
            time_gran: 1,
            max_pages: self.max_pages,
            ..Default::default()
        }
    }
}

/// Not wanted: AUTO_INVAL_DATA, which drops a file's cached pages whenever its times change, unless
/// others change them; pages are dropped by explicit notification. ASYNC_DIO, by which a direct
/// read cannot be interrupted: its caller could not be killed while a device does not answer.
/// Splicing, which copies as much and costs a pipe. ATOMIC_O_TRUNC, by which a program that runs is
/// truncated before the kernel finds that it must not be (ETXTBSY).
fn wanted(features: Features) -> InitFlags {
    let mut wanted = InitFlags::ASYNC_READ
        | InitFlags::BIG_WRITES
        | InitFlags::NO_OPEN_SUPPORT
        | InitFlags::PARALLEL_DIROPS
        | InitFlags::ABORT_ERROR
        | InitFlags::MAX_PAGES
        | InitFlags::CACHE_SYMLINKS
        | InitFlags::NO_OPENDIR_SUPPORT
        | InitFlags::INIT_EXT;
    // Privileges go with the change itself: no question for an attribute before each write. The
    // umask is applied by the filesystem, which knows of default ACLs.
    let writing = InitFlags::HANDLE_KILLPRIV_V2 | InitFlags::SETXATTR_EXT | InitFlags::DONT_MASK;
    wanted.set(writing, features.writable);
    let shared = InitFlags::AUTO_INVAL_DATA | InitFlags::DIRECT_IO_ALLOW_MMAP;
    wanted.set(shared, features.shared);
    wanted.set(InitFlags::EXPLICIT_INVAL_DATA, !features.shared);
    wanted.set(InitFlags::DO_READDIRPLUS, features.readdirplus);
    wanted.set(InitFlags::READDIRPLUS_AUTO, features.readdirplus);
    wanted.set(InitFlags::POSIX_ACL, features.posix_acl);
    wanted.set(InitFlags::EXPORT_SUPPORT, features.export);
    wanted.set(InitFlags::NO_EXPORT_SUPPORT, !features.export);
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features {
        readdirplus: true,
        posix_acl: true,
        export: true,
        writable: true,
        shared: false,
    };

    fn agreed(init: &abi::InitIn) -> Agreement {
        match negotiate(init, ALL, 1 << 20, 4096).unwrap() {
            Outcome::Agreed(agreement) => agreement,
            Outcome::AskAgain(_) => panic!("asked again"),
        }
    }

    #[test]
    fn only_what_the_kernel_offers_is_answered() {
        let init = abi::InitIn {
            major: 7,
            minor: 31,
            flags: (InitFlags::MAX_PAGES | InitFlags::POSIX_ACL | InitFlags::AUTO_INVAL_DATA).bits()
                as u32,
            flags2: u32::MAX,
            max_readahead: 131_072,
            ..Default::default()
        };
        let agreement = agreed(&init);
        assert!(!agreement.offers_uring, "flags2 mean nothing without INIT_EXT");
        let answer = agreement.answer(false);
        let flags = (InitFlags::MAX_PAGES | InitFlags::POSIX_ACL).bits();
        assert_eq!((answer.flags, answer.flags2), (flags as u32, 0));
        assert_eq!((answer.minor, answer.max_pages, answer.max_write), (31, 256, 1 << 20));
        assert!(agreement.agreed.posix_acl);
    }

    #[test]
    fn a_new_kernel_gets_the_high_flags() {
        let init = abi::InitIn {
            major: 7,
            minor: 99,
            flags: u32::MAX,
            flags2: u32::MAX,
            ..Default::default()
        };
        let agreement = agreed(&init);
        assert!(agreement.offers_uring);
        assert_eq!(agreement.answer(false).flags2, 0);
        let answer = agreement.answer(true);
        assert_eq!(u64::from(answer.flags2) << 32, InitFlags::OVER_IO_URING.bits());
        assert_eq!(answer.minor, abi::MINOR);
        assert_eq!(answer.flags & InitFlags::AUTO_INVAL_DATA.bits() as u32, 0);
    }

    #[test]
    fn pages_of_what_others_change_are_dropped_with_its_times() {
        let init = abi::InitIn {
            major: 7,
            minor: 99,
            flags: u32::MAX,
            flags2: u32::MAX,
            ..Default::default()
        };
        let shared = Features { shared: true, ..ALL };
        let Ok(Outcome::Agreed(agreement)) = negotiate(&init, shared, 1 << 20, 4096) else {
            panic!("asked again")
        };
        assert!(agreement.agreed.direct_mappings);
        let flags = agreement.answer(false).flags;
        assert_ne!(flags & InitFlags::AUTO_INVAL_DATA.bits() as u32, 0);
        // Which would keep pages where the size alone has changed.
        assert_eq!(flags & InitFlags::EXPLICIT_INVAL_DATA.bits() as u32, 0);
        assert!(!agreed(&init).agreed.direct_mappings);
    }

    #[test]
    fn other_versions_are_refused_or_asked_again() {
        let init = |major, minor| abi::InitIn { major, minor, ..Default::default() };
        for (major, minor) in [(6, 99), (7, 30), (0, 0)] {
            let Err(error) = negotiate(&init(major, minor), ALL, 1 << 20, 4096) else {
                panic!("{major}.{minor} was accepted")
            };
            assert!(error.to_string().contains(&format!("FUSE {major}.{minor}")), "{error}");
        }
        let again = negotiate(&init(8, 0), ALL, 1 << 20, 4096).unwrap();
        assert!(matches!(again, Outcome::AskAgain(abi::InitOut { major: 7, .. })));
    }

    #[test]
    fn without_max_pages_reads_are_the_old_size() {
        let agreement = agreed(&abi::InitIn { major: 7, minor: 31, ..Default::default() });
        assert_eq!(agreement.agreed.max_read, 32 * 4096);
    }
}
