//! Another OSlet of a measurement: this program again, in a process of its own, that does what it
//! is told by lines of JSON on its standard input.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use bench::changing::{self, Change};
use bench::scratch::Mount;
use bench::{Scratch, Side, Sizes};
use oslet::region::ControlPage;
use oslet::rpc::{ChannelAnswer, ChannelOffer, PendingChannel};
use serde::{Deserialize, Serialize};

use super::member::{Member, Shape};
use super::message::{self, Places};

/// The argument by which the program knows that it is a partner.
pub(crate) const COMMAND: &str = "__bench";
const FAILED: u8 = 2;
/// Where files of one OSlet's own are: they vanish with it.
const SCRATCH: &str = "/ltmp";

/// What a partner is told to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Make a segment. The control page is the file that the path leads to.
    Join { control: PathBuf, index: usize, frames: usize, space: usize, huge: bool },
    /// Map another's.
    Map { index: usize, segment: PathBuf },
    /// Serve a volume.
    Serve { image: PathBuf, frames: usize, writable: bool },
    /// Offer a channel to the owner.
    Offer,
    /// As the owner, accept one.
    Accept { from: usize, offer: [u64; 3] },
    /// Open the one that was offered.
    Open { answer: [u64; 3] },
    /// Read all pages of a file.
    Read { name: String },
    /// Answer messages from that OSlet on a processor of its own.
    Echo { from: usize, places: Places, cpu: usize },
    /// Make a directory and be ready to change what is in it; for this it need not have joined.
    Change { directory: PathBuf, change: Change, sizes: Sizes },
    /// Do that so many times.
    Batch { operations: u64 },
    /// Measure it as a whole.
    Probe,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// A path to its segment.
    Segment(PathBuf),
    /// It is done.
    Done,
    /// The places of a channel's end.
    Channel([u64; 3]),
    /// So many pages.
    Pages(u64),
    /// The places of a ring's ends.
    Places(Places),
    /// It can be done so many times.
    Batches,
    /// It is measured as a whole.
    Probes,
    /// So many nanoseconds.
    Took(u64),
    /// What was measured.
    Figure(f64),
    /// It cannot be done here, for a reason that is no failure.
    Absent(String),
    /// It cannot be done.
    Failed(String),
}

/// The process of a partner, which ends with this.
pub(super) struct Partner {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Partner {
    pub(super) fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("own program")?);
        command.arg(COMMAND);
        Self::of(command)
    }

    /// A partner that some command leads to.
    pub(super) fn of(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a partner")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("a partner without output")?);
        Ok(Self { child, to, from })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to do something and waits until it has.
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Told> {
        let to = self.to.as_mut().context("a partner without input")?;
        writeln!(to, "{}", serde_json::to_string(ask)?).context("tell the partner")?;
        let mut line = String::new();
        self.from.read_line(&mut line).context("hear the partner")?;
        match serde_json::from_str(&line).context("the partner has ended")? {
            Told::Failed(why) => bail!("the partner: {why}"),
            told => Ok(told),
        }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        // It ends at the end of its input; should it hang, it is no use waiting for it.
        self.to.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn unexpected(told: &Told) -> anyhow::Error {
    anyhow::anyhow!("the partner says {told:?}")
}

/// The partner's side.
pub(crate) fn main() -> ExitCode {
    match obey() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{COMMAND}: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn obey() -> Result<()> {
    let mut state = State::default();
    let mut out = std::io::stdout();
    for line in std::io::stdin().lines() {
        let ask = serde_json::from_str(&line?).context("this is for oslet bench alone")?;
        let told = state.act(ask).unwrap_or_else(|error| Told::Failed(format!("{error:#}")));
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
        out.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct State {
    member: Option<Member>,
    /// Kept open: others reach the segment through this process's descriptor.
    reader: Option<std::fs::File>,
    offered: Option<PendingChannel>,
    changing: Option<Side>,
    scratch: Option<Scratch>,
}

impl State {
    fn act(&mut self, ask: Ask) -> Result<Told> {
        if let Ask::Join { control, index, frames, space, huge } = ask {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&control);
            let file = file.with_context(|| control.display().to_string())?;
            let shape = Shape { frames, space, huge };
            let member = Member::join(ControlPage::open(file)?, index, shape)?;
            let reader = member.region().own().reader()?;
            let segment = descriptor(&reader);
            (self.member, self.reader) = (Some(member), Some(reader));
            return Ok(Told::Segment(segment));
        }
        match (&ask, &mut self.changing) {
            (Ask::Change { directory, change, sizes }, _) => {
                return self.change(directory, *change, *sizes);
            }
            (Ask::Batch { operations }, Some(Side::Batch(run))) => {
                return Ok(Told::Took(u64::try_from(run(*operations)?.as_nanos())?));
            }
            (Ask::Probe, Some(Side::Probe(run))) => return Ok(Told::Figure(run()?)),
            _ => {}
        }
        let member = self.member.as_mut().context("it has not joined")?;
        match ask {
            Ask::Join { .. } | Ask::Change { .. } => {}
            Ask::Batch { .. } | Ask::Probe => bail!("there is nothing to be changed"),
            Ask::Map { index, segment } => member.map(index, &segment)?,
            Ask::Serve { image, frames, writable } => member.serve(&image, frames, writable)?,
            Ask::Offer => {
                let pending = member.offer()?;
                let ChannelOffer { requests, replies_head, replies_park } = pending.offer();
                self.offered = Some(pending);
                return Ok(Told::Channel([requests, replies_head, replies_park]));
            }
            Ask::Accept { from, offer: [requests, replies_head, replies_park] } => {
                let offer = ChannelOffer { requests, replies_head, replies_park };
                return Ok(Told::Channel(words(member.accept(from, offer)?)));
            }
            Ask::Open { answer } => {
                let pending = self.offered.take().context("nothing was offered")?;
                member.connected(pending.open(from_words(answer))?);
            }
            Ask::Read { name } => return Ok(Told::Pages(member.read_through(&name)?)),
            Ask::Echo { from, places, cpu } => {
                return Ok(Told::Places(message::echo(member, from, places, cpu)?));
            }
        }
        Ok(Told::Done)
    }
}

impl State {
    fn change(&mut self, directory: &Path, change: Change, sizes: Sizes) -> Result<Told> {
        let name = || directory.display().to_string();
        match std::fs::create_dir(directory) {
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                return Ok(Told::Absent(format!("{}: {error}", name())));
            }
            made => made.with_context(name)?,
        }
        let scratch = Scratch::new(Some(Path::new(SCRATCH)))?;
        let mount = Rc::new(Mount::new(directory.to_owned(), || {}));
        let side = changing::in_directory(change, sizes, &scratch, mount)?;
        let told = match &side {
            Side::Batch(_) => Told::Batches,
            Side::Probe(_) => Told::Probes,
            Side::Absent(why) => Told::Absent(why.clone()),
        };
        // What a side needs is in its scratch directory.
        (self.changing, self.scratch) = (Some(side), Some(scratch));
        Ok(told)
    }
}

/// A path by which other processes of this user can open a descriptor of this one.
pub(super) fn descriptor(file: &std::fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

fn words(answer: ChannelAnswer) -> [u64; 3] {
    [answer.replies, answer.requests_head, answer.requests_park]
}

pub(super) fn from_words([replies, requests_head, requests_park]: [u64; 3]) -> ChannelAnswer {
    ChannelAnswer { replies, requests_head, requests_park }
}
