//! Processes of a cluster are killed or stopped at random while all OSlets read: the others go on,
//! the dead come back, and in the end nothing is left.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tests::cluster::{Census, Cluster, processes_of};
use tests::fsdiff::Image;
use tests::kernel;
use tests::load::{self, KINDS, Kind, Random, WRONG, Worker, died_of, signal};

const OSLETS: usize = 3;
/// The OSlet that owns the volume.
const OWNER: usize = 0;
/// How long it may take until all OSlets serve again: a stopped one is first suspected.
const BACK: Duration = Duration::from_secs(30);
/// How long a system call may be held up by its owner's death before it counts as hung.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a read of what is not cached may take while its owner dies, to end with data or EIO:
/// readers wait so long for an owner, behind the suspicion of one that does not answer.
const UNCACHED: Duration =
    Duration::from_secs(cfs::limits::OWNER_WAIT.as_secs() + SUSPICION.as_secs() + 3);
/// A runtime that only starves is suspected after this time.
const SUSPICION: Duration = Duration::from_secs(5);
/// How long something is stopped that goes on.
const PAUSE: Duration = Duration::from_millis(200);
/// Clients that are stopped at a time.
const STOPPED: usize = 3;
/// What a cluster of this test may take at most, whatever was killed before.
fn bounds() -> Census {
    // A mount has a thread and a descriptor for each CPU.
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Census {
        namespaces: OSLETS,
        groups: OSLETS,
        descriptors: 64 + 2 * cpus,
        // The control page, the runtimes, and the clients: those of the load and those stopped.
        segments: 1 + OSLETS + OSLETS + STOPPED,
        // With those that write: two for the journal, three for writeback and what is done behind
        // requests, four for the changes and syncs of others, one that waits for holders to come
        // back; and those that wait for owners.
        threads: 29 + 4 * cpus,
        private_kib: 16 << 10,
    }
}

/// What a round does harm to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Victim {
    Runtime,
    StoppedRuntime,
    Init,
    StoppedInit,
    /// `oslet run`.
    Command,
    StoppedCommand,
    /// What it started.
    Program,
    StoppedProgram,
    Client,
    /// It holds pages, and stays stopped.
    StoppedClient,
    Launcher,
}

impl Victim {
    /// Half of the rounds end an OSlet.
    fn random(random: &mut Random) -> Self {
        const ALL: [Victim; 16] = [
            Victim::Runtime,
            Victim::Runtime,
            Victim::Runtime,
            Victim::Runtime,
            Victim::StoppedRuntime,
            Victim::StoppedRuntime,
            Victim::Init,
            Victim::Init,
            Victim::StoppedInit,
            Victim::Command,
            Victim::StoppedCommand,
            Victim::Program,
            Victim::StoppedProgram,
            Victim::Client,
            Victim::Client,
            Victim::StoppedClient,
        ];
        ALL[random.below(ALL.len())]
    }

    /// Whether the whole OSlet ends.
    fn ends_oslet(self) -> bool {
        matches!(self, Self::Runtime | Self::StoppedRuntime | Self::Init)
    }
}

fn image(cluster: &Cluster, fresh_files: usize) -> Result<()> {
    let tree = cluster.path("tree");
    load::make(&tree, fresh_files)?;
    Image::make(&cluster.path("disk.img"), 64, "-t ext4", Some(&tree)).map(drop)
}

struct Rounds<'a> {
    cluster: &'a Cluster,
    /// The program `oslet-load`, by a path of this cluster.
    load: String,
    /// Of each OSlet those of all kinds.
    workers: Vec<Vec<Worker>>,
    stopped: Vec<Worker>,
    random: Random,
    harmed: BTreeMap<Victim, u32>,
    /// How uncached reads ended while somebody died.
    reads: BTreeMap<&'static str, u32>,
    longest: Duration,
    /// Maps that got SIGBUS while the owner was dead.
    faults: u32,
    fresh: usize,
    most: Census,
}

impl<'a> Rounds<'a> {
    fn new(cluster: &'a Cluster, seed: u64) -> Result<Self> {
        let load = cluster.path("oslet-load");
        fs::copy(env!("CARGO_BIN_EXE_oslet-load"), &load)?;
        let mut rounds = Self {
            cluster,
            load: load.to_str().context("temporary directory")?.to_owned(),
            workers: Vec::new(),
            stopped: Vec::new(),
            random: Random(seed | 1),
            harmed: BTreeMap::new(),
            reads: BTreeMap::new(),
            longest: Duration::ZERO,
            faults: 0,
            fresh: 0,
            most: Census::default(),
        };
        for oslet in 0..OSLETS {
            let workers = KINDS.iter().map(|&kind| rounds.worker(oslet, kind));
            let workers = workers.collect::<Result<_>>()?;
            rounds.workers.push(workers);
        }
        Ok(rounds)
    }

