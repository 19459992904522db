//! A peer's segment and a control page with arbitrary words: mapped, asked for tables and frames,
//! its pins counted.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use oslet::arena::Arena;
use oslet::id::{Epoch, FrameNo, Generation, OsletId, PageRef, ParticipantId};
use oslet::limits::FRAME_SIZE;
use oslet::region::layout::{CONTROL_MAGIC, SEGMENT_MAGIC, control, segment as at, version_word};
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};
use rustix::fs::{MemfdFlags, memfd_create};

const FRAMES: usize = 4;
const TABLE: usize = at::FIXED_LEN + FRAME_SIZE;
const LEN: usize = TABLE + FRAMES * FRAME_SIZE;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    if input.byte() & 1 == 0 { peer(input) } else { page(input) }
});

fn runtime(index: usize) -> ParticipantId {
    ParticipantId::runtime(OsletId::new(index).expect("one of 64"))
}

/// A file of words, those of the input changed: (index, value) with short values for one of them.
fn file(mut words: Vec<u64>, input: &mut Input<'_>) -> File {
    while !input.is_empty() {
        let (index, how) = (usize::from(input.half()), input.byte());
        let value = match how % 4 {
            0 => input.long(),
            1 => input.byte().into(),
            2 => u64::from(input.half()) * 8,
            _ => u64::MAX - u64::from(input.byte()),
        };
        let index = if how & 0x80 == 0 { index % 32 } else { index % words.len() };
        words[index] = value;
    }
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd"));
    file.write_all_at(&bytes, 0).expect("memfd");
    file
}

fn peer(mut input: Input<'_>) {
    let control = ControlPage::create(&Backing::Memfd, "fuzz", 2).expect("control page");
    let spec = SegmentSpec {
        participant: runtime(0),
        epoch: Epoch(1),
        frames: FRAMES,
        space: 1 << 14,
        paging: Paging::default(),
    };
    let cluster = control.cluster();
    let own = OwnSegment::create(&Backing::Memfd, cluster, &spec).expect("own segment");
    let region = Region::new(control, own, Paging::default()).expect("region");
    let arena = Arena::new(&region);
    let frame = arena.alloc().expect("a free frame").publish();

    let who = runtime(1);
    let mut words = vec![0; LEN / 8];
    let mut set = |offset: usize, value: u64| words[offset / 8] = value;
    set(at::MAGIC, SEGMENT_MAGIC);
    set(at::VERSION, version_word());
    set(at::CLUSTER, cluster.0[0]);
    set(at::CLUSTER + 8, cluster.0[1]);
    set(at::PARTICIPANT, who.index() as u64 | 1 << 32);
    set(at::LENGTH, LEN as u64);
    set(at::FRAMES, FRAMES as u64);
    set(at::FRAMES_OFFSET, TABLE as u64);
    set(at::FRAME_TABLE, at::FIXED_LEN as u64);
    // Pins on our frames, and one table.
    set(at::PIN_DIRECTORY, FRAMES as u64 | 1 << 32);
    set(at::PIN_DIRECTORY + 8, at::FIXED_LEN as u64 + 64);
    for (index, value) in [9, at::FIXED_LEN as u64 + 128, 64, 5].into_iter().enumerate() {
        set(at::TABLE_DIRECTORY + 8 * index, value);
    }
    let probe = input.long();
    let file = file(words, &mut input);
    if region.map(&file, who, Epoch(1)).is_err() {
        return;
    }
    let Some(segment) = region.segment(who) else { return };
    let _ = (segment.heartbeat(), segment.pid(), segment.frames(), segment.len());
    for kind in [9, probe] {
        if let Some(table) = segment.table(kind, 5) {
            let bytes = segment.slice(table.offset, table.len).expect("checked").to_vec();
            assert_eq!(bytes.len(), table.len);
        }
    }
    let _ = segment.words(probe as usize, (probe >> 32) as usize);
    let _ = segment.slice(probe as usize, (probe >> 32) as usize);
    for number in [0, FRAMES as u32, probe as u32] {
        let generation = Generation::new((probe >> 32) as u32);
        let page = PageRef { home: who, frame: FrameNo(number), generation };
        if let Ok(Some(guard)) = region.pin(page) {
            assert_eq!(guard.bytes().to_vec().len(), FRAME_SIZE);
        }
        region.peek(page).map(|bytes| bytes.to_vec());
    }
    arena.retire(&[frame]);
    arena.tick();
    let _ = arena.limbo_charges();
    region.end_pins(who, Epoch(1));
    arena.tick();
    assert!(region.forget(who, Epoch(1)).expect("an end"));
    PageRef::from_word(probe).map(|page| region.pin(page).map(|guard| drop(guard)));
}

fn page(mut input: Input<'_>) {
    let mut words = vec![0; control::LEN / 8];
    words[control::MAGIC / 8] = CONTROL_MAGIC;
    words[control::VERSION / 8] = version_word();
    words[control::OSLETS / 8] = 2;
    let Ok(page) = ControlPage::open(file(words, &mut input)) else { return };
    let _ = (page.cluster(), page.name().len(), page.file());
    for oslet in page.oslet_ids() {
        let _ = page.member(oslet);
    }
    for object in 0..oslet::limits::MAX_OWNED_OBJECTS {
        let _ = page.owner(object);
    }
}
