//! How a runtime's segment is divided into frames and table space.

use crate::id::{Epoch, ParticipantId};
use crate::region::{Backing, Paging, SegmentSpec};
use crate::ring::body::PRODUCER_LEN;
use crate::{Error, Result, limits};

/// The tables of a few volumes with small caches, and the threads' parking lines.
const TABLES: usize = 1 << 20;
/// Published indexes, for each frame.
const INDEX_PER_FRAME: usize = 64;
/// One half of a ring with the other's line, with what alignment costs.
const HALF: usize = PRODUCER_LEN + 4 * limits::LINE;
/// One part of the segment in so many is for replies to native clients, at most.
const CLIENTS_PART: usize = 32;
/// Fewer frames than this are of no use.
const MIN_FRAMES: usize = 256;

/// Frames, and bytes of table space.
pub(super) type Division = (usize, usize);

/// The largest division of at most `bytes` for a runtime among so many: rings to and from each
/// other one, rings for clients, pin counters for everybody's frames (and for one incarnation more,
/// of which some are still pinned), indexes over the own ones.
///
/// # Errors
/// When that is too little, with how much would do.
pub(super) fn divide(bytes: u64, oslets: usize, backing: &Backing) -> Result<Division> {
    try_divide(bytes, oslets, backing).ok_or_else(|| {
        Error::Invalid(format!(
            "segment of {bytes} bytes: too small for one of {oslets} OSlets; {} are needed",
            least_segment(oslets, backing)
        ))
    })
}

/// Bytes of the smallest segment that a runtime among so many can work with, whatever they all ask
/// of each other; whole MiB.
pub fn least_segment(oslets: usize, backing: &Backing) -> u64 {
    const STEP: u64 = 1 << 20;
    let mut bytes = limits::MIN_SEGMENT.next_multiple_of(STEP);
    while try_divide(bytes, oslets, backing).is_none() {
        bytes += STEP;
    }
    bytes.next_multiple_of(backing.page_size() as u64)
}

fn try_divide(bytes: u64, oslets: usize, backing: &Backing) -> Option<Division> {
    let oslets = oslets.min(limits::MAX_OSLETS);
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let rings = 2 * oslets.saturating_sub(1) * HALF;
    let clients = (bytes / CLIENTS_PART).min(oslets * (limits::SLOTS_PER_OSLET - 1) * HALF);
    let space =
        |frames: usize| TABLES + rings + clients + frames * (2 * (oslets + 1) + INDEX_PER_FRAME);
    let fits = |frames: usize| {
        let participant = ParticipantId::from_index(0)?;
        let (epoch, paging) = (Epoch(1), Paging::default());
        let spec = SegmentSpec { participant, epoch, frames, space: space(frames), paging };
        (spec.bytes(backing)? <= bytes).then_some(())
    };
    fits(MIN_FRAMES)?;
    let (mut fit, mut more) = (MIN_FRAMES, limits::MAX_FRAMES + 1);
    while more - fit > 1 {
        let middle = fit + (more - fit) / 2;
        match fits(middle) {
            Some(()) => fit = middle,
            None => more = middle,
        }
    }
    Some((fit, space(fit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::{ControlPage, OwnSegment};

    #[test]
    fn the_smallest_segment_has_room_for_all_that_may_be_asked() {
        for oslets in [2, 3, 16, 64] {
            let bytes = least_segment(oslets, &Backing::Memfd);
            let (frames, space) = divide(bytes, oslets, &Backing::Memfd).unwrap();
            let control = ControlPage::create(&Backing::Memfd, "division", oslets).unwrap();
            let participant = ParticipantId::from_index(0).unwrap();
            let paging = Paging::default();
            let spec = SegmentSpec { participant, epoch: Epoch(1), frames, space, paging };
            let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
            assert!(own.len() as u64 <= bytes, "{oslets}: {} of {bytes}", own.len());
            let alloc = |len: usize, what: &str| {
                own.alloc(len, limits::LINE).unwrap_or_else(|e| panic!("{oslets}: {what}: {e}"));
            };
            // Everybody's frames and one old incarnation's; both ends of two channels to each.
            (0..oslets + 1).for_each(|_| alloc(frames * 2, "pins"));
            for _ in 0..2 * (oslets - 1) {
                alloc(PRODUCER_LEN, "a ring");
                alloc(limits::LINE, "a head");
                alloc(limits::LINE, "a parking line");
            }
            alloc(frames * INDEX_PER_FRAME, "indexes");
            alloc(700 << 10, "tables of two small volumes");
            println!("{oslets} OSlets: {bytes} bytes, {frames} frames");
        }
    }

    #[test]
    fn divisions_fit_and_too_little_is_an_error() {
        for backing in [Backing::Memfd, Backing::Hugetlb] {
            for oslets in [2, 5, 64] {
                let least = least_segment(oslets, &backing);
                let mut last = 0;
                for more in [0, 2 << 20, 2 * least, 1 << 30, 1 << 38] {
                    let bytes = least + more;
                    let (frames, _) = divide(bytes, oslets, &backing).unwrap();
                    assert!(frames >= last, "{bytes}: {frames}");
                    last = frames;
                }
                let share = divide(1 << 30, oslets, &backing).unwrap().0 as u64 * 4096;
                assert!(share > (1 << 30) / 100 * 90, "{oslets}: only {share} bytes of frames");
            }
        }
        let error = divide(5 << 20, 64, &Backing::Memfd).unwrap_err().to_string();
        assert!(error.contains("too small for one of 64 OSlets"), "{error}");
        assert!(divide(0, 2, &Backing::Memfd).is_err());
    }
}