    fn worker(&mut self, oslet: usize, kind: Kind) -> Result<Worker> {
        let seed = self.random.below(1 << 30);
        Worker::start(self.cluster, &self.load, oslet, kind, seed)
    }

    fn round(&mut self) -> Result<()> {
        let before = self.cluster.epochs()?;
        let oslet = self.random.below(OSLETS);
        let victim = Victim::random(&mut self.random);
        *self.harmed.entry(victim).or_default() += 1;
        let what = || format!("{victim:?} of o{oslet}");
        self.harm(victim, oslet).with_context(what)?;
        let owner_dies = victim.ends_oslet() && oslet == OWNER;
        self.survivors_read(oslet, owner_dies).with_context(what)?;
        self.all_back(&before, victim.ends_oslet().then_some(oslet)).with_context(what)?;
        self.load_goes_on(victim.ends_oslet().then_some(oslet), owner_dies).with_context(what)?;
        (0..OSLETS).try_for_each(|other| self.any_file(other)).with_context(what)?;
        self.none_hangs().with_context(what)?;
        self.count().with_context(what)
    }

    fn harm(&mut self, victim: Victim, oslet: usize) -> Result<()> {
        let state = self.cluster.state(oslet)?.context("no state")?;
        let worker = self.random.below(KINDS.len());
        let of = |worker: &Worker| (worker.run(), worker.program());
        let (run, program) = of(&self.workers[oslet][worker]);
        let client = KINDS.iter().position(|kind| *kind == Kind::Client).context("no client")?;
        match victim {
            Victim::Runtime => signal(state.runtime.pid, Signal::KILL),
            Victim::StoppedRuntime => signal(state.runtime.pid, Signal::STOP),
            Victim::Init => signal(state.init.pid, Signal::KILL),
            // What is entered needs no init.
            Victim::StoppedInit => pause(state.init.pid),
            Victim::Command => self.end(oslet, worker, run),
            Victim::StoppedCommand => pause(run),
            Victim::Program => self.end(oslet, worker, program),
            Victim::StoppedProgram => {
                self.workers[oslet][worker].stop()?;
                std::thread::sleep(PAUSE);
                self.workers[oslet][worker].go_on()
            }
            Victim::Client => {
                let (_, program) = of(&self.workers[oslet][client]);
                self.end(oslet, client, program)
            }
            Victim::StoppedClient => {
                self.workers[oslet][client].stop()?;
                let another = self.worker(oslet, Kind::Client)?;
                self.stopped.push(std::mem::replace(&mut self.workers[oslet][client], another));
                if self.stopped.len() > STOPPED {
                    let mut oldest = self.stopped.remove(0);
                    signal(oldest.program(), Signal::KILL)?;
                    oldest.wait(ANSWER)?;
                }
                Ok(())
            }
            Victim::Launcher => bail!("not in a round"),
        }
    }

    /// Kills a worker, or its command, and starts another.
    fn end(&mut self, oslet: usize, worker: usize, pid: u32) -> Result<()> {
        signal(pid, Signal::KILL)?;
        let ended = &mut self.workers[oslet][worker];
        let status = ended.wait(ANSWER)?;
        ensure!(died_of(status, Signal::KILL), "{:?}: {status} {}", ended.kind, ended.said());
        let kind = ended.kind;
        self.workers[oslet][worker] = self.worker(oslet, kind)?;
        Ok(())
    }

    /// All survivors at once: what is cached at once, and a file that nobody has read.
    fn survivors_read(&mut self, oslet: usize, owner_dies: bool) -> Result<()> {
        let survivors: Vec<usize> = (0..OSLETS).filter(|other| *other != oslet).collect();
        let mut reads = Vec::new();
        for &other in &survivors {
            let number = load::fresh(self.fresh);
            self.fresh += 1;
            let path = self.cluster.inside(other, &format!("/global/{}", load::path(number)))?;
            let read = move || {
                let start = Instant::now();
                let read = fs::read(path);
                (number, read, start.elapsed())
            };
            reads.push((other, std::thread::spawn(read)));
        }
        survivors.iter().try_for_each(|&other| {
            self.cached(other).with_context(|| format!("o{other}, what is cached"))
        })?;
        for (other, read) in reads {
            let read = answer(move || read.join()).context("an uncached read")?;
            let (number, read, took) = read.ok().context("an uncached read: panic")?;
            ensure!(took < UNCACHED, "o{other}: an uncached read took {took:?}");
            self.longest = self.longest.max(took);
            let how = match read {
                Ok(found) => {
                    ensure!(found == load::contents(number), "o{other}: fresh: wrong bytes");
                    "data"
                }
                Err(error) if owner_dies && error.raw_os_error() == Some(EIO) => "EIO",
                Err(error) => bail!("o{other}: an uncached read: {error}"),
            };
            *self.reads.entry(how).or_default() += 1;
        }
        Ok(())
    }

