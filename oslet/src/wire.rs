//! Messages over the control sockets: between runtimes, with native clients, and with commands.
//!
//! Each is one rkyv archive in one SEQPACKET datagram, with the descriptors it speaks of as
//! SCM_RIGHTS in the order named. What does not validate costs the sender that connection.

// The derive leaves the fields of an enum's resolver without documentation.
#![allow(missing_docs)]

use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::id::{Epoch, ParticipantId};
use crate::procfs::ProcessId;
use crate::rpc::{ChannelAnswer, ChannelOffer};
use crate::{Error, Result, limits};

/// The version of these messages; both ends must have the same.
pub const PROTOCOL: u32 = 2;

/// A participant in one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Who {
    /// The participant's index.
    pub index: u32,
    /// Its epoch.
    pub epoch: u32,
}

impl Who {
    /// That participant in that incarnation.
    pub fn new(participant: ParticipantId, epoch: Epoch) -> Self {
        Self { index: participant.index() as u32, epoch: epoch.0 }
    }

    /// The participant, if it can exist.
    pub fn participant(self) -> Option<ParticipantId> {
        ParticipantId::from_index(self.index as usize)
    }

    /// The incarnation.
    pub fn epoch(self) -> Epoch {
        Epoch(self.epoch)
    }
}

/// A process for certain: number and start time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Process {
    /// Its number in the host's PID namespace.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start_time: u64,
}

impl From<ProcessId> for Process {
    fn from(id: ProcessId) -> Self {
        Self { pid: id.pid, start_time: id.start_time }
    }
}

impl From<Process> for ProcessId {
    fn from(id: Process) -> Self {
        Self { pid: id.pid, start_time: id.start_time }
    }
}

/// What a service or the runtime says of itself in `show`.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Detail {
    /// Which part: `memory`, `volume root`.
    pub name: String,
    /// What it says.
    pub value: String,
}

/// A runtime's answer about itself.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Status {
    /// Who answers.
    pub who: Who,
    /// Its process.
    pub process: Process,
    /// Frames of its segment: all, free, in limbo.
    pub frames: [u64; 3],
    /// Native clients.
    pub clients: u32,
    /// Volumes and devices that it serves.
    pub volumes: u32,
    /// See `volumes`.
    pub devices: u32,
    /// For each OSlet the epoch and the state (see [`crate::region::MemberState`]) as it sees them.
    pub members: Vec<(u32, u8)>,
    /// More, where it was asked for.
    pub details: Vec<Detail>,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Message {
    /// First from both on a connection between runtimes. Descriptor: the segment, read-only.
    Hello {
        /// See [`PROTOCOL`].
        protocol: u32,
        /// The cluster's identity.
        cluster: [u64; 2],
        /// Who speaks.
        who: Who,
        /// Its process.
        process: Process,
    },
    /// The receiver's segment, and all that it announced before, are mapped by the sender.
    Mapped,
    /// Look at the control page: a word has changed.
    Changed,
    /// What must be destroyed when the sender is fenced; replaces what it said before.
    /// Descriptors: cgroup.kill if `kill`, then one O_PATH for each file whose flock proves that
    /// its I/O has ended.
    Resources {
        /// Numbers of FUSE connections.
        fuse: Vec<u32>,
        /// Whether cgroup.kill comes along.
        kill: bool,
        /// How many files.
        files: u32,
    },
    /// A native client of the sender's; or, to a client, a runtime that has mapped the client's
    /// segment, so that its frames may be pinned. Descriptor: the segment, read-only.
    Announce {
        /// Who.
        who: Who,
        /// Its process, where the receiver may have to kill it.
        process: Option<Process>,
    },
    /// A dead runtime whose segment others still read: what it served has no owner since.
    /// Descriptor: the segment, read-only.
    Orphan {
        /// Whose it was.
        who: Who,
    },
    /// To a client: nothing leads to that dead runtime's frames any more.
    Forget {
        /// Whose.
        who: Who,
    },
    /// The answer to [`Message::Announce`]: mapped.
    Announced {
        /// Who is.
        who: Who,
    },
    /// That participant has ended: its pins do not count any more, its rings are closed.
    Retract {
        /// Who has.
        who: Who,
    },
    /// To a runtime: it, or its client, keeps too many of the sender's frames in limbo.
    OverQuota {
        /// Who does.
        who: Who,
        /// How many frames.
        frames: u64,
    },
    /// A native client asks for a slot. Its process is the one that the socket names.
    Enter {
        /// See [`PROTOCOL`].
        protocol: u32,
    },
    /// The answer. Descriptor: the control page.
    Slot {
        /// Who the client is now.
        who: Who,
        /// All OSlets' names, by place.
        names: Vec<String>,
        /// How many frames there may be to pin, in all segments together.
        frames: u64,
    },
    /// The client's segment. Descriptor: it, read-only.
    Segment,
    /// All runtimes that were there when the client came have mapped its segment, and have been
    /// announced to it.
    Admit,
    /// From a client to its runtime: opens a request channel to some runtime's server. The answer
    /// is [`Message::Answer`].
    Reach {
        /// Which attempt, for the answer.
        number: u64,
        /// Which runtime, in which incarnation.
        to: Who,
        /// The places in the client's segment.
        offer: ChannelOffer,
    },
    /// To a client that pins too many frames: let go, or be cut off.
    LetGo {
        /// How many frames of one home it keeps in limbo.
        frames: u64,
    },
    /// Opens a request channel to the receiver's server.
    Offer {
        /// Which attempt, for the answer.
        number: u64,
        /// Who offers: its incarnation is checked.
        who: Who,
        /// The places in its segment.
        offer: ChannelOffer,
    },
    /// The answer to [`Message::Offer`].
    Answer {
        /// Which.
        number: u64,
        /// The places in the server's segment, or why not.
        answer: Option<ChannelAnswer>,
    },
    /// A command asks for [`Message::Status`].
    Ask {
        /// See [`PROTOCOL`].
        protocol: u32,
        /// Whether details are wanted.
        details: bool,
    },
    /// The answer.
    Status(Status),
    /// A command, or the launcher, asks the runtime to leave.
    Stop {
        /// Whether the whole cluster stops: nothing need be handed over.
        cluster: bool,
    },
    /// From the launcher. The specification is JSON. Descriptors: the control page, the cluster's
    /// lock.
    Start {
        /// A [`crate::runtime::Spec`].
        spec: String,
    },
    /// To the launcher: the runtime serves.
    Ready {
        /// The incarnation.
        epoch: u32,
        /// What could not be had, for the user.
        notes: Vec<String>,
    },
    /// The whole message for the user; the sender closes the connection.
    Refused {
        /// Why.
        why: String,
    },
}

