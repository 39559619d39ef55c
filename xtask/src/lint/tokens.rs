//! Rust source without its comments and string literals, line by line: what the rules of [`super::tidy`]
//! look at, so that a module may write about what it must not use.

/// Blanks comments, strings and character literals; keeps the lines.
pub fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + blank(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&it| if it == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How many bytes from here on are a comment or a literal.
fn blank(rest: &[u8], before: Option<u8>) -> usize {
    if rest.starts_with(b"//") {
        return rest.iter().position(|&it| it == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return find(&rest[2..], b"*/").map_or(rest.len(), |end| end + 4);
    }
    let in_word = before.is_some_and(|it| it.is_ascii_alphanumeric() || it == b'_');
    match rest[0] {
        b'"' => quoted(rest),
        // r"", r#""#; the b or c before it does no harm.
        b'r' if !in_word || matches!(before, Some(b'b' | b'c')) => {
            let hashes = rest[1..].iter().take_while(|&&it| it == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return 0;
            }
            let mut end = vec![b'"'];
            end.resize(1 + hashes, b'#');
            let start = 2 + hashes;
            find(&rest[start..], &end).map_or(rest.len(), |at| start + at + end.len())
        }
        // 'x' or '\n', and not a lifetime.
        b'\'' if rest.get(1) == Some(&b'\\') => {
            rest.iter().skip(3).position(|&it| it == b'\'').map_or(0, |end| end + 4)
        }
        b'\'' if rest.get(2) == Some(&b'\'') => 3,
        _ => 0,
    }
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The words of one line of code, each with the character that follows it.
pub fn words(line: &str) -> impl Iterator<Item = (&str, Option<char>)> {
    let word = |it: char| it.is_alphanumeric() || it == '_';
    line.split_inclusive(move |it| !word(it)).filter_map(move |piece| {
        let end = piece.find(|it| !word(it)).unwrap_or(piece.len());
        (end > 0).then(|| (&piece[..end], piece[end..].chars().next()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        let check = |source: &str, expected: &str| {
            let found: Vec<_> = code(source).split_whitespace().map(str::to_owned).collect();
            assert_eq!(found.join(" "), expected, "{source}");
        };
        check("a // b", "a");
        check("a /* b\nc */ d", "a d");
        check("f(\"b \\\" c\") d", "f( ) d");
        check("r#\"a \" b\"# c", "c");
        check("br\"a\" c", "b c");
        check("var\"x\"", "var");
        check("'a' 'x '\\n' '\"' b", "'x b");
    }

    #[test]
    fn lines_keep_their_numbers() {
        assert_eq!(code("\"a\nb\"\nc").lines().nth(2), Some("c"));
    }

    #[test]
    fn words_know_what_follows() {
        let found: Vec<_> = words("todo!(); use rustls::x").collect();
        assert_eq!(
            found,
            [("todo", Some('!')), ("use", Some(' ')), ("rustls", Some(':')), ("x", None)]
        );
    }
}
