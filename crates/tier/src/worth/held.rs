//! The chunks that a tier holds: an arena, in which they are found by key, each linked to its parent; and by namespace
//! those that can leave, which have no child here and no pin.

use std::hash::{DefaultHasher, Hasher};

use block::{ChunkKey, KEY_BYTES};

use super::returns::History;
use super::sets::Sets;
use super::table::{NONE, PlaceTable};
use crate::{CandidateChunk, NAMESPACES_MAX};

#[derive(Clone, Copy, Debug)]
pub(super) struct HeldChunk {
    pub(super) key: ChunkKey,
    pub(super) history: History,
    pub(super) importance: f32,
    /// Microseconds to get it back, by byte.
    pub(super) cost: f32,
    pub(super) bytes: u32,
    /// Place of the parent, or the next free place; [`NONE`].
    parent: u32,
    /// Life of the parent's place when this came in: if that has another one, the parent is gone.
    parent_life: u32,
    life: u32,
    pub(super) children: u32,
    pub(super) pins: u32,
    pub(super) namespace: u8,
    pub(super) held: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Held {
    seed: u64,
    entries: Box<[HeldChunk]>,
    table: PlaceTable,
    leaves: Sets,
    /// First of the free places.
    free: u32,
    /// Places that ever had a chunk.
    places: usize,
    chunks: usize,
    bytes: u64,
    /// Bytes by namespace.
    shares: [u64; NAMESPACES_MAX],
}

impl Held {
    pub(super) const fn memory_bytes(chunks_max: usize) -> usize {
        chunks_max * size_of::<HeldChunk>() + PlaceTable::memory_bytes(chunks_max) + Sets::memory_bytes(chunks_max)
    }

