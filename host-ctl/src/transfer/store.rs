//! `store` and `rate`: chunks go in, and what they are worth.

use std::time::Duration;

use block::{ChunkKey, Geometry, Importance, Recipe};

use super::{Amounts, Identity, Watch, drive, look, stages_since, status};
use crate::attach::Door;
use crate::client::{Client, Completion, Transfer};
use crate::error::Error;
use crate::kv_file::{KvFile, KvTensor};
use crate::prefix::Prefix;
use crate::status::StageDelta;

/// What to store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOrder<'a> {
    pub file: &'a KvFile,
    pub kv: &'a KvTensor,
    pub identity: Identity<'a>,
    /// One for each token of the tensor, or fewer.
    pub tokens: &'a [u32],
    pub chunk_tokens: usize,
    pub page_tokens: u16,
    pub deadline: Option<Duration>,
    /// Give up when nothing moves for this long.
    pub patience: Duration,
    /// Store also what is stored already.
    pub again: bool,
    /// What each whole chunk is worth, or nothing: neutral. Of chunks that are stored already it is said, too.
    pub importances: &'a [Importance],
}

impl StoreOrder<'_> {
    /// The named chunks, if there are tokens for one and no more than the tensor has.
    pub(crate) fn prefix(&self, geometry: Geometry, recipe: Recipe) -> Result<Prefix, Error> {
        let (ids, held) = (self.tokens.len(), self.kv.shape.tokens);
        if ids > held {
            let what = format!("{ids} token ids for a tensor of {held} tokens");
            return Err(Error::input("--tokens", what, "give one for each token, or fewer"));
        }
        self.identity.prefix(geometry, recipe, self.tokens)
    }
}

/// What was stored.
#[derive(Clone, Debug)]
pub struct StoreReport {
    pub recipe: Recipe,
    pub geometry: Geometry,
    /// Whole chunks of the prompt.
    pub chunks: usize,
    /// Those that the store had, and that were not stored again.
    pub known: usize,
    /// Those that the card stored.
    pub stored: usize,
    /// Tokens in whole chunks, and behind them.
    pub tokens: usize,
    pub remainder: usize,
    pub amounts: Amounts,
    pub stages: Vec<StageDelta>,
}

/// Stores the whole chunks of a tensor.
///
/// # Errors
/// Bad input, no card, or what the card answered (with what was done before).
pub fn store(door: &mut dyn Door, order: &StoreOrder<'_>, watch: Watch<'_>) -> Result<StoreReport, Error> {
    let memory = order.file.memory(order.kv, order.chunk_tokens, order.page_tokens)?;
    let (geometry, pages_per_chunk) = (memory.geometry, memory.pages_per_chunk());
    // Before a card is troubled; the recipe does not change how many there are.
    order.prefix(geometry, block::Transform::Lossless.into())?;
    let mut client = door.attach(Some(memory))?;
    let recipe = client.card_facts().recipe;
    let prefix = order.prefix(geometry, recipe)?;
    let keys = prefix.keys();
    check_importances(order.importances, keys.len())?;
    let known = if order.again { 0 } else { look(&mut client, keys, order.patience)?.chunks_done };
    let before = status(&mut client);
    let mut report = StoreReport {
        recipe,
        geometry,
        chunks: keys.len(),
        known,
        stored: 0,
        tokens: prefix.tokens(),
        remainder: prefix.remainder(),
        amounts: Amounts::default(),
        stages: Vec::new(),
    };
    if known < keys.len() {
        let pages: Vec<u32> = (known * pages_per_chunk..keys.len() * pages_per_chunk).map(|page| page as u32).collect();
        let importances = order.importances.get(known..).unwrap_or_default();
        let asked = Transfer::new(&keys[known..], &pages);
        let transfer = Transfer { deadline: order.deadline, importances, again: order.again, ..asked };
        let id = client.post_store(&transfer)?;
        let all = keys.len();
        let completion = drive(&mut client, id, order.patience, &mut |done| watch(known + done, all))?.ok()?;
        // Of the others another host, or an earlier store behind a gap, was first.
        report.stored = moved(&completion, &geometry);
        report.known += completion.chunks_done - report.stored;
        report.amounts = Amounts::of(&completion, &geometry);
        report.stages = stages_since(&mut client, before.as_ref());
    }
    rate_known(&mut client, keys, order, known)?;
    client.close(order.patience)?;
    Ok(report)
}

/// Chunks that the card took from memory and stored: of one that the store had, nothing moves.
pub(crate) fn moved(completion: &Completion, geometry: &Geometry) -> usize {
    let chunks = completion.restored_bytes / geometry.chunk_bytes().max(1) as u64;
    completion.chunks_done.min(chunks as usize)
}

/// Says what the chunks are worth that were stored before.
pub(crate) fn rate_known(
    client: &mut Client,
    keys: &[ChunkKey],
    order: &StoreOrder<'_>,
    known: usize,
) -> Result<(), Error> {
    if known > 0 && !order.importances.is_empty() {
        let id = client.post_rate(&keys[..known], &order.importances[..known])?;
        drive(client, id, order.patience, &mut |_| {})?.ok()?;
    }
    Ok(())
}

pub(crate) fn check_importances(importances: &[Importance], chunks: usize) -> Result<(), Error> {
    if importances.is_empty() || importances.len() == chunks {
        return Ok(());
    }
    let what = format!("{} importances for {chunks} whole chunks", importances.len());
    Err(Error::input("importances", what, "give one for each whole chunk of the prompt"))
}

/// Says what the chunks of a prompt are worth, whether they are stored or not: returns how many there are.
///
/// # Errors
/// Bad input, no card, or one that does not know how to be told.
pub fn rate(
    door: &mut dyn Door,
    identity: &Identity<'_>,
    geometry: Geometry,
    tokens: &[u32],
    importances: &dyn Fn(usize) -> Result<Vec<Importance>, Error>,
    patience: Duration,
) -> Result<usize, Error> {
    identity.prefix(geometry, block::Transform::Lossless.into(), tokens)?;
    let mut client = door.attach(None)?;
    let prefix = identity.prefix(geometry, client.card_facts().recipe, tokens)?;
    let keys = prefix.keys();
    let importances = importances(keys.len())?;
    check_importances(&importances, keys.len())?;
    let id = client.post_rate(keys, &importances)?;
    let done = drive(&mut client, id, patience, &mut |_| {})?.ok()?;
    client.close(patience)?;
    Ok(done.chunks_done)
}
