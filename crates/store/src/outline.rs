//! What a store would be, without opening it: which parts its URL names, what they take, and whether they could be
//! opened here. Nothing is written, locked, connected to or made. Every way of opening a store asks here first, so
//! that what is refused in advance is what is refused at start; a store in use and a server that does not answer show
//! only then.

use std::path::Path;

use tier::Worth;

use crate::Limits;
use crate::backend::AnyBackend;
use crate::dir::{self, DirOptions};
use crate::namespaces::Namespaces;
use crate::open_error::OpenError;
use crate::tiers::{self, DISK_SHARE, Parts, dram};

/// One tier, or the store behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlinePart {
    /// `dram`, `dir` or `redis`.
    pub name: &'static str,
    /// Limits, for people: no passwords.
    pub text: String,
    /// Memory that it takes in Init, and what of it is registered with the device, bytes.
    pub memory_bytes: usize,
    pub pinned_bytes: usize,
    /// What it may hold; `None`: what is free, or the server's own business.
    pub bytes_max: Option<u64>,
    pub chunks_max: Option<u64>,
}

/// The parts, fastest first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Outline {
    pub parts: Vec<OutlinePart>,
}

impl Outline {
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.memory_bytes).sum()
    }

    #[must_use]
    pub fn pinned_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.pinned_bytes).sum()
    }
}

/// Looks at the store that `url` names.
///
/// # Errors
/// What [`crate::open_with`] would say, but of a store in use and of servers.
pub fn outline(url: &str, limits: &Limits, namespaces: &Namespaces) -> Result<Outline, OpenError> {
    if !url.starts_with(tiers::SCHEME) {
        return Ok(Outline { parts: vec![AnyBackend::outline(url, limits)?] });
    }
    let bad = |what: &str| OpenError::Option { url: url.into(), what: what.into() };
    let front = Parts::of(url).map_err(bad)?;
    let inner = limits.with_mover();
    let mut parts = Vec::new();
    if let Some(bytes) = front.dram {
        let memory = dram::Extent::of(bytes).ok_or_else(|| bad("dram= is too small or too large"))?;
        namespaces.quotas(memory.bytes_max)?;
        parts.push(OutlinePart {
            name: "dram",
            text: format!("dram: {} bytes in pages of {}", memory.slab_bytes(), dram::PAGE_BYTES),
            memory_bytes: memory.slab_bytes() + memory.books_bytes(&inner),
            pinned_bytes: memory.slab_bytes(),
            bytes_max: Some(memory.bytes_max),
            chunks_max: Some(memory.chunks_max as u64),
        });
    }
    if let Some((path, bytes)) = front.disk {
        namespaces.quotas(((bytes as f64 * DISK_SHARE) as u64).max(1))?;
        let options = DirOptions { bytes_max: Some(bytes), chunks_max: limits.chunks_max, sync: false };
        let mut part = dir::url::part(Path::new(path), &inner, &options)?;
        part.memory_bytes += Worth::memory_bytes(limits.chunks_max);
        parts.push(part);
    }
    parts.push(AnyBackend::outline(front.bottom, &inner)?);
    Ok(Outline { parts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn look(url: &str) -> Result<Outline, OpenError> {
        outline(url, &Limits::default(), &Namespaces::default())
    }

    #[test]
    fn looking_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("dir:{}/new?bytes=1G", dir.path().display());
        let found = look(&url).unwrap();
        assert_eq!((found.parts[0].bytes_max, found.parts[0].chunks_max), (Some(1 << 30), Some(65536)));
        assert!(found.parts[0].text.ends_with("to be made"), "{}", found.parts[0].text);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_opening_refuses_is_refused_in_advance_in_the_same_words() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        fs::create_dir(dir.path().join("mine")).unwrap();
        fs::write(dir.path().join("mine/letter"), "dear").unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("other/kvlane-store"), "kvlane dir store 77\n").unwrap();
        for url in [
            format!("dir:{at}/mine"),
            format!("dir:{at}/no/where"),
            format!("dir:{at}/file"),
            format!("dir:{at}/other"),
            format!("dir:{at}/x?bytes=many"),
            String::from("dir:"),
            String::from("http://x"),
            String::from("x"),
            String::from("redis://h:port"),
            String::from("redis://h?window=0"),
            format!("tiers:dram=1K,dir:{at}/x"),
            format!("tiers:dram=1M,dir:{at}/mine=1G,dir:{at}/x"),
            String::from("tiers:dram=1G"),
        ] {
            let (advance, start) =
                (look(&url).unwrap_err(), crate::open::<Vec<u8>>(&url, &Limits::default()).unwrap_err());
            assert_eq!(advance.to_string(), start.to_string(), "{url}");
        }
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn a_tiers_memory_is_what_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("tiers:dram=8M,dir:{0}/t=1G,dir:{0}/s", dir.path().display());
        let found = look(&url).unwrap();
        assert_eq!(found.parts.iter().map(|part| part.name).collect::<Vec<_>>(), ["dram", "dir", "dir"]);
        assert_eq!(found.pinned_bytes(), 8 << 20);
        let store = crate::open::<Vec<u8>>(&url, &Limits::default()).unwrap();
        let said = store.describe();
        let books = found.parts[0].memory_bytes - (8 << 20);
        assert!(said.contains(&format!("dram {} bytes", 8 << 20)), "{said}");
        assert!(said.contains(&format!("books {books} bytes")), "{books}: {said}");
    }
}
