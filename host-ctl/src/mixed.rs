//! A prefix whose chunks are stored in different precision ([`crate::precision`]): what differs from
//! [`crate::store()`].
//!
//! ```text
//! session with the recipe that NAMES the prefix (--recipe, or the card's own): keys, how much is known
//! a few chunks encoded here, in every level: what a chunk takes
//! importances + budget -> a level for each chunk
//! one session for each level that is used: stores its chunks, under the keys of the first
//! ```
//! A key says which prefix, a block's header says how it was stored: whoever fetches names the prefix as always and
//! needs nothing else. A name therefore stands for a least precision no longer; a model name of its own keeps such
//! prefixes apart. Only store() in its ordinary form leaves all KV bytes to the card: here the sample is read and
//! encoded by the host.

use block::codec::{Compressor, DEFLATE_LEVEL_DEFAULT};
use block::{Geometry, Plan, Recipe, TileOrder};

use crate::client::{Client, Transfer};
use crate::error::Error;
use crate::memory::Memory;
use crate::precision::{Level, assign};
use crate::transfer::{
    Amounts, StoreOrder, StoreReport, Watch, check_importances, drive, look, moved, rate_known, stages_since, status,
};

/// Chunks that are encoded here to learn what a level takes: sizes of one level differ by a few percent.
const SAMPLES: usize = 3;

/// What all chunks together may take in the store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    Bytes(u64),
    BitsPerElement(f64),
}

impl Budget {
    /// Bytes that a prefix of `chunks` may take.
    fn bytes(self, geometry: &Geometry, chunks: usize) -> u64 {
        let elements = chunks * geometry.chunk_bytes() / geometry.element.bytes();
        match self {
            Self::Bytes(bytes) => bytes,
            Self::BitsPerElement(bits) => (bits * elements as f64 / 8.0) as u64,
        }
    }
}

/// Precision by the importances of a [`StoreOrder`].
#[derive(Clone, Copy, Debug)]
pub struct Mixture<'a> {
    pub levels: &'a [Recipe],
    pub budget: Budget,
}

/// What one level got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Portion {
    pub recipe: Recipe,
    /// What the sample says that one takes.
    pub chunk_bytes: u64,
    /// Assigned, of all chunks of the prompt.
    pub chunks: usize,
    /// Stored now: neither known before nor failed.
    pub stored: usize,
    pub wire_bytes: u64,
}

/// A [`StoreReport`] of the whole, and by level.
#[derive(Clone, Debug)]
pub struct MixedReport {
    pub whole: StoreReport,
    pub portions: Vec<Portion>,
    pub budget_bytes: u64,
    /// Bytes expected of the levels chosen, by the sample.
    pub planned_bytes: u64,
}

/// Opens a session with a recipe (`None`: the card's own).
pub type Attach<'a> = &'a mut dyn FnMut(Option<Recipe>, Option<Memory>) -> Result<Client, Error>;

