//! Rust source split into code and comments, so that a rule about code does not fire on a string.

/// One line of a Rust file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The line without comments and with string and character literals emptied.
    pub(crate) code: String,
    /// What the comments on the line say, without their marks.
    pub(crate) comment: String,
    /// The comment documents an item (`///`, `//!`, `/**`, `/*!`).
    pub(crate) doc: bool,
}

enum State {
    Code,
    LineComment,
    /// Nested this deep.
    BlockComment(usize),
    Text,
    /// Ends at a quote with so many `#`.
    RawText(usize),
}

/// Splits `text` into its lines.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    let mut state = State::Code;
    let mut lines = Vec::new();
    for source in text.lines() {
        let chars: Vec<char> = source.chars().collect();
        let mut line = Line::default();
        let mut at = 0;
        while at < chars.len() {
            let rest = &chars[at..];
            let (next, used) = match state {
                State::Code => code(rest, line.code.chars().last(), &mut line),
                State::LineComment => {
                    line.comment.push(rest[0]);
                    (State::LineComment, 1)
                }
                State::BlockComment(depth) => block_comment(rest, depth, &mut line),
                State::Text => match rest[0] {
                    '\\' => (State::Text, 2),
                    '"' => (State::Code, 1),
                    _ => (State::Text, 1),
                },
                State::RawText(hashes) => {
                    let ends = rest[0] == '"' && count(&rest[1..], '#') >= hashes;
                    if ends { (State::Code, 1 + hashes) } else { (State::RawText(hashes), 1) }
                }
            };
            state = next;
            at += used;
        }
        if matches!(state, State::LineComment) {
            state = State::Code;
        }
        lines.push(line);
    }
    lines
}

fn code(rest: &[char], before: Option<char>, line: &mut Line) -> (State, usize) {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match (rest[0], rest.get(1)) {
        ('/', Some('/')) => {
            let outer = rest.get(2) == Some(&'/') && rest.get(3) != Some(&'/');
            let doc = outer || rest.get(2) == Some(&'!');
            line.doc |= doc;
            (State::LineComment, if doc { 3 } else { 2 })
        }
        ('/', Some('*')) => {
            line.doc |= matches!(rest.get(2), Some('*' | '!')) && rest.get(3) != Some(&'/');
            (State::BlockComment(1), 2)
        }
        ('"', _) => {
            line.code.push_str("\"\"");
            (State::Text, 1)
        }
        ('r', Some('"' | '#')) if !in_word || matches!(before, Some('b' | 'c')) => {
            let hashes = count(&rest[1..], '#');
            if rest.get(1 + hashes) == Some(&'"') {
                line.code.push_str("\"\"");
                (State::RawText(hashes), 2 + hashes)
            } else {
                line.code.push('r');
                (State::Code, 1)
            }
        }
        ('\'', Some('\\')) => {
            let end = rest.iter().skip(3).position(|&c| c == '\'');
            (State::Code, end.map_or(rest.len(), |end| 3 + end + 1))
        }
        // A lifetime has no closing quote after one character.
        ('\'', Some(_)) if rest.get(2) == Some(&'\'') => (State::Code, 3),
        (c, _) => {
            line.code.push(c);
            (State::Code, 1)
        }
    }
}

fn block_comment(rest: &[char], depth: usize, line: &mut Line) -> (State, usize) {
    match (rest[0], rest.get(1)) {
        ('*', Some('/')) if depth == 1 => (State::Code, 2),
        ('*', Some('/')) => (State::BlockComment(depth - 1), 2),
        ('/', Some('*')) => (State::BlockComment(depth + 1), 2),
        (c, _) => {
            line.comment.push(c);
            (State::BlockComment(depth), 1)
        }
    }
}

fn count(chars: &[char], wanted: char) -> usize {
    chars.iter().take_while(|&&c| c == wanted).count()
}

/// Whether `word` stands in `code` as a whole word.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(part)
            && !code[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str) -> Vec<String> {
        lines(text).into_iter().map(|line| line.code).collect()
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        assert_eq!(codes(r##"let a = r#"un"safe"#; // unsafe"##), [r#"let a = ""; "#]);
        assert_eq!(
            codes(r#"f("a\"unsafe", b"x", '"', '\'', '\u{1f}') + g"#),
            [r#"f("", b"", , , ) + g"#]
        );
        assert_eq!(codes("a /* x /* unsafe */ y */ b"), ["a  b"]);
        assert_eq!(codes("\"one\nunsafe\" + two"), ["\"\"", " + two"]);
        assert_eq!(codes("fn f<'a>(x: &'a str) {}"), ["fn f<'a>(x: &'a str) {}"]);
        assert_eq!(codes("let r#type = br\"unsafe\";"), ["let r#type = b\"\";"]);
    }

    #[test]
    fn comments_are_told_from_documentation() {
        let found = lines("/// doc\n// plain\n//// plain too\ncode(); // after\n//! inner");
        let seen: Vec<_> = found.iter().map(|line| (line.comment.as_str(), line.doc)).collect();
        let expected =
            [(" doc", true), (" plain", false), ("// plain too", false), (" after", false)];
        assert_eq!(seen[..4], expected);
        assert_eq!(seen[4], (" inner", true));
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
        assert!(has_word("unsafe_code(unsafe)", "unsafe"));
    }
}
