//! States of a disk after a crash, and what is made of them.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::engine::{Options, Volume};
use proxydev::layer::Event;
use proxydev::layer::record::Window;

use super::Recording;
use super::promise::{Found, FoundNode, History};
use crate::fsdiff::{EngineView, View};
use crate::kernel::{arg, assert_clean};
use crate::opfuzz::generate::Random;
use crate::opfuzz::model::TreeNode;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// States of each moment beside the two plain ones: some pending writes are there, some in
    /// part.
    pub samples: u64,
    /// Moments between two flushes or marks that are tried as well.
    pub moments: u64,
    /// Of so many states one is also recovered by e2fsck, and must be the same then.
    pub compare: u64,
}

impl Effort {
    /// The usual one: more with `OSLET_FULL`.
    #[must_use]
    pub fn usual() -> Self {
        match std::env::var_os("OSLET_FULL") {
            Some(_) => Self { samples: 6, moments: 6, compare: 2 },
            None => Self { samples: 1, moments: 1, compare: 6 },
        }
    }
}

/// What was checked.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// States of the disk.
    pub states: u64,
    /// Different ones.
    pub images: u64,
    /// Those that e2fsck recovered too.
    pub compared: u64,
}

/// Which changes are in a state, and of each which sectors.
type Choice = Vec<(usize, Range<u64>)>;

/// Makes states and looks at them.
pub struct Checker<'a> {
    recording: &'a Recording,
    history: &'a History,
    effort: Effort,
    random: Random,
    dir: PathBuf,
    known: HashMap<u64, Rc<Found>>,
    counts: Counts,
}

