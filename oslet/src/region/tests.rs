use std::fs::File;
use std::sync::Arc;

use super::*;
use crate::arena::Arena;
use crate::id::OsletId;
use crate::sync::AtomicU64;

fn runtime(index: usize) -> ParticipantId {
    ParticipantId::runtime(OsletId::new(index).unwrap())
}

fn join(control: &ControlPage, who: ParticipantId, epoch: u32, frames: usize) -> Arc<Region> {
    let spec = SegmentSpec {
        participant: who,
        epoch: Epoch(epoch),
        frames,
        space: 1 << 16,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    let control = ControlPage::open(control.file().try_clone().unwrap()).unwrap();
    Region::new(control, own, Paging::default()).unwrap()
}

/// Two regions of one cluster in one process, each with the other's segment mapped.
fn pair(frames: usize) -> (Arc<Region>, Arc<Region>) {
    let control = ControlPage::create(&Backing::Memfd, "pair", 2).unwrap();
    let a = join(&control, runtime(0), 1, frames);
    let b = join(&control, runtime(1), 1, frames);
    a.map(&b.own().reader().unwrap(), runtime(1), Epoch(1)).unwrap();
    b.map(&a.own().reader().unwrap(), runtime(0), Epoch(1)).unwrap();
    (a, b)
}

#[test]
fn a_page_filled_by_one_is_read_by_the_other_without_a_copy() {
    let (a, b) = pair(8);
    let arena = Arena::new(&a);
    let mut frame = arena.alloc().unwrap();
    frame.bytes().unwrap().fill().fill(0x5a);
    let page = frame.publish();
    let guard = b.pin(page).unwrap().unwrap();
    assert_eq!(guard.bytes().to_vec(), vec![0x5a; 4096]);
    assert_eq!(guard.bytes().word(4088), Some(0x5a5a_5a5a_5a5a_5a5a));
    assert_eq!(guard.bytes().word(4089), None);
    assert_eq!(guard.bytes().byte(4096), None);
}

/// What a child that this process forks has mapped.
fn maps_of_a_child() -> String {
    // SAFETY: the child makes system calls and nothing else, until it is killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above. Should this process die, the child ends by itself.
        unsafe { libc::alarm(60) };
        loop {
            // SAFETY: as above.
            unsafe { libc::pause() };
        }
    }
    assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
    let maps = std::fs::read_to_string(format!("/proc/{child}/maps"));
    let mut status = 0;
    // SAFETY: the child is ours and not waited for elsewhere; `status` is valid.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
    }
    maps.unwrap()
}

#[test]
fn a_forked_child_has_nothing_of_what_its_parent_writes() {
    use std::os::unix::fs::MetadataExt;
    let (a, b) = pair(4);
    let inode = |file: &File| file.metadata().unwrap().ino();
    let segments = [&a, &b].map(|region| inode(&region.own().reader().unwrap()));
    let control = [&a, &b].map(|region| inode(region.control().file()));
    // The permissions of each mapping of a file.
    let of = |maps: &str, file: u64| -> Vec<String> {
        let fields = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (fields[4] == file.to_string()).then(|| fields[1].to_owned())
        };
        maps.lines().filter_map(fields).collect()
    };
    let (own, child) = (std::fs::read_to_string("/proc/self/maps").unwrap(), maps_of_a_child());
    for file in segments.into_iter().chain(control) {
        assert!(of(&own, file).contains(&"rw-s".to_owned()), "the parent writes it");
        assert!(!of(&child, file).iter().any(|how| how.contains('w')), "{child}");
    }
    // So the child is one that has what else is mapped.
    for file in segments {
        assert!(of(&child, file).contains(&"r--s".to_owned()), "{child}");
    }
}

#[test]
fn a_pinned_frame_waits_in_limbo() {
    let (a, b) = pair(2);
    let arena = Arena::new(&a);
    let page = arena.alloc().unwrap().publish();
    let guard = b.pin(page).unwrap().unwrap();
    arena.retire(&[page]);
    assert_eq!(arena.usage().limbo, 1);
    assert_eq!(arena.limbo_charges().0, vec![(runtime(1), 1)]);
    assert!(b.pin(page).unwrap().is_none(), "a retired page is stale");
    let other = arena.alloc().unwrap();
    assert!(arena.alloc().is_err(), "the pinned frame is not reused");
    drop(guard);
    let again = arena.alloc().unwrap();
    assert_eq!(again.number(), page.frame);
    assert_ne!(again.page_ref().generation, page.generation);
    drop((other, again));
    assert_eq!(arena.usage().free, 2);
}

