//! Exhaustive models of publication and of pinning against reuse.

use loom::sync::Arc;

use super::*;
use crate::hazard;
use crate::sync::AtomicU16;
use crate::words::LocalWords as Words;

/// A reader sees one version of a record, never a mixture, and never one older than it has seen.
#[test]
fn a_record_is_read_whole() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let words = Words::new(3);
        write_record(&words, 0, &[1, 1]);
        let shared = words.clone();
        let writer = loom::thread::spawn(move || {
            write_record(&shared, 0, &[2, 2]);
            clear_record(&shared, 0, 2);
        });
        let mut copy = [9, 9];
        if read_record(&words, 0, &mut copy) {
            assert_eq!(copy[0], copy[1]);
            assert!(copy[0] <= 2);
        }
        writer.join().unwrap();
    });
}

/// A frame is shown to a reader, unlinked, and refilled if nobody pins it: a reader that holds its
/// pin with the link confirmed must not see the refill.
#[test]
fn a_pinned_frame_is_not_reused() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        const KEY: u64 = 7;
        const SLOT: Slot = Slot { key: 0, value: 1 };
        let slot = Words::new(2);
        let pins = Arc::new(AtomicU16::new(0));
        let frame = Words::new(1);
        frame.store(0, 1, Ordering::Relaxed);
        link(&slot, SLOT, KEY, 5);
        let home = {
            let (slot, pins, frame) = (slot.clone(), Arc::clone(&pins), frame.clone());
            loom::thread::spawn(move || {
                unlink(&slot, SLOT);
                hazard::before_scan();
                if !hazard::is_pinned(&*pins) {
                    frame.store(0, 2, Ordering::Relaxed);
                }
            })
        };
        let value = linked(&slot, SLOT);
        if value != 0 {
            hazard::pin(&*pins, 0);
            if still_linked(&slot, SLOT, KEY, value) {
                assert_eq!(frame.load(0, Ordering::Relaxed), 1, "refilled while pinned");
            }
            hazard::unpin(&*pins);
        }
        home.join().unwrap();
    });
}

/// After the last unpin the home sees what the reader has done with the frame as finished.
#[test]
fn an_unpinned_frame_is_free_for_its_home() {
    loom::model(|| {
        let pins = Arc::new(AtomicU16::new(0));
        let frame = Words::new(1);
        hazard::pin(&*pins, 0);
        let reader = {
            let (pins, frame) = (Arc::clone(&pins), frame.clone());
            loom::thread::spawn(move || {
                let seen = frame.load(0, Ordering::Relaxed);
                hazard::unpin(&*pins);
                seen
            })
        };
        hazard::before_scan();
        if !hazard::is_pinned(&*pins) {
            frame.store(0, 2, Ordering::Relaxed);
        }
        assert_eq!(reader.join().unwrap(), 0);
    });
}
