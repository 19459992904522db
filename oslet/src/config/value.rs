//! Sizes and names as users write them.

use crate::limits;
use crate::topology::shorten;

/// Reads a size: a whole number of bytes, or one with K, M, G or T (powers of 1024; `iB` or `B` may
/// follow).
///
/// # Errors
/// What is wrong and what to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" if !unit.starts_with('i') => Some(0),
        "K" | "k" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let (Some(shift), false) = (shift, number.is_empty()) else {
        return Err(format!(
            "\"{}\" is not a size; write one like \"512M\" or \"4G\"",
            shorten(text)
        ));
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(0) => Err("a size of zero; write one like \"512M\" or \"4G\"".into()),
        Some(bytes) => Ok(bytes),
        None => Err(format!("\"{}\" is larger than any memory", shorten(text))),
    }
}

/// A size as people read it: `12.5 GiB`, rounded down.
pub fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => {
            let whole = bytes >> shift;
            let tenth = ((bytes - (whole << shift)) * 10) >> shift;
            format!("{whole}.{tenth} {unit}")
        }
        None => format!("{bytes} B"),
    }
}

/// Checks the name of a device or a volume, which becomes a file's name.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    check(name, "letters, digits, '-', '_' and '.'", |b| matches!(b, b'-' | b'_' | b'.'))
}

/// Checks the name of an OSlet or a cluster, which becomes a host's name and a directory's.
///
/// # Errors
/// What is wrong with it.
pub fn check_host_name(name: &str) -> Result<(), String> {
    check(name, "letters, digits and '-'", |b| b == b'-')?;
    match name.ends_with('-') {
        true => Err("must not end with '-'".into()),
        false => Ok(()),
    }
}

fn check(name: &str, allowed: &str, other: impl Fn(u8) -> bool) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.len() > limits::MAX_NAME {
        return Err(format!(
            "is {} bytes long; at most {} are allowed",
            name.len(),
            limits::MAX_NAME
        ));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || other(b)) {
        return Err(format!("may only have {allowed}"));
    }
    if !name.as_bytes()[0].is_ascii_alphanumeric() {
        return Err("must start with a letter or a digit".into());
    }
    Ok(())
}
