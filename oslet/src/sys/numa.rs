//! Where threads run and where their memory comes from.

use std::io;

/// How pages are taken from a set of memory nodes (set_mempolicy(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// From the node of the CPU that touches first.
    Local,
    /// From these nodes and no others; allocation fails rather than stray.
    Bind,
    /// From these nodes, from others when they are full (Linux 5.15).
    PreferMany,
}

impl Policy {
    pub(super) fn mode(self) -> libc::c_int {
        const MPOL_PREFERRED_MANY: libc::c_int = 5;
        match self {
            Self::Local => libc::MPOL_DEFAULT,
            Self::Bind => libc::MPOL_BIND,
            Self::PreferMany => MPOL_PREFERRED_MANY,
        }
    }
}

/// A set of CPUs or nodes as the kernel takes it: one bit each in native words.
pub(super) fn mask(members: &[u32]) -> Vec<libc::c_ulong> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let words = members.iter().max().map_or(1, |&max| max as usize / BITS + 1);
    let mut mask = vec![0; words];
    for &member in members {
        mask[member as usize / BITS] |= 1 << (member as usize % BITS);
    }
    mask
}

/// The inverse of [`mask`].
fn members(mask: &[libc::c_ulong]) -> Vec<u32> {
    let bits = libc::c_ulong::BITS;
    let set = |bit: &u32| mask[(bit / bits) as usize] >> (bit % bits) & 1 == 1;
    (0..mask.len() as u32 * bits).filter(set).collect()
}

/// Lets the calling thread and its later children run on these CPUs only.
///
/// # Errors
/// `EINVAL` when none of them is online and allowed by the cpuset.
pub fn set_affinity(cpus: &[u32]) -> io::Result<()> {
    let mask = mask(cpus);
    // SAFETY: the pointer and the length describe `mask`, which the kernel only reads.
    check(unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask[..]), mask.as_ptr())
    })
}

/// The CPUs that the calling thread may run on.
///
/// # Errors
/// None are expected but `EINVAL`, on a kernel for more than 65536 CPUs.
pub fn affinity() -> io::Result<Vec<u32>> {
    let mut mask = vec![0; 65536 / libc::c_ulong::BITS as usize];
    // SAFETY: the pointer and the length describe `mask`, which is writable and ours.
    check(unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&mask[..]), mask.as_mut_ptr())
    })?;
    Ok(members(&mask))
}

/// Sets the policy for memory that the calling thread and its later children allocate.
///
/// # Errors
/// `EINVAL` when a node is not there or not allowed by the cpuset, or the policy is unknown to the
/// kernel; `ENOSYS` on a kernel without NUMA.
pub fn set_policy(policy: Policy, nodes: &[u32]) -> io::Result<()> {
    let mask = mask(nodes);
    let (pointer, bits) = policy_arguments(policy, &mask);
    // SAFETY: the pointer and the bit count describe `mask` (or are null and 0), only read.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, policy.mode(), pointer, bits) })
}

/// Sets the policy of a range of mapped memory, from that address on, moving pages that are there
/// already.
///
/// # Errors
/// As [`set_policy`]; `EFAULT` when part of the range is not mapped, `EINVAL` when the start is
/// not on a page boundary, `EIO` when pages could not be moved.
pub fn bind_range(start: usize, len: usize, policy: Policy, nodes: &[u32]) -> io::Result<()> {
    let mask = mask(nodes);
    let (pointer, bits) = policy_arguments(policy, &mask);
    const MPOL_MF_STRICT: libc::c_int = 1;
    const MPOL_MF_MOVE: libc::c_int = 2;
    let flags = MPOL_MF_MOVE | MPOL_MF_STRICT;
    // SAFETY: the policy of a mapping changes neither its contents nor its addresses, whatever
    // range is given; `mask` is only read.
    check(unsafe {
        libc::syscall(libc::SYS_mbind, start, len, policy.mode(), pointer, bits, flags)
    })
}

/// The calling thread's policy: the kernel's mode number, and the nodes.
///
/// # Errors
/// `ENOSYS` on a kernel without NUMA.
pub fn policy() -> io::Result<(i32, Vec<u32>)> {
    let mut mode: libc::c_int = 0;
    let mut mask: [libc::c_ulong; 64] = [0; 64];
    // SAFETY: `mode` and `mask` are ours and writable, and the count is the bits of `mask`.
    check(unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            size_of_val(&mask) * 8,
            0,
            0,
        )
    })?;
    Ok((mode, members(&mask)))
}

/// The mask's address and its length as the kernel counts it: one more than the bits it reads.
pub(super) fn policy_arguments(
    policy: Policy,
    mask: &[libc::c_ulong],
) -> (*const libc::c_ulong, libc::c_ulong) {
    match policy {
        Policy::Local => (std::ptr::null(), 0),
        _ => (mask.as_ptr(), size_of_val(mask) as libc::c_ulong * 8 + 1),
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mask_holds_its_members(set in proptest::collection::btree_set(0_u32..5000, 0..40)) {
            let list: Vec<u32> = set.into_iter().collect();
            prop_assert_eq!(members(&mask(&list)), list);
        }
    }

    #[test]
    fn a_thread_runs_where_it_is_told() {
        std::thread::spawn(|| {
            let cpus = affinity().unwrap();
            let last = *cpus.last().unwrap();
            set_affinity(&[last]).unwrap();
            assert_eq!(affinity().unwrap(), [last]);
            assert!(set_affinity(&[65_000]).is_err());
            assert!(set_affinity(&[]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_takes_memory_where_it_is_told() {
        std::thread::spawn(|| {
            if set_policy(Policy::Bind, &[0]).is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS))
            {
                println!("skipped: this kernel has no NUMA policies");
                return;
            }
            assert_eq!(policy().unwrap(), (libc::MPOL_BIND, vec![0]));
            set_policy(Policy::PreferMany, &[0]).unwrap();
            assert_eq!(policy().unwrap(), (5, vec![0]));
            set_policy(Policy::Local, &[]).unwrap();
            assert_eq!(policy().unwrap(), (libc::MPOL_DEFAULT, vec![]));
            assert!(set_policy(Policy::Bind, &[1000]).is_err());
            let map = memmap2::MmapMut::map_anon(1 << 16).unwrap();
            bind_range(map.as_ptr() as usize, 1 << 16, Policy::Bind, &[0]).unwrap();
            assert!(bind_range(map.as_ptr() as usize, 1 << 16, Policy::Bind, &[1000]).is_err());
        })
        .join()
        .unwrap();
    }
}
