//! /global, the root volume's mount inside an OSlet, and /gtmp in it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use cfs::Caller;
use cfs::change::{Change, NewInode, Order};
use cfs::client::Client;
use cfs::disk::inode::Kind;
use cfs::id::Ino;
use cfs::mount::{Config, Session, Sharing, Transport, VolumeFs};
use cfs::owner::Owner;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::plan::{OsletPlan, Plan};
use oslet::region::{ControlPage, MemberState, Ownership};

/// Where the root volume is mounted inside every OSlet.
pub(super) const ROOT_MOUNT: &str = "/global";
/// The directory of the root volume that is /gtmp.
pub(crate) const GTMP: &str = ".gtmp";
/// What it is made with: a directory for all, where each removes what is his.
const GTMP_MODE: u16 = 0o041_777;

/// How long the end of an inside may take to reach its mount: what programs have written to files
/// that they had mapped goes to the owner then.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// How long the threads of a mount may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long an OSlet waits for the owner to begin to serve: longer than a replay and than the signs
/// of life of another machine that multi-mount protection looks for.
const OWNER_LIMIT: Duration = Duration::from_secs(60);
/// How long the owner waits for the others when the cluster stops: as long as they may take.
const OTHERS_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// The number of the volume that is /global, if there is one.
pub(crate) fn root(plan: &Plan) -> Option<u64> {
    let root = plan.volumes.iter().position(|volume| volume.mount == ROOT_MOUNT);
    root.map(|object| object as u64)
}

/// Who changes a volume beside a mount of this OSlet. Waits for the volume's owner: whether it can
/// be written is known once it is served.
pub(super) fn sharing(control: &ControlPage, object: u64) -> Result<Sharing> {
    let end = Instant::now() + OWNER_LIMIT;
    let known = |now: Ownership| now.owner.is_some() || now.predecessor.is_some();
    loop {
        let now = control.owner(object as usize)?;
        match known(now) {
            true if now.read_only => return Ok(Sharing::ReadOnly),
            // Others may have it mounted, and native clients may come at any time.
            true => return Ok(Sharing::Shared),
            // Right in either case, and slower than need be in one.
            false if Instant::now() >= end => return Ok(Sharing::Shared),
            false => std::thread::sleep(POLL),
        }
    }
}

/// Waits until no other OSlet takes part any more, for a while: each leaves when its mount has
/// ended, and one that hangs is fenced or killed by others.
pub(super) fn await_others(control: &ControlPage, me: OsletId) {
    let end = Instant::now() + OTHERS_LIMIT;
    let takes_part = |oslet: OsletId| {
        let state = control.member(oslet).map(|member| member.state);
        oslet != me && matches!(state, Ok(MemberState::Joining | MemberState::Alive))
    };
    let others = || (0..control.oslets()).filter_map(OsletId::new).any(takes_part);
    while others() && Instant::now() < end {
        std::thread::sleep(POLL);
    }
}

/// The mount while it is served.
pub(super) struct MountedRoot {
    session: Session,
    pub(super) connection: Option<u32>,
    sharing: Sharing,
}

impl MountedRoot {
    pub(super) fn serve(
        device: OwnedFd,
        client: Arc<Client>,
        sharing: Sharing,
        oslet: &OsletPlan,
    ) -> Result<Self> {
        let fs = VolumeFs::new(client, sharing);
        let cpus = oslet.cpus.iter().map(|cpu| cpu as usize).collect();
        let session = Session::start(device, fs, Config { cpus, ..Config::default() })?;
        let connection = session.connection();
        Ok(Self { session, connection, sharing })
    }

    pub(super) fn transport(&self) -> &Transport {
        self.session.transport()
    }

    /// How it is served, for people.
    pub(super) fn describe(&self) -> String {
        let access = match self.sharing {
            Sharing::ReadOnly => "read-only",
            Sharing::Alone | Sharing::Shared => "read-write",
        };
        format!("{access} over {}", self.session.transport())
    }

    /// The mount was made in the PID namespace whose first process is `init`.
    pub(super) fn set_init(&self, init: u32) {
        self.session.set_proc(format!("/proc/{init}/root/proc").as_ref());
    }

    /// Waits for the end of the mount, which goes with the namespace that it was made in, and ends
    /// its service.
    pub(super) fn end(self) -> Result<()> {
        self.session.wait(UNMOUNT_LIMIT);
        Ok(self.session.stop(STOP_LIMIT)?)
    }
}

/// Makes the directory that is /gtmp unless something of that name is there.
pub(super) fn make_gtmp(owner: &Owner, by: (ParticipantId, Epoch)) -> Result<()> {
    let caller = Caller {
        // Where the mount knows one user alone, nobody else's directory could be written.
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        privileged: true,
    };
    let inode = NewInode { mode: GTMP_MODE, umask: 0, device: (0, 0) };
    let change = Change::Make { name: GTMP.into(), inode, reuse: false };
    match owner.change(by, Ino::ROOT, &Order { caller, change }) {
        Ok(_) | Err(cfs::Error::Exists) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What keeps /gtmp from being a directory for temporary files of all, which nobody changes but
/// the user: a line to say so.
pub(super) fn check_gtmp(client: &Client) -> Result<Option<String>> {
    let found = match client.lookup(Ino::ROOT, GTMP.as_bytes()) {
        Ok(record) => record.attr,
        Err(cfs::Error::NotFound) => return Ok(Some(format!("/gtmp: empty: no {GTMP} there"))),
        Err(error) => return Err(error.into()),
    };
    Ok(match found.mode & 0o7777 {
        _ if found.kind != Kind::Directory => {
            Some(format!("/gtmp: empty: /global/{GTMP} is no directory (rename it)"))
        }
        0o1777 => None,
        mode => Some(format!(
            "/gtmp: /global/{GTMP} has mode {mode:o} and keeps it (for all users: chmod 1777)"
        )),
    })
}