    /// Workers of survivors are still there; those of the dead ended with it and begin again.
    fn load_goes_on(&mut self, dead: Option<usize>, owner_dies: bool) -> Result<()> {
        for oslet in 0..OSLETS {
            for index in 0..KINDS.len() {
                let worker = &mut self.workers[oslet][index];
                let kind = worker.kind;
                let status = match worker.ended()? {
                    None if dead == Some(oslet) => worker.wait(ANSWER)?,
                    None => continue,
                    Some(status) => status,
                };
                let said = worker.said();
                let what = format!("{kind:?} of o{oslet}: {status} {said}");
                ensure!(status.code() != Some(i32::from(WRONG)), "{what}");
                if dead != Some(oslet) {
                    // Its page was not cached, and nobody served it in time.
                    let fault = kind == Kind::Map && died_of(status, Signal::BUS);
                    ensure!(fault && owner_dies, "{what}");
                    self.faults += 1;
                }
                self.workers[oslet][index] = self.worker(oslet, kind)?;
            }
        }
        // With their OSlet, or because they held too much for too long.
        let stopped = std::mem::take(&mut self.stopped);
        let (ended, stopped) = stopped.into_iter().partition(Worker::program_ended);
        self.stopped = stopped;
        ended.into_iter().try_for_each(|mut worker: Worker| {
            // `oslet run` was stopped with it.
            worker.wait(ANSWER).map(drop)
        })
    }

    /// What an OSlet has cached it reads at once, whoever is dead.
    fn cached(&self, oslet: usize) -> Result<()> {
        let path = self.cluster.inside(oslet, &format!("/global/{}", load::CACHED))?;
        let start = Instant::now();
        let found = answer(move || fs::read(path))?;
        ensure!(found? == load::cached(), "wrong bytes");
        ensure!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
        Ok(())
    }

    /// Any file, once all serve.
    fn any_file(&mut self, oslet: usize) -> Result<()> {
        let number = self.random.below(load::FILES);
        let name = load::path(number);
        let path = self.cluster.inside(oslet, &format!("/global/{name}"))?;
        let found = answer(move || fs::read(path))?.with_context(|| format!("o{oslet}: {name}"))?;
        ensure!(found == load::contents(number), "o{oslet}: {name}: wrong bytes");
        Ok(())
    }

