//! The process of one OSlet's runtime, started by the launcher.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cfs::mount::Sharing;
use oslet::cgroup::{Cgroup, Hierarchies};
use oslet::config;
use oslet::container::{self, Global, Init, Program, Tmp};
use oslet::control_socket::Connection;
use oslet::launcher::{self, Start};
use oslet::plan::{OsletPlan, Plan};
use oslet::runtime::{Handle, Runtime, Service};
use oslet::state::State;
use oslet::sys::numa::{self, Policy};
use oslet::wire::Message;

use crate::volumes::{GTMP, VolumeService, root};

/// The argument by which the program knows that it is a runtime.
pub(crate) const COMMAND: &str = "__runtime";
/// The plan's file in the cluster's directory.
pub(crate) const PLAN: &str = "plan.json";

/// How long what runs inside may take to end when it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const FAILED: u8 = 2;

pub(crate) fn main() -> ExitCode {
    // It was run by way of /proc/self/exe; without the name it is no worse a runtime.
    let _ = rustix::thread::set_name(c"oslet-runtime");
    let mut start = match launcher::accept_start(std::io::stdin()) {
        Ok(start) => start,
        Err(error) => {
            eprintln!("{COMMAND} is for the launcher alone: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let again = start.launcher.duplicate();
    match serve(&mut start).and_then(|(serving, notes)| serving.run(start.launcher, notes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = crate::output::causes(&error);
            eprintln!("{why}");
            // Without a launcher the log has it.
            let _ = again.and_then(|mut launcher: Connection| {
                launcher.send(&Message::Refused { why }, Vec::new())
            });
            ExitCode::from(FAILED)
        }
    }
}

/// A runtime with the OSlet's inside.
struct Serving {
    runtime: Runtime,
    inside: Inside,
}

struct Inside {
    cgroup: Cgroup,
    init: Init,
    directory: PathBuf,
    volumes: Arc<VolumeService>,
}

fn serve(start: &mut Start) -> anyhow::Result<(Serving, Vec<String>)> {
    let path = start.spec.directory.join(PLAN);
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let oslet = plan.oslets.get(start.spec.oslet).context("the plan has no such OSlet")?;
    let mut notes = bind_self(oslet);
    let spec = start.spec.clone();
    let control = start.control.file().try_clone()?;
    let control = oslet::region::ControlPage::open(control)?;
    // What an earlier incarnation has left would lead commands into an inside that is gone.
    State::remove(&spec.directory.join(&oslet.name))?;
    let runtime = Runtime::join(spec, control, Some(start.lock.try_clone()?))?;
    let inside =
        VolumeService::start(&plan, oslet, runtime.handle()).and_then(|(service, more)| {
            notes.extend(more);
            // Before the mount: others ask as soon as they know who owns a volume.
            runtime.add_service(Arc::clone(&service) as Arc<dyn Service>);
            service.announce()?;
            make_inside(&plan, oslet, runtime.handle(), service)
        });
    match inside {
        Ok((inside, more)) => {
            notes.extend(more);
            Ok((Serving { runtime, inside }, notes))
        }
        Err(error) => {
            // The first error is the one to report.
            let _ = runtime.leave(false);
            Err(error)
        }
    }
}

/// What /global is: the root volume through FUSE, where the machine lets us.
fn global(plan: &Plan, sharing: Option<Sharing>) -> Global {
    match sharing {
        Some(sharing) => Global::Fuse {
            source: format!("oslet:{}", plan.cluster),
            subtype: "cfs".into(),
            options: "allow_other,default_permissions".into(),
            read_only: sharing == Sharing::ReadOnly,
        },
        None => Global::Empty,
    }
}

/// The runtime stays on its OSlet's CPUs and takes memory from its nodes. It is not in its control
/// groups: those are killed when the OSlet's inside is ended.
fn bind_self(oslet: &OsletPlan) -> Vec<String> {
    let cpus: Vec<u32> = oslet.cpus.iter().collect();
    let nodes: Vec<u32> = oslet.nodes.iter().collect();
    let mut notes = Vec::new();
    if let Err(error) = numa::set_affinity(&cpus) {
        notes.push(format!("the runtime runs on any CPU: {error}"));
    }
    if let Err(error) = numa::set_policy(Policy::PreferMany, &nodes)
        && error.raw_os_error() != Some(rustix::io::Errno::NOSYS.raw_os_error())
    {
        notes.push(format!("the runtime takes memory from any node: {error}"));
    }
    notes
}

fn make_inside(
    plan: &Plan,
    oslet: &OsletPlan,
    handle: &Handle,
    volumes: Arc<VolumeService>,
) -> anyhow::Result<(Inside, Vec<String>)> {
    let hierarchies = Hierarchies::detect()?;
    let (cpus, nodes) = (&oslet.cpus, &oslet.allowed_nodes());
    let created = Cgroup::create(&hierarchies, &plan.cluster, &oslet.name, cpus, nodes)?;
    let (cgroup, mut notes) = (created.cgroup, created.warnings);
    let directory = handle.spec().directory.join(&oslet.name);
    let mounted =
        root(plan).map(|object| Ok::<_, anyhow::Error>((object, volumes.sharing(object)?)));
    let mounted = mounted.transpose()?;
    let mut start = || -> anyhow::Result<Init> {
        handle.set_groups(cgroup.groups(), cgroup.kill_descriptor()?)?;
        let root = rustix::process::geteuid().is_root();
        let spec = container::Spec {
            cluster: plan.cluster.clone(),
            oslet: oslet.name.clone(),
            cpus: oslet.cpus.clone(),
            nodes: nodes.clone(),
            ltmp_nodes: oslet.nodes.clone(),
            bound: created.bound,
            groups: cgroup.groups().to_vec(),
            user_namespace: !root,
            tmp: match oslet.tmp {
                config::Tmp::Host => Tmp::Host,
                config::Tmp::Global => Tmp::Global,
                config::Tmp::Local => Tmp::Local,
            },
            ltmp_bytes: oslet.memory / 4,
            directory: handle.spec().directory.clone(),
            devices: Vec::new(),
            global: global(plan, mounted.map(|(_, sharing)| sharing)),
            gtmp: PathBuf::from(GTMP),
        };
        let mut said = Vec::new();
        let serve = |device| {
            let Some((root, sharing)) = mounted else { return Ok(()) };
            let served = volumes.serve_mount(device, root, sharing, oslet);
            said = served.map_err(|e| oslet::Error::Invalid(format!("/global: {e:#}")))?;
            Ok(())
        };
        let init = container::start(&Program::default(), &spec, serve)?;
        volumes.set_init(init.id().pid);
        notes.append(&mut said);
        notes.extend_from_slice(init.notes());
        let user = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        State {
            cluster: plan.cluster.clone(),
            oslet: oslet.name.clone(),
            index: u32::try_from(handle.oslet().index())?,
            epoch: handle.epoch().0,
            runtime: oslet::procfs::ProcessId::own()?,
            init: init.id(),
            cpus: oslet.cpus.clone(),
            nodes: nodes.clone(),
            bound: created.bound,
            cgroups: cgroup.groups().to_vec(),
            only_user: (!root).then_some((user, group)),
        }
        .write(&directory)?;
        Ok(init)
    };
    match start() {
        Ok(init) => Ok((Inside { cgroup, init, directory, volumes }, notes)),
        Err(error) => {
            // As far as it goes: the first error is the one to report.
            let _ = cgroup.kill(STOP_LIMIT).and_then(|()| cgroup.remove(STOP_LIMIT));
            Err(error)
        }
    }
}

impl Inside {
    fn end(self) -> anyhow::Result<()> {
        State::remove(&self.directory)?;
        self.init.stop(STOP_LIMIT)?;
        drop(self.init);
        self.cgroup.kill(STOP_LIMIT)?;
        self.volumes.end_mount()?;
        Ok(self.cgroup.remove(STOP_LIMIT)?)
    }
}

impl Serving {
    /// Serves until it is asked to stop, then leaves. An inside that ends by itself is an error:
    /// the launcher starts the OSlet again.
    fn run(self, launcher: Connection, notes: Vec<String>) -> anyhow::Result<()> {
        let Self { runtime, inside } = self;
        let init = inside.init.id().open()?.context("init has ended at once")?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new().name("init".into()).spawn(move || {
            while !init.wait(Duration::from_secs(3600)) {}
            handle.stop(false);
        })?;
        if let Err(error) = runtime.ready(launcher, notes) {
            eprintln!("the launcher is gone: {error}");
        }
        let cluster = runtime.wait();
        let died = inside.init.process().is_dead();
        let volumes = Arc::clone(&inside.volumes);
        let ended = inside.end();
        if cluster {
            volumes.await_users();
        }
        for note in runtime.leave(cluster)? {
            eprintln!("{note}");
        }
        ended?;
        anyhow::ensure!(!died, "its init has ended; all that ran inside has ended with it");
        Ok(())
    }
}