#[test]
fn own_pins_hold_own_frames_too() {
    let (a, _b) = pair(1);
    let arena = Arena::new(&a);
    let page = arena.alloc().unwrap().publish();
    let guard = a.pin(page).unwrap().unwrap();
    arena.retire(&[page]);
    assert!(arena.alloc().is_err());
    drop(guard);
    assert!(arena.alloc().is_ok());
}

#[test]
fn a_reference_outside_the_segment_names_nothing() {
    let (a, b) = pair(4);
    let page = Arena::new(&a).alloc().unwrap().publish();
    for frame in [4, 5, u32::MAX] {
        let beyond = PageRef { frame: crate::id::FrameNo(frame), ..page };
        assert!(b.pin(beyond).unwrap().is_none());
    }
    let nobody = PageRef { home: runtime(7), ..page };
    assert!(b.pin(nobody).unwrap().is_none());
}

#[test]
fn a_home_pins_its_own_frames_and_no_others() {
    let (a, b) = pair(4);
    let arena = Arena::new(&a);
    let pages: Vec<_> = (0..4).map(|_| arena.alloc().unwrap().publish()).collect();
    assert!(b.home(runtime(0), Epoch(2)).is_none() && b.home(runtime(7), Epoch(1)).is_none());
    for home in [a.home(runtime(0), Epoch(1)).unwrap(), b.home(runtime(0), Epoch(1)).unwrap()] {
        for page in &pages {
            let guard = home.pin_if(page.to_word(), || true).unwrap();
            assert_eq!(guard.page_ref(), *page);
            assert_eq!(guard.bytes().as_ptr(), home_bytes(&home, *page));
            assert_eq!(arena.ages(&[page.frame]), [None], "pinned");
            drop(guard);
            assert!(home.pin_if(page.to_word(), || false).is_none());
            assert_ne!(arena.ages(&[page.frame]), [None], "the pin is taken back");
        }
        let last = pages[3].to_word();
        let beyond = PageRef { frame: FrameNo(4), ..pages[3] }.to_word();
        let other = PageRef { home: runtime(1), ..pages[0] }.to_word();
        for word in [beyond, other, last | 1 << PageRef::SPARE_SHIFT, u64::MAX] {
            assert!(home.pin_if(word, || unreachable!("nothing is pinned")).is_none(), "{word:#x}");
        }
        // A generation that is never handed out: a frame all the same, and no panic.
        assert!(home.pin_if(last & !0xff_ffff, || true).unwrap().page_ref().frame.0 == 3);
    }
}

fn home_bytes(home: &Home, page: PageRef) -> *mut u8 {
    home.region().peek(page).unwrap().as_ptr()
}

#[test]
fn pins_on_one_frame_are_bounded() {
    let (a, b) = pair(1);
    let page = Arena::new(&a).alloc().unwrap().publish();
    let guards: Vec<_> =
        (0..hazard::MAX_PINS_PER_FRAME).map(|_| b.pin(page).unwrap().unwrap()).collect();
    assert!(b.pin(page).is_err());
    drop(guards);
    assert!(b.pin(page).unwrap().is_some());
}

#[test]
fn a_sealed_segment_cannot_be_written_or_resized_by_another() {
    let (a, _b) = pair(1);
    let reader = a.own().reader().unwrap();
    assert!(rustix::fs::ftruncate(&reader, 0).is_err());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    assert!(rustix::io::pwrite(&writer, b"x", 0).is_err());
    assert!(rustix::fs::ftruncate(&writer, 0).is_err());
    assert!(Mapping::new(&writer, 4096, true, "test").is_err());
}

