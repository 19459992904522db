//! Typed access to a parsed file, with the line of every value.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{At, Problems};
use crate::topology::shorten;

/// Where lines start, to turn places into line numbers.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        let after =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(after).collect())
    }

    pub(super) fn at(&self, offset: usize) -> u32 {
        self.0.partition_point(|&start| start <= offset) as u32
    }
}

/// A table that is being read: what is asked for by name is known, the rest is reported.
pub(super) struct Section<'a, 'i> {
    /// How the table is called in messages; empty for the top of the file.
    pub(super) title: String,
    pub(super) line: Option<u32>,
    lines: &'a Lines,
    table: &'a DeTable<'i>,
    known: BTreeSet<&'static str>,
}

impl<'a, 'i> Section<'a, 'i> {
    pub(super) fn new(
        title: &str,
        line: Option<u32>,
        lines: &'a Lines,
        table: &'a DeTable<'i>,
    ) -> Self {
        Self { title: title.into(), line, lines, table, known: BTreeSet::new() }
    }

    /// Reports something about this table.
    pub(super) fn problem(
        &self,
        problems: &mut Problems,
        line: Option<u32>,
        what: impl AsRef<str>,
    ) {
        let what = what.as_ref();
        let message = match self.title.as_str() {
            "" => what.to_owned(),
            title => format!("{title}: {what}"),
        };
        problems.add(line.or(self.line), message);
    }

    pub(super) fn value(&mut self, key: &'static str) -> Option<(u32, &'a DeValue<'i>)> {
        self.known.insert(key);
        let (at, value) = self.table.get_key_value(key)?;
        Some((self.lines.at(at.span().start), value.get_ref()))
    }

    pub(super) fn string(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<At<String>> {
        let (line, value) = self.value(key)?;
        match value.as_str() {
            Some(text) => Some(At { line: Some(line), value: text.to_owned() }),
            None => self.wrong(problems, line, key, "a string", value),
        }
    }

    pub(super) fn flag(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<bool>> {
        let (line, value) = self.value(key)?;
        match value.as_bool() {
            Some(flag) => Some(At { line: Some(line), value: flag }),
            None => self.wrong(problems, line, key, "true or false", value),
        }
    }

    pub(super) fn number(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<i64>> {
        let (line, value) = self.value(key)?;
        let number =
            value.as_integer().and_then(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
        match number {
            Some(number) => Some(At { line: Some(line), value: number }),
            None => self.wrong(problems, line, key, "a whole number", value),
        }
    }

    /// A string, or a plain number where `number` allows it.
    pub(super) fn size(&mut self, key: &'static str, problems: &mut Problems) -> Option<At<u64>> {
        let (line, value) = self.value(key)?;
        let text = match (value.as_str(), value.as_integer()) {
            (Some(text), _) => text,
            (None, Some(number)) if number.radix() == 10 => number.as_str(),
            _ => return self.wrong(problems, line, key, "a size such as \"4G\"", value),
        };
        match super::parse_size(text) {
            Ok(bytes) => Some(At { line: Some(line), value: bytes }),
            Err(what) => {
                self.problem(problems, Some(line), format!("{key}: {what}"));
                None
            }
        }
    }

    pub(super) fn strings(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<At<Vec<String>>> {
        let (line, value) = self.value(key)?;
        let items = value.as_array().and_then(|items| {
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        });
        match items {
            Some(items) => Some(At { line: Some(line), value: items }),
            None => self.wrong(problems, line, key, "a list of strings", value),
        }
    }

    /// The table with that name.
    pub(super) fn table(&mut self, key: &'static str, problems: &mut Problems) -> Option<Self> {
        let (line, value) = self.value(key)?;
        match value.as_table() {
            Some(table) => Some(Self::new(key, Some(line), self.lines, table)),
            None => self.wrong(problems, line, key, &format!("a table [{key}]"), value),
        }
    }

    /// The tables of that name, each called by its `name` or else by its place.
    pub(super) fn tables(&mut self, key: &'static str, problems: &mut Problems) -> Vec<Self> {
        let Some((line, value)) = self.value(key) else { return Vec::new() };
        let Some(items) = value.as_array() else {
            let _: Option<()> =
                self.wrong(problems, line, key, &format!("tables [[{key}]]"), value);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let line = self.lines.at(item.span().start);
            let Some(table) = item.get_ref().as_table() else {
                let _: Option<()> =
                    self.wrong(problems, line, key, &format!("tables [[{key}]]"), item.get_ref());
                continue;
            };
            let name =
                table.get("name").and_then(|name: &Spanned<DeValue<'i>>| name.get_ref().as_str());
            let title = match name {
                Some(name) => format!("{key} \"{}\"", shorten(name)),
                None => format!("{key} number {}", index + 1),
            };
            sections.push(Self::new(&title, Some(line), self.lines, table));
        }
        sections
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self, problems: &mut Problems) {
        for (key, _) in self.table.iter() {
            if !self.known.contains(key.get_ref().as_ref()) {
                let known: Vec<&str> = self.known.iter().copied().collect();
                let line = self.lines.at(key.span().start);
                let (key, known) = (shorten(key.get_ref()), known.join(", "));
                self.problem(
                    problems,
                    Some(line),
                    format!("unknown key \"{key}\"; known are {known}"),
                );
            }
        }
    }

    fn wrong<T>(
        &self,
        problems: &mut Problems,
        line: u32,
        key: &str,
        expected: &str,
        found: &DeValue<'_>,
    ) -> Option<T> {
        let found = found.type_str();
        self.problem(problems, Some(line), format!("{key}: expected {expected}, found {found}"));
        None
    }
}
