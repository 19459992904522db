//! The figures as rows, a table and JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::case::{Case, better};
use crate::measure::Samples;

/// One line of the result: some work, ours and one peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The work.
    pub name: String,
    /// Of `ours`, `theirs` and `limit`.
    pub unit: &'static str,
    /// Our figure; none where it was not measured.
    pub ours: Option<f64>,
    /// The peer's name.
    pub peer: String,
    /// The peer's figure.
    pub theirs: Option<f64>,
    /// What cannot be beaten.
    pub limit: Option<f64>,
    /// How many times better ours is than the peer: higher is better.
    pub ratio: Option<f64>,
    /// What ours is meant to reach.
    pub target: String,
    /// Whether it does.
    pub met: Option<bool>,
    /// Why a figure is missing, or what else must be known of it.
    pub note: String,
}

/// The rows of a measured case; `samples` as [`crate::measure::run`] returns them.
pub fn rows(case: &Case, samples: &[Samples]) -> Vec<Row> {
    let [ours, limit, peers @ ..] = samples else { return Vec::new() };
    let row = |(peer, theirs): (&crate::Peer, &Samples)| {
        let figures = (ours.median(), theirs.median(), limit.median());
        let ratio = figures.0.zip(figures.1).map(|(ours, theirs)| better(case.unit, ours, theirs));
        let met = figures.0.and_then(|o| peer.target.met(case.unit, o, figures.1, figures.2));
        let absent = [ours, theirs, limit].into_iter().filter_map(|side| {
            let why = side.absent.as_deref().filter(|why| !why.is_empty())?;
            Some(format!("{}: {why}", side.side))
        });
        let known = Some(case.note.to_owned()).filter(|note| !note.is_empty());
        Row {
            name: case.name.clone(),
            unit: case.unit.name(),
            ours: figures.0,
            peer: peer.name.to_owned(),
            theirs: figures.1,
            limit: figures.2,
            ratio,
            target: peer.target.text(),
            met,
            note: absent.chain(known).collect::<Vec<_>>().join("; "),
        }
    };
    case.peers.iter().zip(peers).map(row).collect()
}

/// The rows as an aligned table with a heading.
pub fn table(rows: &[Row]) -> String {
    let heading = ["work", "unit", "ours", "peer", "theirs", "limit", "ratio", "target", "met"]
        .map(str::to_owned);
    let mut lines = vec![heading];
    for row in rows {
        let met = row.met.map_or("-", |met| if met { "yes" } else { "NO" });
        lines.push([
            row.name.clone(),
            row.unit.to_owned(),
            number(row.ours),
            row.peer.clone(),
            number(row.theirs),
            number(row.limit),
            number(row.ratio),
            row.target.clone(),
            met.to_owned(),
        ]);
    }
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..9).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut cells = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Figures to the right, words to the left. Writing to a string does not fail.
            let _ = match column {
                2 | 4 | 5 | 6 => write!(cells, "{cell:>width$}  "),
                _ => write!(cells, "{cell:<width$}  "),
            };
        }
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    let mut notes: Vec<&str> = Vec::new();
    for note in rows.iter().flat_map(|row| row.note.split("; ")).filter(|note| !note.is_empty()) {
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

/// Three digits that count.
fn number(figure: Option<f64>) -> String {
    match figure {
        None => "-".to_owned(),
        Some(figure) if figure.abs() < 10.0 => format!("{figure:.2}"),
        Some(figure) if figure.abs() < 100.0 => format!("{figure:.1}"),
        Some(figure) => format!("{figure:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Peer, Side, Target, Unit};

    fn samples(side: &str, figure: Option<f64>) -> Samples {
        let absent = figure.is_none().then(|| "needs root".to_owned());
        let figures = figure.into_iter().collect();
        Samples { work: String::new(), side: side.to_owned(), operations: 1, figures, absent }
    }

    fn case(unit: Unit, target: Target) -> Case {
        let peer = Peer { name: "ext4", side: Side::absent(""), target };
        let (ours, limit) = (Side::absent(""), Side::absent(""));
        let (name, note) = ("read".to_owned(), "read twice");
        Case { name, unit, ours, peers: vec![peer], limit, max_rounds: 1, note }
    }

    #[test]
    fn a_row_has_the_fields_that_scripts_read() {
        let case = case(Unit::Nanoseconds, Target::TimesPeer(20.0));
        let all = [
            samples("ours", Some(40.0)),
            samples("limit", Some(21.0)),
            samples("ext4", Some(860.0)),
        ];
        let rows = rows(&case, &all);
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["ratio"], 21.5);
        assert_eq!(json[0]["met"], true);
        assert_eq!(json[0]["target"], ">= 20 x peer");
        assert_eq!(json[0]["note"], "read twice");
        for field in ["name", "unit", "ours", "peer", "theirs", "limit"] {
            assert!(!json[0][field].is_null(), "{field}");
        }
    }

    #[test]
    fn what_was_not_measured_is_empty_and_says_why() {
        let case = case(Unit::Nanoseconds, Target::TimesPeer(20.0));
        let all =
            [samples("ours", None), samples("limit", Some(21.0)), samples("ext4", Some(860.0))];
        let rows = rows(&case, &all);
        assert_eq!((rows[0].ours, rows[0].ratio, rows[0].met), (None, None, None));
        let table = table(&rows);
        assert!(table.contains("note: ours: needs root"), "{table}");
        assert!(table.contains("860"), "{table}");
    }
}
