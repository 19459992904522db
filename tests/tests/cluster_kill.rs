//! Processes of a cluster are killed or stopped at random while all OSlets read: the others go on,
//! the dead come back, and in the end nothing is left.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tests::cluster::{Cluster, processes_of};
use tests::fsdiff::Image;
use tests::fsdiff::populate::pattern;
use tests::kernel;

const OSLETS: usize = 3;
/// How long it may take until all OSlets serve again: a stopped one is first suspected.
const BACK: Duration = Duration::from_secs(30);
/// How long a read may be held up by its owner's death. An error then is an answer too.
const ANSWER: Duration = Duration::from_secs(30);
/// A file that stays cached in every OSlet, and one that is read anew each time.
const SMALL: usize = 200_000;
const FILES: usize = 400;

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// What a round does harm to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Victim {
    Runtime,
    StoppedRuntime,
    Init,
    StoppedInit,
    Command,
    StoppedCommand,
    Launcher,
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
    match kill_process(pid, signal) {
        // It has died by another's end.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

fn image(cluster: &Cluster) -> Result<()> {
    let tree = cluster.path("tree");
    fs::create_dir(&tree)?;
    fs::write(tree.join("cached"), pattern(1, SMALL))?;
    for number in 0..FILES {
        let dir = tree.join(format!("dir-{}", number % 20));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("file-{number}")), pattern(number as u64 + 2, 20_000))?;
    }
    Image::make(&cluster.path("disk.img"), 64, "-t ext4", Some(&tree)).map(drop)
}

/// A reader inside an OSlet that never ends by itself: names, attributes, data.
fn reader(cluster: &Cluster, oslet: usize) -> Result<Child> {
    // It goes on after errors: reads may fail for a while.
    let script = "while :; do ls -lR /global >/dev/null 2>&1; cat /global/dir-*/* 2>/dev/null | \
                  cksum >/dev/null; cksum /global/cached >/dev/null 2>&1; sleep 0.02; done";
    let name = format!("o{oslet}");
    let mut command = cluster.command(&["run", &name, "--", "sh", "-c", script]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    Ok(command.spawn()?)
}

struct Round<'a> {
    cluster: &'a Cluster,
    readers: Vec<Child>,
    random: Random,
    counts: BTreeMap<Victim, u32>,
}

