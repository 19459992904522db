//! Requests between two regions of one process: what they cost, and that every wait ends.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use oslet::Error;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};
use oslet::ring::doorbell::SPIN;
use oslet::rpc::{Channel, Handler, PendingChannel, Replier, Request, Server};
use oslet::sys::numa;

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request, replier: Replier) {
        replier.ok(request.args, &[]);
    }
    fn broken(&self, peer: ParticipantId, _: Epoch, error: Error) {
        panic!("{peer:?}: {error}");
    }
}

fn runtime(index: usize) -> ParticipantId {
    ParticipantId::runtime(OsletId::new(index).unwrap())
}

fn region(control: &ControlPage, index: usize) -> Arc<Region> {
    let (participant, epoch, paging) = (runtime(index), Epoch(1), Paging::default());
    let spec = SegmentSpec { participant, epoch, frames: 16, space: 1 << 20, paging };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    let control = ControlPage::open(control.file().try_clone().unwrap()).unwrap();
    Region::new(control, own, paging).unwrap()
}

type Regions = [Arc<Region>; 2];

/// A server with one channel from another region.
fn connected() -> (Arc<Server>, Arc<Channel>, Regions) {
    let control = ControlPage::create(&Backing::Memfd, "requests", 2).unwrap();
    let (caller, owner) = (region(&control, 0), region(&control, 1));
    caller.map(&owner.own().reader().unwrap(), runtime(1), Epoch(1)).unwrap();
    owner.map(&caller.own().reader().unwrap(), runtime(0), Epoch(1)).unwrap();
    let server = Server::new(&owner, Arc::new(Echo));
    let pending = PendingChannel::new(&caller, runtime(1), Epoch(1)).unwrap();
    let answer = server.accept(runtime(0), Epoch(1), pending.offer()).unwrap();
    let channel = pending.open(answer).unwrap();
    (server, channel, [caller, owner])
}

/// Nanoseconds of CPU that all threads of this process have used.
fn used() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    stats.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// A runtime leaves while its peers do: its server stops while another thread drops a peer.
#[test]
fn nobody_waits_for_a_server_that_stops() {
    for round in 0..300 {
        let (server, channel, _regions) = connected();
        let reply = channel.call(1, [round, 0, 0], &[], Duration::from_secs(30)).unwrap();
        assert_eq!(reply.args[0], round);
        let (done, ended) = std::sync::mpsc::channel();
        let dropping = Arc::clone(&server);
        std::thread::spawn(move || {
            (0..20).for_each(|_| dropping.drop_peer(runtime(0), Epoch(1)));
            done.send(()).unwrap();
        });
        // At another moment each time.
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(round % 100) {}
        server.stop();
        ended.recv_timeout(Duration::from_secs(30)).expect("a peer is dropped in the end");
        channel.close();
    }
}

#[test]
fn who_shares_a_cpu_does_not_spin() {
    // Before any thread is started: they inherit it.
    let cpu = rustix::thread::sched_getcpu() as u32;
    numa::set_affinity(&[cpu]).unwrap();
    let (server, channel, _regions) = connected();
    let call = |n: u64| {
        let reply = channel.call(1, [n, 0, 0], &[], Duration::from_secs(30)).unwrap();
        assert_eq!(reply.args[0], n);
    };
    (0..100).for_each(call);
    const CALLS: u64 = 2000;
    let (start, before) = (Instant::now(), used());
    (0..CALLS).for_each(call);
    let cpu = (used() - before) / CALLS;
    let spin = SPIN.as_nanos() as u64;
    let elapsed = start.elapsed() / CALLS as u32;
    println!("a call on one CPU: {cpu} ns of CPU, {elapsed:?}; a spin is {spin} ns");
    // Each side would spin once a call.
    assert!(cpu < spin, "{cpu} ns of CPU a call: as long as a spin");
    channel.close();
    server.stop();
}
