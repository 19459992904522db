//! Two OSlets in one process: one owns a volume, both read it, compared with what was put in.

#![forbid(unsafe_code)]

mod cluster;
#[path = "../gate/mod.rs"]
mod gate;
mod slow;
mod writing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cfs::client::{Client, Page};
use cfs::disk::inode::Kind;
use cfs::id::Ino;
use oslet::id::{Epoch, ParticipantId};
use oslet::region::OwnSegment;
use oslet::rpc::{Handler, PendingChannel, Replier, Request, Server};

use cluster::{Cluster, Way, cluster, image, oslet, tree};

fn check(client: &Arc<Client>, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let file = client.open(name.as_bytes()).unwrap();
        let mut buf = vec![0xee; bytes.len() + 10];
        assert_eq!(file.read(0, &mut buf).unwrap(), bytes.len(), "{name}");
        assert!(buf[..bytes.len()] == bytes[..], "{name}: contents differ");
        let attr = client.stat(file.ino()).unwrap();
        assert_eq!((attr.size, attr.kind), (bytes.len() as u64, Kind::Regular), "{name}");
        let middle = bytes.len() / 2;
        if let Some(page) = file.read_ref((middle / 4096) as u64).unwrap() {
            let mut byte = [0];
            page.copy_to(middle % 4096, &mut byte);
            assert_eq!(byte[0], bytes[middle]);
        } else {
            assert!(bytes.is_empty());
        }
        assert!(file.read_ref(bytes.len().div_ceil(4096) as u64).unwrap().is_none());
    }
}

#[test]
fn both_read_what_was_put_in() {
    let files = tree();
    let cluster = cluster(image(&files, &[]), 2048, 2000);
    for client in [&cluster.remote, &cluster.local, &cluster.remote] {
        check(client, &files);
        assert_eq!(
            client.readlink(client.lookup(Ino::ROOT, b"link").unwrap().attr.ino).unwrap(),
            b"dir 1/file 8"
        );
        assert_eq!(client.resolve(b"/link").unwrap(), client.resolve(b"dir 1/file 8").unwrap());
        let long = client.lookup(Ino::ROOT, b"long link").unwrap().attr.ino;
        assert_eq!(client.readlink(long).unwrap(), vec![b'x'; 200]);
        for missing in ["nothing", "dir 1/nothing", "link/x"] {
            assert!(client.resolve(missing.as_bytes()).is_err(), "{missing}");
        }
        let mut names = Vec::new();
        let mut position = 0;
        loop {
            let (entries, end) = client.readdir(Ino::ROOT, position).unwrap();
            position = entries.last().map_or(position, |entry| entry.next);
            names.extend(entries.into_iter().map(|entry| entry.name));
            if end {
                break;
            }
        }
        for name in ["dir 0", "dir 6", "link", "sparse", ".", ".."] {
            assert!(names.iter().any(|found| found == name.as_bytes()), "{name}");
        }
        assert!(client.statfs().unwrap().free > 0);
    }
}

#[test]
fn cached_pages_are_read_by_reference_and_holes_cost_nothing() {
    let files = tree();
    let cluster = cluster(image(&files, &[]), 2048, 2000);
    check(&cluster.remote, &files);
    let pages: usize = files.values().map(|bytes| bytes.len().div_ceil(4096)).sum();
    let (used, _) = cluster.owner.usage();
    let sparse = 300_000usize.div_ceil(4096);
    assert!(used <= pages - sparse + 3, "{used} frames for {pages} pages, {sparse} of them sparse");
    let file = cluster.remote.open(b"dir 3/file 59").unwrap();
    let again = cluster.local.open(b"dir 3/file 59").unwrap();
    let (Some(Page::Shared(a)), Some(Page::Shared(b))) =
        (file.read_ref(3).unwrap(), again.read_ref(3).unwrap())
    else {
        panic!("not by reference");
    };
    assert_eq!(a.page_ref(), b.page_ref(), "one frame for both");
}

/// A cache far smaller than the files: everything is still right, pinned pages stay, and the
/// budget holds.
#[test]
fn a_small_cache_evicts_but_never_what_is_pinned() {
    let files = tree();
    let cluster = cluster(image(&files, &[]), 256, 64);
    let file = cluster.remote.open(b"dir 3/file 59").unwrap();
    let held = file.read_ref(1).unwrap().unwrap();
    let before: Vec<_> = (0..512).map(|at| held.word(at * 8).unwrap()).collect();
    std::thread::scope(|scope| {
        for client in [&cluster.remote, &cluster.local, &cluster.remote] {
            scope.spawn(|| {
                for _ in 0..3 {
                    check(client, &files);
                }
            });
        }
    });
    let after: Vec<_> = (0..512).map(|at| held.word(at * 8).unwrap()).collect();
    assert!(held.shared().is_some() && before == after);
    let (used, budget) = cluster.owner.usage();
    assert!(used <= budget + 16, "{used} of {budget}");
    drop(held);
    cluster.arena.tick();
    let usage = cluster.arena.usage();
    assert_eq!(usage.free + usage.limbo + used + 1, usage.total, "no frame is lost: {usage:?}");
}