#[test]
fn a_new_incarnation_replaces_the_old_one() {
    let control = ControlPage::create(&Backing::Memfd, "again", 2).unwrap();
    let b = join(&control, runtime(1), 1, 1);
    let old = join(&control, runtime(0), 1, 4);
    old.map(&b.own().reader().unwrap(), runtime(1), Epoch(1)).unwrap();
    b.map(&old.own().reader().unwrap(), runtime(0), Epoch(1)).unwrap();
    let mut frame = Arena::new(&old).alloc().unwrap();
    frame.bytes().unwrap().fill().fill(7);
    let page = frame.publish();
    let home = b.home(runtime(0), Epoch(1)).unwrap();
    let guard = home.pin_if(page.to_word(), || true).unwrap();
    assert!(!b.forget(runtime(0), Epoch(1)).unwrap(), "a pinned segment is not forgotten");

    let new = join(&control, runtime(0), 2, 4);
    b.map(&new.own().reader().unwrap(), runtime(0), Epoch(2)).unwrap();
    assert_eq!(guard.bytes().byte(0), Some(7), "an orphan stays while it is pinned");
    assert_eq!(b.segment(runtime(0)).unwrap().epoch(), Epoch(2));
    // Generations begin anew: the reference would name a frame of the new segment too.
    let (of_old, of_new) = ((runtime(0), Epoch(1)), (runtime(0), Epoch(2)));
    let mut frame = Arena::new(&new).alloc().unwrap();
    frame.bytes().unwrap().fill().fill(8);
    assert_eq!(frame.publish(), page);
    assert!(b.pin_if(page, Epoch(1), || true).is_none());
    assert!(b.pin_from(page, of_old).unwrap().is_none());
    assert!(home.pin_if(page.to_word(), || true).is_none(), "of the old incarnation");
    assert_eq!(b.pin_from(page, of_new).unwrap().unwrap().bytes().byte(0), Some(8));
    assert!(b.map(&old.own().reader().unwrap(), runtime(0), Epoch(1)).is_err());
    let at = guard.bytes();
    assert_eq!(b.release_forgotten().unwrap(), 1, "it is pinned");
    assert_eq!(guard.bytes().byte(0), Some(7));
    drop(guard);
    assert_eq!(b.release_forgotten().unwrap(), 0);
    assert_eq!(at.byte(0), Some(0), "its memory is given back, its addresses stay");
    assert!(b.forget(runtime(0), Epoch(2)).unwrap());
    assert!(b.segment(runtime(0)).is_none());
    assert_eq!(at.byte(0), Some(0), "an orphan's memory is given back behind its last guard");
    assert!(b.pin(page).unwrap().is_none());
}

#[test]
fn incarnations_without_end_need_no_more_room() {
    let control = ControlPage::create(&Backing::Memfd, "rounds", 2).unwrap();
    let b = join(&control, runtime(1), 1, 1);
    for epoch in 1..200 {
        let a = join(&control, runtime(0), epoch, 512);
        b.map(&a.own().reader().unwrap(), runtime(0), Epoch(epoch)).unwrap();
        // Every other one is replaced while it is pinned.
        let page = a.own().claim().unwrap().publish();
        let guard = b.pin(page).unwrap().filter(|_| epoch % 2 == 1);
        let next = join(&control, runtime(0), epoch + 1000, 512);
        b.map(&next.own().reader().unwrap(), runtime(0), Epoch(epoch + 1000)).unwrap();
        drop(guard);
        assert!(b.forget(runtime(0), Epoch(epoch + 1000)).unwrap());
        assert_eq!(b.release_forgotten().unwrap(), 0);
    }
}

#[test]
fn a_segment_of_another_cluster_or_identity_is_refused() {
    let (a, b) = pair(1);
    let file = a.own().reader().unwrap();
    let error = b.map(&file, runtime(3), Epoch(1)).unwrap_err().to_string();
    assert!(error.contains("says it is"), "{error}");
    let other = ControlPage::create(&Backing::Memfd, "other", 2).unwrap();
    let c = join(&other, runtime(1), 1, 1);
    let error = c.map(&file, runtime(0), Epoch(1)).unwrap_err().to_string();
    assert!(error.contains("another cluster"), "{error}");
}

