//! The one thing about JSON that is easy to get wrong, without allocating.

use std::fmt::{self, Write};

/// A JSON string with what must be escaped escaped.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04x}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_one_whatever_is_in_it() {
        assert_eq!(Quoted("a\"b\\c\n\u{1b}\u{9b}é").to_string(), r#""a\"b\\c\u000a\u001b\u009bé""#);
    }
}
