//! Prompts that go through tiers, and how full a tier is: what the tests of tiers share.
use std::path::Path;
use std::time::{Duration, Instant};

use block::{ChunkKey, Codec};
use store::{Readable, StoreError};

use crate::chunks::{get, key, limits, put, real_chunk};

pub(crate) type Any = dyn Readable<Vec<u8>>;

/// A chunk of the tests: its key, blocks and manifest.
pub(crate) struct Real {
    pub(crate) key: ChunkKey,
    pub(crate) blocks: Vec<Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
}

impl Real {
    pub(crate) fn prompt(count: u64) -> Vec<Real> {
        let real = |n| {
            let (blocks, manifest) = real_chunk(&key(n), Codec::Deflate);
            Real { key: key(n), blocks, manifest }
        };
        (0..count).map(real).collect()
    }

    /// Whether the store gives it as it was put.
    pub(crate) fn fetched(&self, store: &Any) -> Result<(), StoreError> {
        self.fetched_in(store, 0)
    }

    pub(crate) fn fetched_in(&self, store: &Any, seat: usize) -> Result<(), StoreError> {
        let lengths: Vec<_> = self.blocks.iter().map(Vec::len).collect();
        let (manifest, blocks) = get(store, seat, &self.key, &lengths)?;
        assert!(manifest == self.manifest && blocks == self.blocks, "other bytes than were put");
        Ok(())
    }
}

pub(crate) fn keys(prompt: &[Real]) -> Vec<ChunkKey> {
    prompt.iter().map(|chunk| chunk.key).collect()
}

pub(crate) fn open(dir: &Path, tiers: &str, bottom: &str) -> Box<Any> {
    let tiers = tiers.replace("DIR", &dir.join("tier").display().to_string());
    store::open(&format!("tiers:{tiers},{bottom}"), &limits()).expect("it opens")
}

/// Chunks that were promoted into and hits of a tier.
pub(crate) fn facts(store: &Any, name: &str) -> (u64, u64) {
    let mut found = None;
    store.tiers(true, &mut |tier| {
        if tier.name == name {
            found = Some((tier.promoted, tier.hits));
        }
    });
    found.expect("the tier is there")
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Uses a prompt and waits until a tier has all of it.
pub(crate) fn warm(store: &Any, prompt: &[Real], tier: &str) {
    let before = facts(store, tier).0;
    store.touch(0, None, &keys(prompt), false);
    wait_until("promotion", || facts(store, tier).0 == before + prompt.len() as u64);
}

pub(crate) fn with_bottom_dir(tiers: &str, claim: impl FnOnce(&Path, &dyn Fn() -> Box<Any>, &[Real])) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bottom = format!("dir:{}", dir.path().join("bottom").display());
    let reopen = || open(dir.path(), tiers, &bottom);
    let prompt = Real::prompt(3);
    {
        let store = reopen();
        for chunk in &prompt {
            put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
        }
    }
    claim(dir.path(), &reopen, &prompt);
}
