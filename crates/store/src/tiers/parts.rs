//! `tiers:[dram=BYTES,][dir:PATH=BYTES,]STORE`: what the URL says.

use crate::backend::is_backend;
use crate::secret::looks_like_a_login;
use crate::size::bytes;

/// What the URL begins with.
pub(crate) const SCHEME: &str = "tiers:";
/// The form of the URL, for people.
pub(crate) const USAGE: &str = "tiers:[dram=BYTES,][dir:PATH=BYTES,]STORE";
const NO_STORE: &str = "it must end in a store, dir:PATH or redis://..., which holds everything";

/// The parts of the URL.
pub(crate) struct Parts<'a> {
    pub(crate) dram: Option<u64>,
    pub(crate) disk: Option<(&'a str, u64)>,
    pub(crate) bottom: &'a str,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(url: &'a str) -> Result<Self, &'static str> {
        let mut rest = url.strip_prefix(SCHEME).ok_or("it begins with tiers:")?;
        let mut parts = Parts { dram: None, disk: None, bottom: "" };
        // What redis:// has behind it may hold commas, so tiers are taken from the front.
        while let Some((part, behind)) = rest.split_once(',') {
            if let Some(text) = part.strip_prefix("dram=") {
                let size = bytes(text).ok_or("dram= is not a number of bytes like 8G")?;
                if parts.dram.replace(size).is_some() || parts.disk.is_some() {
                    return Err("dram= stands once, before dir:");
                }
            } else if let Some(text) = part.strip_prefix("dir:") {
                let (path, size) = text.rsplit_once('=').ok_or("a dir: tier is dir:PATH=BYTES")?;
                let size = bytes(size).ok_or("dir:PATH= is not a number of bytes like 200G")?;
                if path.is_empty()
                    || path.contains('?')
                    || looks_like_a_login(path)
                    || parts.disk.replace((path, size)).is_some()
                {
                    return Err("a dir: tier is dir:PATH=BYTES, once, without options");
                }
            } else {
                break;
            }
            rest = behind;
        }
        parts.bottom = rest;
        match rest.split_once(':') {
            // One that ends in a size is meant as a tier, and the store was forgotten.
            Some(("dir", rest))
                if rest.rsplit_once('=').is_some_and(|(path, size)| !path.contains('?') && bytes(size).is_some()) =>
            {
                Err("dir:PATH=BYTES is a tier and no store stands behind it: add dir:PATH or redis://..., which holds \
                     everything")
            }
            _ if is_backend(rest) => Ok(parts),
            _ => Err(NO_STORE),
        }
    }

    /// What it says of T0 and T1.
    pub(super) fn front(&self) -> (Option<u64>, Option<(String, u64)>) {
        (self.dram, self.disk.map(|(path, bytes)| (path.to_owned(), bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_tiers_from_the_fastest_on() {
        let parts = Parts::of("tiers:dram=8G,dir:/a=b=200G,redis://h1,h2:7?window=1M").ok().unwrap();
        assert_eq!(parts.dram, Some(8 << 30));
        assert_eq!(parts.disk, Some(("/a=b", 200 << 30)));
        assert_eq!(parts.bottom, "redis://h1,h2:7?window=1M");
        assert_eq!(Parts::of("tiers:redis://h").ok().unwrap().bottom, "redis://h");
        for wrong in [
            "tiers:dram=x,redis://h",
            "tiers:dir:/a=1G,dram=1G,redis://h",
            "tiers:dram=1G,dram=1G,dir:/a",
            "tiers:dir:/a,redis://h",
            "tiers:dir:=1G,redis://h",
        ] {
            assert!(Parts::of(wrong).is_err(), "{wrong}");
        }
        for without in ["tiers:dram=1G", "tiers:dram=1G,", "tiers:dir:/a=1G,dir:/b=1G", "tiers:http://h"] {
            assert!(Parts::of(without).err().unwrap().contains("holds everything"), "{without}");
        }
    }
}
