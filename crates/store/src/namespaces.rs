//! Tenants of the tiers: the names that an operator gave a quota or a pin, and what each may hold of a tier.
//!
//! A session says a name when it attaches; one that says none, or one that nobody configured, is of the namespace
//! [`DEFAULT`]. So there are never more namespaces than the operator named, and a host can make none.
//!
//! What it refuses: to believe that a host is who it says; that is for whoever lets it attach (docs/tiers.md).

use std::fmt;

use tier::{NAMESPACES_MAX, Quota};

use crate::size::bytes;

/// All sessions that name no namespace of the operator's.
const DEFAULT: &str = "default";
/// What an earlier life left in a tier, until somebody uses it: it belongs to nobody, and everybody may take its room.
pub(crate) const UNCLAIMED: u8 = NAMESPACES_MAX as u8 - 1;
/// Longest name.
const NAME_BYTES_MAX: usize = 64;

/// A part of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Bytes(u64),
    Percent(u64),
}

impl Size {
    fn of(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|n| *n <= 100).map(Self::Percent),
            None if text == "0" => Some(Self::Bytes(0)),
            None => bytes(text).map(Self::Bytes),
        }
    }

    fn bytes(self, tier_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.min(tier_bytes),
            Self::Percent(percent) => (u128::from(tier_bytes) * u128::from(percent) / 100) as u64,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    name: String,
    least: Size,
    most: Size,
    pinned: bool,
}

/// See the module's head. Namespaces have numbers from 0, which is `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    named: Vec<Named>,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self { named: vec![Named::unlimited(DEFAULT)] }
    }
}

impl Named {
    fn unlimited(name: &str) -> Self {
        Self { name: name.to_owned(), least: Size::Bytes(0), most: Size::Percent(100), pinned: false }
    }
}

impl Namespaces {
    /// Quotas are `NAME=LEAST[..MOST]`, each a number of bytes or a percentage of a tier; pins are names.
    ///
    /// # Errors
    /// What is wrong with which of them, and what would be right.
    pub fn new<'a>(
        quotas: impl IntoIterator<Item = &'a str>,
        pins: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, NamespaceError> {
        let mut all = Self::default();
        for quota in quotas {
            let bad = |what| NamespaceError { what, given: quota.to_owned() };
            let form = "a quota is NAME=LEAST or NAME=LEAST..MOST, each bytes (8G) or a percentage of a tier (25%)";
            let (name, sizes) = quota.split_once('=').ok_or(bad(form))?;
            let (least, most) = sizes.split_once("..").unwrap_or((sizes, "100%"));
            let (least, most) = Size::of(least).zip(Size::of(most)).ok_or(bad(form))?;
            let named = all.entry(name)?;
            if *named != Named::unlimited(name) {
                return Err(bad("each namespace has one quota"));
            }
            (named.least, named.most) = (least, most);
        }
        for pin in pins {
            all.entry(pin)?.pinned = true;
        }
        Ok(all)
    }

    fn entry(&mut self, name: &str) -> Result<&mut Named, NamespaceError> {
        let bad = |what| NamespaceError { what, given: name.to_owned() };
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(bad("a namespace has a name of 1 to 64 printable bytes"));
        }
        if let Some(at) = self.named.iter().position(|named| named.name == name) {
            return Ok(&mut self.named[at]);
        }
        if self.named.len() == usize::from(UNCLAIMED) {
            return Err(bad("there are 30 namespaces beside `default` at most"));
        }
        self.named.push(Named::unlimited(name));
        Ok(self.named.last_mut().expect("just pushed"))
    }

    /// The number of the namespace that a session is of.
    #[must_use]
    pub fn number(&self, name: Option<&str>) -> u8 {
        let at = name.and_then(|name| self.named.iter().position(|named| named.name == name));
        at.unwrap_or(0) as u8
    }

    /// Names by number.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.named.iter().map(|named| named.name.as_str())
    }

    /// What each may hold of a tier, by number.
    ///
    /// # Errors
    /// They are promised more than the tier has.
    pub(crate) fn quotas(&self, tier_bytes: u64) -> Result<Vec<Quota>, NamespaceError> {
        let quota = |named: &Named| {
            let most = named.most.bytes(tier_bytes);
            Quota { least: if named.pinned { most } else { named.least.bytes(tier_bytes) }, most }
        };
        let quotas: Vec<Quota> = self.named.iter().map(quota).collect();
        let promised: u64 = quotas.iter().map(|quota| quota.least).fold(0, u64::saturating_add);
        if promised > tier_bytes {
            let what = "the least of all namespaces (of a pinned one its most) is more than the tier has";
            return Err(NamespaceError { what, given: format!("{promised} bytes of {tier_bytes}") });
        }
        Ok(quotas)
    }
}

/// An operator's mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceError {
    what: &'static str,
    given: String,
}

impl fmt::Display for NamespaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespaces: {}: {}", self.given, self.what)
    }
}

impl std::error::Error for NamespaceError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_and_pins_are_numbers_of_names() {
        let all = Namespaces::new(["a=25%..50%", "b=100", "default=0..60%"], ["c"]).unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["default", "a", "b", "c"]);
        let number = |name| all.number(name);
        assert_eq!([Some("a"), Some("c"), Some("nobody"), None].map(number), [1, 3, 0, 0]);
        assert!(all.quotas(1000).is_err(), "a pin without a quota is all of the tier");
        let all = Namespaces::new(["a=25%..50%", "b=100", "c=0..20%", "default=0..60%"], ["c"]).unwrap();
        let quota = |least, most| Quota { least, most };
        let found = all.quotas(1000).unwrap();
        assert_eq!(found, [quota(0, 600), quota(250, 500), quota(100, 1000), quota(200, 200)]);
        assert_eq!(Namespaces::default().quotas(7).unwrap(), [quota(0, 7)]);
    }

    #[test]
    fn mistakes_are_named() {
        for wrong in ["a", "a=", "a=x", "a=10..", "a=101%", "=5", "a=5%..6%..7%"] {
            assert!(Namespaces::new([wrong], []).is_err(), "{wrong}");
        }
        assert!(Namespaces::new(["a=1", "a=2"], []).is_err());
        let many: Vec<String> = (0..31).map(|n| format!("n{n}=1%")).collect();
        assert!(Namespaces::new(many.iter().map(String::as_str), []).is_err());
        assert!(Namespaces::new(many[..30].iter().map(String::as_str), []).is_ok());
    }
}
