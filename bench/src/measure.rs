//! Taking the sides of a case in turn, and the median of what they show.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::case::{Case, Side, Unit};

/// Most operations of one batch, however short they are.
const MAX_OPERATIONS: u64 = 1 << 28;

/// All figures of one side, in the order in which they were measured.
#[derive(Debug, Clone, Serialize)]
pub struct Samples {
    /// The work; empty until [`Samples::named`].
    pub work: String,
    /// `ours`, `limit` or the peer's name.
    pub side: String,
    /// Operations of each batch; 0 where a value was measured as a whole.
    pub operations: u64,
    /// In the unit of the case.
    pub figures: Vec<f64>,
    /// Why there are none.
    pub absent: Option<String>,
}

impl Samples {
    /// The middle figure.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.figures.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }

    /// The same with the name of the work, for the record.
    pub fn named(mut self, work: &str) -> Self {
        work.clone_into(&mut self.work);
        self
    }
}

/// Measures a case: ours, its peers and the limit in turn, starting one further in each round.
///
/// The result has ours first, then the limit, then the peers in their order.
///
/// # Errors
/// What a side reports: it did not do its work.
pub fn run(case: &mut Case, rounds: u32, batch: Duration) -> anyhow::Result<Vec<Samples>> {
    let unit = case.unit;
    let rounds = rounds.min(case.max_rounds);
    let mut sides: Vec<(&str, &mut Side)> = vec![("ours", &mut case.ours)];
    sides.push(("limit", &mut case.limit));
    sides.extend(case.peers.iter_mut().map(|peer| (peer.name, &mut peer.side)));

    let mut samples = Vec::new();
    for (name, side) in &mut sides {
        samples.push(prepare(name, side, batch).with_context(|| (*name).to_owned())?);
    }
    let count = sides.len();
    for round in 0..rounds as usize {
        for at in (0..count).map(|turn| (turn + round) % count) {
            let (name, side) = &mut sides[at];
            let operations = samples[at].operations;
            let figure = once(side, unit, operations).with_context(|| (*name).to_owned())?;
            if let Some(figure) = figure {
                ensure!(figure.is_finite(), "{name}: the figure {figure} is no number");
                samples[at].figures.push(figure);
            }
        }
    }
    Ok(samples)
}

/// Warms a side up and finds how many operations fill a batch.
fn prepare(name: &str, side: &mut Side, batch: Duration) -> anyhow::Result<Samples> {
    let mut operations = 0;
    let mut absent = None;
    match side {
        Side::Batch(run) => {
            operations = 4;
            loop {
                let took = run(operations)?;
                if took >= batch || operations >= MAX_OPERATIONS {
                    break;
                }
                // Towards the goal in steps: the first operations are slower than the rest.
                let missing = batch.as_nanos() / took.as_nanos().max(1);
                let factor = u64::try_from(missing).unwrap_or(u64::MAX).clamp(2, 8);
                operations = (operations * factor).min(MAX_OPERATIONS);
            }
        }
        Side::Probe(_) => {}
        Side::Absent(why) => absent = Some(why.clone()),
    }
    let (side, work) = (name.to_owned(), String::new());
    Ok(Samples { work, side, operations, figures: Vec::new(), absent })
}

fn once(side: &mut Side, unit: Unit, operations: u64) -> anyhow::Result<Option<f64>> {
    match side {
        Side::Batch(run) => Ok(Some(unit.figure(operations, run(operations)?))),
        Side::Probe(run) => run().map(Some),
        Side::Absent(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Peer, Target};
    use std::cell::RefCell;
    use std::rc::Rc;

    fn samples(figures: &[f64]) -> Samples {
        let (work, side) = (String::new(), String::new());
        Samples { work, side, operations: 1, figures: figures.to_vec(), absent: None }
    }

    #[test]
    fn medians() {
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0, 1.0, 90.0]).median(), Some(3.0));
        assert_eq!(samples(&[4.0, 1.0, 2.0, 90.0]).median(), Some(3.0));
    }

    #[test]
    fn sides_take_turns_and_batches_grow_to_their_time() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let side = |name: &'static str, each: u64| {
            let order = Rc::clone(&order);
            Side::batch(move |operations| {
                order.borrow_mut().push(name);
                Ok(Duration::from_nanos(each * operations))
            })
        };
        let peer = Peer { name: "p", side: side("p", 100), target: Target::TimesPeer(5.0) };
        let (ours, limit) = (side("o", 10), Side::absent("none"));
        let unit = Unit::Nanoseconds;
        let (name, note, peers) = ("w".to_owned(), "", vec![peer]);
        let mut case = Case { name, unit, ours, peers, limit, max_rounds: 99, note };
        let found = run(&mut case, 4, Duration::from_micros(10)).unwrap();
        assert_eq!(found[0].figures, [10.0; 4]);
        assert_eq!(found[1].absent.as_deref(), Some("none"));
        assert_eq!(found[2].figures, [100.0; 4]);
        assert!(found[0].operations >= 1000 && found[2].operations >= 100);
        let order = order.borrow();
        let ours = order.iter().filter(|name| **name == "o").count();
        assert!(ours > 4, "the batch was calibrated before the rounds");
        assert_eq!(order[order.len() - 4..], ["p", "o", "o", "p"]);
    }

    #[test]
    fn a_side_that_failed_ends_the_run() {
        let ours = Side::batch(|_| anyhow::bail!("page 7 holds something else"));
        let (unit, limit) = (Unit::Nanoseconds, Side::absent(""));
        let (name, note, peers) = ("w".to_owned(), "", Vec::new());
        let mut case = Case { name, unit, ours, peers, limit, max_rounds: 9, note };
        let error = run(&mut case, 1, Duration::ZERO).unwrap_err();
        assert_eq!(format!("{error:#}"), "ours: page 7 holds something else");
    }
}
