//! `store`, `lookup` and `fetch` from end to end.
//!
//! ```text
//! store   attach with the file's memory -> lookup -> store what is not known
//! fetch   attach -> lookup n -> file of n chunks -> attach with its memory -> fetch: n in place -> publish
//!                                    ^-------------------------------------------- fewer: again, with that many
//! ```
//! A fetch that finds less than was looked up (evicted, damaged) is done again with what there is, a few times at most:
//! a file is published only when every chunk in it is in place.

mod fetch;
mod store;

use std::time::{Duration, Instant};

use block::{ChunkKey, Geometry, Namespace, Recipe};
use mailbox::Operation;

use crate::client::{Client, Completion, RequestId};
use crate::error::Error;
use crate::prefix::Prefix;
use crate::status::{CardStatus, StageDelta};

pub use fetch::{FetchOrder, FetchReport, LookupReport, Target, fetch, lookup};
pub use store::{StoreOrder, StoreReport, rate, store};
pub(crate) use store::{check_importances, moved, rate_known};

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);
/// A status beside the real work.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// What names a prefix beside tokens, geometry and recipe.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub model: &'a str,
    pub salt: &'a [u8],
    pub rank: u32,
    pub ranks: u32,
}

impl Identity<'_> {
    fn prefix(&self, geometry: Geometry, recipe: Recipe, tokens: &[u32]) -> Result<Prefix, Error> {
        let Identity { model, salt, rank, ranks } = *self;
        let prefix = Prefix::new(&Namespace { model, geometry, recipe, salt, rank, ranks }, tokens)?;
        if prefix.chunks() == 0 {
            let what = format!("{} tokens fill no chunk of {}", tokens.len(), geometry.chunk_tokens);
            return Err(Error::input(
                "--tokens",
                what,
                "give more tokens, or smaller --chunk-tokens (equal for store and fetch)",
            ));
        }
        Ok(prefix)
    }
}

/// Bytes and times of one transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amounts {
    /// Bytes in host memory.
    pub raw_bytes: u64,
    /// Bytes in the store.
    pub wire_bytes: u64,
    /// Time from post to completion.
    pub elapsed: Duration,
}

impl Amounts {
    pub(crate) fn of(completion: &Completion, geometry: &Geometry) -> Amounts {
        Amounts {
            raw_bytes: completion.chunks_done as u64 * geometry.chunk_bytes() as u64,
            wire_bytes: completion.wire_bytes,
            elapsed: completion.elapsed,
        }
    }

    /// Adds another transfer, after this one.
    pub(crate) fn add(&mut self, other: &Amounts) {
        self.raw_bytes += other.raw_bytes;
        self.wire_bytes += other.wire_bytes;
        self.elapsed += other.elapsed;
    }

    /// Raw bytes for one wire byte; 0 where nothing moved.
    pub fn ratio(&self) -> f64 {
        if self.wire_bytes == 0 { 0.0 } else { self.raw_bytes as f64 / self.wire_bytes as f64 }
    }

    /// Raw bytes a second, in units of 10^6.
    pub fn raw_mb_s(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds == 0.0 { 0.0 } else { self.raw_bytes as f64 / 1e6 / seconds }
    }
}

/// Hears of progress: chunks done, of how many.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize);

pub(crate) fn look(client: &mut Client, keys: &[ChunkKey], patience: Duration) -> Result<Completion, Error> {
    let id = client.post_lookup(keys)?;
    drive(client, id, patience, &mut |_| {})?.ok()
}

/// Waits for a request as long as it moves, and tells how far it is.
pub(crate) fn drive(
    client: &mut Client,
    id: RequestId,
    patience: Duration,
    watch: &mut dyn FnMut(usize),
) -> Result<Completion, Error> {
    let (mut done, mut since) = (0, Instant::now());
    loop {
        match client.wait(id, TICK.min(patience)) {
            Ok(completion) => {
                watch(completion.chunks_done);
                return Ok(completion);
            }
            Err(Error::Timeout { what, .. }) => {
                let now = client.progress(id).unwrap_or(done);
                if now > done {
                    (done, since) = (now, Instant::now());
                } else if since.elapsed() >= patience {
                    client.cancel(id)?;
                    return Err(Error::Timeout { what, waited: patience });
                }
                watch(done);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The card's status, if it has one: no transfer fails for want of it.
pub(crate) fn status(client: &mut Client) -> Option<CardStatus> {
    let id = client.post_status().ok()?;
    let completion = client.wait(id, STATUS_TIMEOUT).ok()?;
    debug_assert_eq!(completion.operation, Operation::Status);
    CardStatus::parse(&completion.ok().ok()?.answer).ok()
}

pub(crate) fn stages_since(client: &mut Client, before: Option<&CardStatus>) -> Vec<StageDelta> {
    stages_between(before, status(client).as_ref())
}

fn stages_between(before: Option<&CardStatus>, after: Option<&CardStatus>) -> Vec<StageDelta> {
    before.zip(after).map_or(Vec::new(), |(before, after)| after.since(before))
}
