//! The filesystem as a service of a runtime: it serves the volumes that its OSlet owns, and mounts
//! the root volume inside.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cfs::client::{Client, Connect};
use cfs::mount::{Config, Session, Sharing, VolumeFs};
use cfs::open::{Image, OpenOptions};
use cfs::owner::Owner;
use cfs::service::Volumes;
use oslet::arena::Arena;
use oslet::config::Source;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::member::Event;
use oslet::plan::{OsletPlan, Plan, VolumePlan};
use oslet::region::Ownership;
use oslet::rpc::{Channel, Replier, Request};
use oslet::runtime::{Handle, Service, ServiceError};
use oslet::wire::Detail;
use parking_lot::Mutex;
use proxydev::backend::engine::{Engine, EngineOptions};

/// Where the root volume is mounted inside every OSlet.
const ROOT_MOUNT: &str = "/global";
/// How long the threads of a mount may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Frames kept out of the caches' budgets, for requests in flight: one part in so many.
const SPARE_PART: usize = 8;

/// The volumes of a runtime.
pub(crate) struct VolumeService {
    handle: Handle,
    volumes: Arc<Volumes>,
    images: Mutex<Vec<Served>>,
    mounted: Mutex<Option<MountedRoot>>,
}

struct Served {
    name: String,
    object: usize,
    image: Image,
}

struct MountedRoot {
    session: Session,
    connection: Option<u32>,
}

impl VolumeService {
    /// Opens and serves every volume whose device this OSlet owns. Returns what the user should
    /// know as well.
    pub(crate) fn start(
        plan: &Plan,
        oslet: &OsletPlan,
        handle: &Handle,
    ) -> Result<(Arc<Self>, Vec<String>)> {
        let workers = oslet.cpus.iter().count().clamp(2, 16);
        let service = Arc::new(Self {
            handle: handle.clone(),
            volumes: Volumes::new(workers),
            images: Mutex::default(),
            mounted: Mutex::default(),
        });
        let owned: Vec<_> = plan
            .volumes
            .iter()
            .enumerate()
            .filter_map(|(object, volume)| {
                let device = plan.devices.iter().find(|device| device.name == volume.device)?;
                (device.owner == oslet.name).then_some((object, volume, &device.source))
            })
            .collect();
        let mut notes = Vec::new();
        if owned.is_empty() {
            return Ok((service, notes));
        }
        let engine = Engine::new(handle.region(), EngineOptions::default())?;
        notes.extend(engine.warnings().iter().cloned());
        let frames = handle.region().own().frames();
        let share = (frames - frames / SPARE_PART) / owned.len();
        for (object, volume, source) in owned {
            let note = service.serve(plan, object, volume, source, &engine, share)?;
            notes.extend(note);
        }
        Ok((service, notes))
    }

    fn serve(
        &self,
        plan: &Plan,
        object: usize,
        volume: &VolumePlan,
        source: &Source,
        engine: &Arc<Engine>,
        frames: usize,
    ) -> Result<Option<String>> {
        let Source::Path { path, .. } = source else {
            bail!("volume \"{}\": a RAM device holds no filesystem yet", volume.name);
        };
        let handle = &self.handle;
        let options = OpenOptions {
            // Another incarnation of this OSlet was fenced before this one could join.
            take_over: handle.epoch() > Epoch(1),
            holder: holder(&plan.cluster),
            ..OpenOptions::default()
        };
        let named = || format!("volume \"{}\"", volume.name);
        let mut image = Image::open(path, engine, handle.arena(), &options).with_context(named)?;
        handle.add_io_file(&**image.device().file())?;
        let (owner, _) = image.serve(handle.arena(), object as u64, frames).with_context(named)?;
        self.volumes.add(owner)?;
        let note = image.report().map(|report| {
            format!(
                "volume \"{}\": journal replayed: {} transactions, {} blocks",
                volume.name, report.transactions, report.blocks
            )
        });
        self.images.lock().push(Served { name: volume.name.clone(), object, image });
        Ok(note)
    }

    /// Tells everybody what this incarnation serves. Not before the runtime has the service: who
    /// asked meanwhile would be told that there are no such requests.
    pub(crate) fn announce(&self) -> Result<()> {
        let objects: Vec<usize> = self.images.lock().iter().map(|served| served.object).collect();
        objects.into_iter().try_for_each(|object| self.own(object))
    }

    /// Tells everybody that this incarnation serves the volume.
    fn own(&self, object: usize) -> Result<()> {
        let control = self.handle.region().control();
        loop {
            let before = control.owner(object)?;
            let now = Ownership {
                owner: Some((self.handle.oslet(), self.handle.epoch())),
                predecessor: before.owner.map(|(oslet, _)| oslet),
                recovering: false,
            };
            if control.change_owner(object, before, now)?.is_ok() {
                return Ok(());
            }
        }
    }

    /// The native interface to a volume.
    pub(crate) fn client(self: &Arc<Self>, object: u64) -> Result<Arc<Client>> {
        let way = Way { handle: self.handle.clone(), volumes: Arc::clone(&self.volumes) };
        Ok(Client::new(self.handle.region(), object, Arc::new(way))?)
    }

    /// The number of the volume that is /global, if there is one.
    pub(crate) fn root(plan: &Plan) -> Option<u64> {
        let root = plan.volumes.iter().position(|volume| volume.mount == ROOT_MOUNT);
        root.map(|object| object as u64)
    }

