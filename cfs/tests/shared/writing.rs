//! What one OSlet writes another reads at once, whoever of them owns the volume, while pages come
//! and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfs::Caller;
use cfs::change::{NewInode, WriteOptions};
use cfs::client::{Client, Page};
use cfs::id::Ino;

use crate::cluster::{Cluster, image, writing_cluster};

const FILE: NewInode = NewInode { mode: 0o100_644, umask: 0, device: (0, 0) };

fn empty(frames: usize, budget: usize) -> Cluster {
    writing_cluster(image(&BTreeMap::new(), &["-b", "4096"]), frames, budget)
}

fn make(client: &Client, name: &str) -> Ino {
    client.make(Ino::ROOT, name.as_bytes(), FILE, Caller::ROOT).unwrap().attr.ino
}

fn get(client: &Arc<Client>, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; client.stat(ino).unwrap().size as usize];
    let len = client.file(ino).read(0, &mut bytes).unwrap();
    assert_eq!(len, bytes.len());
    bytes
}

#[test]
fn each_sees_what_the_others_changed() {
    let cluster = empty(2048, 1024);
    let Cluster { local, remote, lending, .. } = &cluster;
    let clients = [local, remote, lending];
    let plain = WriteOptions::default();
    for (index, writer) in clients.into_iter().enumerate() {
        let name = format!("file {index}");
        for client in clients {
            assert_eq!(client.resolve(name.as_bytes()).unwrap_err().errno(), 2, "ENOENT");
        }
        let ino = make(writer, &name);
        let mut expected: Vec<u8> = (0..200_000u32).map(|at| (at / 7) as u8).collect();
        let written = writer.write(ino, 0, &expected, plain).unwrap();
        assert_eq!((written.offset, written.len), (0, expected.len()));
        for (round, other) in clients.into_iter().enumerate() {
            assert_eq!(other.resolve(name.as_bytes()).unwrap().attr.ino, ino);
            assert!(get(other, ino) == expected, "{index} wrote, {round} reads other bytes");
            // Parts of pages, over the end, and behind it.
            let offset = [100, 199_990, 250_000][round];
            other.write(ino, offset as u64, &[round as u8; 5000], plain).unwrap();
            expected.resize(expected.len().max(offset + 5000), 0);
            expected[offset..offset + 5000].fill(round as u8);
            for client in clients {
                assert!(get(client, ino) == expected, "{index}: {round} wrote in between");
            }
        }
        let append = WriteOptions { append: true, ..plain };
        assert_eq!(remote.write(ino, 0, b"end", append).unwrap().offset, expected.len() as u64);
        expected.extend_from_slice(b"end");
        assert!(get(lending, ino) == expected);
        remote.truncate(ino, 4097).unwrap();
        assert!(get(local, ino) == expected[..4097]);
        local.truncate(ino, 9000).unwrap();
        let zeros: Vec<u8> = expected[..4097].iter().copied().chain([0; 4903]).collect();
        assert!(get(remote, ino) == zeros);
        writer.sync(ino, false, &mut 0).unwrap();
        writer.unlink(Ino::ROOT, name.as_bytes(), Caller::ROOT).unwrap();
        for client in clients {
            assert_eq!(client.resolve(name.as_bytes()).unwrap_err().errno(), 2, "ENOENT");
        }
    }
    // A value larger than a message goes by reference, or not at all.
    let ino = make(remote, "attributes");
    let value = vec![7; 20_000];
    let error = remote.set_xattr(ino, b"user.large", &value, 0, Caller::ROOT).unwrap_err();
    assert_eq!(error.errno(), 7, "E2BIG: {error}");
    // It reaches the owner, whose volume has no room for so large a value.
    let error = lending.set_xattr(ino, b"user.large", &value, 0, Caller::ROOT).unwrap_err();
    assert_eq!(error.errno(), 28, "ENOSPC: {error}");
    cluster.owner.stop().unwrap();
}

/// The byte of a file at an offset, never zero.
fn byte(at: usize) -> u8 {
    (at % 251) as u8 + 1
}

