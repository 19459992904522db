use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::id::{Epoch, OsletId, ParticipantId};
use crate::limits;
use crate::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};
use crate::ring::doorbell;
use crate::ring::{Descriptor, HalfOut, Incoming, Outgoing, OwnLine};

const LIMIT: Duration = Duration::from_secs(10);

fn id(index: usize) -> ParticipantId {
    ParticipantId::runtime(OsletId::new(index).unwrap())
}

fn pair() -> (Arc<Region>, Arc<Region>) {
    let control = ControlPage::create(&Backing::Memfd, "rpc", 2).unwrap();
    let join = |who| {
        let spec = SegmentSpec {
            participant: who,
            epoch: Epoch(1),
            frames: 1,
            space: 1 << 20,
            paging: Paging::default(),
        };
        let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
        let control = ControlPage::open(control.file().try_clone().unwrap()).unwrap();
        Region::new(control, own, Paging::default()).unwrap()
    };
    let (a, b) = (join(id(0)), join(id(1)));
    a.map(&b.own().reader().unwrap(), id(1), Epoch(1)).unwrap();
    b.map(&a.own().reader().unwrap(), id(0), Epoch(1)).unwrap();
    (a, b)
}

fn connect(caller: &Arc<Region>, server: &Server) -> Arc<Channel> {
    let pending = PendingChannel::new(caller, id(1), Epoch(1)).unwrap();
    let answer = server.accept(id(0), Epoch(1), pending.offer()).unwrap();
    pending.open(answer).unwrap()
}

/// A consumer in another segment, which sleeps between bursts, is woken once for each time that it
/// parks, and never too seldom: a lost wake-up would show in the time.
#[test]
fn a_burst_costs_one_wake_up() {
    const BURSTS: usize = 50;
    const BURST: usize = 20;
    let (a, b) = pair();
    let half = HalfOut::new(a.own()).unwrap();
    let (head, park) = (OwnLine::new(b.own()).unwrap(), OwnLine::new(b.own()).unwrap());
    let (out, places) = (half.place(), (head.place(), park.place()));
    let mut outgoing = Outgoing::new(half, a.segment(id(1)).unwrap(), places.0, places.1).unwrap();
    let mut incoming = Incoming::new(head, b.segment(id(0)).unwrap(), out).unwrap();
    let start = Instant::now();
    let consumer = std::thread::spawn(move || {
        let (mut taken, mut parkings) = (0, 0);
        loop {
            while incoming.receive().unwrap().is_some() {
                taken += 1;
            }
            if taken == BURSTS * BURST {
                return parkings;
            }
            parkings += 1;
            doorbell::wait(&park.words, &mut [&mut incoming], None, LIMIT);
        }
    });
    let mut wakes = 0;
    for _ in 0..BURSTS {
        std::thread::sleep(Duration::from_millis(2));
        for _ in 0..BURST {
            while outgoing.send(Descriptor::default(), &[]).is_err() {
                std::thread::yield_now();
            }
            wakes += usize::from(outgoing.ring_bell());
        }
    }
    let parkings = consumer.join().unwrap();
    assert!(start.elapsed() < LIMIT, "a wake-up was lost");
    assert!(0 < wakes && wakes <= parkings, "{wakes} wake-ups for {parkings} parkings");
    println!("ran: {} messages in {BURSTS} bursts with {wakes} wake-ups", BURSTS * BURST);
}

/// Kind 1 echoes; kind 2 answers from another thread, later; kind 3 never answers while it is
/// held; kind 4 drops its replier.
#[derive(Default)]
struct Echo {
    held: Mutex<Vec<Replier>>,
    broken: AtomicBool,
    served: AtomicU64,
}

impl Handler for Echo {
    fn handle(&self, request: Request, replier: Replier) {
        self.served.fetch_add(1, Ordering::Relaxed);
        match request.kind {
            1 => replier.ok(request.args, &request.body),
            2 => {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(request.args[0] % 5));
                    replier.ok(request.args, &[]);
                });
            }
            3 => self.held.lock().push(replier),
            4 => drop(replier),
            _ => replier.error(38),
        }
    }

    fn broken(&self, _: ParticipantId, _: Epoch, _: Error) {
        self.broken.store(true, Ordering::SeqCst);
    }
}

