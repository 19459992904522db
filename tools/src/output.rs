//! What commands print: text on standard output, JSON, tables.

use std::io::{self, Write};

use serde::Serialize;

/// Prints text as it is.
///
/// # Errors
/// If standard output cannot be written; see [`is_broken_pipe`].
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints a value as JSON for people and programs alike: indented, with a line feed at the end.
///
/// # Errors
/// If standard output cannot be written; see [`is_broken_pipe`].
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// An error and its causes on one line, without the causes that an error's own text ends with.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the reader of standard output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(broken)
}

/// Lines up columns under their heads, two blanks apart. Empty cells are shown as `-`.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let shown = |cell: &str| if cell.is_empty() { "-".to_owned() } else { cell.to_owned() };
    let mut lines = vec![heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()));
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("gone").context("x: open: gone").context("volume");
        assert_eq!(causes(&error), "volume: x: open: gone");
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["o0".into(), String::new()], vec!["größer".into(), "x".into()]];
        let expected = "NAME    CPUS\no0      -\ngrößer  x\n";
        assert_eq!(table(&["NAME", "CPUS"], &rows), expected);
    }
}