impl<'a> Checker<'a> {
    /// Checks a record of the workload whose history is given; files are made in `dir`.
    #[must_use]
    pub fn new(
        recording: &'a Recording,
        history: &'a History,
        dir: &Path,
        effort: Effort,
        seed: u64,
    ) -> Self {
        Self {
            recording,
            history,
            effort,
            random: Random::new(seed),
            dir: dir.to_owned(),
            known: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Checks crashes at every flush and mark after `from` operations, and between them.
    ///
    /// # Errors
    /// The first state that is not as promised: what was in it and what is wrong.
    pub fn run(mut self, from: usize) -> Result<Counts> {
        for crash in self.moments(from) {
            let completed = self.completed(crash);
            let window = Window::at(&self.recording.events, crash);
            for choice in self.choices(&window, crash) {
                self.state(&choice, completed).with_context(|| {
                    let of = self.recording.events.len();
                    let pending = window.pending.len();
                    let there: Vec<_> =
                        choice.iter().filter(|part| window.pending.contains(&part.0)).collect();
                    format!(
                        "power failed after event {crash} of {of}; of {pending} pending writes \
                         these sectors were there: {there:?}"
                    )
                })?;
            }
        }
        Ok(self.counts)
    }

    /// Checks the moment behind all that was recorded; what is there if no write is lost then.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn at_end(&mut self, completed: usize) -> Result<Rc<Found>> {
        let crash = self.recording.events.len();
        let window = Window::at(&self.recording.events, crash);
        let choices = self.choices(&window, crash);
        let mut found = Vec::new();
        for (index, choice) in choices.iter().enumerate() {
            let of = window.pending.len();
            let state = self.state(choice, completed);
            found.push(state.with_context(|| format!("state {index}, {of} writes were pending"))?);
        }
        found.get(1).cloned().context("a moment has two plain states")
    }

    /// Operations that had completed by then.
    fn completed(&self, crash: usize) -> usize {
        let marks = self.recording.events[..crash].iter().rev();
        let last = marks.filter_map(|event| match event {
            Event::Mark(mark) => Some(*mark as usize),
            _ => None,
        });
        last.clone().next().unwrap_or(0)
    }

    /// The moments at which power fails.
    fn moments(&mut self, from: usize) -> Vec<usize> {
        let events = &self.recording.events;
        let begin = events.iter().position(|event| *event == Event::Mark(from as u64));
        let begin = begin.map_or(0, |at| at + 1);
        let is_edge = |at: usize| !matches!(events[at], Event::Change(_));
        let mut all = Vec::new();
        let mut between = Vec::new();
        for crash in begin..=events.len() {
            let edge =
                crash == events.len() || crash == begin || is_edge(crash) || is_edge(crash - 1);
            if edge { all.push(crash) } else { between.push(crash) }
        }
        for _ in 0..self.effort.moments.min(between.len() as u64) {
            all.push(self.random.pick(&between));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn choices(&mut self, window: &Window, crash: usize) -> Vec<Choice> {
        let sectors = |index: usize| match &self.recording.events[index] {
            Event::Change(change) => change.sectors(),
            _ => 0,
        };
        let whole = |index: &usize| (*index, 0..sectors(*index));
        let durable: Choice = window.durable.iter().map(whole).collect();
        let done = window.pending.iter().filter(|index| **index < crash);
        let mut pending: Vec<Choice> = vec![Vec::new(), done.map(whole).collect()];
        let random = &mut self.random;
        for _ in 0..self.effort.samples {
            let mut some = Vec::new();
            for index in &window.pending {
                let (sectors, torn) = (sectors(*index), tears(&self.recording.events[*index]));
                match random.below(8) {
                    0..4 => some.push((*index, 0..sectors)),
                    4 if torn => some.push((*index, 0..random.below(sectors))),
                    5 if torn => some.push((*index, random.below(sectors)..sectors)),
                    _ => {}
                }
            }
            pending.push(some);
        }
        let with = |some: Choice| {
            let mut all = [&durable[..], &some].concat();
            // Of two writes to one place the later one wins, unless it is not there.
            all.sort_by_key(|part| part.0);
            all
        };
        pending.into_iter().map(with).collect()
    }

    /// Recovers one state and holds it to what was promised.
    fn state(&mut self, choice: &Choice, completed: usize) -> Result<Rc<Found>> {
        self.counts.states += 1;
        let mut hasher = DefaultHasher::new();
        choice.hash(&mut hasher);
        let key = hasher.finish();
        let found = match self.known.get(&key) {
            Some(found) => Rc::clone(found),
            None => {
                let found = Rc::new(self.recover(choice)?);
                self.known.insert(key, Rc::clone(&found));
                found
            }
        };
        match self.history.judge(&found, completed) {
            None => Ok(found),
            Some(why) => {
                let kept = self.keep(choice)?;
                Err(anyhow::anyhow!("{why} (the image is {})", kept.display()))
            }
        }
    }

    fn image(&self, choice: &Choice) -> Vec<u8> {
        let mut image = self.recording.base.clone();
        for (index, part) in choice {
            if let Event::Change(change) = &self.recording.events[*index] {
                change.apply(&mut image, part.clone());
            }
        }
        image
    }

    /// What is there after recovery, which must leave a clean volume.
    fn recover(&mut self, choice: &Choice) -> Result<Found> {
        self.counts.images += 1;
        let image = self.image(choice);
        let path = self.dir.join("crashed.img");
        let compare = self.random.once_in(self.effort.compare.max(1));
        let outcome = (|| {
            let found = recover_by_us(image.clone(), &path).context("recovered by us")?;
            if compare {
                self.counts.compared += 1;
                let theirs = recover_by_e2fsck(&image, &path).context("recovered by e2fsck")?;
                ensure!(found == theirs, "recovered by e2fsck it is another tree");
            }
            Ok(found)
        })();
        outcome.or_else(|error: anyhow::Error| {
            let kept = self.keep(choice)?;
            Err(error.context(format!("the image is {}", kept.display())))
        })
    }

    /// Keeps a state for whoever looks into a failure.
    fn keep(&self, choice: &Choice) -> Result<PathBuf> {
        let kept = kept_image();
        std::fs::write(&kept, self.image(choice))?;
        Ok(kept)
    }
}

/// Where this process keeps the state that failed last.
pub fn kept_image() -> PathBuf {
    std::env::temp_dir().join(format!("crashed-{}.img", std::process::id()))
}

/// Bytes of the superblock.
const SUPERBLOCK: Range<u64> = 1024..2048;

/// Whether a write may be there in part. The superblock is one thing: it has its checksum in its
/// second sector, is written in place, and ext4 relies on a disk that does not tear it.
fn tears(event: &Event) -> bool {
    match event {
        Event::Change(change) => change.sectors() > 1 && !change.touches(SUPERBLOCK),
        _ => false,
    }
}

/// What our recovery makes of an image, which it must leave clean; it is put at `path`.
///
/// # Errors
/// It cannot be recovered, or e2fsck is not content with it.
pub fn recover_by_us(image: Vec<u8>, path: &Path) -> Result<Found> {
    let memory = Arc::new(MemSource::new(image));
    let source: Arc<dyn BlockSource> = memory.clone();
    let report = cfs::journal::recover(&source)?.unwrap_or_default();
    drop(source);
    let mut bytes = Arc::into_inner(memory).context("somebody still reads the image")?.into_bytes();
    std::fs::write(path, &bytes)?;
    if report.orphans.left.is_some() {
        ensure!(has_errors(&bytes), "{report:?}");
        // What is left then e2fsck does, and nothing that it would have to be asked for.
        preen(path).with_context(|| format!("{report:?}"))?;
        bytes = std::fs::read(path)?;
    }
    assert_clean(path)?;
    tree(bytes)
}

/// Whether the superblock says that there was an error: orphans are left to e2fsck then.
fn has_errors(image: &[u8]) -> bool {
    // s_state of the format.
    image[SUPERBLOCK.start as usize + 0x3a] & 2 != 0
}

/// Lets e2fsck put right what needs no decision.
fn preen(path: &Path) -> Result<()> {
    let output = Command::new("e2fsck").args(["-f", "-p", arg(path)]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(matches!(output.status.code(), Some(0 | 1)), "{}:\n{text}", output.status);
    Ok(())
}

fn recover_by_e2fsck(image: &[u8], path: &Path) -> Result<Found> {
    std::fs::write(path, image)?;
    let output = Command::new("e2fsck").args(["-fy", arg(path)]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // 1: something was changed, as a replay does.
    ensure!(matches!(output.status.code(), Some(0 | 1)), "{}:\n{text}", output.status);
    tree(std::fs::read(path)?)
}

/// What is on a volume that needs no recovery.
///
/// # Errors
/// Something of it cannot be read.
pub fn tree(bytes: Vec<u8>) -> Result<Found> {
    let source: Arc<dyn BlockSource> = Arc::new(MemSource::new(bytes));
    let view = EngineView { volume: Volume::open(source, &Options::default())? };
    let mut found = Found::new();
    let mut pending = vec![(String::new(), view.root()?)];
    while let Some((path, dir)) = pending.pop() {
        for (name, ..) in view.names(&dir)? {
            let text = String::from_utf8_lossy(&name);
            if path.is_empty() && text == "lost+found" {
                continue;
            }
            let path = if path.is_empty() { text.into_owned() } else { format!("{path}/{text}") };
            let inode = view.child(&dir, &name)?;
            let info = view.info(&inode)?;
            let kind = info.mode & 0o170_000;
            let is = |kind_: u32| kind == kind_;
            let mut node = FoundNode {
                node: TreeNode {
                    mode: info.mode,
                    links: info.links,
                    owner: info.owner,
                    device: info.device,
                    target: String::new(),
                    xattrs: view
                        .xattrs(&inode)?
                        .into_iter()
                        .map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value))
                        .collect(),
                },
                bytes: Vec::new(),
            };
            if is(0o120_000) {
                node.node.target = String::from_utf8_lossy(&view.readlink(&inode)?).into_owned();
            }
            if is(0o100_000) {
                ensure!(info.size < 1 << 24, "{path} has {} bytes", info.size);
                node.bytes = vec![0; info.size as usize];
                let len = view.read(&inode, 0, &mut node.bytes)?;
                ensure!(len as u64 == info.size, "{path}: {len} of {} bytes", info.size);
            }
            found.insert(path.clone(), node);
            if is(0o040_000) {
                pending.push((path, inode));
            }
        }
    }
    Ok(found)
}
