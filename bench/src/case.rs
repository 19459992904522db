//! What is compared: one kind of work, and the sides that do it.

use std::time::Duration;

/// Does so many operations, checks what it got, and says how long they took.
pub type Batch = Box<dyn FnMut(u64) -> anyhow::Result<Duration>>;
/// Measures one value, in the unit of its case.
pub type Probe = Box<dyn FnMut() -> anyhow::Result<f64>>;

/// One contestant of a case.
pub enum Side {
    /// Counted operations, timed in batches whose size the runner chooses.
    Batch(Batch),
    /// A value measured as a whole: a share of a CPU, memory, a cold read.
    Probe(Probe),
    /// Not measured here, and why.
    Absent(String),
}

impl Side {
    /// A side that does `operations` and returns the time that they took.
    pub fn batch(run: impl FnMut(u64) -> anyhow::Result<Duration> + 'static) -> Self {
        Self::Batch(Box::new(run))
    }

    /// A side that measures one value.
    pub fn probe(run: impl FnMut() -> anyhow::Result<f64> + 'static) -> Self {
        Self::Probe(Box::new(run))
    }

    /// A side that is not measured, for a reason that the table shows.
    pub fn absent(why: impl Into<String>) -> Self {
        Self::Absent(why.into())
    }
}

/// What a figure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds an operation: less is better.
    Nanoseconds,
    /// 10^6 bytes a second: more is better. An operation moves so many bytes.
    Megabytes {
        /// Bytes of one operation.
        operation: u64,
    },
    /// Percent of one CPU: less is better.
    CpuPercent,
    /// Memory, as a multiple of the data: less is better.
    TimesData,
}

impl Unit {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Megabytes { .. } => "MB/s",
            Self::CpuPercent => "% CPU",
            Self::TimesData => "x data",
        }
    }

    /// Whether a larger figure is the better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Megabytes { .. })
    }

    /// The figure of `operations` that took `time`.
    pub fn figure(self, operations: u64, time: Duration) -> f64 {
        let operations = operations.max(1) as f64;
        let nanoseconds = (time.as_nanos() as f64).max(1.0);
        match self {
            Self::Megabytes { operation } => operations * operation as f64 * 1000.0 / nanoseconds,
            _ => nanoseconds / operations,
        }
    }
}

/// What ours is meant to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// So many times better than the peer.
    TimesPeer(f64),
    /// At most so many times worse than the limit.
    TimesLimit(f64),
    /// At most this figure.
    AtMost(f64),
    /// None is set: the row informs.
    None,
}

impl Target {
    /// As DESIGN's table writes it.
    pub fn text(self) -> String {
        match self {
            Self::TimesPeer(times) => format!(">= {times} x peer"),
            Self::TimesLimit(times) => format!("<= {times} x limit"),
            Self::AtMost(figure) => format!("<= {figure}"),
            Self::None => String::new(),
        }
    }

    /// Whether the figures reach it; `None` when a figure that it needs was not measured.
    pub fn met(
        self,
        unit: Unit,
        ours: f64,
        theirs: Option<f64>,
        limit: Option<f64>,
    ) -> Option<bool> {
        match self {
            Self::TimesPeer(times) => Some(better(unit, ours, theirs?) >= times),
            Self::TimesLimit(times) => Some(better(unit, limit?, ours) <= times),
            Self::AtMost(figure) => Some(ours <= figure),
            Self::None => None,
        }
    }
}

/// How many times better `one` is than `other`.
pub fn better(unit: Unit, one: f64, other: f64) -> f64 {
    if unit.more_is_better() { one / other } else { other / one }
}

/// Something that ours is compared with.
pub struct Peer {
    /// Its name in the table.
    pub name: &'static str,
    /// It at work.
    pub side: Side,
    /// What ours should reach beside it.
    pub target: Target,
}

/// One kind of work. Each peer makes a row; ours and the limit are measured once for all of them.
pub struct Case {
    /// The name of the work in the table.
    pub name: String,
    /// Of every figure of this case.
    pub unit: Unit,
    /// Our side.
    pub ours: Side,
    /// The sides that a user would have otherwise.
    pub peers: Vec<Peer>,
    /// What the hardware (or the kernel) cannot be beaten at.
    pub limit: Side,
    /// Most rounds that make sense: a value that takes seconds is not measured 15 times.
    pub max_rounds: u32,
    /// What must be known of all its figures; empty where nothing must.
    pub note: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_is_higher_whatever_the_unit() {
        assert_eq!(better(Unit::Nanoseconds, 10.0, 50.0), 5.0);
        assert_eq!(better(Unit::Megabytes { operation: 1 }, 50.0, 10.0), 5.0);
    }

    #[test]
    fn targets_need_their_figures() {
        let ns = Unit::Nanoseconds;
        assert_eq!(Target::TimesPeer(5.0).met(ns, 10.0, Some(50.0), None), Some(true));
        assert_eq!(Target::TimesPeer(5.1).met(ns, 10.0, Some(50.0), None), Some(false));
        assert_eq!(Target::TimesPeer(5.0).met(ns, 10.0, None, Some(1.0)), None);
        assert_eq!(Target::TimesLimit(1.5).met(ns, 15.0, None, Some(10.0)), Some(true));
        assert_eq!(Target::TimesLimit(1.5).met(ns, 16.0, None, Some(10.0)), Some(false));
        assert_eq!(Target::AtMost(1.0).met(Unit::CpuPercent, 1.5, None, None), Some(false));
    }

    #[test]
    fn figures_have_their_units() {
        let second = Duration::from_secs(1);
        assert_eq!(Unit::Nanoseconds.figure(1000, second), 1e6);
        assert_eq!(Unit::Megabytes { operation: 4096 }.figure(1000, second), 4.096);
    }
}