#[test]
fn small_blocks_and_inline_data_too() {
    let mut files = tree();
    // mke2fs 1.47.0 cuts a hole at a file's end off where it knows inline data.
    files.remove("sparse");
    for options in
        [&["-b", "1024"][..], &["-O", "inline_data", "-I", "256"], &["-O", "^extent,^64bit"]]
    {
        let cluster = cluster(image(&files, options), 2048, 2000);
        check(&cluster.remote, &files);
        check(&cluster.local, &files);
    }
}

#[test]
fn without_an_owner_what_is_cached_stays_readable() {
    let files = tree();
    let cluster = cluster(image(&files, &[]), 2048, 2000);
    check(&cluster.remote, &files);
    // The owner falls silent: nobody answers any more.
    let Cluster { remote, owner, server, .. } = cluster;
    server.stop();
    drop(owner);
    let file = remote.open(b"dir 3/file 59").unwrap();
    let mut buf = vec![0; 1000];
    assert_eq!(file.read(4096, &mut buf).unwrap(), 1000);
    std::thread::sleep(Duration::from_millis(1));
}

/// Deterministic noise.
fn noise(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    seed.rotate_left(32)
}

fn scribble(segment: &OwnSegment, seed: &mut u64, words: usize) {
    let all = segment.words_mut(0, segment.len() / 8).unwrap();
    for _ in 0..words {
        let at = noise(seed) as usize % all.len();
        all.store(at, noise(seed), std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_neighbour_full_of_noise_changes_nothing_of_a_healthy_owner() {
    let files = tree();
    let cluster = cluster(image(&files, &[]), 2048, 2000);
    let mut seed = 1;
    for _ in 0..8 {
        scribble(&cluster.neighbour, &mut seed, 200_000);
        check(&cluster.remote, &files);
        check(&cluster.local, &files);
    }
}

/// Answers every request with an error, or with noise.
struct Hostile(std::sync::atomic::AtomicU64);

impl Handler for Hostile {
    fn handle(&self, request: Request, replier: Replier) {
        let mut seed = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if seed.is_multiple_of(2) {
            return replier.error((noise(&mut seed) % 140) as i32);
        }
        let len = noise(&mut seed) as usize % 2000;
        let body: Vec<u8> = (0..len).map(|_| noise(&mut seed) as u8).collect();
        replier.ok([noise(&mut seed), noise(&mut seed), request.args[1]], &body);
    }

    fn broken(&self, _: ParticipantId, _: Epoch, _: oslet::Error) {}
}

/// An owner whose tables are noise and whose answers are errors or noise: any result will do but a
/// panic, a hang, or memory outside the region.
#[test]
fn an_owner_full_of_noise_harms_no_reader() {
    let files = tree();
    let cluster = cluster(image(&files, &[]), 2048, 2000);
    check(&cluster.remote, &files);
    let home = cluster.arena.region();
    let server = Server::new(home, Arc::new(Hostile(1.into())));
    let pending =
        PendingChannel::new(cluster.remote.region(), home.own().participant(), Epoch(1)).unwrap();
    let answer = server.accept(ParticipantId::runtime(oslet(1)), Epoch(1), pending.offer());
    let channel = pending.open(answer.unwrap()).unwrap();
    let way = Way { local: None, channel: Some(channel), arena: None };
    let victim = Client::new(cluster.remote.region(), 0, Arc::new(way)).unwrap();
    let tables = home.segment(home.own().participant()).unwrap();
    let mut seed = 7;
    let (mut failed, mut read) = (0, 0);
    for round in 0..200 {
        for kind in 0x1001..=0x1004 {
            let table = tables.table(kind, 0).unwrap();
            let words = home.own().words_mut(table.offset, table.len / 8).unwrap();
            for _ in 0..words.len() / 50 {
                let at = noise(&mut seed) as usize % words.len();
                words.store(at, noise(&mut seed), std::sync::atomic::Ordering::Relaxed);
            }
        }
        for name in files.keys().skip(round % 7).step_by(7) {
            let result = victim.open(name.as_bytes()).and_then(|file| {
                let mut buf = vec![0; 64 << 10];
                file.read(0, &mut buf)?;
                victim.listxattr(file.ino())?;
                victim.readdir(Ino::ROOT, 0).map(drop)
            });
            match result {
                Ok(()) => read += 1,
                Err(_) => failed += 1,
            }
        }
    }
    assert!(failed > 100, "{failed} failed, {read} read: nothing was noisy");
}
