//! The table of backends: what each is called, how it is opened, what it says of itself. Whatever asks a URL for its
//! scheme asks here. A new backend is an `impl Backend` beside its `impl Store`, and a line of [`backends!`]
//! (docs/architecture.md, "Stores").

use std::path::Path;

use block::ChunkKey;

use crate::dir::DirStore;
use crate::open_error::OpenError;
use crate::outline::{OutlinePart, outline};
use crate::redis::RedisStore;
use crate::redis::check::CheckReport;
use crate::tiers::{self, TierStore};
use crate::{Allocate, BlockMemory, Limits, Namespaces, Readable, Store, StoreError};

/// What to do about servers that are not there at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absent {
    Refuse,
    /// Chunks are misses until a server is there.
    Wait,
}

/// What a backend says of itself, beside what it does as a [`Store`]. URLs that it is given have one of its schemes.
pub(crate) trait Backend: Store + Sized {
    const SCHEMES: &'static [&'static str];
    /// The form of its URLs, for people.
    const USAGE: &'static str;
    /// Whether it makes calls on a local disk, which may hang.
    const ON_DISK: bool;

    /// Opens the store at `url`, whose options win over `limits`. Init.
    fn open_url(url: &str, limits: &Limits, absent: Absent) -> Result<Self, OpenError>;

    /// Says what the store at `url` would be, and what is wrong with the URL, without opening it.
    fn outline(url: &str, limits: &Limits) -> Result<OutlinePart, OpenError>;

    /// Lists the keys of all chunks, in no order. For tools: walks over the whole store.
    fn keys(&self) -> Result<Vec<ChunkKey>, StoreError>;

    /// Names the directory whose files are the store, for tools that work on these.
    fn directory(_url: &str) -> Option<&Path> {
        None
    }

    /// Looks at the store from end to end for an operator, where there is more to it than its files.
    fn check(_url: &str) -> Option<Result<CheckReport, OpenError>> {
        None
    }
}

/// A line of the table.
struct Listing {
    schemes: &'static [&'static str],
    usage: &'static str,
    open: fn(&str, &Limits, Absent) -> Result<AnyBackend, OpenError>,
    outline: fn(&str, &Limits) -> Result<OutlinePart, OpenError>,
    directory: fn(&str) -> Option<&Path>,
    check: fn(&str) -> Option<Result<CheckReport, OpenError>>,
}

macro_rules! backends {
    ($($name:ident($store:ty),)*) => {
        /// A store that holds everything, alone or behind tiers. An enum, since a reader's memory is of any type.
        #[derive(Debug)]
        pub enum AnyBackend {
            $($name(Box<$store>),)*
        }

        const TABLE: &[Listing] = &[$(Listing {
            schemes: <$store>::SCHEMES,
            usage: <$store>::USAGE,
            open: |url, limits, absent| Ok(AnyBackend::$name(Box::new(<$store>::open_url(url, limits, absent)?))),
            outline: <$store as Backend>::outline,
            directory: <$store>::directory,
            check: <$store>::check,
        },)*];

        impl AnyBackend {
            pub fn readable<M: BlockMemory>(&self) -> &dyn Readable<M> {
                match self { $(Self::$name(store) => store.as_ref(),)* }
            }

            fn into_readable<M: BlockMemory>(self) -> Box<dyn Readable<M>> {
                match self { $(Self::$name(store) => store,)* }
            }

            /// Whether no call on it is one on a local disk.
            pub(crate) fn is_off_disk(&self) -> bool {
                match self { $(Self::$name(_) => !<$store>::ON_DISK,)* }
            }

            pub(crate) fn store(&self) -> &dyn Store {
                match self { $(Self::$name(store) => store.as_ref(),)* }
            }

            /// Lists the keys of all chunks, in no order. For tools: walks over the whole store.
            ///
            /// # Errors
            /// The store does not answer.
            pub fn keys(&self) -> Result<Vec<ChunkKey>, StoreError> {
                match self { $(Self::$name(store) => store.keys(),)* }
            }
        }
    };
}

backends! {
    Dir(DirStore),
    Redis(RedisStore),
}

