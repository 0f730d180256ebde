//! JSON into memory that is there already: bounded text, strings and commas, without allocating.

use std::fmt::{self, Write};

/// A JSON string, escaped as needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted<'a>(pub &'a str);

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

/// Writes into a byte slice and stops at its end.
#[derive(Debug)]
pub(crate) struct BoundedText<'a> {
    bytes: &'a mut [u8],
    written: usize,
}

impl<'a> BoundedText<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, written: 0 }
    }

    pub(crate) fn written(&self) -> usize {
        self.written
    }

    /// Empties the text.
    pub(crate) fn clear(&mut self) {
        self.written = 0;
    }
}

impl Write for BoundedText<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.written..self.written + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.written += text.len();
        Ok(())
    }
}

/// Puts commas between the entries of an object or array.
pub(crate) struct Comma(bool);

impl Comma {
    pub(crate) fn new() -> Self {
        Self(false)
    }

    pub(crate) fn put(&mut self, text: &mut BoundedText<'_>) -> fmt::Result {
        match std::mem::replace(&mut self.0, true) {
            true => text.write_char(','),
            false => Ok(()),
        }
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
