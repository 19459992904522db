//! Counting what test programs say of themselves.
//!
//! Beside libtest's own result lines two lines of a test's output are understood:
//! `skipped: WHY` (the test could not do its work here) and `ran: COUNT WHAT` (how often it did).

use std::collections::BTreeSet;
use std::iter::Sum;

/// What a step's output says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Why tests were skipped, each reason once.
    pub(crate) reasons: BTreeSet<String>,
    /// What was run how often, as the tests put it.
    pub(crate) ran: Vec<String>,
}

impl Counts {
    /// Whether any test ran at all.
    pub(crate) fn tests(&self) -> usize {
        self.passed + self.failed + self.skipped
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.passed += one.passed;
            sum.failed += one.failed;
            sum.skipped += one.skipped;
            sum.reasons.extend(one.reasons);
            sum.ran.extend(one.ran);
            sum
        })
    }
}

/// Reads the output of any number of libtest programs, run with `--show-output`.
pub(crate) fn count(output: &str) -> Counts {
    let mut counts = Counts::default();
    let mut test = None;
    let mut skipped = BTreeSet::new();
    for line in output.lines() {
        let header = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = header {
            test = Some(name.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            counts.passed += field(result, "passed");
            counts.failed += field(result, "failed");
            counts.skipped += field(result, "ignored");
            // A test that says why it was skipped has passed as far as libtest knows.
            counts.passed = counts.passed.saturating_sub(skipped.len());
            counts.skipped += skipped.len();
            skipped.clear();
            test = None;
        } else if let Some(reason) = line.strip_prefix("skipped: ") {
            skipped.extend(test.clone());
            counts.reasons.insert(reason.trim().to_owned());
        } else if let Some(what) = line.strip_prefix("ran: ") {
            counts.ran.push(what.trim().to_owned());
        } else if line == "failures:" {
            // What a failed test printed before it failed makes it no skipped one.
            test = None;
        }
    }
    counts
}

/// The number before `name` in `ok. 3 passed; 0 failed; ...`.
fn field(result: &str, name: &str) -> usize {
    let parts = result.split([';', '.']).map(str::trim);
    let number = parts.filter_map(|part| part.strip_suffix(name)).next();
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test a ... ok

successes:

---- a stdout ----
skipped: needs root to mount
skipped: needs root to mount
---- b stdout ----
ran: 100 rounds of kill

successes:
    a
    b

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.0s
";

    #[test]
    fn results_are_summed_and_said_skips_are_no_passes() {
        let counts = count(OUTPUT);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (3, 2, 2));
        assert_eq!(counts.reasons.into_iter().collect::<Vec<_>>(), ["needs root to mount"]);
        assert_eq!(counts.ran, ["100 rounds of kill"]);
    }

    #[test]
    fn output_of_other_programs_counts_nothing() {
        assert_eq!(count("Compiling x\nskipped: y\n").tests(), 0);
    }
}
