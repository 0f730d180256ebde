//! Store URLs: `dir:PATH[?option=value&...]`, `redis://HOST...`, `tiers:...`. One line of [`open`] for each backend.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::dir::{DirStore, Options};
use super::outline::outline;
use super::redis::RedisStore;
use super::secret::{Url, looks_like_a_login};
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
    open_as(url, limits, namespaces, slab, Absent::Refuse)
}

/// The same, but servers that are not there yet, or do not take us yet, are waited for while the store is used: until then
/// every chunk is a miss, and [`crate::Store::trouble`] says why.
pub fn open_or_wait<M: Memory>(
    url: &str,
    limits: &Limits,
    namespaces: &Namespaces,
    slab: Option<Allocate<'_>>,
) -> Result<Box<dyn Readable<M>>, OpenError> {
    open_as(url, limits, namespaces, slab, Absent::Wait)
}

/// What to do about servers that are not there at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Absent {
    Refuse,
    Wait,
}

impl Absent {
    pub(super) fn redis(self, url: &str, limits: &Limits) -> Result<RedisStore, OpenError> {
        match self {
            Self::Refuse => RedisStore::open(url, limits),
            Self::Wait => RedisStore::open_or_wait(url, limits),
        }
    }
}

fn open_as<M: Memory>(
    url: &str,
    limits: &Limits,
    namespaces: &Namespaces,
    slab: Option<Allocate<'_>>,
    absent: Absent,
) -> Result<Box<dyn Readable<M>>, OpenError> {
    outline(url, limits, namespaces)?;
    let Some((scheme, rest)) = url.split_once(':') else { return Err(OpenError::Scheme { url: url.into() }) };
    match scheme {
        "dir" => {
            let (path, options) = dir_options(url, rest, limits)?;
            Ok(Box::new(DirStore::open(&path, limits, options)?))
        }
        "redis" | "rediss" => Ok(Box::new(absent.redis(url, limits)?)),
        "tiers" => Ok(Box::new(TierStore::open(url, limits, namespaces, slab, absent)?)),
        _ => Err(OpenError::Scheme { url: url.into() }),
    }
}

/// The path that a `dir:` URL names: for tools that work on the directory itself.
pub fn dir_path(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("dir:").filter(|path| !looks_like_a_login(path))?;
    Some(Path::new(path.split_once('?').map_or(path, |(path, _)| path)))
}

pub(super) fn dir_options(url: &str, rest: &str, limits: &Limits) -> Result<(PathBuf, Options), OpenError> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let bad = |what: &str| OpenError::Option { url: url.into(), what: what.into() };
    if path.is_empty() {
        return Err(bad("the path is empty"));
    }
    if looks_like_a_login(path) {
        return Err(bad("the path looks like a server's address: write redis://HOST, or a path without @ and //"));
    }
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
        url: Url,
    },
    Option {
        url: Url,
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
    /// A server does not answer, or not yet.
    Unreachable {
        node: String,
        what: String,
    },
    /// A server does not take us.
    Refused {
        node: String,
        what: String,
    },
}

impl OpenError {
    /// Whether the same may succeed later although nobody has changed what was asked for: the servers, the network, a disk or
    /// another process are to blame.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } | Self::Busy { .. } => true,
            Self::Path { errno, .. } => matches!(
                errno,
                Errno::EIO
                    | Errno::ESTALE
                    | Errno::ENOTCONN
                    | Errno::EHOSTDOWN
                    | Errno::EHOSTUNREACH
                    | Errno::ETIMEDOUT
                    | Errno::ENODEV
                    | Errno::ENXIO
                    | Errno::ENOMEDIUM
                    | Errno::EMFILE
                    | Errno::ENFILE
                    | Errno::ENOMEM
                    | Errno::EAGAIN
                    | Errno::EINTR
            ),
            _ => false,
        }
    }

    /// The message without the word that begins all of them.
    pub(super) fn cause(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("store ").map_or(text.clone(), str::to_owned)
    }

    pub(super) fn path(call: &'static str, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::Path { call, path: path.into(), errno }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme { url } => match url.unknown_scheme() {
                Some(scheme) => write!(f, "no store is called {scheme}: use {SCHEMES}"),
                None => write!(f, "store: {}: use {SCHEMES}", hint(url.reveal())),
            },
            Self::Option { url, what } => write!(f, "store {url}: {what}"),
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
            Self::Unreachable { node, what } => write!(f, "store {node}: {what}"),
            Self::Refused { node, what } => write!(f, "store {node} refuses us: {what}"),
            Self::Path { call, path, errno } => {
                write!(f, "store: {call} {}: {}", path.display(), errno.desc())?;
                advice(*errno).map_or(Ok(()), |advice| write!(f, ": {advice}"))
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// What an operator can do about what a system call said.
#[must_use]
pub fn advice(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::EROFS => {
            "its file system is mounted read-only: mount it for writing (mount -o remount,rw), or name another directory"
        }
        Errno::EACCES | Errno::EPERM => "give the directory to the user that this runs as (chown), or name another",
        Errno::EMFILE => "this process has no descriptors left: raise its limit (LimitNOFILE= in the unit, ulimit -n)",
        Errno::ENFILE => "this machine has no descriptors left: raise fs.file-max",
        Errno::ENOSPC | Errno::EDQUOT => "no room on its file system: make some, or name another",
        Errno::ENOTCONN | Errno::ESTALE | Errno::EIO | Errno::ENODEV => "is its file system mounted and well?",
        _ => return None,
    })
}

/// What is wrong with a URL whose scheme nobody knows. It is not repeated: it may hold a password.
fn hint(url: &str) -> &'static str {
    match url.trim_start().to_ascii_lowercase() {
        url if url.is_empty() => "no URL is given",
        url if url.starts_with("redis") => {
            "the URL begins with redis:// or rediss://, in lower case, and nothing before it"
        }
        url if url.starts_with('/') => "a directory is written dir:PATH",
        _ => "the URL's scheme is none of ours (it is not shown, since it may hold a password)",
    }
}

impl From<NamespaceError> for OpenError {
    fn from(error: NamespaceError) -> Self {
        Self::Namespaces(error)
    }
}
