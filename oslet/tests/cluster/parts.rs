//! What runtimes and clients of a test do: OSlet 0 publishes frames and retires them when it is
//! told to; others pin them and keep them, or scribble over their own segments.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oslet::client;
use oslet::id::{Epoch, FrameNo, Generation, OsletId, PageRef, ParticipantId};
use oslet::member::Event;
use oslet::region::{OwnSegment, Ownership, Pins, Region};
use oslet::rpc::{Replier, Request};
use oslet::runtime::{Handle, Runtime, Service, ServiceError};
use oslet::wire::Detail;

use crate::running::DIRECTORY;

/// What OSlet 1 does, in its first incarnation; see [`Bad`].
pub(crate) const PART: &str = "OSLET_TEST_PART";
/// The OSlet of a client.
pub(crate) const OSLET: &str = "OSLET_TEST_OSLET";
/// Files beside the cluster's directory that tell processes to go on.
pub(crate) const RETIRE: &str = "retire";
pub(crate) const SCRIBBLE: &str = "scribble";
pub(crate) const LET_GO: &str = "let-go";
pub(crate) const TAKE_OVER: &str = "take-over";
/// An object that OSlet 1, and then OSlet 0, owns.
const OBJECT: usize = 5;

/// A way to misbehave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bad {
    /// Pins all that it can and keeps it.
    Stubborn,
    /// Lets go when it is asked to.
    Polite,
    /// Lets go when the test says so.
    Keeper,
    /// Pins nothing.
    None,
    /// Pins, and when told fills its own segment with noise: all of it, its pin directory, or its
    /// entry for OSlet 0.
    Scribbler(&'static str),
}

impl Bad {
    fn of(word: &str) -> Option<Self> {
        match word {
            "stubborn" => Some(Self::Stubborn),
            "polite" => Some(Self::Polite),
            "keeper" => Some(Self::Keeper),
            "none" => Some(Self::None),
            "all" => Some(Self::Scribbler("all")),
            "pins" => Some(Self::Scribbler("pins")),
            "entry" => Some(Self::Scribbler("entry")),
            _ => None,
        }
    }
}

fn home() -> ParticipantId {
    ParticipantId::runtime(OsletId::new(0).unwrap())
}