impl AnyBackend {
    /// Opens the store that `url` names. The options of the URL win over `limits`.
    ///
    /// # Errors
    /// Which are the operator's to mend.
    pub fn open(url: &str, limits: &Limits, absent: Absent) -> Result<Self, OpenError> {
        (listing_of(url).ok_or_else(|| OpenError::Scheme { url: url.into() })?.open)(url, limits, absent)
    }

    pub(crate) fn outline(url: &str, limits: &Limits) -> Result<OutlinePart, OpenError> {
        (listing_of(url).ok_or_else(|| OpenError::Scheme { url: url.into() })?.outline)(url, limits)
    }
}

/// The backend of a URL, if there is one.
fn listing_of(url: &str) -> Option<&'static Listing> {
    let (scheme, _) = url.split_once(':')?;
    TABLE.iter().find(|listing| listing.schemes.contains(&scheme))
}

/// Whether a URL names a store that holds everything.
pub(crate) fn is_backend(url: &str) -> bool {
    listing_of(url).is_some()
}

/// The form of all URLs.
pub(crate) fn usages() -> String {
    let mut usages: Vec<_> = TABLE.iter().map(|listing| listing.usage).collect();
    usages.push(tiers::USAGE);
    usages.join(" or ") + " (docs/stores.md)"
}

/// The directory whose files are the store at `url`: for tools that work on these.
#[must_use]
pub fn directory(url: &str) -> Option<&Path> {
    (listing_of(url)?.directory)(url)
}

/// Whether a text, which may be a path, is the URL of a store on servers.
#[must_use]
pub fn is_on_servers(text: &str) -> bool {
    text.contains("://") && is_backend(text) && directory(text).is_none()
}

/// Looks at a store on servers from end to end; `None`: it is not on servers.
///
/// # Errors
/// It cannot be opened.
pub fn check(url: &str) -> Result<Option<CheckReport>, OpenError> {
    listing_of(url).and_then(|listing| (listing.check)(url)).transpose()
}

/// Opens the store that `url` names. The options of the URL win over `limits`.
pub fn open<M: BlockMemory>(url: &str, limits: &Limits) -> Result<Box<dyn Readable<M>>, OpenError> {
    open_with(url, limits, &Namespaces::default(), None)
}

/// The same for these namespaces, which a store without tiers has no use for, and with memory of the caller's for the
/// tier T0, from which the store then lends: it answers reads with [`crate::Outcome::Lies`], too.
pub fn open_with<M: BlockMemory>(
    url: &str,
    limits: &Limits,
    namespaces: &Namespaces,
    slab: Option<Allocate<'_>>,
) -> Result<Box<dyn Readable<M>>, OpenError> {
    open_as(url, limits, namespaces, slab, Absent::Refuse)
}

/// The same, but servers that are not there yet, or do not take us yet, are waited for while the store is used: until
/// then every chunk is a miss, and [`crate::Store::trouble`] says why.
pub fn open_or_wait<M: BlockMemory>(
    url: &str,
    limits: &Limits,
    namespaces: &Namespaces,
    slab: Option<Allocate<'_>>,
) -> Result<Box<dyn Readable<M>>, OpenError> {
    open_as(url, limits, namespaces, slab, Absent::Wait)
}

fn open_as<M: BlockMemory>(
    url: &str,
    limits: &Limits,
    namespaces: &Namespaces,
    slab: Option<Allocate<'_>>,
    absent: Absent,
) -> Result<Box<dyn Readable<M>>, OpenError> {
    outline(url, limits, namespaces)?;
    if url.starts_with(tiers::SCHEME) {
        return Ok(Box::new(TierStore::open(url, limits, namespaces, slab, absent)?));
    }
    Ok(AnyBackend::open(url, limits, absent)?.into_readable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_a_url_names() {
        assert_eq!(directory("dir:/a/b?bytes=1G"), Some(Path::new("/a/b")));
        for other in ["redis://h", "tiers:dir:/a=1G,dir:/b", "dir:u:pw@h", "/a/b", ""] {
            assert_eq!(directory(other), None, "{other}");
        }
        assert!(is_on_servers("redis://h") && is_on_servers("rediss://h"));
        assert!(!["redis:a", "dir:/a", "dir://a", "http://h", "a"].iter().any(|text| is_on_servers(text)));
        let all = usages();
        assert!(["dir:PATH", "redis[s]://", "tiers:"].iter().all(|form| all.contains(form)), "{all}");
    }
}
