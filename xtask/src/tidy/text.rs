//! Rules about single lines and files.

use super::lexer::has_word;
use super::{File, Finding};

/// Columns of a line.
const MAX_COLUMNS: usize = 100;
/// Lines of a file, and from where on it is worth a notice.
const MAX_LINES: usize = 600;
const MANY_LINES: usize = 500;

/// Where `unsafe` may stand: system calls and access to shared memory.
const UNSAFE_HOMES: [&str; 4] =
    ["oslet/src/sys.rs", "oslet/src/sys/", "oslet/src/region.rs", "oslet/src/region/"];

/// Code that says the work is not done, and what to do about it.
const UNFINISHED: [(&str, &str); 6] = [
    ("#[ignore", "make the test pass or delete it"),
    ("todo!", "write it, or leave out what calls it"),
    ("unimplemented!", "write it, or leave out what calls it"),
    ("allow(dead_code", "delete what nobody uses"),
    ("expect(dead_code", "delete what nobody uses"),
    ("allow(unused", "delete what nobody uses"),
];

/// Directories of one machine that have no business in the tree.
const MACHINE_DIRS: [&str; 2] = ["work", "root"];

/// Checks every file by itself.
pub(crate) fn check(files: &[File]) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in files {
        found.extend(machine_paths(file));
        if file.is_rust() {
            found.extend(size(file));
            found.extend(unfinished(file));
            found.extend(unsafe_code(file));
        }
    }
    found
}

fn size(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        let columns = line.chars().count();
        if columns > MAX_COLUMNS {
            let what = format!("{columns} columns, {MAX_COLUMNS} at most");
            found.push(Finding::new(&file.path, number, what, "break the line"));
        }
    }
    let lines = file.lines.len();
    if lines > MANY_LINES {
        let what = format!("{lines} lines, {MAX_LINES} at most");
        let mut finding = Finding::new(&file.path, 0, what, "split the file by subject");
        finding.notice = lines <= MAX_LINES;
        found.push(finding);
    }
    found
}

fn unfinished(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(&file.lines) {
        for (pattern, remedy) in UNFINISHED {
            let squeezed: String = line.code.split_whitespace().collect();
            if squeezed.contains(pattern) {
                found.push(Finding::new(&file.path, number, format!("`{pattern}`"), remedy));
            }
        }
        for mark in ["FIXME", "XXX"] {
            if has_word(&line.comment, mark) {
                let remedy = "fix it now, or open an issue and say in plain words what is missing";
                found.push(Finding::new(&file.path, number, mark, remedy));
            }
        }
    }
    found
}

fn unsafe_code(file: &File) -> Vec<Finding> {
    if UNSAFE_HOMES.iter().any(|home| file.path.starts_with(home)) {
        return Vec::new();
    }
    let lines = (1..).zip(&file.lines).filter(|(_, line)| has_word(&line.code, "unsafe"));
    lines
        .map(|(number, _)| {
            let remedy = "use or add a safe function in oslet::sys or oslet::region";
            Finding::new(&file.path, number, "unsafe code outside its two homes", remedy)
        })
        .collect()
}

fn machine_paths(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        for dir in MACHINE_DIRS.map(|dir| format!("/{dir}/")) {
            // `a/work/b`, `$x/work/b` and `{x}/root/b` are parts of longer paths.
            let part = |c: char| c.is_alphanumeric() || "_-.~/$}>*)".contains(c);
            let absolute = line
                .match_indices(&dir)
                .any(|(at, _)| !line[..at].chars().next_back().is_some_and(part));
            if absolute {
                let what = format!("path {dir} of one machine");
                let remedy = "name it relative to the repository or by an argument";
                found.push(Finding::new(&file.path, number, what, remedy));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, bool)> {
        let found = check(&[File::new(path, text)]);
        found.iter().map(|finding| (finding.line, finding.notice)).collect()
    }

    #[test]
    fn unsafe_has_two_homes() {
        let text = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(found("cfs/src/lib.rs", text), [(2, false)]);
        assert_eq!(found("oslet/src/arena.rs", text), [(2, false)]);
        assert_eq!(found("oslet/src/sys/mm.rs", text), []);
        assert_eq!(found("oslet/src/region.rs", text), []);
        assert_eq!(found("cfs/src/lib.rs", "#![forbid(unsafe_code)] // unsafe\n"), []);
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments() {
        let text = "#[ignore = \"slow\"]\nlet a = todo!();\n// FIXME: b\n#[allow( dead_code )]\n";
        assert_eq!(found("a.rs", text), [(1, false), (2, false), (3, false), (4, false)]);
        assert_eq!(found("a.rs", "let a = \"todo!() FIXME\";\n"), []);
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(found("a.rs", &"x".repeat(100)), []);
        assert_eq!(found("a.rs", &"x".repeat(101)), [(1, false)]);
        assert_eq!(found("a.rs", &"\n".repeat(500)), []);
        assert_eq!(found("a.rs", &"\n".repeat(501)), [(0, true)]);
        assert_eq!(found("a.rs", &"\n".repeat(601)), [(0, false)]);
        assert_eq!(found("a.md", &"x".repeat(1000)), []);
    }

    #[test]
    fn paths_of_one_machine_are_found_in_any_text() {
        let dir = MACHINE_DIRS[0];
        assert_eq!(found("a.md", &format!("see /{dir}/x\n")), [(1, false)]);
        assert_eq!(found("a.json", &format!("\"/{dir}/x\"\n")), [(1, false)]);
        assert_eq!(found("a.md", &format!("target/{dir}/x and $A/{dir}/x\n")), []);
    }
}
