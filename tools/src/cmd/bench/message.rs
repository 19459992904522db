//! A message of 64 bytes to an OSlet in another process and its answer, over rings in the shared
//! region, both ends spinning.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bench::{Cpus, Environment, Side};
use oslet::limits::{LINE, RING_CAPACITY};
use oslet::region::{Ro, Rw};
use oslet::ring::{Consumer, Descriptor, Producer, RingError, layout};
use oslet::sync::AtomicU64;
use serde::{Deserialize, Serialize};

use super::cluster::Reader;
use super::member::{Member, OWNER};
use super::partner::{Ask, Told, unexpected};

/// The OSlet that asks.
const ASKER: usize = 1;
/// How long an answer may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at the ring between two looks at the clock.
const SPINS: u32 = 1 << 16;
/// How long the answering thread sleeps while nothing is measured, so that others can use its CPU.
const NAP: Duration = Duration::from_micros(200);

/// Where one OSlet's ends of a pair of rings lie in its segment.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Places {
    out: usize,
    head: usize,
}

impl Places {
    fn reserve(member: &Member) -> Result<Self> {
        let own = member.region().own();
        let out = own.alloc(layout::producer_words(RING_CAPACITY) * 8, LINE)?;
        Ok(Self { out, head: own.alloc(layout::CONSUMER_WORDS * 8, LINE)? })
    }
}

struct Ends {
    to: Producer<Rw<AtomicU64>, Ro<AtomicU64>>,
    from: Consumer<Ro<AtomicU64>, Rw<AtomicU64>>,
}

impl Ends {
    fn new(member: &Member, own: Places, other: usize, theirs: Places) -> Result<Self> {
        let segment = member.region().own();
        let peer = member.peer(other)?;
        let words = layout::producer_words(RING_CAPACITY);
        let heads = layout::CONSUMER_WORDS;
        let out = segment.words_mut(own.out, words)?;
        let to = Producer::new(out, peer.words(theirs.head, heads)?, RING_CAPACITY);
        let entries = peer.words(theirs.out, words)?;
        let from = Consumer::new(entries, segment.words_mut(own.head, heads)?, RING_CAPACITY);
        Ok(Self { to, from })
    }

    #[inline]
    fn send(&mut self, descriptor: Descriptor) -> Result<()> {
        let pushed = self.to.push(descriptor).map_err(broken)?;
        pushed.map_err(|_| anyhow!("the other end does not take its messages"))
    }
}

fn broken(error: RingError) -> anyhow::Error {
    anyhow!("the ring is broken: {error:?}")
}

/// The measuring side.
pub(super) fn side(environment: &Environment) -> Result<Side> {
    let Some(cpu) = environment.cpus.second else {
        return Ok(Side::absent("needs two CPUs"));
    };
    let mut reader = Reader::beside(0, false)?;
    let own = Places::reserve(&reader.member)?;
    let told = reader.ask(&Ask::Echo { from: ASKER, places: own, cpu })?;
    let Told::Places(theirs) = told else { return Err(unexpected(&told)) };
    let mut ends = Ends::new(&reader.member, own, OWNER, theirs)?;
    let mut id = 0;
    Ok(Side::batch(move |operations| {
        // The partner lives as long as this side.
        let _reader = &reader;
        let started = Instant::now();
        for _ in 0..operations {
            id += 1;
            let args = [id, !id, id ^ 0x5555];
            ends.send(Descriptor { id, args, ..Descriptor::default() })?;
            let answer = answer(&mut ends)?;
            if (answer.id, answer.args) != (id, [id, !id, id ^ 0x5555]) {
                bail!("message {id} was answered by {answer:?}");
            }
        }
        Ok(started.elapsed())
    }))
}

#[inline]
fn answer(ends: &mut Ends) -> Result<Descriptor> {
    let mut since = None;
    loop {
        for _ in 0..SPINS {
            if let Some(descriptor) = ends.from.pop().map_err(broken)? {
                return Ok(descriptor);
            }
            std::hint::spin_loop();
        }
        let since = since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            bail!("no answer within {} s", PATIENCE.as_secs());
        }
    }
}

/// The partner's side: answers on a thread of its own until the process ends.
pub(super) fn echo(member: &Member, from: usize, theirs: Places, cpu: usize) -> Result<Places> {
    let own = Places::reserve(member)?;
    let mut ends = Ends::new(member, own, from, theirs)?;
    let mut body = move || -> Result<()> {
        Cpus::pin(cpu)?;
        let mut idle: u32 = 0;
        loop {
            match ends.from.pop().map_err(broken)? {
                Some(descriptor) => {
                    ends.send(descriptor)?;
                    idle = 0;
                }
                None if idle < SPINS => {
                    idle += 1;
                    std::hint::spin_loop();
                }
                None => std::thread::sleep(NAP),
            }
        }
    };
    let said = move || {
        if let Err(error) = body() {
            eprintln!("echo: {error:#}");
        }
    };
    std::thread::Builder::new().name("echo".into()).spawn(said).context("start a thread")?;
    Ok(own)
}
