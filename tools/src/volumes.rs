//! The filesystem as a service of a runtime: it serves the volumes that its OSlet owns, and mounts
//! the root volume inside.

mod global;
mod open;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use cfs::client::{Client, Connect};
use cfs::mount::Sharing;
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

pub(crate) use global::{GTMP, root};
use global::{MountedRoot, ROOT_MOUNT};
use open::Opened;

/// Frames kept out of the caches' budgets, for requests in flight: one part in so many.
const SPARE_PART: usize = 8;

/// The volumes of a runtime.
pub(crate) struct VolumeService {
    handle: Handle,
    volumes: Arc<Volumes>,
    images: Mutex<Vec<Served>>,
    mounted: Mutex<Option<MountedRoot>>,
    /// Held while inodes are let go of somebody who has ended; set once nothing is served any more.
    left: Mutex<bool>,
}

struct Served {
    name: String,
    object: usize,
    /// Whether it is what OSlets mount.
    root: bool,
    opened: Opened,
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
            left: Mutex::default(),
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
            notes.extend(service.serve(object, volume, source, &engine, share)?);
        }
        Ok((service, notes))
    }

    fn serve(
        &self,
        object: usize,
        volume: &VolumePlan,
        source: &Source,
        engine: &Arc<Engine>,
        frames: usize,
    ) -> Result<Vec<String>> {
        let Source::Path { path, .. } = source else {
            bail!("volume \"{}\": a RAM device holds no filesystem yet", volume.name);
        };
        let handle = &self.handle;
        let only_read = handle.region().control().owner(object)?.read_only;
        let opened = open::open(volume, path, object, handle, engine, frames, only_read)?;
        handle.add_io_file(&**opened.image.device().file())?;
        let named = || format!("volume \"{}\"", volume.name);
        let root = volume.mount == ROOT_MOUNT;
        if root && opened.owner.is_writable() {
            let by = (ParticipantId::runtime(handle.oslet()), handle.epoch());
            global::make_gtmp(&opened.owner, by).with_context(named)?;
        }
        self.volumes.add(Arc::clone(&opened.owner))?;
        let mut notes = Vec::new();
        if let Some(report) = opened.image.report() {
            notes.push(format!(
                "{}: journal replayed: {} transactions, {} blocks",
                named(),
                report.transactions,
                report.blocks
            ));
        }
        notes.extend(opened.read_only.iter().map(|why| format!("{}: read-only: {why}", named())));
        self.images.lock().push(Served { name: volume.name.clone(), object, root, opened });
        Ok(notes)
    }

    /// Tells everybody what this incarnation serves. Not before the runtime has the service: who
    /// asked meanwhile would be told that there are no such requests.
    pub(crate) fn announce(&self) -> Result<()> {
        let served = |served: &Served| (served.object, served.opened.owner.is_writable());
        let objects: Vec<_> = self.images.lock().iter().map(served).collect();
        objects.into_iter().try_for_each(|(object, writable)| self.own(object, writable))
    }

    /// Tells everybody that this incarnation serves the volume.
    fn own(&self, object: usize, writable: bool) -> Result<()> {
        let control = self.handle.region().control();
        loop {
            let before = control.owner(object)?;
            let now = Ownership {
                owner: Some((self.handle.oslet(), self.handle.epoch())),
                predecessor: before.owner.map(|(oslet, _)| oslet),
                recovering: false,
                read_only: !writable,
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

    /// Who changes a volume beside a mount; waits until its owner has said whether anybody does.
    pub(crate) fn sharing(&self, object: u64) -> Result<Sharing> {
        global::sharing(self.handle.region().control(), object)
    }

    /// Serves the root volume's mount inside the OSlet, whose descriptor init has passed out.
    /// Returns what the user should know.
    pub(crate) fn serve_mount(
        self: &Arc<Self>,
        device: OwnedFd,
        object: u64,
        sharing: Sharing,
        oslet: &OsletPlan,
    ) -> Result<Vec<String>> {
        let client = self.client(object)?;
        let mounted = MountedRoot::serve(device, Arc::clone(&client), sharing, oslet)?;
        if let Some(number) = mounted.connection {
            self.handle.set_fuse_connection(number, true)?;
        }
        let mut notes = vec![format!("{ROOT_MOUNT} is served over {}", mounted.transport())];
        *self.mounted.lock() = Some(mounted);
        if self.volumes.owner(object).is_some() {
            notes.extend(global::check_gtmp(&client)?);
        }
        Ok(notes)
    }

    /// The mount was made in the PID namespace whose first process is `init`.
    pub(crate) fn set_init(&self, init: u32) {
        if let Some(mounted) = &*self.mounted.lock() {
            mounted.set_init(init);
        }
    }

    /// Ends the mount's service, behind the end of the namespace that it was mounted in.
    pub(crate) fn end_mount(&self) -> Result<()> {
        let Some(mounted) = self.mounted.lock().take() else { return Ok(()) };
        let connection = mounted.connection;
        let ended = mounted.end();
        if let Some(number) = connection {
            self.handle.set_fuse_connection(number, false)?;
        }
        ended
    }

    /// When the whole cluster stops: waits until the others' mounts of the root volume have ended,
    /// which bring what was written through mappings to its owner. Only one waits: who owns it.
    pub(crate) fn await_users(&self) {
        if self.images.lock().iter().any(|served| served.root) {
            global::await_others(self.handle.region().control(), self.handle.oslet());
        }
    }

    /// Tells everybody that this incarnation serves the volume no more.
    fn disown(&self, object: usize) -> oslet::Result<()> {
        let control = self.handle.region().control();
        let mine = Some((self.handle.oslet(), self.handle.epoch()));
        loop {
            let now = control.owner(object)?;
            let predecessor = Some(self.handle.oslet());
            let none = Ownership { owner: None, predecessor, ..now };
            if now.owner != mine || control.change_owner(object, now, none)?.is_ok() {
                return Ok(());
            }
        }
    }

    /// Brings everything home and gives the images up. Whoever asks for something finds no owner.
    fn give_up_volumes(&self) -> std::result::Result<(), ServiceError> {
        let images = std::mem::take(&mut *self.images.lock());
        let mut first: Option<ServiceError> = None;
        let mut note = |error: Option<ServiceError>| {
            if let Some(error) = error {
                first.get_or_insert(error);
            }
        };
        for Served { object, .. } in &images {
            note(self.disown(*object).err().map(Into::into));
            self.volumes.remove(*object as u64);
        }
        // What has been asked for is done before anything is brought home.
        self.volumes.stop();
        *self.left.lock() = true;
        for Served { opened: Opened { image, owner, .. }, .. } in images {
            note(owner.stop().err().map(Into::into));
            let file = Arc::clone(image.device().file());
            note(image.close().err().map(Into::into));
            note(self.handle.remove_io_file(&*file).err().map(Into::into));
        }
        first.map_or(Ok(()), Err)
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
        let left = self.left.lock();
        if *left {
            return;
        }
        if let Err(error) = self.volumes.forget_holder(who, epoch) {
            eprintln!("what {who:?} held open cannot be removed: {error}");
        }
    }

    /// Only own frames are ever linked here.
    fn release(&self, _: ParticipantId, _: Epoch) {}

    fn leave(&self, _: bool) -> std::result::Result<(), ServiceError> {
        let mounted = self.end_mount().map_err(ServiceError::from);
        let given_up = self.give_up_volumes();
        mounted.and(given_up)
    }

    fn describe(&self) -> Vec<Detail> {
        let describe = |served: &Served| {
            let (used, budget) = served.opened.owner.usage();
            let frame = oslet::limits::FRAME_SIZE as u64;
            let access = match &served.opened.read_only {
                Some(why) => format!("read-only ({why})"),
                None => "read-write".into(),
            };
            Detail {
                name: format!("volume {}", served.name),
                value: format!(
                    "{}, {access}, {} cached of at most {}",
                    served.opened.image.path().display(),
                    oslet::config::show_size(used as u64 * frame),
                    oslet::config::show_size(budget as u64 * frame),
                ),
            }
        };
        let mut details: Vec<_> = self.images.lock().iter().map(describe).collect();
        if let Some(mounted) = &*self.mounted.lock() {
            details.push(Detail { name: ROOT_MOUNT.into(), value: mounted.describe() });
        }
        details
    }

    fn serves(&self) -> (u32, u32) {
        let count = self.images.lock().len() as u32;
        (count, count)
    }
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
