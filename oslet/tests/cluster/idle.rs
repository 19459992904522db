//! What costs nothing when nobody does anything.

use std::time::{Duration, Instant};

use crate::parts::PART;
use crate::pins::Client;
use crate::running::Running;

/// What all threads of a process have used: nanoseconds of CPU, and how often they gave it up or
/// lost it.
#[derive(Clone, Copy)]
struct Used {
    ns: u64,
    switches: u64,
}

fn used(pid: u32) -> Used {
    let mut used = Used { ns: 0, switches: 0 };
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let first = read("schedstat");
        used.ns += first.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        let status = read("status");
        let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        used.switches += counts.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>();
    }
    assert!(used.ns > 0, "process {pid}: the kernel counts no CPU time");
    used
}

/// What each of those uses in the same while, as shares of one CPU and switches a second.
fn rates(pids: &[u32], time: Duration) -> Vec<(f64, f64)> {
    let start = Instant::now();
    let before: Vec<Used> = pids.iter().map(|pid| used(*pid)).collect();
    std::thread::sleep(time);
    let after = pids.iter().map(|pid| used(*pid));
    let seconds = start.elapsed().as_secs_f64();
    let rate = |(before, after): (&Used, Used)| {
        let ns = (after.ns - before.ns) as f64;
        (ns / 1e9 / seconds, (after.switches - before.switches) as f64 / seconds)
    };
    before.iter().zip(after).map(rate).collect()
}

#[test]
fn idle_oslets_and_clients_cost_next_to_nothing() {
    const OSLETS: usize = 8;
    let running = Running::start(OSLETS, &[(PART, "talk")]);
    // Every ring that there may be has carried something and is idle now.
    (1..OSLETS).for_each(|oslet| running.await_told(&format!("talked-{oslet}")));
    let clients = [Client::join(&running, "o0"), Client::join(&running, "o1")];
    std::thread::sleep(Duration::from_millis(500));
    let mut pids: Vec<u32> = (0..OSLETS).map(|o| running.record(o).process.pid).collect();
    pids.extend(clients.iter().map(|client| client.child.id()));
    let rates = rates(&pids, Duration::from_secs(3));
    let (oslets, clients_use) = rates.split_at(OSLETS);
    for (oslet, (cpu, switches)) in oslets.iter().enumerate() {
        println!("o{oslet}: {:.2} % of one CPU, {switches:.0} switches/s", cpu * 100.0);
        assert!(*cpu < 0.01, "o{oslet}: {:.2} % of one CPU", cpu * 100.0);
        // Two threads look about ten times a second, the serving one once.
        assert!(*switches < 60.0, "o{oslet}: {switches:.0} switches a second");
    }
    for (cpu, switches) in clients_use {
        println!("client: {:.3} % of one CPU, {switches:.1} switches/s", cpu * 100.0);
        assert!(*cpu < 0.001 && *switches < 5.0, "{cpu} of one CPU, {switches} switches/s");
    }
    drop(clients);
    running.stop();
}
