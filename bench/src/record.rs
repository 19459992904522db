//! Raw numbers and the machine's description, kept beside the figures.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::Samples;
use crate::row::Row;

#[derive(Serialize)]
struct Record<'a> {
    date: &'a str,
    machine: &'a Machine,
    rows: &'a [Row],
    samples: &'a [Samples],
}

/// Writes `dir/DATE-NAME.json`; an existing record is never overwritten.
pub(crate) fn keep(
    dir: &Path,
    name: &str,
    machine: &Machine,
    rows: &[Row],
    samples: &[Samples],
) -> anyhow::Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        !name.is_empty() && name.chars().all(plain),
        "--record {name}: use letters, digits, `-` and `_` only"
    );
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs();
    let date = date(seconds);
    let record = Record { date: &date, machine, rows, samples };
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(format!("{date}-{name}.json"));
    let file = fs::File::create_new(&path)
        .with_context(|| format!("{}: choose another --record name", path.display()))?;
    serde_json::to_writer_pretty(&file, &record).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The day in UTC, `2026-01-31`, by the civil-from-days algorithm of Howard Hinnant.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on: a leap day then ends its year.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(951_868_800), "2000-03-01");
        assert_eq!(date(1_798_761_599), "2026-12-31");
    }

    #[test]
    fn a_record_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::describe();
        let path = keep(dir.path(), "trial", &machine, &[], &[]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(json["machine"]["kernel"].is_string());
        assert!(keep(dir.path(), "trial", &machine, &[], &[]).is_err());
        assert!(keep(dir.path(), "../x", &machine, &[], &[]).is_err());
    }
}