    /// Nothing of the dead is left, once all serve.
    fn count(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let census = Census::take(self.cluster, OSLETS)?;
            match census.within(bounds()) {
                Ok(()) => {
                    self.most = self.most.most(census);
                    return Ok(());
                }
                // What was just killed goes by and by.
                Err(error) => ensure!(Instant::now() < end, "{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All serve, and who died does so under a later epoch.
    fn all_back(&self, before: &[u64], dead: Option<usize>) -> Result<()> {
        let end = Instant::now() + BACK;
        loop {
            let now = self.cluster.epochs()?;
            let later = |(oslet, (now, before)): (usize, (&u64, &u64))| match dead {
                Some(dead) if dead == oslet => now > before,
                _ => now == before,
            };
            let mut up = now.iter().zip(before).enumerate().all(later);
            for (oslet, epoch) in now.iter().enumerate() {
                let state = self.cluster.state(oslet)?;
                up &= state.is_some_and(|state| u64::from(state.epoch) == *epoch);
            }
            if up {
                return Ok(());
            }
            if Instant::now() >= end {
                let all: Vec<_> = self.processes()?.into_iter().map(load::whereabouts).collect();
                bail!("epochs {before:?}, now {now:?}\n{}", all.concat());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The cluster's processes, and those inside its OSlets.
    fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = processes_of(self.cluster.own_program());
        let own = format!("/oslet/{}/", self.cluster.name());
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if groups.contains(&own) {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// No process of the cluster stays where no signal reaches it.
    fn none_hangs(&self) -> Result<()> {
        for pid in self.processes()? {
            let start = Instant::now();
            // The same wait for so long, on one system call.
            while let Some(state) = stuck(pid) {
                ensure!(start.elapsed() < ANSWER, "process {pid} hangs: {state}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// A process's line, if it waits where only a kill reaches it, or nothing does.
fn stuck(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    (state == 'D').then_some(stat)
}

/// The result of something that may hang, which is then an error.
fn answer<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Nobody waits for it any more when it is late.
        let _ = done.send(work());
    });
    wait.recv_timeout(ANSWER).with_context(|| format!("no answer in {} s", ANSWER.as_secs()))
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

fn pause(pid: u32) -> Result<()> {
    signal(pid, Signal::STOP)?;
    std::thread::sleep(PAUSE);
    signal(pid, Signal::CONT)
}

#[test]
fn readers_go_on_while_processes_die() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let rounds = if std::env::var_os("OSLET_FULL").is_some() { 100 } else { 15 };
    let rounds = std::env::var("OSLET_ROUNDS").map_or(Ok(rounds), |rounds| rounds.parse())?;
    let seed = std::env::var("OSLET_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) | 1 << 40);
    println!("seed: OSLET_SEED={seed}");
    let cluster = Cluster::new()?;
    image(&cluster, rounds * OSLETS)?;
    cluster.configure(OSLETS, "disk.img")?;
    cluster.ok(&["up", "-d"])?;
    let mut all = Rounds::new(&cluster, seed)?;
    (0..OSLETS).try_for_each(|oslet| all.cached(oslet))?;
    all.count().context("before the first round")?;
    let mut connections = cluster.connections(OSLETS)?;
    for number in 0..rounds {
        let told = || {
            let log = fs::read_to_string(cluster.directory().join("log")).unwrap_or_default();
            format!("round {number}, OSLET_SEED={seed}\n{log}")
        };
        all.round().with_context(told)?;
        connections.extend(cluster.connections(OSLETS)?);
    }
    // Nobody needs the launcher.
    signal(cluster.launcher().context("no launcher")?, Signal::KILL)?;
    *all.harmed.entry(Victim::Launcher).or_default() += 1;
    for oslet in 0..OSLETS {
        all.cached(oslet)?;
        all.any_file(oslet)?;
    }
    cluster.ok(&["down"])?;
    // All of them ended with their OSlets.
    for worker in all.workers.iter_mut().flatten().chain(&mut all.stopped) {
        worker.wait(Duration::from_secs(10)).context("oslet run, behind oslet down")?;
    }
    ensure!(processes_of(all.load.as_ref()).is_empty(), "oslet-load runs behind oslet down");
    connections.sort_unstable();
    connections.dedup();
    cluster.assert_gone(&connections)?;
    kernel::assert_clean(&cluster.path("disk.img"))?;
    let Rounds { harmed, reads, longest, faults, most, .. } = &all;
    println!("ran: {rounds} rounds of kill under load, OSLET_SEED={seed}; harmed: {harmed:?}");
    println!(
        "ran: {} uncached reads while somebody died: {reads:?}, the longest {longest:.1?}, at most \
         {UNCACHED:?}; {faults} SIGBUS of maps",
        reads.values().sum::<u32>()
    );
    println!("ran: {rounds} counts of what the cluster takes: at most {most:?}");
    Ok(())
}

#[test]
fn after_a_kill_of_everything_the_next_start_cleans_up() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let cluster = Cluster::new()?;
    image(&cluster, 0)?;
    cluster.configure(2, "disk.img")?;
    let mut connections = Vec::new();
    for down in [false, true] {
        cluster.ok(&["up", "-d"])?;
        connections.extend(cluster.connections(2)?);
        for pid in processes_of(cluster.own_program()) {
            signal(pid, Signal::KILL)?;
        }
        if down {
            cluster.ok(&["down"])?;
            cluster.assert_gone(&connections)?;
        }
    }
    // Twice in a row, as if nothing had been.
    for _ in 0..2 {
        cluster.ok(&["up", "-d"])?;
        ensure!(cluster.epochs()? == [1, 1], "epochs {:?}", cluster.epochs()?);
        ensure!(cluster.ok(&["run", "o1", "--", "ls", "/global"])?.contains("cached"));
        connections.extend(cluster.connections(2)?);
        cluster.ok(&["down"])?;
        cluster.assert_gone(&connections)?;
    }
    kernel::assert_clean(&cluster.path("disk.img"))
}