impl Message {
    /// As bytes.
    ///
    /// # Errors
    /// When it is longer than [`limits::MAX_MESSAGE`].
    pub fn encode(&self) -> Result<AlignedVec> {
        let bytes = crate::rpc::encode(self)?;
        if bytes.len() > limits::MAX_MESSAGE {
            return Err(Error::Exhausted(format!(
                "control message: {} bytes, at most {} are possible",
                bytes.len(),
                limits::MAX_MESSAGE
            )));
        }
        Ok(bytes)
    }

    /// From bytes that anybody may have sent; `peer` names the sender in the error.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when they do not validate.
    pub fn decode(bytes: &[u8], peer: &str) -> Result<Self> {
        let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        let archived = crate::rpc::access::<ArchivedMessage>(&aligned, peer)?;
        rkyv::deserialize::<Self, rkyv::rancor::Error>(archived).map_err(|error| Error::Corrupt {
            peer: peer.to_owned(),
            what: format!("a control message that does not deserialize: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rpc::golden::Golden;

    fn status() -> Message {
        Message::Status(Status {
            who: Who { index: 16, epoch: 3 },
            process: Process { pid: 1, start_time: 2 },
            frames: [3, 2, 1],
            clients: 0,
            volumes: 1,
            devices: 2,
            members: vec![(1, 2); 64],
            details: vec![Detail { name: "volume root".into(), value: "clean".into() }],
        })
    }

    #[test]
    fn messages_survive() {
        for message in [status(), Message::Mapped, Message::Stop { cluster: true }] {
            assert_eq!(Message::decode(&message.encode().unwrap(), "test").unwrap(), message);
        }
        let long = Message::Refused { why: "x".repeat(limits::MAX_MESSAGE) };
        assert!(long.encode().is_err());
        assert!(Message::decode(&[], "test").is_err());
    }

    fn process() -> Process {
        Process { pid: 1, start_time: 2 }
    }

    /// One of each, every field a value of its own.
    fn examples() -> Vec<Message> {
        let who = Who { index: 1, epoch: 2 };
        let offer = ChannelOffer { requests: 1, replies_head: 2, replies_park: 3 };
        let answer = ChannelAnswer { replies: 1, requests_head: 2, requests_park: 3 };
        vec![
            Message::Hello { protocol: 1, cluster: [2, 3], who, process: process() },
            Message::Mapped,
            Message::Changed,
            Message::Resources { fuse: vec![1, 2], kill: true, files: 3 },
            Message::Announce { who, process: Some(process()) },
            Message::Orphan { who },
            Message::Forget { who },
            Message::Announced { who },
            Message::Retract { who },
            Message::OverQuota { who, frames: 3 },
            Message::Enter { protocol: 1 },
            Message::Slot { who, names: vec!["o0".into(), "o1".into()], frames: 3 },
            Message::Segment,
            Message::Admit,
            Message::Reach { number: 3, to: who, offer },
            Message::LetGo { frames: 1 },
            Message::Offer { number: 3, who, offer },
            Message::Answer { number: 3, answer: Some(answer) },
            Message::Ask { protocol: 1, details: true },
            status(),
            Message::Stop { cluster: true },
            Message::Start { spec: "{}".into() },
            Message::Ready { epoch: 1, notes: vec!["a note".into()] },
            Message::Refused { why: "a reason".into() },
        ]
    }

    #[test]
    fn messages_are_as_recorded() {
        let encode = |message: &Message| message.encode().unwrap();
        let sources = [include_str!("wire.rs"), include_str!("rpc.rs")];
        let mut golden = Golden::new(PROTOCOL, &sources);
        for message in examples() {
            let shown = format!("{message:?}");
            let name = shown.split(|letter: char| !letter.is_alphanumeric()).next();
            golden.body(&format!("Message::{}", name.unwrap()), &encode(&message));
        }
        // Parts of messages, by the messages that have them.
        for part in ["Who", "Process", "Detail", "Status", "ChannelOffer", "ChannelAnswer"] {
            golden.part(part);
        }
        golden.check("oslet/testdata/wire.txt", include_str!("../testdata/wire.txt"));
    }

    proptest! {
        /// Any answer will do but a panic, a hang or a great allocation.
        #[test]
        fn any_bytes_get_an_answer(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8),
            cut in any::<u16>(),
        ) {
            let _ = Message::decode(&noise, "noise");
            let mut bytes = status().encode().unwrap().to_vec();
            for (at, value) in flips {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            let _ = Message::decode(&bytes, "flipped");
            bytes.truncate(usize::from(cut) % bytes.len());
            let _ = Message::decode(&bytes, "cut");
        }
    }
}
