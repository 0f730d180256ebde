//! Why a store could not be opened, and what an operator can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::NamespaceError;
use crate::backend::usages;
use crate::secret::Url;

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
    /// Whether the same may succeed later although nobody has changed what was asked for: the servers, the network, a
    /// disk or another process are to blame.
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
    pub(crate) fn cause(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("store ").map_or(text.clone(), str::to_owned)
    }

    pub(crate) fn path(call: &'static str, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::Path { call, path: path.into(), errno }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme { url } => match url.unknown_scheme() {
                Some(scheme) => write!(f, "no store is called {scheme}: use {}", usages()),
                None => write!(f, "store: {}: use {}", hint(url.reveal()), usages()),
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
            "its file system is mounted read-only: mount it for writing (mount -o remount,rw), or name another \
             directory"
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
