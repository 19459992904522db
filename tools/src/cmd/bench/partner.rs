//! Another OSlet of a measurement: this program again, in a process of its own, that does what it
//! is told by lines of JSON on its standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use oslet::region::ControlPage;
use oslet::rpc::{ChannelAnswer, ChannelOffer, PendingChannel};
use serde::{Deserialize, Serialize};

use super::member::{Member, Shape};
use super::message::{self, Places};

/// The argument by which the program knows that it is a partner.
pub(crate) const COMMAND: &str = "__bench";
const FAILED: u8 = 2;

/// What a partner is told to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Make a segment. The control page is the file that the path leads to.
    Join { control: PathBuf, index: usize, frames: usize, space: usize, huge: bool },
    /// Map another's.
    Map { index: usize, segment: PathBuf },
    /// Serve a volume.
    Serve { image: PathBuf, frames: usize },
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
        let mut child = Command::new(std::env::current_exe().context("own program")?)
            .arg(COMMAND)
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
        let member = self.member.as_mut().context("it has not joined")?;
        match ask {
            Ask::Join { .. } => {}
            Ask::Map { index, segment } => member.map(index, &segment)?,
            Ask::Serve { image, frames } => member.serve(&image, frames)?,
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
