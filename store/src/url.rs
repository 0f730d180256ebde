//! Store URLs: `dir:PATH[?option=value&...]`, `redis://HOST...`, `tiers:...`. One line of [`open`] for each backend.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::dir::{DirStore, Options};
use super::redis::RedisStore;
use super::redis::options::redact;
use super::tiers::TierStore;
use super::{Allocate, Limits, Memory, NamespaceError, Namespaces, Readable};

/// What `--help` and an unknown scheme say.
pub const SCHEMES: &str = "dir:PATH[?bytes=N[K|M|G|T]&chunks=N&sync=always|never] or \
    redis[s]://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB][?ttl-s=N&...] or \
    tiers:[dram=BYTES,][dir:PATH=BYTES,]STORE (docs/stores.md)";

/// Opens the store that `url` names. The options of the URL win over `limits`.
pub fn open<M: Memory>(url: &str, limits: &Limits) -> Result<Box<dyn Readable<M>>, OpenError> {
    open_with(url, limits, &Namespaces::default(), None)
}

/// The same for these namespaces, which a store without tiers has no use for, and with memory of the caller's for the tier
/// T0, from which the store then lends: it answers reads with [`crate::Outcome::Lies`], too.
pub fn open_with<M: Memory>(
    url: &str,
    limits: &Limits,
    namespaces: &Namespaces,
    slab: Option<Allocate<'_>>,
) -> Result<Box<dyn Readable<M>>, OpenError> {
    let Some((scheme, rest)) = url.split_once(':') else { return Err(OpenError::Scheme { url: url.into() }) };
    match scheme {
        "dir" => {
            let (path, options) = dir_options(url, rest, limits)?;
            Ok(Box::new(DirStore::open(&path, limits, options)?))
        }
        "redis" | "rediss" => Ok(Box::new(RedisStore::open(url, limits)?)),
        "tiers" => Ok(Box::new(TierStore::open(url, limits, namespaces, slab)?)),
        _ => Err(OpenError::Scheme { url: redact(url) }),
    }
}

/// The path that a `dir:` URL names: for tools that work on the directory itself.
pub fn dir_path(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("dir:")?;
    Some(Path::new(path.split_once('?').map_or(path, |(path, _)| path)))
}

pub(super) fn dir_options(url: &str, rest: &str, limits: &Limits) -> Result<(PathBuf, Options), OpenError> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if path.is_empty() {
        return Err(OpenError::Option { url: url.into(), what: "the path is empty".into() });
    }
    let bad = |what: &str| OpenError::Option { url: url.into(), what: what.into() };
    let mut options = Options { bytes_max: limits.store_bytes, chunks_max: limits.chunks_max, ..Options::default() };
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

/// Chunks that an index may be asked to hold.
const CHUNKS_MAX: usize = 100_000_000;

/// A number of bytes with an optional binary unit: `200G` is 200 * 2^30.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|&n| n > 0)
}

/// Why a store could not be opened. All are the operator's to mend; the message says how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    Scheme {
        url: String,
    },
    Option {
        url: String,
        what: String,
    },
    /// They do not fit a tier.
    Namespaces(NamespaceError),
    NoParent {
        path: PathBuf,
    },
    NotAStore {
        path: PathBuf,
    },
    Version {
        path: PathBuf,
        found: String,
        ours: &'static str,
    },
    Busy {
        path: PathBuf,
        pid: Option<u32>,
    },
    Path {
        call: &'static str,
        path: PathBuf,
        errno: Errno,
    },
    /// A server does not answer: the only one that may pass by itself.
    Unreachable {
        node: String,
        what: String,
    },
    /// A server does not take us.
    Refused {
        node: String,
    },
}

impl OpenError {
    pub(super) fn path(call: &'static str, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::Path { call, path: path.into(), errno }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme { url } => write!(f, "no store is called {url:?}: use {SCHEMES}"),
            Self::Option { url, what } => write!(f, "store {url:?}: {what}"),
            Self::Namespaces(error) => write!(f, "{error}"),
            Self::NoParent { path } => {
                let parent = path.parent().unwrap_or(path);
                write!(
                    f,
                    "store {0}: {1} does not exist: make it (mkdir --parents {1}) or name another path",
                    path.display(),
                    parent.display()
                )
            }
            Self::NotAStore { path } => {
                let path = path.display();
                write!(f, "store {path}: neither a kvlane store nor empty: name an empty directory or a new one")
            }
            Self::Version { path, found, ours } => {
                let path = path.display();
                write!(f, "store {path}: it says {found:?}, this program reads {ours:?}: name another directory")
            }
            Self::Busy { path, pid: Some(pid) } => {
                write!(f, "store {}: in use by process {pid}: stop it or name another directory", path.display())
            }
            Self::Busy { path, pid: None } => {
                write!(f, "store {}: in use by another process: stop it or name another directory", path.display())
            }
            Self::Unreachable { node, what } => {
                write!(f, "store {node}: {what}: is it running, and is it what the URL names?")
            }
            Self::Refused { node } => {
                write!(
                    f,
                    "store {node} refuses us: give user and password in the URL, or the password in password-file=PATH"
                )
            }
            Self::Path { call, path, errno } => write!(f, "{call} {}: {}", path.display(), errno.desc()),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<NamespaceError> for OpenError {
    fn from(error: NamespaceError) -> Self {
        Self::Namespaces(error)
    }
}
