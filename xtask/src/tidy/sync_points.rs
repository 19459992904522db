//! Named release/acquire pairs: a name stands at both ends, and docs/memory-model.md explains it.

use std::collections::BTreeMap;

use super::{File, Finding};

const MARK: &str = "SYNC POINT:";
const MODEL: &str = "docs/memory-model.md";

/// Checks that no end of a pair stands alone and that each is documented.
pub(crate) fn check(files: &[File]) -> Vec<Finding> {
    let mut places: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
    for file in files {
        for (number, line) in (1..).zip(&file.lines).filter(|(_, line)| !line.doc) {
            if let Some((_, rest)) = line.comment.split_once(MARK) {
                places.entry(name(rest)).or_default().push((&file.path, number));
            }
        }
    }
    let model = files.iter().find(|file| file.path == MODEL);
    let mut found = Vec::new();
    for (name, places) in places {
        let (file, line) = places[0];
        if places.len() < 2 {
            let what = format!("sync point `{name}` stands at one place only");
            let remedy = "name the other end of the pair, or correct the spelling";
            found.push(Finding::new(file, line, what, remedy));
        }
        if model.is_some_and(|model| !model.text.contains(name)) {
            let what = format!("sync point `{name}` is not in {MODEL}");
            found.push(Finding::new(file, line, what, "say there who writes and who may read"));
        }
    }
    found
}

/// The name is what precedes punctuation: a remark may follow it.
fn name(rest: &str) -> &str {
    let end = rest.find(['.', ',', ';', ':', '(']).unwrap_or(rest.len());
    rest[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn found(code: &str, model: &str) -> Vec<usize> {
        let files = [File::new("oslet/src/ring.rs", code), File::new(MODEL, model)];
        check(&files).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn both_ends_and_the_document_are_needed() {
        let pair = "// SYNC POINT: ring publish\nx;\n// SYNC POINT: ring publish (consumer)\n";
        assert_eq!(found(pair, "- ring publish: ..."), NONE);
        assert_eq!(found(pair, "- nothing"), [1]);
        assert_eq!(found("x;\n// SYNC POINT: ring publish\n", "ring publish"), [2]);
    }

    #[test]
    fn documentation_and_strings_are_no_ends() {
        assert_eq!(found("/// SYNC POINT: name\nlet a = \"SYNC POINT: b\";\n", ""), NONE);
    }
}
