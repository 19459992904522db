//! Sequences: made, run, compared, and made short when they fail.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

use super::Subject;
use super::generate::{Plan, Random, operation};
use super::model::{Model, Traits};
use super::op::{Op, Outcome};

/// What sequences are made of and run on.
pub trait Field {
    /// What the volumes are like.
    fn traits(&self) -> Traits;

    /// Whether they may be full: what is refused for that has changed nothing, and of a write there
    /// is as much as was answered.
    fn may_be_full(&self) -> bool {
        false
    }

    /// Subjects with nothing in them.
    ///
    /// # Errors
    /// They cannot be made: nothing is said about sequences.
    fn subjects(&mut self) -> Result<Vec<Box<dyn Subject>>>;
}

/// A sequence that was not answered as the model expects.
#[derive(Debug)]
pub struct Failure {
    /// What was done.
    pub ops: Vec<Op>,
    /// What was wrong.
    pub why: String,
}

impl Failure {
    /// The sequence, one operation a line, and what was wrong with it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, op) in self.ops.iter().enumerate() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{number:4} {op}");
        }
        text + &self.why
    }
}

/// Makes sequence number `seed`, of so many operations.
pub fn sequence(seed: u64, len: usize, traits: Traits, plan: &Plan) -> Vec<Op> {
    let mut random = Random::new(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let mut model = Model::new(traits);
    let mut ops = Vec::new();
    for _ in 0..len {
        let op = operation(&mut random, &model, plan);
        model.apply(&op);
        ops.push(op);
    }
    ops
}

/// Runs a sequence; a failure is how it differs.
///
/// # Errors
/// Subjects cannot be made or read at all.
pub fn run(field: &mut dyn Field, ops: &[Op]) -> Result<Option<String>> {
    let mut model = Model::new(field.traits());
    let mut subjects = field.subjects()?;
    for (number, op) in ops.iter().enumerate() {
        let before = field.may_be_full().then(|| model.clone());
        let expected = model.apply(op);
        for subject in &mut subjects {
            let found = subject.apply(op);
            if let Some(before) = before.as_ref().filter(|_| !expected.allows(&found))
                && let Some(less) = for_want_of_room(before, op, &found)
            {
                model = less;
            } else if !expected.allows(&found) {
                let name = subject.name().to_owned();
                let (expected, found) = (short(&expected), short(&found));
                return Ok(Some(format!(
                    "step {number}: {op}\n  model: {expected}\n  {name}: {found}"
                )));
            }
        }
    }
    let paths = model.paths();
    for subject in &mut subjects {
        if let Err(difference) = compare(&mut model, &mut **subject, &paths) {
            return Ok(Some(format!("at the end, {}: {difference:#}", subject.name())));
        }
    }
    Ok(None)
}

/// What the model is after an operation for which there was no room, or too little.
fn for_want_of_room(before: &Model, op: &Op, found: &Outcome) -> Option<Model> {
    let mut model = before.clone();
    match (op, found) {
        (_, Outcome::Error(errno)) if *errno == NOSPC => model.fail(op),
        (Op::Write { slot, offset, len, seed }, Outcome::Number(done)) if done < len => {
            model.apply(&Op::Write { slot: *slot, offset: *offset, len: *done, seed: *seed });
        }
        (Op::Copy { from, to, len }, Outcome::Number(done)) if done < len => {
            model.apply(&Op::Copy { from: *from, to: *to, len: *done });
        }
        _ => return None,
    }
    Some(model)
}

const NOSPC: i32 = rustix::io::Errno::NOSPC.raw_os_error();

/// Compares what is there at the end.
fn compare(model: &mut Model, subject: &mut dyn Subject, paths: &[(String, bool)]) -> Result<()> {
    let mut model = model.clone();
    same(&mut model, subject, &Op::List { path: ".".into() })?;
    for (path, is_dir) in paths.iter().filter(|(path, _)| path.len() < 1000) {
        let path = || path.clone();
        same(&mut model, subject, &Op::Stat { path: path() })?;
        same(&mut model, subject, &Op::ListXattr { path: path() })?;
        same(&mut model, subject, &Op::Readlink { path: path() })?;
        same(&mut model, subject, &Op::GetFlags { path: path() })?;
        if let Outcome::Names(names) = model.apply(&Op::ListXattr { path: path() }) {
            for (name, _) in names {
                same(&mut model, subject, &Op::GetXattr { path: path(), name })?;
            }
        }
        if *is_dir {
            same(&mut model, subject, &Op::List { path: path() })?;
        }
        if let Ok(expected) = model.contents(&path()) {
            let found = subject.contents(&path()).with_context(path)?;
            if let Some(difference) = expected.difference(&found) {
                bail!("{}: {difference}", path());
            }
        }
    }
    Ok(())
}

fn same(model: &mut Model, subject: &mut dyn Subject, op: &Op) -> Result<()> {
    let (expected, found) = (model.apply(op), subject.apply(op));
    let same = expected.allows(&found);
    ensure!(same, "{op}\n  model: {}\n  found: {}", short(&expected), short(&found));
    Ok(())
}

fn short(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Error(errno) => format!("{}", std::io::Error::from_raw_os_error(*errno)),
        Outcome::Bytes(bytes) if bytes.len() > 40 => {
            let data = bytes.iter().position(|byte| *byte != 0);
            format!("{} bytes {:?}.., data from {data:?}", bytes.len(), &bytes[..40])
        }
        other => format!("{other:?}"),
    }
}

/// Leaves out of a failing sequence what it fails without, in about `tries` runs.
///
/// # Errors
/// As [`run`].
pub fn shrink(field: &mut dyn Field, failure: Failure, tries: usize) -> Result<Failure> {
    let Failure { mut ops, mut why } = failure;
    let mut left = tries;
    let mut chunk = ops.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut shorter = false;
        while start < ops.len() && left > 0 {
            let mut fewer = ops.clone();
            fewer.drain(start..(start + chunk).min(ops.len()));
            left -= 1;
            match run(field, &fewer)? {
                Some(other) => {
                    (ops, why, shorter) = (fewer, other, true);
                }
                None => start += chunk,
            }
        }
        if left == 0 || (chunk == 1 && !shorter) {
            return Ok(Failure { ops, why });
        }
        chunk = chunk.div_ceil(2).max(1);
    }
}

/// Runs sequences `seeds`, of so many operations each; the first that fails is made short. Returns
/// how many operations there were.
///
/// # Errors
/// The sequence that failed, with its seed.
pub fn many(
    field: &mut dyn Field,
    seeds: std::ops::Range<u64>,
    len: usize,
    plan: &Plan,
) -> Result<u64> {
    let mut count = 0;
    for seed in seeds {
        let ops = sequence(seed, len, field.traits(), plan);
        count += ops.len() as u64;
        if let Some(why) = run(field, &ops).with_context(|| format!("seed {seed}"))? {
            let first = why.clone();
            let failure = shrink(field, Failure { ops, why }, 300)?;
            bail!("seed {seed}, length {len}: {first}\nin short:\n{}", failure.text());
        }
    }
    Ok(count)
}