#[test]
fn random_bytes_are_no_segment_and_reach_nothing_outside() {
    use std::os::unix::fs::FileExt;
    let control = ControlPage::create(&Backing::Memfd, "noise", 2).unwrap();
    let b = join(&control, runtime(1), 1, 4);
    let a = join(&control, runtime(0), 1, 4);
    let mut image = a.own().slice(0, a.own().len()).unwrap().to_vec();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..2000 {
        let file = tempfile::tempfile().unwrap();
        for _ in 0..1 + round % 8 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 33) as usize % 96 / 8 * 8;
            image[at..at + 8].copy_from_slice(&(seed >> (seed & 63)).to_ne_bytes());
        }
        file.write_all_at(&image, 0).unwrap();
        // Any answer will do but a panic or a fault; whatever maps can be walked.
        if let Ok(segment) =
            PeerSegment::open(&file, b.control().cluster(), runtime(0), Epoch(1), Paging::default())
        {
            for frame in 0..segment.frames() as u32 {
                segment.frame_start(crate::id::FrameNo(frame)).unwrap().slice().byte(4095).unwrap();
            }
        }
        if round % 4 == 3 {
            image = a.own().slice(0, a.own().len()).unwrap().to_vec();
        }
    }
}

#[test]
fn tables_are_found_by_kind_and_argument() {
    let (a, b) = pair(1);
    let table = a.own().publish_table(0x100, 1000, 64, 7).unwrap();
    let words = a.own().words_mut(table.offset, 2).unwrap();
    words.store(1, 42, Ordering::Release);
    let seen = b.segment(runtime(0)).unwrap();
    let found = seen.table(0x100, 7).unwrap();
    assert_eq!(found, table);
    assert_eq!(seen.words(found.offset, 2).unwrap().load(1, Ordering::Acquire), 42);
    assert_eq!(seen.table(0x100, 8), None);
    assert!(a.own().publish_table(1, 1 << 20, 64, 0).is_err(), "no room is an error");
}

#[test]
fn memory_that_cannot_be_reserved_is_an_error_at_once() {
    let control = ControlPage::create(&Backing::Memfd, "big", 2).unwrap();
    let spec = SegmentSpec {
        participant: runtime(0),
        epoch: Epoch(1),
        frames: limits::MAX_FRAMES,
        space: 0,
        paging: Paging::default(),
    };
    let hugetlb = OwnSegment::create(&Backing::Hugetlb, control.cluster(), &spec).unwrap_err();
    assert!(hugetlb.to_string().contains("hugetlb") || hugetlb.to_string().contains("huge pages"));
    let more = SegmentSpec { frames: limits::MAX_FRAMES + 1, ..spec };
    assert!(OwnSegment::create(&Backing::Memfd, control.cluster(), &more).is_err());
}

#[test]
fn a_named_backing_leaves_no_file_behind() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let backing = Backing::File(dir.path().join("a region"));
    let control = ControlPage::create(&backing, "named", 2).unwrap();
    let spec = SegmentSpec {
        participant: runtime(0),
        epoch: Epoch(1),
        frames: 2,
        space: 1 << 16,
        paging: Paging { huge: true, prefault: true },
    };
    let own = OwnSegment::create(&backing, control.cluster(), &spec).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    drop((own, control));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn words_of_a_line_are_compared_at_once() {
    let (a, _) = pair(1);
    let offset = a.own().alloc(192, 64).unwrap();
    let words = a.own().words_mut(offset, 24).unwrap();
    let halves = [0x1111_2222_3333_4444, 0x1111_2222_0000_0000, 0x3333_4444, 0x3333_4444_1111_2222];
    for (n, value) in halves.into_iter().cycle().take(24).enumerate() {
        words.store(n, value, Ordering::Relaxed);
    }
    let all = words.read_only();
    let line = all.few::<24>(0);
    assert_eq!(line.which(8, halves[0]), 1 | 1 << 8, "bit 2 n for the n-th");
    assert_eq!(line.which(8, halves[1]), 1 << 2 | 1 << 10);
    assert_eq!(line.which(16, halves[3]), 1 << 6 | 1 << 14);
    assert_eq!(line.which(0, 0x4444_3333_2222_1111), 0);
    let eight = all.few::<8>(16);
    assert_eq!((eight.which(0, halves[3]), eight.load(7, Ordering::Relaxed)), (0x4040, halves[3]));
    let out_of_bounds: [fn(&Ro<AtomicU64>); 4] = [
        |all| _ = all.few::<24>(0).which(17, 0),
        |all| _ = all.few::<8>(0).load(8, Ordering::Relaxed),
        |all| _ = all.few::<8>(17),
        |all| _ = all.few::<8>(usize::MAX),
    ];
    for (n, access) in out_of_bounds.into_iter().enumerate() {
        let all = std::panic::AssertUnwindSafe(all);
        assert!(std::panic::catch_unwind(|| access(*all)).is_err(), "access {n}");
    }
}

