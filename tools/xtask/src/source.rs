//! Rust source without what only people read: a copy in which comments, strings and characters are blanks, with every
//! line and column where it was. Enough to find words of the language without parsing it.

/// Blanks comments and literals out.
pub(crate) fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => block_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' | b'b' | b'c' if !is_word_at(bytes, at.wrapping_sub(1)) => prefixed_end(bytes, at),
            b'\'' => character_end(bytes, at),
            _ => at + 1,
        };
        if end > at + 1 {
            out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word_at(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

/// Behind a block comment; they nest.
fn block_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

/// Behind the closing quote of a string whose text begins at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Behind `r"..."`, `br#"..."#`, `b"..."`, `c"..."`, `b'x'`; `at + 1` if it is a word like any other.
fn prefixed_end(bytes: &[u8], at: usize) -> usize {
    let mut quote = at;
    while matches!(bytes.get(quote), Some(b'r' | b'b' | b'c')) && quote < at + 2 {
        quote += 1;
    }
    let raw = bytes[at..quote].contains(&b'r');
    let hashes = bytes[quote..].iter().take_while(|byte| **byte == b'#').count();
    match bytes.get(quote + hashes) {
        Some(b'"') if raw => {
            let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let from = quote + hashes + 1;
            let found = bytes[from..].windows(closing.len()).position(|window| window == closing);
            found.map_or(bytes.len(), |length| from + length + closing.len())
        }
        Some(b'"') if hashes == 0 => string_end(bytes, quote + 1),
        Some(b'\'') if hashes == 0 && bytes[at] == b'b' => character_end(bytes, quote),
        _ => at + 1,
    }
}

/// Behind a character; a lifetime is not one.
fn character_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        let closing = bytes[at + 3..].iter().position(|byte| *byte == b'\'');
        return closing.map_or(at + 1, |length| at + 3 + length + 1);
    }
    let width = bytes.get(at + 1).map_or(1, |byte| match byte {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    });
    if bytes.get(at + 1 + width) == Some(&b'\'') { at + width + 2 } else { at + 1 }
}

/// Words (identifiers and keywords) of a text, each with the number of its line from 1.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(index, line)| {
        let is_end = |c: char| !(c.is_alphanumeric() || c == '_');
        line.split(is_end).filter(|word| !word.is_empty()).map(move |word| (index + 1, word))
    })
}

#[cfg(test)]
mod tests {
    use super::code_of;

    #[test]
    fn comments_and_literals_are_blanks_and_the_rest_stays_in_its_place() {
        let text = "a // unsafe\nb \"unsafe \\\" {\" c r#\"unsafe\"#d /* x /* y */ z */ e '\"' 'l f b'\\'' g";
        let code = code_of(text);
        assert_eq!(code.len(), text.len());
        let left: Vec<_> = code.split_whitespace().collect();
        assert_eq!(left, ["a", "b", "c", "d", "e", "'l", "f", "g"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn words_that_begin_like_a_literal_stay() {
        assert_eq!(code_of("crate::r::b rb(c)").trim(), "crate::r::b rb(c)");
    }
}