#[test]
fn calls_are_answered_with_their_own_replies() {
    let (a, b) = pair();
    let server = Server::new(&b, Arc::new(Echo::default()));
    let channel = connect(&a, &server);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let channel = &channel;
            scope.spawn(move || {
                for round in 0..300u64 {
                    let args = [thread, round, thread * round];
                    let body = vec![thread as u8; (round as usize * 37) % 3000];
                    let kind = if round % 50 == 49 { 2 } else { 1 };
                    let reply = channel.call(kind, args, &body, LIMIT).unwrap();
                    assert_eq!((reply.status, reply.args), (0, args));
                    if kind == 1 {
                        assert_eq!(&reply.body[..], &body[..]);
                    }
                }
            });
        }
    });
}

#[test]
fn largest_bodies_pass_and_larger_ones_are_refused() {
    let (a, b) = pair();
    let server = Server::new(&b, Arc::new(Echo::default()));
    let channel = connect(&a, &server);
    let body: Vec<u8> = (0..limits::MAX_BODY).map(|i| i as u8).collect();
    for _ in 0..50 {
        assert_eq!(&channel.call(1, [0; 3], &body, LIMIT).unwrap().body[..], &body[..]);
    }
    let error = channel.call(1, [0; 3], &vec![0; limits::MAX_BODY + 1], LIMIT).unwrap_err();
    assert!(error.to_string().contains("at most"), "{error}");
    assert_eq!(channel.call(1, [7, 0, 0], &[], LIMIT).unwrap().args[0], 7);
}

#[test]
fn every_wait_ends() {
    let (a, b) = pair();
    let echo = Arc::new(Echo::default());
    let server = Server::new(&b, Arc::clone(&echo) as Arc<dyn Handler>);
    let channel = connect(&a, &server);
    let start = Instant::now();
    let error = channel.call(3, [0; 3], &[], Duration::from_millis(80)).unwrap_err();
    assert!(matches!(error, Error::Timeout { ms: 80, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    // The late answer is nobody's.
    echo.held.lock().drain(..).for_each(|replier| replier.ok([9; 3], &[]));
    assert_eq!(channel.call(1, [1; 3], &[], LIMIT).unwrap().args, [1; 3]);
    assert_eq!(channel.call(4, [0; 3], &[], LIMIT).unwrap().status, 5);
    assert_eq!(channel.call(99, [0; 3], &[], LIMIT).unwrap().status, 38);

    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| channel.call(3, [0; 3], &[], Duration::from_secs(60))))
            .collect();
        while echo.held.lock().len() < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        channel.close();
        for waiter in waiting {
            assert!(matches!(waiter.join().unwrap(), Err(Error::Gone(_))));
        }
        assert!(start.elapsed() < Duration::from_secs(5), "closing ends waits at once");
    });
    assert!(matches!(channel.call(1, [0; 3], &[], LIMIT), Err(Error::Gone(_))));
    server.drop_peer(id(0), Epoch(1));
}

#[test]
fn an_idle_server_sleeps_and_still_answers() {
    let (a, b) = pair();
    let server = Server::new(&b, Arc::new(Echo::default()));
    let channel = connect(&a, &server);
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(channel.call(1, [round, 0, 0], &[], LIMIT).unwrap().args[0], round);
    }
}

#[test]
fn an_offer_outside_the_segment_is_refused() {
    let (a, b) = pair();
    let server = Server::new(&b, Arc::new(Echo::default()));
    let good = PendingChannel::new(&a, id(1), Epoch(1)).unwrap();
    for bad in [
        ChannelOffer { requests: u64::MAX, ..good.offer() },
        ChannelOffer { requests: a.own().len() as u64 - 64, ..good.offer() },
        ChannelOffer { replies_head: 3, ..good.offer() },
        ChannelOffer { replies_park: u64::MAX - 7, ..good.offer() },
    ] {
        assert!(server.accept(id(0), Epoch(1), bad).is_err(), "{bad:?}");
    }
    assert!(server.accept(id(0), Epoch(2), good.offer()).is_err(), "another incarnation");
    assert!(server.accept(id(5), Epoch(1), good.offer()).is_err(), "nobody");
}

