//! Text of others (a peer's names, a server's answers, names of files and tensors) made fit for a terminal and a log:
//! what would move the cursor, colour the screen or turn the direction of writing is shown as its escape.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of a quoted name that are shown.
const NAME_CHARS_MAX: usize = 64;

/// Whether a terminal or a reader would take it for more than a character.
fn acts(c: char) -> bool {
    // Controls; marks, embeddings, overrides and isolates of direction; line and paragraph separators.
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped<'a>(text: &'a str, escape: impl Fn(&mut String, char)) -> Cow<'a, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| if acts(c) { escape(&mut shown, c) } else { shown.push(c) });
    Cow::Owned(shown)
}

/// The text on one line, every character that acts as its escape: `\u{1b}`, `\n`.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |shown, c| shown.extend(c.escape_default()))
}

/// The same for JSON text, which stays the same JSON.
#[must_use]
pub fn visible_json(text: &str) -> Cow<'_, str> {
    // Of these, JSON allows no more than space around its words, and in strings only what is above 0x1f.
    escaped(text, |shown, c| match c {
        '\n' | '\r' | '\t' => shown.push(c),
        c => write!(shown, "\\u{:04x}", u32::from(c)).expect("a string takes all"),
    })
}

/// A name in quotes, visible, and cut where it is longer than anybody reads.
#[must_use]
pub fn quoted(name: &str) -> String {
    let mut kept: String = name.chars().take(NAME_CHARS_MAX).collect();
    let rest = name.len() - kept.len();
    kept = kept.chars().flat_map(|c| if c == '"' || c == '\\' { vec!['\\', c] } else { vec![c] }).collect();
    match rest {
        0 => format!("\"{}\"", visible(&kept)),
        rest => format!("\"{}\"... ({rest} bytes more)", visible(&kept)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_and_not_done() {
        assert_eq!(visible("\u{1b}[31mred\u{7}\u{9b}2J\r\n\u{202e}x"), "\\u{1b}[31mred\\u{7}\\u{9b}2J\\r\\n\\u{202e}x");
        assert!(matches!(visible("schön, 日本, C:\\dir"), Cow::Borrowed(_)), "all else stays as it is");
    }

    #[test]
    fn json_says_the_same_and_does_not_act() {
        assert_eq!(visible_json("{\n\"a\": \"\u{7f}\u{9b}2J\u{202e}\"}"), "{\n\"a\": \"\\u007f\\u009b2J\\u202e\"}");
    }

    #[test]
    fn a_long_name_is_cut_and_says_so() {
        assert_eq!(quoted("kv"), "\"kv\"");
        assert_eq!(quoted("a\"b\\\u{1b}"), "\"a\\\"b\\\\\\u{1b}\"");
        let long = quoted(&"é".repeat(5_000_000));
        assert!(long.chars().count() < 100 && long.ends_with("(9999872 bytes more)"), "{long}");
    }
}