/// Stores the whole chunks of a tensor, each in its own precision. `named` is the recipe in the prefix's name.
///
/// # Errors
/// Those of [`crate::store()`]; importances, levels or a budget that cannot be.
pub fn store_mixed(
    attach: Attach<'_>,
    named: Option<Recipe>,
    order: &StoreOrder<'_>,
    mixture: &Mixture<'_>,
    watch: Watch<'_>,
) -> Result<MixedReport, Error> {
    let memory = || order.file.memory(order.kv, order.chunk_tokens, order.page_tokens);
    let (geometry, pages_per_chunk) = memory().map(|memory| (memory.geometry, memory.pages_per_chunk()))?;
    // Before a card is troubled, as in `store`.
    order.prefix(geometry, block::Transform::Lossless.into())?;
    // With memory, without which a card names no largest block.
    let mut client = attach(named, Some(memory()?))?;
    let facts = client.card_facts().clone();
    let prefix = order.prefix(geometry, facts.recipe)?;
    let keys = prefix.keys();
    if order.importances.is_empty() && !keys.is_empty() {
        return Err(Error::input("importances", "none", "give one for each whole chunk of the prompt"));
    }
    check_importances(order.importances, keys.len())?;
    let known = if order.again { 0 } else { look(&mut client, keys, order.patience)?.chunks_done };
    let before = status(&mut client);

    let levels = measure(order, &geometry, keys.len(), facts.block_elements as usize, mixture.levels)?;
    let budget_bytes = mixture.budget.bytes(&geometry, keys.len());
    let factors: Vec<f32> = order.importances.iter().map(|importance| importance.factor()).collect();
    let chosen = assign(&factors, &levels, budget_bytes)
        .map_err(|error| Error::input("precision", error, "change --importance, --levels or the budget"))?;
    let mut report = MixedReport {
        whole: StoreReport {
            recipe: facts.recipe,
            geometry,
            chunks: keys.len(),
            known,
            stored: 0,
            tokens: prefix.tokens(),
            remainder: prefix.remainder(),
            amounts: Amounts::default(),
            stages: Vec::new(),
        },
        portions: Vec::new(),
        budget_bytes,
        planned_bytes: chosen.iter().map(|&level| levels[level].bytes).sum(),
    };
    for (level, &Level { recipe, bytes }) in levels.iter().enumerate() {
        let mine = |chunk: &usize| chosen[*chunk] == level;
        let new: Vec<usize> = (known..keys.len()).filter(mine).collect();
        let mut portion = Portion {
            recipe,
            chunk_bytes: bytes,
            chunks: (0..keys.len()).filter(mine).count(),
            stored: 0,
            wire_bytes: 0,
        };
        if !new.is_empty() {
            let done = report.whole.known + report.whole.stored;
            let mut session = attach(Some(recipe), Some(memory()?))?;
            let keys_of: Vec<_> = new.iter().map(|&chunk| keys[chunk]).collect();
            let pages: Vec<u32> = new.iter().flat_map(|&chunk| pages_of(chunk, pages_per_chunk)).collect();
            let importances: Vec<_> = new.iter().map(|&chunk| order.importances[chunk]).collect();
            let ask = Transfer::new(&keys_of, &pages);
            let transfer = Transfer { deadline: order.deadline, importances: &importances, again: order.again, ..ask };
            let id = session.post_store(&transfer)?;
            let progress = &mut |now| watch(done + now, keys.len());
            let completion = drive(&mut session, id, order.patience, progress)?.ok()?;
            session.close(order.patience)?;
            portion.stored = moved(&completion, &geometry);
            portion.wire_bytes = completion.wire_bytes;
            report.whole.stored += portion.stored;
            report.whole.known += completion.chunks_done - portion.stored;
            report.whole.amounts.add(&Amounts::of(&completion, &geometry));
        }
        report.portions.push(portion);
    }
    report.whole.stages = stages_since(&mut client, before.as_ref());
    rate_known(&mut client, keys, order, known)?;
    client.close(order.patience)?;
    Ok(report)
}

fn pages_of(chunk: usize, pages_per_chunk: usize) -> impl Iterator<Item = u32> {
    (chunk * pages_per_chunk..(chunk + 1) * pages_per_chunk).map(|page| page as u32)
}

/// Mean bytes of a chunk at every level, of [`SAMPLES`] chunks spread over the prompt.
fn measure(
    order: &StoreOrder<'_>,
    geometry: &Geometry,
    chunks: usize,
    block_elements: usize,
    levels: &[Recipe],
) -> Result<Vec<Level>, Error> {
    let plan = Plan::choose(geometry, block_elements);
    let plan = plan.map_err(|error| Error::input("--chunk-tokens", error, "choose another"))?;
    let samples = SAMPLES.min(chunks);
    let mut sums = vec![0; levels.len()];
    let mut tile = Vec::new();
    for sample in 0..samples {
        let chunk = sample * (chunks - 1) / (samples - 1).max(1);
        for index in 0..plan.block_count(geometry) {
            let part = plan.part(geometry, index).expect("below the plan's block count");
            order.file.read_part(order.kv, geometry, chunk, &part, &mut tile)?;
            for (sum, &recipe) in sums.iter_mut().zip(levels) {
                *sum += block_bytes(recipe, geometry, index, &part, &tile)?;
            }
        }
    }
    let level = |(&recipe, sum): (&Recipe, u64)| Level { recipe, bytes: (sum / samples as u64).max(1) };
    Ok(levels.iter().zip(sums).map(level).collect())
}

fn block_bytes(
    recipe: Recipe,
    geometry: &Geometry,
    index: usize,
    part: &block::Part,
    tile: &[u8],
) -> Result<u64, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::input("--levels", error, "report it");
    let mut codes = vec![0; tile.len()];
    let mut wire = vec![0; block::wire_bytes_max(geometry, part)];
    let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, tile.len()).map_err(|error| failed(&error))?;
    let key = block::ChunkKey::new([0; block::KEY_BYTES]);
    let order = TileOrder::TokenMajor;
    block::encode_tile(recipe, geometry, &key, index, part, order, tile, &mut codes, &mut wire, &mut compressor)
        .map(|bytes| bytes as u64)
        .map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_an_element_are_bytes_of_the_prefix() {
        let geometry = Geometry::new(4, 2, 32, 64, block::ElementType::Bf16).unwrap();
        assert_eq!(Budget::BitsPerElement(4.0).bytes(&geometry, 3), 3 * 4 * 2 * 2 * 32 * 64 / 2);
        assert_eq!(Budget::Bytes(7).bytes(&geometry, 3), 7);
    }
}
