//! `dir:PATH[?option=value&...]`: what it says, and what a store there would be.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use block::ChunkKey;

use super::{DirOptions, DirStore, memory_bytes, root};
use crate::backend::{Absent, Backend};
use crate::open_error::OpenError;
use crate::outline::OutlinePart;
use crate::secret::looks_like_a_login;
use crate::size::bytes;
use crate::{Limits, StoreError};

const SCHEME: &str = "dir:";
/// Chunks that an index may be asked to hold.
const CHUNKS_MAX: usize = 100_000_000;

impl DirOptions {
    /// The path and the options of a URL.
    fn parse(url: &str, limits: &Limits) -> Result<(PathBuf, Self), OpenError> {
        let bad = |what: &str| OpenError::Option { url: url.into(), what: what.into() };
        let (path, query) = split(url);
        if path.is_empty() {
            return Err(bad("the path is empty"));
        }
        if looks_like_a_login(path) {
            return Err(bad("the path looks like a server's address: write redis://HOST, or a path without @ and //"));
        }
        let mut options = Self { bytes_max: limits.store_bytes, chunks_max: limits.chunks_max, ..Self::default() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("bytes", v) => options.bytes_max = Some(bytes(v).ok_or(bad("bytes is not a number like 200G"))?),
                ("chunks", v) => {
                    options.chunks_max = v
                        .parse()
                        .ok()
                        .filter(|n| (1..=CHUNKS_MAX).contains(n))
                        .ok_or(bad("chunks is not a number from 1 to 100000000"))?;
                }
                ("sync", "always") => options.sync = true,
                ("sync", "never") => options.sync = false,
                ("sync", _) => return Err(bad("sync is not one of always, never")),
                _ => return Err(bad("options are bytes, chunks, sync")),
            }
        }
        Ok((path.into(), options))
    }
}

/// The path and the query.
fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix(SCHEME).unwrap_or(url);
    rest.split_once('?').unwrap_or((rest, ""))
}

/// What a store in this directory would be; for a tier, too.
pub(crate) fn part(path: &Path, limits: &Limits, options: &DirOptions) -> Result<OutlinePart, OpenError> {
    let is_new = root::look(path)?;
    let mut text = format!("dir:{}", path.display());
    let _ = match options.bytes_max {
        Some(bytes) => write!(text, ", bytes max {bytes}"),
        None => write!(text, ", bytes max half of what is free"),
    };
    let sync = if options.sync { "always" } else { "never" };
    let _ =
        write!(text, ", chunks max {}, sync {sync}{}", options.chunks_max, if is_new { ", to be made" } else { "" });
    Ok(OutlinePart {
        name: "dir",
        text,
        memory_bytes: memory_bytes(&Limits { chunks_max: options.chunks_max, ..*limits }),
        pinned_bytes: 0,
        bytes_max: options.bytes_max,
        chunks_max: Some(options.chunks_max as u64),
    })
}

impl Backend for DirStore {
    const SCHEMES: &'static [&'static str] = &["dir"];
    const USAGE: &'static str = "dir:PATH[?bytes=N[K|M|G|T]&chunks=N&sync=always|never]";
    const ON_DISK: bool = true;

    fn open_url(url: &str, limits: &Limits, _absent: Absent) -> Result<Self, OpenError> {
        let (path, options) = DirOptions::parse(url, limits)?;
        Self::open(&path, limits, options)
    }

    fn outline(url: &str, limits: &Limits) -> Result<OutlinePart, OpenError> {
        let (path, options) = DirOptions::parse(url, limits)?;
        part(&path, limits, &options)
    }

    fn keys(&self) -> Result<Vec<ChunkKey>, StoreError> {
        let mut keys = Vec::new();
        self.each(|key, _| keys.push(*key));
        Ok(keys)
    }

    fn directory(url: &str) -> Option<&Path> {
        let (path, _) = split(url);
        Some(Path::new(path)).filter(|_| !looks_like_a_login(path))
    }
}
