//! The measurement mode `remember=BYTES`: what a source came to, so that the same source is copied the next time
//! instead of decompressed again. It makes an engine about as fast as a card's, so that what lies around it can be
//! measured.
//!
//! A source is known by its kind, its length and the CRC-32 of each of its halves: 64 bits of checksum at the cost of
//! one pass. What is remembered has its checksums, computed when it was made; the first copy of each entry is checked
//! against them. A full memory forgets nothing and takes nothing more: those sources are decompressed each time.
//!
//! It refuses to be silent: a line on standard error when the engines of such a device start, and
//! [`version`] says `remembering` to every program that asks.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::config::TaskKind;
use crate::core::job::Sums;
use crate::ffi::{complain, exports};

/// Whether a device of this process remembers, or did.
static REMEMBERS: AtomicBool = AtomicBool::new(false);

/// What `doca_version_runtime` answers.
fn version() -> &'static CStr {
    const PLAIN: &CStr = match CStr::from_bytes_with_nul(crate::ffi::abi::DOCA_VERSION_STRING) {
        Ok(version) => version,
        Err(_) => c"",
    };
    // Ends like the plain one, by which programs know an emulator.
    const REMEMBERING: &CStr = c"3.0.0-remembering-emulator";
    if REMEMBERS.load(Ordering::Relaxed) { REMEMBERING } else { PLAIN }
}

/// What makes two sources the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    is_deflate: bool,
    flags: [bool; 2],
    bytes: usize,
    halves: [u32; 2],
}

impl Key {
    /// `flags`: what else the output depends on.
    pub(crate) fn of(kind: TaskKind, flags: [bool; 2], source: &[u8]) -> Key {
        let (first, second) = source.split_at(source.len() / 2);
        let halves = [crc32fast::hash(first), crc32fast::hash(second)];
        Key { is_deflate: kind == TaskKind::Inflate, flags, bytes: source.len(), halves }
    }
}

struct Entry {
    output: Box<[u8]>,
    sums: Sums,
    /// A copy was compared with the checksum.
    is_checked: AtomicBool,
}

/// Outputs that the engine threads of one device remember together.
pub(crate) struct Memo {
    bytes_max: u64,
    inner: Mutex<Inner>,
    full: Once,
}

#[derive(Default)]
struct Inner {
    bytes: u64,
    entries: HashMap<Key, Arc<Entry>>,
}

impl Memo {
    /// None if nothing is to be remembered.
    pub(crate) fn new(bytes_max: u64) -> Option<Arc<Memo>> {
        if bytes_max == 0 {
            return None;
        }
        REMEMBERS.store(true, Ordering::Relaxed);
        complain(&format!(
            "MEASUREMENT ONLY: remember={bytes_max}: decompressed blocks are kept and copied the next time, checked by CRC; \
             engine speeds are not this machine's"
        ));
        Some(Arc::new(Memo { bytes_max, inner: Mutex::default(), full: Once::new() }))
    }

    /// Copies what the source came to, if that is known and fits. A copy that is not what was remembered is not used.
    pub(crate) fn recall(&self, key: &Key, output: &mut [u8]) -> Option<(usize, Sums)> {
        let entry = Arc::clone(self.lock().entries.get(key)?);
        let output = output.get_mut(..entry.output.len())?;
        output.copy_from_slice(&entry.output);
        if !entry.is_checked.load(Ordering::Relaxed) {
            if crc32fast::hash(output) != entry.sums.crc {
                complain("remember: a copy differs from its checksum: decompressed again");
                return None;
            }
            entry.is_checked.store(true, Ordering::Relaxed);
        }
        Some((output.len(), entry.sums))
    }

    /// Keeps what the source came to, while there is room.
    pub(crate) fn remember(&self, key: Key, output: &[u8], sums: Sums) {
        let mut inner = self.lock();
        if inner.bytes + output.len() as u64 > self.bytes_max {
            drop(inner);
            let full = || complain("remember: full: what comes now is decompressed each time; give it more BYTES");
            self.full.call_once(full);
            return;
        }
        let entry = Entry { output: output.into(), sums, is_checked: AtomicBool::new(false) };
        if inner.entries.insert(key, Arc::new(entry)).is_none() {
            inner.bytes += output.len() as u64;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

exports! {
    fn doca_version_runtime() -> *const c_char = (c"".as_ptr()) {
        version().as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &[u8]) -> Key {
        Key::of(TaskKind::Inflate, [false; 2], source)
    }

    fn sums(output: &[u8]) -> Sums {
        Sums { crc: crc32fast::hash(output), second: 7 }
    }

    #[test]
    fn no_memory_is_no_mode() {
        assert!(Memo::new(0).is_none());
    }

    #[test]
    fn one_bit_anywhere_is_another_source() {
        let source: Vec<u8> = (0..99).collect();
        for bit in 0..source.len() * 8 {
            let mut other = source.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(key(&source), key(&other), "bit {bit}");
        }
        assert_ne!(key(&source), key(&source[..98]));
        assert_ne!(key(&source), Key::of(TaskKind::Lz4Block, [false; 2], &source));
        assert_ne!(key(&[0; 4]), key(&[0; 6]), "zeros of another length");
    }

    #[test]
    fn what_is_known_is_copied_with_its_checksums_into_enough_room_only() {
        let memo = Memo::new(100).expect("on");
        memo.remember(key(b"source"), b"output", sums(b"output"));
        let mut output = [0; 8];
        assert_eq!(memo.recall(&key(b"source"), &mut output), Some((6, sums(b"output"))));
        assert_eq!(&output[..6], b"output");
        assert_eq!(memo.recall(&key(b"source"), &mut output[..5]), None);
        assert_eq!(memo.recall(&key(b"Source"), &mut output), None);
    }

    #[test]
    fn a_first_copy_that_its_checksum_denies_is_not_used() {
        let memo = Memo::new(100).expect("on");
        memo.remember(key(b"source"), b"output", Sums { crc: 1, second: 2 });
        assert_eq!(memo.recall(&key(b"source"), &mut [0; 8]), None);
    }

    #[test]
    fn a_full_memory_takes_nothing_more_and_forgets_nothing() {
        let memo = Memo::new(10).expect("on");
        memo.remember(key(b"a"), b"123456", sums(b"123456"));
        memo.remember(key(b"b"), b"12345", sums(b"12345"));
        memo.remember(key(b"c"), b"1234", sums(b"1234"));
        let knows = |source| memo.recall(&key(source), &mut [0; 8]).is_some();
        assert_eq!((knows(b"a"), knows(b"b"), knows(b"c")), (true, false, true));
    }
}
