use super::*;
use crate::machine::Cpus;
use crate::scratch::Scratch;
use std::time::Duration;

fn batch(mut side: Side, operations: u64) -> Option<Duration> {
    match &mut side {
        Side::Batch(run) => {
            let first = run(operations).unwrap();
            // A second batch goes on where the first ended.
            assert!(run(operations).unwrap() > Duration::ZERO && first > Duration::ZERO);
            Some(first)
        }
        Side::Probe(_) => panic!("these are timed in batches"),
        Side::Absent(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn messages_come_back_by_every_way() {
    let cpus = Cpus::choose().unwrap();
    let scratch = Scratch::new(None).unwrap();
    batch(line(cpus).unwrap(), 100);
    batch(line_each_way(cpus).unwrap(), 100);
    batch(futex(cpus).unwrap(), 100);
    batch(unix_socket(cpus).unwrap(), 100);
    batch(iceoryx2(cpus, &scratch).unwrap(), 100);
}

#[test]
fn memory_is_read_and_copied_right() {
    batch(memory_access(Walk::new(256)), 1000).unwrap();
    batch(memory_copy(Walk::chain(256)), 1000).unwrap();
}

#[test]
fn files_are_read_right_and_wrong_bytes_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pages");
    corpus::write_pages(&path, 1 << 20).unwrap();
    batch(pread(&path, Walk::new(256), Rc::new(())).unwrap(), 1000).unwrap();
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let Side::Batch(mut run) = pread(&path, Walk::new(256), Rc::new(())).unwrap() else {
        panic!("no batch")
    };
    assert!(run(10).is_err());
}

#[test]
fn files_of_a_tree_are_found_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    corpus::write_tree(dir.path()).unwrap();
    for naming in [Naming::Path, Naming::Name] {
        batch(stat(dir.path(), naming, Rc::new(())).unwrap(), 100).unwrap();
    }
    std::fs::write(dir.path().join("dir00/file-000.data"), "longer than it was").unwrap();
    let Side::Batch(mut run) = stat(dir.path(), Naming::Name, Rc::new(())).unwrap() else {
        panic!("no batch")
    };
    assert!(run(2000).is_err());
}

#[test]
fn a_backing_file_is_written_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    match raw_stream(&path, 12 << 20).unwrap() {
        Side::Probe(mut run) => {
            assert!(run().unwrap() > 0.0);
            // Another writer between two rounds is written over.
            std::fs::write(&path, vec![7; 12 << 20]).unwrap();
            assert!(run().unwrap() > 0.0);
        }
        Side::Batch(_) => panic!("a whole file is one measurement"),
        Side::Absent(why) => println!("skipped: {why}"),
    }
}
