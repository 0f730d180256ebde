//! `store`, `lookup` and `fetch` from end to end.
//!
//! ```text
//! store   attach with the file's memory -> lookup -> store what is not known
//! fetch   attach -> lookup n -> file of n chunks -> attach with its memory -> fetch: n in place -> publish
//!                                    ^-------------------------------------------- fewer: again, with that many
//! ```
//! A fetch that finds less than was looked up (evicted, damaged) is done again with what there is, [`ATTEMPTS`] times
//! at most: a file is published only when every chunk in it is in place.

use std::path::Path;
use std::time::{Duration, Instant};

use block::{ChunkKey, Geometry, Importance, Namespace, Recipe};
use mailbox::{Operation, Status};

use crate::arrangement::{Arrangement, PageOrder};
use crate::attach::Door;
use crate::client::{Client, Completion, RequestId, Transfer};
use crate::error::Error;
use crate::kv_file::{KvFile, KvTensor, TensorShape};
use crate::memory::Memory;
use crate::out_file::OutFile;
use crate::prefix::Prefix;
use crate::status::{CardStatus, StageDelta};

/// How often a fetch to a file is done again because less was there than looked up.
const ATTEMPTS: usize = 4;
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
    /// In host memory.
    pub raw_bytes: u64,
    /// In the store.
    pub wire_bytes: u64,
    /// From post to completion.
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

    /// Another transfer, after this one.
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

/// What a lookup found.
#[derive(Clone, Debug)]
pub struct Lookup {
    pub recipe: Recipe,
    pub prefix: Prefix,
    /// Leading chunks that are stored.
    pub found: usize,
    pub elapsed: Duration,
}

/// Where fetched chunks go.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A safetensors file with one KV tensor.
    File { path: &'a Path, tensor: &'a str },
    /// Memory as a serving engine has it, forgotten afterwards: for measuring.
    Anonymous { arrangement: Arrangement, order: PageOrder },
}

/// What to fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchOrder<'a> {
    pub identity: Identity<'a>,
    pub tokens: &'a [u32],
    /// Its tokens are not looked at.
    pub shape: TensorShape,
    pub chunk_tokens: usize,
    pub page_tokens: u16,
    pub deadline: Option<Duration>,
    pub patience: Duration,
    pub target: Target<'a>,
    /// How often, for measuring.
    pub repeat: usize,
}

/// What was fetched.
#[derive(Clone, Debug)]
pub struct FetchReport {
    pub recipe: Recipe,
    pub geometry: Geometry,
    /// Whole chunks of the prompt.
    pub chunks: usize,
    /// Leading ones that the lookup found.
    pub found: usize,
    /// Leading ones in place.
    pub fetched: usize,
    pub tokens: usize,
    pub remainder: usize,
    /// Why less was fetched than found.
    pub note: Option<String>,
    /// A chunk failed its checks; how many the card took out of its store meanwhile, where it says so.
    pub damaged: Option<u64>,
    /// One for each repetition.
    pub runs: Vec<Amounts>,
    pub stages: Vec<StageDelta>,
}

/// Hears of progress: chunks done, of how many.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize);

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
    let recipe = client.welcome().recipe;
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
    let prefix = identity.prefix(geometry, client.welcome().recipe, tokens)?;
    let keys = prefix.keys();
    let importances = importances(keys.len())?;
    check_importances(&importances, keys.len())?;
    let id = client.post_rate(keys, &importances)?;
    let done = drive(&mut client, id, patience, &mut |_| {})?.ok()?;
    client.close(patience)?;
    Ok(done.chunks_done)
}

/// Asks how much of a prompt is stored.
///
/// # Errors
/// Bad input, no card, or what the card answered.
pub fn lookup(
    door: &mut dyn Door,
    identity: &Identity<'_>,
    geometry: Geometry,
    tokens: &[u32],
    patience: Duration,
) -> Result<Lookup, Error> {
    identity.prefix(geometry, block::Transform::Lossless.into(), tokens)?;
    let mut client = door.attach(None)?;
    let recipe = client.welcome().recipe;
    let prefix = identity.prefix(geometry, recipe, tokens)?;
    let completion = look(&mut client, prefix.keys(), patience)?;
    client.close(patience)?;
    Ok(Lookup { recipe, prefix, found: completion.chunks_done, elapsed: completion.elapsed })
}

