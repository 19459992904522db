//! Regions to test in.

use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};

pub(crate) fn runtime(index: usize) -> ParticipantId {
    ParticipantId::runtime(OsletId::new(index).unwrap())
}

/// `count` regions of one cluster in one process, each with the others' segments mapped.
pub(crate) fn arenas(count: usize, frames: usize) -> Vec<Arc<Arena>> {
    let control = ControlPage::create(&Backing::Memfd, "disks", count.max(2)).unwrap();
    let join = |index| {
        let spec = SegmentSpec {
            participant: runtime(index),
            epoch: Epoch(1),
            frames,
            space: 2 << 20,
            paging: Paging::default(),
        };
        let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
        let control = ControlPage::open(control.file().try_clone().unwrap()).unwrap();
        Region::new(control, own, Paging::default()).unwrap()
    };
    let regions: Vec<_> = (0..count).map(join).collect();
    for (index, region) in regions.iter().enumerate() {
        for (other, peer) in regions.iter().enumerate().filter(|(other, _)| *other != index) {
            region.map(&peer.own().reader().unwrap(), runtime(other), Epoch(1)).unwrap();
        }
    }
    regions.iter().map(Arena::new).collect()
}

pub(crate) fn arena(frames: usize) -> Arc<Arena> {
    arenas(1, frames).remove(0)
}
