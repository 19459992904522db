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
        1.. if word == "talk" => runtime.add_service(Arc::new(Talker(handle.clone()))),
        1 if word == "owner" => {
            own(handle);
            std::fs::write(beside.join("owned"), "").unwrap();
        }
        1 if handle.epoch() == Epoch(1) => {
            let Some(bad) = Bad::of(&word) else { return };
            let kept = Arc::default();
            runtime.add_service(Arc::new(Hoarder { handle: handle.clone(), bad, kept, beside }));
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

/// A service that asks OSlet 0 something once, and keeps the channel.
struct Talker(Handle);

impl Service for Talker {
    fn name(&self) -> &str {
        "talker"
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
        Ok(())
    }

    fn event(&self, event: Event) {
        if matches!(event, Event::Joined(oslet, _) if oslet == home().oslet) {
            let handle = self.0.clone();
            // Events do not wait for answers.
            std::thread::spawn(move || {
                let channel = handle.channel(home().oslet).unwrap();
                let reply = channel.call(0x7777, [0; 3], &[], Duration::from_secs(10)).unwrap();
                assert_eq!(i32::from(reply.status), libc::ENOSYS);
                let name = format!("talked-{}", handle.oslet().index());
                let directory = handle.spec().directory.parent().unwrap().join(name);
                std::fs::write(directory, "").unwrap();
            });
        }
    }
}

/// A service that pins what it finds.
struct Hoarder {
    handle: Handle,
    bad: Bad,
    kept: Arc<Mutex<Option<Pins>>>,
    beside: PathBuf,
}

impl Service for Hoarder {
    fn name(&self) -> &str {
        "hoarder"
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
        self.kept.lock().unwrap().take();
        Ok(())
    }

    fn event(&self, event: Event) {
        match event {
            Event::Joined(oslet, _) if oslet == home().oslet => {
                *self.kept.lock().unwrap() = Some(hoard(self.handle.region()));
                std::fs::write(self.beside.join("pinned"), "").unwrap();
                if self.bad == Bad::Keeper {
                    let (kept, told) = (Arc::clone(&self.kept), self.beside.join(LET_GO));
                    std::thread::spawn(move || {
                        await_file(&told);
                        kept.lock().unwrap().take();
                    });
                }
                if let Bad::Scribbler(where_to) = self.bad {
                    let own = Arc::clone(self.handle.region().own());
                    let told = self.beside.join(SCRIBBLE);
                    std::thread::spawn(move || {
                        await_file(&told);
                        scribble(&own, where_to);
                    });
                }
            }
            Event::LetGo(oslet, _, frames) => {
                assert_eq!(oslet, home().oslet);
                assert!(frames > 0);
                if self.bad == Bad::Polite {
                    self.kept.lock().unwrap().take();
                }
            }
            _ => {}
        }
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