#[test]
fn a_hash_chooses_a_line_inside_and_its_low_halves_are_compared_at_once() {
    let (a, _) = pair(1);
    let offset = a.own().alloc(5 * 64, 64).unwrap();
    // The last line is not whole.
    let words = a.own().words_mut(offset, 4 * 8 + 7).unwrap();
    let mut low = [0x1111_2222, 0x3333_4444, 0x3333_4444, 0].into_iter().cycle();
    for n in 0..words.len() {
        let line = n as u64 / 8;
        words.store(n, low.next().unwrap() | line << 32, Ordering::Relaxed);
    }
    let all = words.read_only();
    let lines = all.lines().unwrap();
    assert_eq!((lines.count(), lines.words().len()), (4, 39));
    for hash in [0, 1, u64::MAX / 4, u64::MAX / 4 + 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
        let line = lines.pick(hash);
        assert_eq!(line.load(0, Ordering::Relaxed) >> 32, hash >> 62, "{hash:#x}");
        assert_eq!(line.which_of_four(0x3333_4444), 0b110);
        assert_eq!(line.which_of_four(0x1111_2222), 0b1);
        assert_eq!(line.which_of_four(0), 0b1000);
        assert_eq!(line.which_of_four(0x2222_1111), 0);
    }
    let beyond = std::panic::AssertUnwindSafe(lines.pick(0));
    assert!(std::panic::catch_unwind(|| beyond.load(8, Ordering::Relaxed)).is_err());
    // A peer says where its tables are: one that begins within a line is none.
    let (within, few) = (a.own().words_mut(offset + 8, 16).unwrap(), a.own().words_mut(offset, 7));
    assert!(within.read_only().lines().is_none());
    assert!(few.unwrap().read_only().lines().is_none());
}

