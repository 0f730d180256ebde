//! T1: a directory store, and who decides what it keeps.

use std::path::Path;
use std::sync::Mutex;

use block::{ChunkKey, Importance, Manifest};
use tier::{Policy, Sizes, Worth};

use super::breaker::Breaker;
use super::chunk;
use super::facts::set_quotas;
use crate::dir::{DirOptions, DirStore};
use crate::namespaces::{Namespaces, UNCLAIMED};
use crate::open_error::OpenError;
use crate::{Limits, POISONED};

/// Share of a disk tier that the policy gives away: the rest is for the quarantine, a chunk on its way in, and tails
/// of files.
pub(crate) const DISK_SHARE: f64 = 15.0 / 16.0;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) store: DirStore,
    pub(super) policy: Mutex<Worth>,
    /// Chunk that the policy has taken in and the store has not got yet. Set under the policy's lock.
    pub(super) coming: Mutex<Option<ChunkKey>>,
    /// A disk that cannot take what is written may still be good to read from.
    pub(super) reads: Breaker,
    pub(super) writes: Breaker,
}

impl Disk {
    pub(super) fn open(
        path: &str,
        bytes_max: u64,
        limits: &Limits,
        seed: u64,
        namespaces: &Namespaces,
    ) -> Result<Self, OpenError> {
        // A tier that loses what was written last before a power cut loses nothing: bad bytes are found, T2 has the
        // rest.
        let options = DirOptions { bytes_max: Some(bytes_max), chunks_max: limits.chunks_max, sync: false };
        let store = DirStore::open(Path::new(path), limits, options)?;
        let bytes_max = ((store.bytes_max() as f64 * DISK_SHARE) as u64).max(1);
        let sizes = Sizes { bytes_max, chunks_max: limits.chunks_max };
        let mut policy = Worth::new(sizes, seed);
        set_quotas(&mut policy, &namespaces.quotas(bytes_max)?);
        let mut excess = Vec::new();
        store.each(|key, bytes| {
            // Of what an earlier life left only the order is known: all of it is as old as this start, and nobody's.
            if !policy.adopt(&chunk(key, bytes as u32, UNCLAIMED, Importance::NEUTRAL, 1.0), 0) {
                excess.push(*key);
            }
        });
        for key in &excess {
            // One that stays is found again by the next start.
            let _ = store.evict_chunk(key);
        }
        let (policy, coming) = (Mutex::new(policy), Mutex::new(None));
        Ok(Self { store, policy, coming, reads: Breaker::new(), writes: Breaker::new() })
    }

    /// Whether a fetch would get this chunk from here.
    pub(super) fn serves(&self, key: &ChunkKey) -> bool {
        self.store.holds(key) && self.reads.serves()
    }

    /// Counts uses, by `count`; what the store lost by itself, the policy forgets, and what was nobody's is the user's.
    pub(super) fn used(&self, namespace: u8, keys: &[ChunkKey], count: impl FnOnce(&mut Worth)) {
        let mut policy = self.policy.lock().expect(POISONED);
        let coming = *self.coming.lock().expect(POISONED);
        for key in keys {
            if policy.holds(key) && !self.store.holds(key) && coming.as_ref() != Some(key) {
                policy.remove(key);
            }
            policy.hand_over(key, UNCLAIMED, namespace);
        }
        count(&mut policy);
    }

    /// Notes that a chunk which an earlier life left was opened: its manifest says what it was worth then.
    pub(super) fn recall(&self, key: &ChunkKey, manifest: &[u8], rating: Option<Importance>) {
        let mut policy = self.policy.lock().expect(POISONED);
        if policy.namespace_of(key) == Some(UNCLAIMED)
            && let Some(importance) = rating.or(Manifest::parse(manifest).ok().map(|manifest| manifest.importance()))
        {
            policy.rate(key, importance.factor());
        }
    }

    /// Takes a chunk out of the tier.
    pub(super) fn remove(&self, key: &ChunkKey) {
        self.policy.lock().expect(POISONED).remove(key);
        // One that cannot be removed is evicted by the directory's own LRU some day; it is not wrong.
        let _ = self.store.evict_chunk(key);
    }
}