    /// Serves the root volume's mount inside the OSlet, whose descriptor init has passed out.
    pub(crate) fn serve_mount(
        self: &Arc<Self>,
        device: OwnedFd,
        object: u64,
        oslet: &OsletPlan,
    ) -> Result<String> {
        let fs = VolumeFs::new(self.client(object)?, Sharing::ReadOnly);
        let cpus = oslet.cpus.iter().map(|cpu| cpu as usize).collect();
        let session = Session::start(device, fs, Config { cpus, ..Config::default() })?;
        let connection = session.connection();
        if let Some(number) = connection {
            self.handle.set_fuse_connection(number, true)?;
        }
        let transport = session.transport().to_string();
        *self.mounted.lock() = Some(MountedRoot { session, connection });
        Ok(transport)
    }

    /// The mount was made in the PID namespace whose first process is `init`.
    pub(crate) fn set_init(&self, init: u32) {
        if let Some(mounted) = &*self.mounted.lock() {
            mounted.session.set_proc(format!("/proc/{init}/root/proc").into());
        }
    }

    /// Ends the mount's service, behind the end of the namespace that it was mounted in.
    pub(crate) fn end_mount(&self) -> Result<()> {
        let Some(MountedRoot { session, connection }) = self.mounted.lock().take() else {
            return Ok(());
        };
        let stopped = session.stop(STOP_LIMIT);
        if let Some(number) = connection {
            self.handle.set_fuse_connection(number, false)?;
        }
        Ok(stopped?)
    }
}

impl Service for VolumeService {
    fn name(&self) -> &str {
        "volumes"
    }

    fn kinds(&self) -> Range<u16> {
        *cfs::wire::KINDS.start()..*cfs::wire::KINDS.end() + 1
    }

    fn handle(&self, request: Request, replier: Replier) {
        self.volumes.handle(request, replier);
    }

    /// Clients find a new owner by its word in the control page; nothing is kept of others.
    fn event(&self, event: Event) {
        let (who, epoch) = match event {
            Event::Dead(oslet, epoch) | Event::Left(oslet, epoch) => {
                (ParticipantId::runtime(oslet), epoch)
            }
            Event::ClientGone(who, epoch) => (who, epoch),
            _ => return,
        };
        if let Err(error) = self.volumes.forget_holder(who, epoch) {
            eprintln!("what {who:?} held open cannot be removed: {error}");
        }
    }

    /// Only own frames are ever linked here.
    fn release(&self, _: ParticipantId, _: Epoch) {}

    fn leave(&self, _: bool) -> std::result::Result<(), ServiceError> {
        let mounted = self.end_mount();
        let mut first: Option<ServiceError> = mounted.err().map(Into::into);
        for Served { object, image, .. } in self.images.lock().drain(..) {
            let control = self.handle.region().control();
            let mine = Some((self.handle.oslet(), self.handle.epoch()));
            let gone = control.owner(object).and_then(|now| {
                let none =
                    Ownership { predecessor: Some(self.handle.oslet()), ..Default::default() };
                if now.owner == mine {
                    control.change_owner(object, now, none).map(drop)
                } else {
                    Ok(())
                }
            });
            let owner = self.volumes.remove(object as u64);
            let stopped = owner.map_or(Ok(()), |owner| owner.stop());
            let file = Arc::clone(image.device().file());
            let closed = image.close().and(stopped);
            let removed = self.handle.remove_io_file(&*file);
            let errors = [gone.err().map(Into::into), closed.err().map(Into::into)];
            for error in errors.into_iter().flatten().chain(removed.err().map(Into::into)) {
                first.get_or_insert(error);
            }
        }
        self.volumes.stop();
        first.map_or(Ok(()), Err)
    }

    fn describe(&self) -> Vec<Detail> {
        let describe = |served: &Served| {
            let owner: Option<Arc<Owner>> = self.volumes.owner(served.object as u64);
            let (used, budget) = owner.map_or((0, 0), |owner| owner.usage());
            let frame = oslet::limits::FRAME_SIZE as u64;
            Detail {
                name: format!("volume {}", served.name),
                value: format!(
                    "{}, {} cached of at most {}",
                    served.image.path().display(),
                    oslet::config::show_size(used as u64 * frame),
                    oslet::config::show_size(budget as u64 * frame),
                ),
            }
        };
        let mut details: Vec<_> = self.images.lock().iter().map(describe).collect();
        if let Some(mounted) = &*self.mounted.lock() {
            let value = mounted.session.transport().to_string();
            details.push(Detail { name: ROOT_MOUNT.into(), value });
        }
        details
    }

    fn serves(&self) -> (u32, u32) {
        let count = self.images.lock().len() as u32;
        (count, count)
    }
}

/// Who holds a volume, for other machines to read: this one, and the cluster on it.
fn holder(cluster: &str) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host} oslet {cluster}")
}

/// How a client in this runtime reaches owners.
struct Way {
    handle: Handle,
    volumes: Arc<Volumes>,
}

impl Connect for Way {
    fn local(&self, object: u64) -> Option<Arc<Owner>> {
        self.volumes.owner(object)
    }

    fn channel(&self, oslet: OsletId, _: Epoch) -> oslet::Result<Arc<Channel>> {
        self.handle.channel(oslet)
    }

    fn arena(&self) -> Option<&Arc<Arena>> {
        Some(self.handle.arena())
    }
}
