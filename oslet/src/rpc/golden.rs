//! What processes say to each other, compared with a record of it: whoever changes it notices.
//!
//! A record has the protocol's version, then a line for each kind of request, and one for each body
//! that hashes how an example of it is archived. Whoever adds a kind or a body adds its line;
//! whoever changes one raises the version, for a process of the other version would misread it.

/// A protocol as the code has it.
#[derive(Debug)]
pub struct Golden {
    lines: Vec<String>,
    /// What has to have an example.
    types: Vec<String>,
}

impl Golden {
    /// That version of it, as these sources write it: all kinds of request (`const NAME: u16 =
    /// NUMBER;`), and the types that are archived.
    ///
    /// # Panics
    /// When two kinds have one number.
    pub fn new(version: u32, sources: &[&str]) -> Self {
        let mut lines = vec![format!("version {version}")];
        let mut numbers = Vec::new();
        let kind = |line: &'_ str| {
            let constant = line.split_once("const ")?.1.strip_suffix(';')?;
            constant
                .split_once(": u16 = ")
                .map(|(name, number)| (name.to_owned(), number.to_owned()))
        };
        for (name, number) in sources.iter().flat_map(|source| source.lines()).filter_map(kind) {
            assert!(!numbers.contains(&number), "kind {name}: {number} is taken");
            lines.push(format!("kind {name} {number}"));
            numbers.push(number);
        }
        Self { lines, types: sources.iter().flat_map(|source| archived(source)).collect() }
    }

    /// An example of a body, each of its fields a value of its own: of a type, or of a variant as
    /// `Type::Variant`.
    pub fn body(&mut self, name: &str, archive: &[u8]) {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let hash = archive.iter().fold(0xcbf2_9ce4_8422_2325, step);
        self.lines.push(format!("body {name} {} bytes {hash:016x}", archive.len()));
        self.types.retain(|kind| kind != name);
    }

    /// A type whose example is within those of others.
    pub fn part(&mut self, name: &str) {
        self.types.retain(|kind| kind != name);
    }

    /// Compares with a record, the contents of `file`.
    ///
    /// # Panics
    /// When they differ, or an archived type has no example.
    pub fn check(&self, file: &str, record: &str) {
        if let Err(why) = self.compare(record) {
            panic!("{file}: {why}. It would be:\n{}\n", self.lines.join("\n"));
        }
    }

    /// What is to be done where a protocol is not as its record says.
    fn compare(&self, record: &str) -> Result<(), String> {
        if let Some(missing) = self.types.first() {
            return Err(format!("{missing} needs an example in the test"));
        }
        let recorded: Vec<&str> = record.lines().collect();
        if recorded == self.lines {
            return Ok(());
        }
        let lost = recorded.iter().find(|line| !self.lines.iter().any(|found| found == *line));
        match lost {
            Some(lost) if recorded.first().is_some_and(|version| self.lines[0] == *version) => {
                Err(format!("{lost:?} is no more: raise the version"))
            }
            _ => Err("record what was added, or the new version".to_owned()),
        }
    }
}

/// The types of a source that are archived: structures by name, enumerations by each variant.
fn archived(source: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
    };
    let mut found = Vec::new();
    let mut derived = false;
    let mut variants_of = None;
    for line in source.lines() {
        if let Some(name) = &variants_of {
            let variant = line.strip_prefix("    ").map(word).filter(|word| !word.is_empty());
            found.extend(variant.map(|variant| format!("{name}::{variant}")));
            variants_of = variants_of.filter(|_| line != "}");
        } else if line.starts_with("#[derive(") {
            derived = line.contains("Archive");
        } else if let Some((_, name)) = line.split_once("struct ").filter(|_| derived) {
            found.push(word(name));
            derived = false;
        } else if let Some((_, name)) = line.split_once("enum ").filter(|_| derived) {
            variants_of = Some(word(name));
            derived = false;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
/// Kinds.
pub mod kind {
    /// (volume, page).
    pub const READ: u16 = 0x1;
}
pub const LEN: usize = 3;
#[derive(rkyv::Archive, Debug)]
/// Some pages.
pub struct Pages {
    pub refs: Vec<u64>,
}
#[derive(Clone, Archive)]
enum Order {
    /// Begin.
    Start {
        /// Where.
        at: u64,
    },
    Stop(u8),
    Look,
}
#[derive(Clone)]
struct Private;
";

    fn golden(version: u32, source: &str, pages: &[u8]) -> Golden {
        let mut golden = Golden::new(version, &[source]);
        golden.body("Pages", pages);
        for name in ["Start", "Stop", "Look"] {
            golden.body(&format!("Order::{name}"), &[]);
        }
        golden
    }

    #[test]
    fn an_addition_is_to_be_recorded_and_a_change_needs_another_version() {
        let before = golden(1, SOURCE, &[1, 2]);
        let lines = ["version 1", "kind READ 0x1", "body Pages 2 bytes 082f2407b4e8902a"];
        assert_eq!(before.lines[..3], lines);
        assert_eq!(before.lines.len(), 6);
        let record = before.lines.join("\n") + "\n";
        assert_eq!(before.compare(&record), Ok(()));
        let why = |found: &Golden| found.compare(&record).unwrap_err();
        let added = SOURCE.replace("}\npub", "    pub(super) const SEEK: u16 = 0x2;\n}\npub");
        assert!(why(&golden(1, &added, &[1, 2])).contains("what was added"));
        let moved = SOURCE.replace("0x1", "0x3");
        assert!(why(&golden(1, &moved, &[1, 2])).contains("raise the version"));
        assert!(why(&golden(1, SOURCE, &[1, 3])).contains("raise the version"));
        assert!(why(&golden(2, SOURCE, &[1, 3])).contains("the new version"));
        let variant = SOURCE.replace("    Look,", "    Look,\n    Wait,");
        assert_eq!(why(&golden(1, &variant, &[1, 2])), "Order::Wait needs an example in the test");
    }

    #[test]
    #[should_panic(expected = "is taken")]
    fn one_number_for_two_kinds_is_noticed() {
        Golden::new(1, &["const A: u16 = 0x1;\nconst B: u16 = 0x1;\n"]);
    }
}
