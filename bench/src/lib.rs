//! Benchmarks: ours beside what it would otherwise use, in one run.
//!
//! A [`Case`] is one kind of work with a *side* for ours, for each peer and for the physical limit.
//! The [runner](measure) takes the sides in turn, many rounds, and compares medians, so that
//! whatever else the machine does meets all sides alike. A side checks the contents of what it
//! reads: nothing is measured that was not done.
//!
//! Peers and limits live in [`peers`] and [`through`]; ours is given from outside by [`Ours`], one
//! provider for each [`Work`].
#![forbid(unsafe_code)]

pub mod case;
pub mod cases;
pub mod changing;
pub mod corpus;
pub mod machine;
pub mod measure;
pub mod peers;
pub mod processes;
mod record;
pub mod row;
pub mod scratch;
pub mod through;
pub mod written;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};

pub use case::{Case, Peer, Side, Target, Unit};
pub use cases::{Native, Ours, Through, Work};
pub use changing::Change;
pub use machine::Cpus;
use machine::Machine;
pub use row::Row;
pub use scratch::Scratch;

/// Most rounds of a run that proves nothing.
const QUICK_ROUNDS: u32 = 3;

/// What to measure and how to say it.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Print the rows as a JSON array.
    #[arg(long)]
    pub json: bool,
    /// Measure only work whose name contains this text (may be repeated).
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Rounds in which all sides take turns; the medians count.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Small sizes and short rounds: tries everything, proves nothing.
    #[arg(long)]
    pub quick: bool,
    /// Where images and files to measure are made; 4 GiB are needed.
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Keep the rows, the raw numbers and the machine's description as DIR/DATE-NAME.json.
    #[arg(long, value_name = "NAME", conflicts_with = "quick")]
    pub record: Option<String>,
    /// Where records are kept.
    #[arg(long, value_name = "DIR", default_value = "bench/runs")]
    pub runs: PathBuf,
    /// List the work and measure nothing.
    #[arg(long)]
    pub list: bool,
}

/// What a side needs to know of the run.
#[derive(Debug)]
pub struct Environment {
    /// The processors that the measurement is pinned to.
    pub cpus: Cpus,
    /// Files, images and mounts that vanish with the run.
    pub scratch: Scratch,
    /// How long one batch should take.
    pub batch: Duration,
    /// Bytes of what is called small (fits the caches) and large (does not).
    pub sizes: Sizes,
}

/// How much is read at random, and how large the files read through mounts are.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// 8 MiB unless `--quick`.
    pub small: u64,
    /// 1 GiB unless `--quick`.
    pub large: u64,
    /// The file that is read or written in sequence, 256 MiB unless `--quick`.
    pub stream: u64,
    /// Files of the tree that is unpacked, 5120 unless `--quick`.
    pub tree: u64,
}

/// Measures what `options` ask for, with `ours` on our side, and prints it.
///
/// # Errors
/// A side that did not do its work: wrong contents, a peer that died, a mount that failed.
pub fn run(options: &Options, mut ours: Ours) -> anyhow::Result<Vec<Row>> {
    let wanted: Vec<Work> = Work::all().into_iter().filter(|work| options.wants(*work)).collect();
    if wanted.is_empty() {
        bail!("--only {}: no work has such a name; see --list", options.only.join(" "));
    }
    if options.list {
        for work in wanted {
            println!("{}", work.name());
        }
        return Ok(Vec::new());
    }
    let environment = options.environment()?;
    let machine = Machine::describe();
    let rounds = if options.quick { options.rounds.min(QUICK_ROUNDS) } else { options.rounds };
    let mut rows = Vec::new();
    let mut raw = Vec::new();
    for work in wanted {
        let name = work.name();
        if !options.json {
            eprintln!("measuring {name} ...");
        }
        let mut case = cases::build(work, &environment, &mut ours).with_context(|| name.clone())?;
        // Only now: a server started while a case is made shall be free to run anywhere.
        let _pinned = machine::Pinned::to(environment.cpus.first)?;
        let samples = measure::run(&mut case, rounds, environment.batch);
        let samples = samples.with_context(|| name.clone())?;
        rows.extend(row::rows(&case, &samples));
        raw.extend(samples.into_iter().map(|samples| samples.named(&name)));
    }
    if options.quick {
        for row in &mut rows {
            let mib = environment.sizes.large >> 20;
            let remark = format!("--quick: trial figures, and {mib} MiB where 1 GiB is named");
            row.note = format!("{}; {remark}", row.note).trim_start_matches("; ").to_owned();
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{}note: {}", row::table(&rows), machine.quiet());
    }
    if let Some(name) = &options.record {
        let path = record::keep(&options.runs, name, &machine, &rows, &raw)?;
        eprintln!("recorded in {}", path.display());
    }
    Ok(rows)
}

impl Options {
    fn wants(&self, work: Work) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| work.name().contains(text.as_str()))
    }

    fn environment(&self) -> anyhow::Result<Environment> {
        let quick = self.quick;
        const MIB: u64 = 1 << 20;
        let (large, stream, tree) = match quick {
            true => (32 * MIB, 16 * MIB, 320),
            false => (1024 * MIB, 256 * MIB, 5120),
        };
        Ok(Environment {
            cpus: Cpus::choose()?,
            scratch: Scratch::new(self.scratch.as_deref())?,
            batch: Duration::from_millis(if quick { 2 } else { 30 }),
            sizes: Sizes { small: 8 * MIB, large, stream, tree },
        })
    }
}
