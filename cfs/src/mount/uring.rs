//! The transport over io_uring: a bound thread for each CPU served, and one for the queues of all
//! others, which the kernel wants too.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use oslet::sys::uring::{RingConfig, RingThread, Slot};
use oslet::{Error, Result};
use zerocopy::FromBytes;

use super::abi;
use super::dispatch::Body;
use super::notify;
use super::reply::Channel;
use super::session::{Config, Guard, Shared};

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// What is looked at of a request behind its arguments: a name and a target or the value of an
/// attribute, at most. Data of writes are not: they stay in the payload.
const NAMES_LEN: usize = 4096 + (64 << 10);

/// Makes all threads and rings; they wait for [`RingThread::start`]. On an error there are none.
pub(super) fn rings(
    shared: &Arc<Shared>,
    device: &Arc<OwnedFd>,
    config: &Config,
    payload_len: usize,
) -> Result<Vec<RingThread>> {
    let possible = std::fs::read_to_string(POSSIBLE)
        .map_err(Error::file(POSSIBLE.as_ref(), "read"))
        .map(|list| count_cpus(&list))?;
    let Some(possible) = possible.filter(|count| *count <= usize::from(u16::MAX)) else {
        return Err(Error::Invalid(format!("{POSSIBLE}: not a list of CPUs")));
    };
    let ours: Vec<usize> = config.cpus.iter().copied().filter(|cpu| *cpu < possible).collect();
    let foreign: Vec<u16> =
        (0..possible).filter(|cpu| !ours.contains(cpu)).map(|cpu| cpu as u16).collect();
    let mut plans: Vec<RingConfig> = ours
        .iter()
        .map(|&cpu| RingConfig {
            name: format!("fuse-{cpu}"),
            cpu: Some(cpu),
            queues: vec![cpu as u16],
            entries_per_queue: config.entries_per_queue.clamp(1, 64),
            payload_len,
        })
        .collect();
    if !foreign.is_empty() {
        plans.push(RingConfig {
            name: "fuse-foreign".into(),
            cpu: None,
            queues: foreign,
            entries_per_queue: 1,
            payload_len,
        });
    }
    let mut rings = Vec::with_capacity(plans.len());
    for plan in plans {
        match RingThread::spawn(plan, device.clone(), handler(shared)) {
            Ok(ring) => rings.push(ring),
            Err(error) => {
                discard(rings);
                return Err(error);
            }
        }
    }
    Ok(rings)
}

/// Ends rings that were not started.
pub(super) fn discard(rings: Vec<RingThread>) {
    for ring in rings {
        // It served nothing, so there is nothing that went wrong.
        let _ = ring.join();
    }
}

fn handler(shared: &Arc<Shared>) -> impl FnMut(Slot) + Send + 'static {
    let guard = Guard::new(shared);
    let mut names = Vec::new();
    move |slot| {
        notify::this_thread_serves();
        let header = slot.header();
        let arguments = slot.arguments();
        // Copied, because the answer may take the payload's place while the name is in use.
        let payload = slot.payload();
        let Ok((header, _)) = abi::InHeader::read_from_prefix(&header) else { return };
        names.clear();
        if header.opcode != abi::op::WRITE {
            names.extend_from_slice(&payload[..payload.len().min(NAMES_LEN)]);
        }
        guard.shared().dispatch(&header, Body::apart(&arguments, &names), || Channel::Ring(slot));
    }
}

/// How many CPUs a list like `0-3,8` names.
fn count_cpus(list: &str) -> Option<usize> {
    let mut count = 0usize;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, count) in [("0-1\n", Some(2)), ("0-3,8,10-11", Some(7)), ("0", Some(1))] {
            assert_eq!(count_cpus(list), count, "{list}");
        }
        for list in ["", "3-1", "x", "0-", "0-18446744073709551615"] {
            assert_eq!(count_cpus(list), None, "{list}");
        }
    }
}
