//! What workers know of the chunks in progress, by seat; and which stored chunks this card can read.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use block::{ChunkKey, Geometry, Importance, Manifest, Part, Plan, Recipe, TileOrder};
use store::Position;

use crate::pipeline::job::{Evidence, Failure, Seat};

/// A chunk in progress, as workers know it.
#[derive(Debug)]
pub struct WorkerChunk {
    pub key: ChunkKey,
    pub geometry: Geometry,
    pub recipe: Recipe,
    /// Its place in the prompt.
    pub position: Position,
    /// Whether a store puts it though the store has it.
    pub again: bool,
    /// Importance that the host gives it, for a store.
    pub importance: Importance,
    pub order: TileOrder,
    pub plan: Plan,
    /// Wire bytes by block: from the manifest (fetch), or as they are encoded (store).
    pub lengths: [u32; block::BLOCKS_PER_CHUNK_MAX],
    pub blocks: usize,
    pub until: Instant,
}

impl WorkerChunk {
    /// Returns the part of the chunk that a block is.
    #[must_use]
    pub fn part(&self, block: u16) -> Part {
        self.plan.part(&self.geometry, usize::from(block)).expect("the engine thread counts blocks by the plan")
    }
}

/// The table of chunks in progress, shared between the engine thread and the workers. Locks are held for copies only.
#[derive(Debug)]
pub struct Chunks {
    seats: Vec<Mutex<WorkerChunk>>,
}

impl Chunks {
    #[must_use]
    pub fn new(count: usize) -> Self {
        let geometry = Geometry::new(1, 1, 1, 1, block::ElementType::Bf16).expect("the smallest geometry");
        let empty = || WorkerChunk {
            key: ChunkKey::new([0; block::KEY_BYTES]),
            geometry,
            recipe: "lossless".parse().expect("a recipe of our own"),
            position: Position { namespace: 0, parent: None },
            again: false,
            importance: Importance::NEUTRAL,
            order: TileOrder::TokenMajor,
            plan: Plan { layers_per_block: 1, tokens_per_block: 1 },
            lengths: [0; block::BLOCKS_PER_CHUNK_MAX],
            blocks: 0,
            until: Instant::now(),
        };
        Self { seats: (0..count).map(|_| Mutex::new(empty())).collect() }
    }

    pub fn at(&self, seat: Seat) -> MutexGuard<'_, WorkerChunk> {
        self.seats[usize::from(seat.0)].lock().expect("no holder of this lock panics: panic is abort")
    }

    /// Moves a chunk, which nothing was asked of yet, to another seat.
    pub fn reseated(&self, from: Seat, to: Seat) {
        self.at(to).take_over(&self.at(from));
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.seats.len()
    }
}

impl WorkerChunk {
    /// Takes over another chunk of which no manifest was read.
    fn take_over(&mut self, other: &Self) {
        let Self { key, geometry, recipe, position, again, importance, order, plan, lengths: _, blocks, until } =
            *other;
        *self = Self {
            key,
            geometry,
            recipe,
            position,
            again,
            importance,
            order,
            plan,
            lengths: [0; block::BLOCKS_PER_CHUNK_MAX],
            blocks,
            until,
        };
    }

    /// Takes over what a manifest says, if this card can read such a chunk.
    ///
    /// # Errors
    /// Those of [`Self::understand`].
    pub fn adopt(&mut self, manifest: &[u8], wire_max: usize, tile_max: usize) -> Result<(), Failure> {
        let manifest = self.understand(manifest, wire_max, tile_max)?;
        self.plan = *manifest.plan();
        self.blocks = manifest.block_count();
        self.lengths[..self.blocks].copy_from_slice(manifest.lengths());
        Ok(())
    }

    /// Parses a manifest, if it is this chunk's and its blocks fit `wire_max` and `tile_max` bytes. The one place that
    /// says what this card can read, for fetches and for those who are about to put.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or names another chunk, `Foreign` if this card cannot take it.
    pub fn understand(&self, bytes: &[u8], wire_max: usize, tile_max: usize) -> Result<Manifest, Failure> {
        let corrupt = || Failure::Corrupt(Evidence::of("its manifest", bytes));
        let manifest = Manifest::parse(bytes).map_err(|error| match error.is_damage() {
            true => corrupt(),
            // Somebody else's, and good for them.
            false => Failure::Foreign(error.kind()),
        })?;
        if *manifest.key() != self.key {
            return Err(corrupt());
        }
        if *manifest.geometry() != self.geometry {
            return Err(Failure::Foreign("a geometry"));
        }
        let largest = manifest.plan().largest(&self.geometry);
        let fits = manifest.lengths().iter().all(|bytes| *bytes as usize <= wire_max)
            && largest.tile_bytes(&self.geometry) <= tile_max;
        if !fits {
            return Err(Failure::Foreign("blocks larger than --block-bytes"));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_of_another_version_is_not_ours_to_throw_away() {
        let chunks = Chunks::new(1);
        let mut chunk = chunks.at(Seat(0));
        let WorkerChunk { key, geometry, plan, .. } = *chunk;
        let lengths = vec![block::HEADER_BYTES as u32 + 1; plan.block_count(&geometry)];
        let manifest = Manifest::new(key, geometry, plan, &lengths).expect("a manifest");
        let mut bytes = [0; block::MANIFEST_BYTES_MAX];
        let count = manifest.encode(&mut bytes);
        assert_eq!(chunk.adopt(&bytes[..count], 1 << 20, 1 << 20), Ok(()));
        assert_eq!(
            chunk.adopt(&bytes[..count], block::HEADER_BYTES, 1 << 20),
            Err(Failure::Foreign("blocks larger than --block-bytes"))
        );
        let corrupt = |bytes: &[u8]| Err(Failure::Corrupt(Evidence::of("its manifest", bytes)));
        // The version is behind the four letters of the magic, the code over all bytes (with itself as 0) at 60.
        bytes[4] ^= 1;
        assert_eq!(chunk.adopt(&bytes[..count], 1 << 20, 1 << 20), corrupt(&bytes[..count]), "damage");
        bytes[60..64].fill(0);
        let code = crc32fast::hash(&bytes[..count]).to_le_bytes();
        bytes[60..64].copy_from_slice(&code);
        assert_eq!(chunk.adopt(&bytes[..count], 1 << 20, 1 << 20), Err(Failure::Foreign("a manifest version")));
        bytes[0] ^= 1;
        assert_eq!(chunk.adopt(&bytes[..count], 1 << 20, 1 << 20), corrupt(&bytes[..count]));
    }
}
