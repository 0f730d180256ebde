//! `lookup` and `fetch`: how much is stored, and its leading chunks into a file or memory.

use std::path::Path;
use std::time::Duration;

use block::{ChunkKey, Geometry, Recipe};
use mailbox::Status;

use super::{Amounts, Identity, Watch, drive, look, stages_between, status};
use crate::arrangement::{Arrangement, PageOrder};
use crate::attach::Door;
use crate::client::Transfer;
use crate::error::Error;
use crate::kv_file::TensorShape;
use crate::memory::Memory;
use crate::out_file::OutFile;
use crate::prefix::Prefix;
use crate::status::{CardStatus, StageDelta};

/// How often a fetch to a file is done again because less was there than looked up.
const ATTEMPTS: usize = 4;

/// What a lookup found.
#[derive(Clone, Debug)]
pub struct LookupReport {
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
) -> Result<LookupReport, Error> {
    identity.prefix(geometry, block::Transform::Lossless.into(), tokens)?;
    let mut client = door.attach(None)?;
    let recipe = client.card_facts().recipe;
    let prefix = identity.prefix(geometry, recipe, tokens)?;
    let completion = look(&mut client, prefix.keys(), patience)?;
    client.close(patience)?;
    Ok(LookupReport { recipe, prefix, found: completion.chunks_done, elapsed: completion.elapsed })
}

/// Fetches the leading chunks of a prompt that are stored.
///
/// # Errors
/// [`Error::Miss`] when there are none; else as for [`crate::store()`]. No file is left in any of these cases.
pub fn fetch(door: &mut dyn Door, order: &FetchOrder<'_>, watch: Watch<'_>) -> Result<FetchReport, Error> {
    let geometry = order.shape.geometry(order.chunk_tokens);
    let geometry = geometry.map_err(|error| Error::input("geometry", error, "change --geometry or --chunk-tokens"))?;
    if order.page_tokens == 0 || !order.chunk_tokens.is_multiple_of(order.page_tokens.into()) {
        let what = format!("{} does not divide chunks of {} tokens", order.page_tokens, order.chunk_tokens);
        return Err(Error::input("--page-tokens", what, "choose one that does"));
    }
    let LookupReport { recipe, prefix, found, .. } =
        lookup(door, &order.identity, geometry, order.tokens, order.patience)?;
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
    if client.card_facts().recipe.transform != report.recipe.transform {
        return Err(Error::Recipe { asked: report.recipe, card: client.card_facts().recipe.to_string() });
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