#[test]
fn a_caller_that_scribbles_over_its_ring_is_cut_off_alone() {
    let (a, b) = pair();
    let echo = Arc::new(Echo::default());
    let server = Server::new(&b, Arc::clone(&echo) as Arc<dyn Handler>);
    let (good, bad) = (connect(&a, &server), PendingChannel::new(&a, id(1), Epoch(1)).unwrap());
    let offer = bad.offer();
    server.accept(id(0), Epoch(1), offer).unwrap();
    let words = a.own().words_mut(offer.requests as usize, 64).unwrap();
    for index in 0..64 {
        words.store(index, 0xdead_beef_dead_beef, Ordering::SeqCst);
    }
    let start = Instant::now();
    while !echo.broken.load(Ordering::SeqCst) && start.elapsed() < LIMIT {
        assert_eq!(good.call(1, [3; 3], &[], LIMIT).unwrap().args, [3; 3]);
    }
    assert!(echo.broken.load(Ordering::SeqCst));
    assert_eq!(good.call(1, [4; 3], &[], LIMIT).unwrap().args, [4; 3]);
}

#[test]
fn started_requests_end_once_each() {
    use std::sync::mpsc;
    let (a, b) = pair();
    let echo = Arc::new(Echo::default());
    let server = Server::new(&b, Arc::clone(&echo) as Arc<dyn Handler>);
    let channel = connect(&a, &server);
    let (send, ended) = mpsc::channel();
    let start = |kind: u16, round: u64, limit: Duration| {
        let send = send.clone();
        let done: Done = Box::new(move |reply| {
            let reply = reply.map(|reply| (reply.status, reply.args[1]));
            // The receiver is gone only when the test has failed.
            drop(send.send((round, reply)));
        });
        channel.try_start(kind, [round % 3, round, 0], &[], limit, done)
    };
    let mut started = 0;
    // With calls in between, whose threads receive for all.
    while started < 1000u64 {
        match start(if started % 10 == 0 { 2 } else { 1 }, started, LIMIT) {
            None => started += 1,
            Some(_) => channel.attend(Duration::from_millis(1)),
        }
        if started % 100 == 50 {
            assert_eq!(channel.call(1, [5; 3], &[], LIMIT).unwrap().args, [5; 3]);
        }
        channel.poll();
    }
    let mut seen = vec![false; 1000];
    for _ in 0..1000 {
        let (round, reply) = loop {
            match ended.try_recv() {
                Ok(end) => break end,
                Err(_) => channel.attend(Duration::from_millis(10)),
            }
        };
        assert_eq!(reply.unwrap(), (0, round));
        assert!(!std::mem::replace(&mut seen[round as usize], true));
    }
    // One whose time is up, others when the channel is closed, one that is too late for it.
    assert!(start(3, 1, Duration::from_millis(30)).is_none());
    let from = Instant::now();
    while from.elapsed() < Duration::from_millis(30) {
        channel.attend(Duration::from_secs(5));
    }
    assert!(from.elapsed() < Duration::from_secs(4), "a deadline ends the wait");
    assert!(matches!(ended.try_recv().unwrap().1, Err(Error::Timeout { ms: 30, .. })));
    for round in 0..limits::RING_CAPACITY as u64 {
        while start(3, round, LIMIT).is_some() {
            channel.attend(Duration::from_millis(1));
        }
    }
    assert!(start(3, 0, LIMIT).is_some(), "no room for more");
    channel.close();
    assert!(start(3, 0, LIMIT).is_none());
    for _ in 0..=limits::RING_CAPACITY {
        assert!(matches!(ended.try_recv().unwrap().1, Err(Error::Gone(_))));
    }
    assert!(ended.try_recv().is_err());
}