/// A file is cut to nothing and written again and again, while others read it by reference and by
/// copy and a cache that is far too small takes its pages out: every byte that is read is the
/// file's or zero, and none is missing of what had been written before the read began.
#[test]
fn readers_meet_writers_truncation_and_eviction() {
    const LARGEST: usize = 700_000;
    let cluster = empty(512, 128);
    let ino = make(&cluster.local, "file");
    // An odd number while the file is being cut; the length that is there for certain.
    let (round, certain) = (AtomicU64::new(0), AtomicU64::new(0));
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let content: Vec<u8> = (0..LARGEST).map(byte).collect();
    std::thread::scope(|scope| {
        for client in [&cluster.local, &cluster.remote] {
            let (round, certain, done, reads, content) =
                (&round, &certain, &done, &reads, &content);
            scope.spawn(move || {
                let file = client.file(ino);
                let mut bytes = vec![0; LARGEST];
                while !done.load(Ordering::Relaxed) {
                    let before = round.load(Ordering::SeqCst);
                    let there = certain.load(Ordering::SeqCst) as usize;
                    let len = file.read(0, &mut bytes).unwrap();
                    let kept = round.load(Ordering::SeqCst) == before && before % 2 == 0;
                    if bytes[..len] != content[..len] {
                        for (at, &found) in bytes[..len].iter().enumerate() {
                            assert!(found == content[at] || found == 0, "byte {at} is {found}");
                        }
                    }
                    if kept && round.load(Ordering::SeqCst) == before {
                        assert!(len >= there, "{len} bytes of {there}");
                        assert!(bytes[..there] == content[..there], "a write was lost");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        scope.spawn(|| {
            // Pages by reference.
            let file = cluster.remote.file(ino);
            let mut page = 0;
            while !done.load(Ordering::Relaxed) {
                page = (page + 7) % (LARGEST as u64 / 4096);
                if let Some(found @ Page::Shared(_)) = file.read_ref(page).unwrap() {
                    let mut bytes = [0; 4096];
                    found.copy_to(0, &mut bytes);
                    for (at, &found) in bytes.iter().enumerate() {
                        let expected = byte(page as usize * 4096 + at);
                        assert!(found == expected || found == 0, "page {page}, byte {at}");
                    }
                }
            }
        });
        let start = Instant::now();
        let mut size = 0;
        while start.elapsed() < Duration::from_secs(4) || reads.load(Ordering::Relaxed) < 20 {
            assert!(start.elapsed() < Duration::from_secs(120), "readers do not come through");
            let writer = if size % 3 == 0 { &cluster.lending } else { &cluster.local };
            if size >= LARGEST {
                round.fetch_add(1, Ordering::SeqCst);
                certain.store(0, Ordering::SeqCst);
                writer.truncate(ino, 0).unwrap();
                round.fetch_add(1, Ordering::SeqCst);
                size = 0;
                continue;
            }
            let end = (size + 30_001).min(LARGEST);
            let options = WriteOptions::default();
            writer.write(ino, size as u64, &content[size..end], options).unwrap();
            size = end;
            certain.store(size as u64, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
    });
    cluster.owner.stop().unwrap();
}

/// A full volume refuses the write that it has no room for, keeps all before it, and has its room
/// back when a file goes.
#[test]
fn a_full_volume_refuses_and_keeps_what_it_has() {
    let cluster = empty(4096, 2048);
    let client = &cluster.local;
    let chunk: Vec<u8> = (0..1 << 20).map(byte).collect();
    let ino = make(client, "large");
    let nobody = WriteOptions::default();
    let mut size = 0u64;
    let error = loop {
        match client.write(ino, size, &chunk, nobody) {
            Ok(written) => {
                assert!(written.len > 0);
                size += written.len as u64;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), 28, "ENOSPC");
    assert!(size > 20 << 20, "full after {size} bytes of 64 MiB");
    assert_eq!(client.stat(ino).unwrap().size, size);
    client.sync_all(&mut 0).unwrap();
    let mut bytes = vec![0; chunk.len()];
    let file = client.file(ino);
    for at in (0..size).step_by(chunk.len()) {
        let len = file.read(at, &mut bytes).unwrap();
        assert!(bytes[..len] == chunk[..len], "at {at}");
    }
    assert_eq!(client.write(ino, size, b"more", nobody).unwrap_err().errno(), 28, "ENOSPC");
    // What has its place already can be written.
    client.write(ino, 0, b"again", nobody).unwrap();
    client.unlink(Ino::ROOT, b"large", Caller::ROOT).unwrap();
    let other = make(client, "other");
    assert_eq!(client.write(other, 0, &chunk, nobody).unwrap().len, chunk.len());
    assert!(get(client, other) == chunk);
    cluster.owner.stop().unwrap();
}