fn await_file(path: &Path) {
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// In a runtime.
pub(crate) fn start(runtime: &Runtime) {
    let Ok(word) = std::env::var(PART) else { return };
    let handle = runtime.handle();
    let beside = handle.spec().directory.parent().unwrap().to_owned();
    match handle.oslet().index() {
        0 if word != "talk" => {
            publish(handle, beside.clone());
            let handle = handle.clone();
            std::thread::spawn(move || {
                await_file(&beside.join(TAKE_OVER));
                own(&handle);
            });
        }
        1.. if word == "talk" => add(runtime, Act::Talk),
        1 if word == "owner" => {
            own(handle);
            std::fs::write(beside.join("owned"), "").unwrap();
        }
        1 if handle.epoch() == Epoch(1) => {
            let Some(bad) = Bad::of(&word) else { return };
            add(runtime, Act::Hoard { bad, kept: Arc::default(), beside });
        }
        _ => {}
    }
}

/// Half of the frames are published now, and retired when it is time.
fn publish(handle: &Handle, beside: PathBuf) {
    let arena = Arc::clone(handle.arena());
    let count = arena.usage().total / 2;
    let pages: Vec<PageRef> = (0..count).map(|_| arena.alloc().unwrap().publish()).collect();
    std::thread::spawn(move || {
        await_file(&beside.join(RETIRE));
        arena.retire(&pages);
    });
}

/// Makes this OSlet the owner of the object.
fn own(handle: &Handle) {
    let control = handle.region().control();
    let before = control.owner(OBJECT).unwrap();
    let owner = Some((handle.oslet(), handle.epoch()));
    let now = Ownership { owner, ..Ownership::default() };
    control.change_owner(OBJECT, before, now).unwrap().unwrap();
}

/// Pins every frame of the home that is still in its first generation.
fn hoard(region: &Arc<Region>) -> Pins {
    let frames = region.segment(home()).unwrap().frames();
    let mut pins = Pins::new(region, frames);
    for frame in 0..frames as u32 {
        let generation = Generation::new(1);
        let page = PageRef { home: home(), frame: FrameNo(frame), generation };
        assert!(pins.add(page).unwrap(), "frame {frame} is stale already");
    }
    pins
}

/// A service that answers nothing and does its part when something happens.
struct Part {
    handle: Handle,
    act: Act,
}

enum Act {
    /// Asks OSlet 0 something once, and keeps the channel.
    Talk,
    /// Pins what it finds.
    Hoard { bad: Bad, kept: Arc<Mutex<Option<Pins>>>, beside: PathBuf },
}

fn add(runtime: &Runtime, act: Act) {
    runtime.add_service(Arc::new(Part { handle: runtime.handle().clone(), act }));
}

impl Service for Part {
    fn name(&self) -> &str {
        "part"
    }

    fn kinds(&self) -> Range<u16> {
        0..0
    }

    fn handle(&self, _: Request, replier: Replier) {
        replier.error(libc::ENOSYS);
    }

    fn release(&self, _: ParticipantId, _: Epoch) {}

    fn describe(&self) -> Vec<Detail> {
        Vec::new()
    }

    fn serves(&self) -> (u32, u32) {
        (0, 0)
    }

    fn leave(&self, _: bool) -> Result<(), ServiceError> {
        if let Act::Hoard { kept, .. } = &self.act {
            kept.lock().unwrap().take();
        }
        Ok(())
    }

    fn event(&self, event: Event) {
        let joined = matches!(event, Event::Joined(oslet, _) if oslet == home().oslet);
        match &self.act {
            Act::Talk if joined => talk(self.handle.clone()),
            Act::Hoard { bad, kept, beside } if joined => {
                *kept.lock().unwrap() = Some(hoard(self.handle.region()));
                std::fs::write(beside.join("pinned"), "").unwrap();
                misbehave(&self.handle, *bad, Arc::clone(kept), beside);
            }
            Act::Hoard { bad, kept, .. } => {
                let Event::LetGo(oslet, _, frames) = event else { return };
                assert_eq!(oslet, home().oslet);
                assert!(frames > 0);
                if *bad == Bad::Polite {
                    kept.lock().unwrap().take();
                }
            }
            Act::Talk => {}
        }
    }
}

/// Events do not wait for answers.
fn talk(handle: Handle) {
    std::thread::spawn(move || {
        let channel = handle.channel(home().oslet).unwrap();
        let reply = channel.call(0x7777, [0; 3], &[], Duration::from_secs(10)).unwrap();
        assert_eq!(i32::from(reply.status), libc::ENOSYS);
        let name = format!("talked-{}", handle.oslet().index());
        std::fs::write(handle.spec().directory.parent().unwrap().join(name), "").unwrap();
    });
}

/// What is done when the test says so, with what was pinned.
fn misbehave(handle: &Handle, bad: Bad, kept: Arc<Mutex<Option<Pins>>>, beside: &Path) {
    match bad {
        Bad::Keeper => {
            let told = beside.join(LET_GO);
            std::thread::spawn(move || {
                await_file(&told);
                kept.lock().unwrap().take();
            });
        }
        Bad::Scribbler(where_to) => {
            let (own, told) = (Arc::clone(handle.region().own()), beside.join(SCRIBBLE));
            std::thread::spawn(move || {
                await_file(&told);
                scribble(&own, where_to);
            });
        }
        Bad::Stubborn | Bad::Polite | Bad::None => {}
    }
}

fn scribble(own: &OwnSegment, where_to: &str) {
    // Bytes of the pin directory, and of its first entry: docs/region-layout.md.
    let (from, to) = match where_to {
        "all" => (0, own.len()),
        "pins" => (4096, 20480),
        _ => (4096, 4112),
    };
    let words = own.words_mut(from, (to - from) / 8).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for index in 0..words.len() {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let value = if where_to == "entry" { 0 } else { seed };
        words.store(index, value, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A native client: says how much it has pinned, and then does its part.
pub(crate) fn client_process() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let bad = Bad::of(&std::env::var(PART).unwrap()).unwrap();
    let client = client::join(&directory, &std::env::var(OSLET).unwrap()).unwrap();
    let mut pins = (bad != Bad::None).then(|| hoard(client.region()));
    println!("pinned {}", pins.as_ref().map_or(0, Pins::len));
    if let Bad::Scribbler(where_to) = bad {
        await_file(&directory.parent().unwrap().join(SCRIBBLE));
        scribble(client.region().own(), where_to);
    }
    if bad == Bad::None {
        loop {
            std::thread::park();
        }
    }
    loop {
        if bad == Bad::Polite && client.asked_to_let_go().is_some() {
            pins.take();
            println!("let go");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
