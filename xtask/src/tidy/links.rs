//! Every link of a Markdown file leads to a file and a heading that are there.

use std::path::{Component, Path};

use super::{File, Finding};

/// Checks the links of all Markdown files; `exists` answers for a path relative to the top.
pub(crate) fn check(files: &[File], exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, link) in links(&file.text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { file.path.clone() } else { join(&file.path, path) };
            if !exists(&target) {
                let what = format!("link to `{link}`, which is not there");
                found.push(Finding::new(&file.path, line, what, "correct or remove the link"));
                continue;
            }
            let headings = files.iter().find(|other| other.path == target && !anchor.is_empty());
            if headings.is_some_and(|other| !slugs(&other.text).iter().any(|s| s == anchor)) {
                let what = format!("link to `{link}`, but {target} has no such heading");
                found.push(Finding::new(&file.path, line, what, "correct the part after `#`"));
            }
        }
    }
    found
}

/// The targets of inline links, images and reference definitions, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code_spans(line);
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            if let Some(end) = rest.find([')', ' ']) {
                found.push((number, rest[..end].to_owned()));
            }
        }
        let definition = line.trim_start().strip_prefix('[').and_then(|l| l.split_once("]:"));
        if let Some((_, target)) = definition
            && let Some(target) = target.split_whitespace().next()
        {
            found.push((number, target.to_owned()));
        }
    }
    found
}

/// Lines outside fenced code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// The anchors that the headings of a Markdown text get on common hosts.
fn slugs(text: &str) -> Vec<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|&c| c.is_alphanumeric() || " -_".contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

fn join(from: &str, link: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name.to_str().unwrap_or_default()),
            _ => {}
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn found(text: &str) -> Vec<usize> {
        let files = [
            File::new("docs/a.md", text),
            File::new("docs/b.md", "# One\n## Two words, here\n"),
            File::new("README.md", "# Top\n"),
        ];
        let exists = |path: &str| files.iter().any(|file| file.path == path);
        check(&files, &exists).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn links_resolve_relative_to_their_file() {
        assert_eq!(found("[b](b.md)\n[top](../README.md) [x](https://example.org/c.md)\n"), NONE);
        assert_eq!(found("[c](c.md)\n[b](b.md) [d](../docs/d.md)\n"), [1, 2]);
        assert_eq!(found("[r]\n\n[r]: nowhere.md\n"), [3]);
    }

    #[test]
    fn headings_are_checked() {
        assert_eq!(found("[b](b.md#one) [b](b.md#two-words-here)\n"), NONE);
        assert_eq!(found("[b](b.md#three)\n"), [1]);
        assert_eq!(found("# Self\n[s](#self) [s](#other)\n"), [2]);
    }

    #[test]
    fn code_is_no_link() {
        assert_eq!(found("`a[i](x.md)`\n```\n[c](c.md)\n```\n"), NONE);
    }
}