/// Memory comes in huge pages where the kernel has them for who asks, and none is missing where it
/// has not.
#[test]
fn a_segment_takes_huge_pages_unasked() {
    let control = ControlPage::create(&Backing::Memfd, "huge", 1).unwrap();
    let spec = SegmentSpec {
        participant: runtime(0),
        epoch: Epoch(1),
        frames: 2 * HUGE_PAGE / limits::FRAME_SIZE + 3,
        space: 1 << 16,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    let file = own.reader().unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    assert_eq!(blocks * 512, own.len() as u64, "all of it is reserved, and nothing else");
    // Who insists gets what the kernel has, if need be by copying.
    let asking = SegmentSpec { paging: Paging { huge: true, prefault: false }, ..spec };
    let asked = OwnSegment::create(&Backing::Memfd, control.cluster(), &asking).unwrap();
    if !asked.huge() {
        println!("skipped: the kernel has no huge pages");
        return;
    }
    assert!(own.huge());
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let address = own.slice(0, 1).unwrap().as_ptr();
    let mine = smaps.split_once(&format!("{:x}-", address as usize)).unwrap().1;
    let mapped = mine.lines().find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
    assert_eq!(mapped.split_whitespace().nth(1), Some("4096"), "all that fills huge pages");
}

#[test]
fn a_published_frame_is_overwritten_under_its_readers() {
    let (a, b) = pair(2);
    let (arena, own) = (Arena::new(&a), a.own());
    let mut frame = arena.alloc().unwrap();
    frame.bytes().unwrap().fill().fill(1);
    let page = frame.publish();
    let guard = b.pin(page).unwrap().unwrap();
    own.overwrite(page, 10, Bytes::Own(b"abc")).unwrap();
    own.overwrite(page, 4095, Bytes::Own(b"z")).unwrap();
    own.overwrite(page, 100, Bytes::Zeros(50)).unwrap();
    let head = guard.bytes().sub(8, 6).unwrap();
    own.overwrite(page, 200, Bytes::Shared(head)).unwrap();
    let mut expected = vec![1; 4096];
    expected[10..13].copy_from_slice(b"abc");
    expected[4095] = b'z';
    expected[100..150].fill(0);
    expected[200..206].copy_from_slice(b"\x01\x01abc\x01");
    assert_eq!(guard.bytes().to_vec(), expected);
    assert!(own.overwrite(page, 4095, Bytes::Own(b"zz")).is_err(), "beyond the frame");
    let owned = arena.alloc().unwrap();
    let unpublished = owned.page_ref();
    assert!(own.overwrite(unpublished, 0, Bytes::Own(b"a")).is_err(), "somebody fills it");
    drop(guard);
    arena.retire(&[page]);
    assert!(own.overwrite(page, 0, Bytes::Own(b"a")).is_err(), "retired");
}

#[test]
fn frames_are_filled_past_the_caches_with_any_bytes() {
    let (a, b) = pair(8);
    let arena = Arena::new(&a);
    let source: Vec<u8> = (0..4 * 4096u32).map(|at| (at % 251) as u8).collect();
    let mut frame = arena.alloc().unwrap();
    frame.put(0, Bytes::Own(&source[..4096])).unwrap();
    let shared = frame.publish();
    let shown = b.pin(shared).unwrap().unwrap();
    for from in [0, 1, 15, 16, 100] {
        let mut frames = arena.alloc_many(3).unwrap();
        put_past_caches(&mut frames, Bytes::Own(&source[from..from + 3 * 4096])).unwrap();
        let bytes = Bytes::Own(&source[..4095]);
        assert!(put_past_caches(&mut frames[..1], bytes).is_err(), "too few");
        let pages: Vec<_> = frames.into_iter().map(|frame| frame.publish()).collect();
        for (index, &page) in pages.iter().enumerate() {
            let found = b.pin(page).unwrap().unwrap().bytes().to_vec();
            assert_eq!(found, source[from + index * 4096..][..4096], "page {index} from {from}");
        }
        arena.retire(&pages);
    }
    let mut frames = arena.alloc_many(2).unwrap();
    frames.iter_mut().for_each(|frame| frame.bytes().unwrap().fill().fill(7));
    put_past_caches(&mut frames[..1], Bytes::Shared(shown.bytes())).unwrap();
    put_past_caches(&mut frames[1..], Bytes::Zeros(4096)).unwrap();
    frames[1].put(4000, Bytes::Own(&[9; 96])).unwrap();
    frames[1].put(4096, Bytes::Zeros(0)).unwrap();
    assert!(frames[1].put(4000, Bytes::Zeros(97)).is_err(), "beyond the frame");
    let found: Vec<_> = frames.into_iter().map(|frame| frame.publish()).collect();
    let bytes = |page| b.pin(page).unwrap().unwrap().bytes().to_vec();
    assert_eq!(bytes(found[0]), source[..4096]);
    assert_eq!(bytes(found[1]), [vec![0; 4000], vec![9; 96]].concat());
}

#[test]
fn any_bytes_are_put_anywhere_in_a_frame_and_nowhere_else() {
    let (a, b) = pair(2);
    let (arena, own) = (Arena::new(&a), a.own());
    let mut frame = arena.alloc().unwrap();
    frame.bytes().unwrap().fill().fill(0xff);
    let page = frame.publish();
    let guard = b.pin(page).unwrap().unwrap();
    let mut expected = vec![0xff; 4096];
    let source: Vec<u8> = (0..4096u32).map(|at| (at % 251) as u8).collect();
    for len in (0..=200).chain([1024, 4032, 4095, 4096]) {
        let room = 4096 - len;
        for offset in [0, 1, 15, 16, 63, 64, 100, room] {
            let (offset, from) = (offset.min(room), (offset * 7).min(room));
            let bytes = &source[from..from + len];
            own.overwrite(page, offset, Bytes::Own(bytes)).unwrap();
            expected[offset..offset + len].copy_from_slice(bytes);
            assert_eq!(guard.bytes().to_vec(), expected, "{len} bytes at {offset}");
            own.overwrite(page, room - offset, Bytes::Zeros(len)).unwrap();
            expected[room - offset..][..len].fill(0);
            assert_eq!(guard.bytes().to_vec(), expected, "{len} zeros at {}", room - offset);
        }
    }
}