    pub(super) fn new(chunks_max: usize, seed: u64) -> Self {
        assert!(chunks_max > 0 && chunks_max < NONE as usize / 8, "chunks_max {chunks_max} is out of range");
        let blank = |at| HeldChunk {
            key: ChunkKey::new([0; KEY_BYTES]),
            history: History::first(0, None),
            importance: 1.0,
            cost: 0.0,
            bytes: 0,
            parent: if at + 1 < chunks_max { at as u32 + 1 } else { NONE },
            parent_life: 0,
            life: 0,
            children: 0,
            pins: 0,
            namespace: 0,
            held: false,
        };
        Self {
            seed,
            entries: (0..chunks_max).map(blank).collect(),
            table: PlaceTable::new(chunks_max),
            leaves: Sets::new(chunks_max),
            free: 0,
            places: 0,
            chunks: 0,
            bytes: 0,
            shares: [0; NAMESPACES_MAX],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.chunks
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that a namespace holds.
    pub(super) fn bytes_of(&self, namespace: usize) -> u64 {
        self.shares[namespace]
    }

    /// Whether no place is free.
    pub(super) fn is_full(&self) -> bool {
        self.free == NONE
    }

    /// Places that ever had a chunk: those below it may be looked at.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    pub(super) fn hash(&self, key: &ChunkKey) -> u64 {
        // SipHash with a secret in front of a key of fixed length.
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(key.bytes());
        hasher.finish()
    }

    /// The place of a chunk.
    pub(super) fn find(&self, key: &ChunkKey) -> Option<u32> {
        self.find_hashed(self.hash(key), key)
    }

    pub(super) fn find_hashed(&self, hash: u64, key: &ChunkKey) -> Option<u32> {
        self.table.find(hash, |at| self.entries[at as usize].key == *key)
    }

    pub(super) fn at(&self, place: u32) -> &HeldChunk {
        &self.entries[place as usize]
    }

    pub(super) fn at_mut(&mut self, place: u32) -> &mut HeldChunk {
        &mut self.entries[place as usize]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldChunk> {
        self.entries[..self.places].iter().filter(|entry| entry.held)
    }

    /// Places of those chunks of a namespace that can leave.
    pub(super) fn leaves(&self, namespace: usize) -> &[u32] {
        self.leaves.members(namespace)
    }

    /// Takes a chunk in; returns its place, whose history is whoever's was there before. The caller knows that a
    /// place is free and that the chunk is not here.
    pub(super) fn insert(&mut self, chunk: &CandidateChunk, hash: u64) -> u32 {
        let place = self.free;
        let entry = &mut self.entries[place as usize];
        self.free = entry.parent;
        *entry = HeldChunk {
            key: chunk.key,
            importance: chunk.importance,
            cost: chunk.cost_us / chunk.bytes as f32,
            bytes: chunk.bytes,
            parent: NONE,
            children: 0,
            pins: 0,
            namespace: chunk.namespace,
            held: true,
            ..*entry
        };
        self.table.insert(hash, place);
        self.places = self.places.max(place as usize + 1);
        self.chunks += 1;
        self.bytes += u64::from(chunk.bytes);
        self.shares[usize::from(chunk.namespace)] += u64::from(chunk.bytes);
        self.sort(place);
        place
    }

    /// Takes a chunk out; returns its key's hash. Children stay: their parent may come back.
    pub(super) fn remove(&mut self, place: u32) -> u64 {
        let parent = self.parent(place);
        let HeldChunk { key, bytes, namespace, .. } = self.entries[place as usize];
        let hash = self.hash(&key);
        self.table.remove(hash, place);
        self.leaves.remove(usize::from(namespace), place);
        self.chunks -= 1;
        self.bytes -= u64::from(bytes);
        self.shares[usize::from(namespace)] -= u64::from(bytes);
        let entry = &mut self.entries[place as usize];
        entry.held = false;
        entry.life = entry.life.wrapping_add(1);
        entry.parent = self.free;
        self.free = place;
        self.lose_child(parent);
        hash
    }

    /// Gives a chunk to another namespace.
    pub(super) fn hand_over(&mut self, place: u32, to: u8) {
        let HeldChunk { namespace: from, bytes, .. } = self.entries[place as usize];
        self.leaves.remove(usize::from(from), place);
        self.shares[usize::from(from)] -= u64::from(bytes);
        self.shares[usize::from(to)] += u64::from(bytes);
        self.entries[place as usize].namespace = to;
        self.sort(place);
    }

    pub(super) fn pin(&mut self, place: u32) {
        self.entries[place as usize].pins += 1;
        self.sort(place);
    }

    pub(super) fn unpin(&mut self, place: u32) {
        let pins = &mut self.entries[place as usize].pins;
        *pins = pins.saturating_sub(1);
        self.sort(place);
    }

    fn parent(&self, place: u32) -> u32 {
        let entry = &self.entries[place as usize];
        match entry.parent {
            NONE => NONE,
            parent if self.entries[parent as usize].life == entry.parent_life => parent,
            _ => NONE,
        }
    }

    pub(super) fn has_parent(&self, place: u32) -> bool {
        self.parent(place) != NONE
    }

    /// Makes one chunk the parent of another that has none.
    pub(super) fn link(&mut self, place: u32, parent: u32) {
        self.entries[place as usize].parent = parent;
        self.entries[place as usize].parent_life = self.entries[parent as usize].life;
        self.gain_child(parent);
    }

    /// Counts a child more; does nothing for [`NONE`].
    pub(super) fn gain_child(&mut self, parent: u32) {
        if parent != NONE {
            self.entries[parent as usize].children += 1;
            self.sort(parent);
        }
    }

    /// Counts a child less; does nothing for [`NONE`].
    pub(super) fn lose_child(&mut self, parent: u32) {
        if parent != NONE {
            self.entries[parent as usize].children -= 1;
            self.sort(parent);
        }
    }

    /// Puts a chunk among those that can leave, or takes it out.
    fn sort(&mut self, place: u32) {
        let HeldChunk { children, pins, namespace, .. } = self.entries[place as usize];
        match (children, pins) {
            (0, 0) => self.leaves.insert(usize::from(namespace), place),
            _ => self.leaves.remove(usize::from(namespace), place),
        }
    }
}