/// Fetches the leading chunks of a prompt that are stored.
///
/// # Errors
/// [`Error::Miss`] when there are none; else as for [`store()`]. No file is left in any of these cases.
pub fn fetch(door: &mut dyn Door, order: &FetchOrder<'_>, watch: Watch<'_>) -> Result<FetchReport, Error> {
    let geometry = order.shape.geometry(order.chunk_tokens);
    let geometry = geometry.map_err(|error| Error::input("geometry", error, "change --geometry or --chunk-tokens"))?;
    if order.page_tokens == 0 || !order.chunk_tokens.is_multiple_of(order.page_tokens.into()) {
        let what = format!("{} does not divide chunks of {} tokens", order.page_tokens, order.chunk_tokens);
        return Err(Error::input("--page-tokens", what, "choose one that does"));
    }
    let Lookup { recipe, prefix, found, .. } = lookup(door, &order.identity, geometry, order.tokens, order.patience)?;
    let mut report = FetchReport {
        recipe,
        geometry,
        chunks: prefix.chunks(),
        found,
        fetched: found,
        tokens: 0,
        remainder: prefix.remainder(),
        note: None,
        damaged: None,
        runs: Vec::new(),
        stages: Vec::new(),
    };
    for _ in 0..ATTEMPTS {
        if report.fetched == 0 {
            return Err(report.nothing());
        }
        let keys = &prefix.keys()[..report.fetched];
        let wanted = keys.len();
        match order.target {
            Target::File { path, tensor } => {
                let shape = TensorShape { tokens: wanted * order.chunk_tokens, ..order.shape };
                let facts = [
                    ("format", "kvlane kv [layers, 2, tokens, heads, head size]".to_owned()),
                    ("model", order.identity.model.to_owned()),
                    ("recipe", recipe.to_string()),
                    ("chunk_tokens", order.chunk_tokens.to_string()),
                ];
                let out = OutFile::create(path, tensor, shape, &facts)?;
                let memory = out.memory(order.chunk_tokens, order.page_tokens)?;
                fetch_into(door, order, keys, memory, PageOrder::Linear, &mut report, watch)?;
                if report.fetched == wanted {
                    out.publish()?;
                }
            }
            Target::Anonymous { arrangement, order: page_order } => {
                let pages = wanted * (order.chunk_tokens / usize::from(order.page_tokens));
                let pages = u32::try_from(pages)
                    .map_err(|_| Error::input("--tokens", "too many pages", "fetch fewer tokens"))?;
                let memory = arrangement.allocate(geometry, order.page_tokens, pages)?;
                fetch_into(door, order, keys, memory, page_order, &mut report, watch)?;
            }
        }
        if report.fetched == wanted {
            report.tokens = wanted * order.chunk_tokens;
            return Ok(report);
        }
    }
    Err(Error::Damaged {
        place: "store".to_owned(),
        what: format!(
            "found fewer chunks in each of {ATTEMPTS} fetches: wait until nobody evicts or damages it{}",
            report.note.map_or(String::new(), |note| format!(" ({note})"))
        ),
    })
}

impl FetchReport {
    /// Why no chunk at all is in place.
    fn nothing(&self) -> Error {
        let Self { chunks, found, note, .. } = self;
        match note {
            None => Error::Miss { chunks: *chunks },
            Some(note) => Error::Damaged {
                place: "fetch".to_owned(),
                what: format!("{note}: {found} of the prefix's {chunks} chunks were found, none could be used"),
            },
        }
    }

    /// The card met damage: `taken` chunks left its store since, as far as it says.
    fn met_damage(&mut self, taken: Option<u64>) {
        let taken = self.damaged.unwrap_or(0) + taken.unwrap_or(0);
        self.damaged = Some(taken);
        self.note = Some(match taken {
            0 => "a stored chunk is damaged (it failed its check): store the prefix again".to_owned(),
            1 => "1 stored chunk was damaged (it failed its check) and was taken out of the store: \
                  store the prefix again"
                .to_owned(),
            taken => format!(
                "{taken} stored chunks were damaged (they failed their checks) and were taken out of the store: store the \
                 prefix again"
            ),
        });
    }
}

/// One attach and as many fetches as asked; sets `report.fetched` to what is in place.
fn fetch_into(
    door: &mut dyn Door,
    order: &FetchOrder<'_>,
    keys: &[ChunkKey],
    memory: Memory,
    page_order: PageOrder,
    report: &mut FetchReport,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let pages = page_order.table((keys.len() * memory.pages_per_chunk()) as u32);
    let geometry = memory.geometry;
    let mut client = door.attach(Some(memory))?;
    if client.welcome().recipe.transform != report.recipe.transform {
        return Err(Error::Recipe { asked: report.recipe, card: client.welcome().recipe.to_string() });
    }
    let before = status(&mut client);
    let mut is_damaged = false;
    report.runs.clear();
    for _ in 0..order.repeat.max(1) {
        let transfer = Transfer { deadline: order.deadline, ..Transfer::new(keys, &pages) };
        let id = client.post_fetch(&transfer)?;
        let completion = drive(&mut client, id, order.patience, &mut |done| watch(done, keys.len()))?;
        report.runs.push(Amounts::of(&completion, &geometry));
        report.fetched = completion.chunks_done;
        if completion.chunks_done < keys.len() {
            match completion.status {
                Status::Ok => report.note = Some("a chunk that was looked up was gone when it was fetched".to_owned()),
                Status::Corrupt => is_damaged = true,
                _ => return Err(completion.ok().expect_err("not Ok")),
            }
            break;
        }
    }
    let after = status(&mut client);
    if is_damaged {
        let taken = |status: &Option<CardStatus>| status.as_ref().and_then(CardStatus::chunks_taken_out);
        report.met_damage(taken(&after).zip(taken(&before)).map(|(after, before)| after.saturating_sub(before)));
    }
    report.stages = stages_between(before.as_ref(), after.as_ref());
    client.close(order.patience)
}

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