impl Round<'_> {
    fn run(&mut self) -> Result<()> {
        let before = self.cluster.epochs()?;
        let oslet = self.random.below(OSLETS);
        let victim = match self.random.below(8) {
            0..=2 => Victim::Runtime,
            3 => Victim::StoppedRuntime,
            4 => Victim::Init,
            5 => Victim::StoppedInit,
            6 => Victim::Command,
            _ => Victim::StoppedCommand,
        };
        *self.counts.entry(victim).or_default() += 1;
        self.harm(victim, oslet).with_context(|| format!("{victim:?} of o{oslet}"))?;
        let survivors = || (0..OSLETS).filter(|&other| other != oslet);
        let cached = |other| self.cached(other).with_context(|| format!("o{other}, cached"));
        survivors().try_for_each(cached).with_context(|| format!("{victim:?} of o{oslet}"))?;
        let ends = [Victim::Runtime, Victim::StoppedRuntime, Victim::Init].contains(&victim);
        self.all_back(&before, ends.then_some(oslet))
            .with_context(|| format!("{victim:?} of o{oslet}"))?;
        (0..OSLETS).try_for_each(|other| self.uncached(other))?;
        self.none_hangs()?;
        for oslet in 0..OSLETS {
            if self.readers[oslet].try_wait()?.is_some() {
                self.readers[oslet] = reader(self.cluster, oslet)?;
            }
        }
        Ok(())
    }

    fn harm(&mut self, victim: Victim, oslet: usize) -> Result<()> {
        let state = self.cluster.state(oslet)?.context("no state")?;
        let command = self.readers[oslet].id();
        match victim {
            Victim::Runtime => signal(state.runtime.pid, Signal::KILL),
            Victim::StoppedRuntime => signal(state.runtime.pid, Signal::STOP),
            Victim::Init => signal(state.init.pid, Signal::KILL),
            Victim::StoppedInit => {
                signal(state.init.pid, Signal::STOP)?;
                // What is entered needs no init.
                std::thread::sleep(Duration::from_millis(200));
                signal(state.init.pid, Signal::CONT)
            }
            Victim::Command => {
                signal(command, Signal::KILL)?;
                self.readers[oslet].wait()?;
                Ok(())
            }
            Victim::StoppedCommand => {
                signal(command, Signal::STOP)?;
                std::thread::sleep(Duration::from_millis(200));
                signal(command, Signal::CONT)
            }
            Victim::Launcher => bail!("not in a round"),
        }
    }

    /// What an OSlet has cached it reads at once, whoever is dead.
    fn cached(&self, oslet: usize) -> Result<()> {
        let path = self.cluster.inside(oslet, "/global/cached")?;
        let start = Instant::now();
        let found = answer(move || fs::read(path))?;
        ensure!(found? == pattern(1, SMALL), "wrong bytes");
        ensure!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
        Ok(())
    }

    /// Any file, once all serve.
    fn uncached(&mut self, oslet: usize) -> Result<()> {
        let number = self.random.below(FILES);
        let name = format!("/global/dir-{}/file-{number}", number % 20);
        let path = self.cluster.inside(oslet, &name)?;
        let found = answer(move || fs::read(path))?.with_context(|| format!("o{oslet}: {name}"))?;
        ensure!(found == pattern(number as u64 + 2, 20_000), "o{oslet}: {name}: wrong bytes");
        Ok(())
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
            let log = fs::read_to_string(self.cluster.directory().join("log")).unwrap_or_default();
            ensure!(Instant::now() < end, "epochs {before:?}, now {now:?}\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// No process of the cluster stays where no signal reaches it.
    fn none_hangs(&self) -> Result<()> {
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
        for pid in pids {
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

fn launcher(cluster: &Cluster) -> Result<u32> {
    let text = fs::read(cluster.directory().join("launcher.json"))?;
    let id: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(u32::try_from(id["pid"].as_u64().context("launcher.json")?)?)
}

#[test]
fn readers_go_on_while_processes_die() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let rounds = if std::env::var_os("OSLET_FULL").is_some() { 100 } else { 15 };
    let seed = std::env::var("OSLET_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) | 1 << 40);
    println!("seed: OSLET_SEED={seed}");
    let cluster = Cluster::new()?;
    image(&cluster)?;
    cluster.configure(OSLETS, "disk.img")?;
    cluster.ok(&["up", "-d"])?;
    let readers = (0..OSLETS).map(|oslet| reader(&cluster, oslet)).collect::<Result<_>>()?;
    let counts = BTreeMap::new();
    let mut round = Round { cluster: &cluster, readers, random: Random(seed), counts };
    for oslet in 0..OSLETS {
        round.cached(oslet)?;
    }
    let mut connections = cluster.connections(OSLETS)?;
    for number in 0..rounds {
        round.run().with_context(|| format!("round {number}, OSLET_SEED={seed}"))?;
        connections.extend(cluster.connections(OSLETS)?);
    }
    // Nobody needs the launcher.
    signal(launcher(&cluster)?, Signal::KILL)?;
    *round.counts.entry(Victim::Launcher).or_default() += 1;
    for oslet in 0..OSLETS {
        round.cached(oslet)?;
        round.uncached(oslet)?;
    }
    cluster.ok(&["down"])?;
    for mut reader in round.readers {
        // It ended with its OSlet.
        let end = Instant::now() + Duration::from_secs(10);
        while reader.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "oslet run is still there 10 s after oslet down");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    connections.sort_unstable();
    connections.dedup();
    cluster.assert_gone(&connections)?;
    kernel::assert_clean(&cluster.path("disk.img"))?;
    println!("ran: {rounds} rounds under load; harmed: {:?}", round.counts);
    Ok(())
}

#[test]
fn after_a_kill_of_everything_the_next_start_cleans_up() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let cluster = Cluster::new()?;
    image(&cluster)?;
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
