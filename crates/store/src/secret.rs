//! What must not be seen: a store's URL, which may hold a password, and the password itself.
//!
//! Both types show nothing that could be a part of one, whatever is done with them: a URL with a typing error is not
//! understood, so nobody can say which of its parts is the password. So a [`Url`] shows its scheme, and all of it
//! only where that is `dir:` and nothing in it looks like a login. Messages say what is wrong by place ("the port of
//! host 2") and never repeat what stands there. Once a URL is understood its hosts are shown, by whoever understood
//! it.

use std::fmt;

use crate::backend::is_backend;
use crate::tiers;

/// Text in place of what is hidden.
const HIDDEN: &str = "***";
/// Most letters of a scheme.
const SCHEME_MOST: usize = 12;
/// Letters from which a part of a password is worth hiding.
const PART_LEAST: usize = 3;

/// A store's URL as the operator wrote it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// Reveals all of it, password and all: to be parsed, never to be shown.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the word before the colon, where it can be nothing but a scheme that nobody knows.
    pub(crate) fn unknown_scheme(&self) -> Option<&str> {
        let (scheme, _) = self.0.split_once(':').filter(|_| !self.0.contains('@'))?;
        let is_word = scheme.len() <= SCHEME_MOST && scheme.bytes().all(|letter| letter.is_ascii_lowercase());
        Some(scheme).filter(|scheme| is_word && !scheme.is_empty() && !scheme.starts_with("redis"))
    }

    /// Whether nobody gave one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Into<String>> From<T> for Url {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once(':') {
            Some(("dir", path)) if !looks_like_a_login(path) => f.write_str(&self.0),
            Some(("dir", _)) => write!(f, "dir:{HIDDEN}"),
            Some((scheme, rest)) if is_backend(&self.0) => {
                write!(f, "{scheme}:{}{HIDDEN}", if rest.starts_with("//") { "//" } else { "" })
            }
            Some(_) if self.0.starts_with(tiers::SCHEME) => write!(f, "{}{HIDDEN}", tiers::SCHEME),
            _ => f.write_str(HIDDEN),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Whether a text that should be a path has what only a server's URL has.
#[must_use]
pub fn looks_like_a_login(text: &str) -> bool {
    text.contains("://") || text.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'))
}

/// A password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// Reveals it, to be sent to whom it is for.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Takes what may be a password out of a text made by others, such as a parser's complaint about a command line.
/// Where one of `arguments` may be a server's URL, no value of any of them stays: a URL with a space in it has become
/// several.
#[must_use]
pub fn scrub(text: &str, arguments: &[impl AsRef<str>]) -> String {
    let may_be_a_url = |argument: &str| argument.contains('@') || argument.to_ascii_lowercase().contains("redis");
    if !arguments.iter().any(|argument| may_be_a_url(argument.as_ref())) {
        return text.to_owned();
    }
    let value = |argument| match <str>::split_once(argument, '=') {
        Some((_, value)) if argument.starts_with('-') => value,
        _ => argument,
    };
    let mut values: Vec<&str> = arguments.iter().map(|argument| value(argument.as_ref())).collect();
    values.retain(|value| value.len() >= PART_LEAST && !value.starts_with("--"));
    // The longest first, so that none is cut by one of its parts.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values.iter().fold(text.to_owned(), |text, value| text.replace(value, HIDDEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_its_scheme_and_all_of_it_only_where_it_is_a_directory() {
        for (url, shown) in [
            ("dir:/var/lib/kvlane?bytes=1G", "dir:/var/lib/kvlane?bytes=1G"),
            ("dir:redis//u:pw@h", "dir:***"),
            ("redis://u:pw@h?x", "redis://***"),
            ("rediss://h", "rediss://***"),
            ("redis:/u:pw@h", "redis:***"),
            ("tiers:dram=1G,redis://u:pw@h", "tiers:***"),
            ("Redis://u:pw@h", "***"),
            ("redis//u:pw@h", "***"),
            ("pw", "***"),
            ("", "***"),
        ] {
            assert_eq!(Url::from(url).to_string(), shown);
            assert_eq!(format!("{:?}", Url::from(url)), format!("\"{shown}\""));
        }
        assert_eq!(format!("{:?}", Secret::new("pw".into())), "***");
    }

    #[test]
    fn a_complaint_about_a_command_line_does_not_repeat_a_login() {
        let arguments = ["dpu-app", "run", "--slots=redis://u:pw@h", "redis//u:p", "w@h", "--socket", "/run/x"];
        let text = "invalid value 'redis://u:pw@h' for --slots, unexpected 'redis//u:p', 'w@h', try --socket";
        let right = "invalid value '***' for --slots, unexpected '***', '***', try --socket";
        assert_eq!(scrub(text, &arguments), right);
        assert_eq!(
            scrub("unexpected 'here'", &["dpu-app", "here"]),
            "unexpected 'here'",
            "without a URL nothing is hidden"
        );
    }
}
