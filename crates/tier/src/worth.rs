//! Our policy: keeps what is worth most.
//!
//! **Score** = expected uses x importance x cost to get it back / bytes, so that a byte of the tier saves as much
//! time as it can. How many uses are to be expected of a chunk, by how often and how long ago it was used, is learned
//! from all chunks that came back or did not (returns.rs), of which those that are not held are remembered for a
//! while (remembered.rs). So there is nothing to tune: where sessions go on within seconds a chunk is given up after
//! seconds, and what a scan brings does not come in where scans do not come back.
//!
//! **Who leaves** is the least of [`DRAWN`] chunks that are drawn at random (of all, if they are so few): scores change
//! with time, so no order could be kept, and a chunk that is worth much is all but never the least of so many.
//!
//! **Prefixes.** Only chunks without children here can leave (held.rs). A chunk comes in after its parent.
//!
//! **Quotas.** A namespace never holds more than its `most`, and what it holds up to its `least` no other can take.
//!
//! All memory is taken in `new`; each call takes constant time (and linear in its own arguments).

use block::ChunkKey;

use crate::{CandidateChunk, NAMESPACES_MAX, Policy};
use held::{Held, HeldChunk};
use remembered::Remembered;
use returns::{History, Returns, TICK_MS};
use table::NONE;

mod held;
mod remembered;
mod returns;
mod sets;
mod table;

/// Number of chunks that are compared when one has to leave.
const DRAWN: usize = 16;
/// Number of chunks that are remembered for each that can be held.
const REMEMBERED: usize = 4;
/// Number of places that are looked at with each use, for the time that chunks have been waited for.
const SWEPT: usize = 4;
/// Ticks in a minute: scores are shown by the minute.
const TICKS_PER_MINUTE: f64 = 60_000.0 / TICK_MS as f64;

/// Size that a tier is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub bytes_max: u64,
    /// Entries of the tables: chunks held at most.
    pub chunks_max: usize,
}

/// Share of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nobody else can push it below this.
    pub least: u64,
    /// It never holds more than this.
    pub most: u64,
}

/// Reason why a chunk does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The chunk is here.
    Held,
    /// Its parent is not.
    Orphan,
    /// The chunk is larger than the tier or its namespace's quota, or one of its numbers is no positive number.
    Large,
    /// Everything that would have to leave is worth more, is pinned or belongs to others.
    Worse,
}

/// One chunk that is held, for those who look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldView<'a> {
    pub key: &'a ChunkKey,
    pub bytes: u32,
    pub namespace: u8,
    pub children: u32,
    pub pins: u32,
    /// Uses to expect in a minute x importance x microseconds to get it back / bytes.
    pub score: f64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Worth {
    limits: Sizes,
    /// State of the draws: xorshift64.
    random: u64,
    held: Held,
    remembered: Remembered,
    returns: Returns,
    /// Quotas by namespace.
    quotas: [Quota; NAMESPACES_MAX],
    /// Where looking for those who wait goes on: among the places of `held`, and then among those remembered.
    hand: usize,
    /// Time of the use that was counted last.
    now: u32,
}

/// A chunk that was counted.
#[derive(Clone, Copy)]
struct Counted {
    /// Its place, or [`NONE`].
    at: u32,
    history: History,
}

impl Worth {
    /// Returns the bytes of bookkeeping for `chunks_max` chunks.
    pub const fn memory_bytes(chunks_max: usize) -> usize {
        Held::memory_bytes(chunks_max) + Remembered::memory_bytes(REMEMBERED * chunks_max) + Returns::MEMORY_BYTES
    }

    /// Init. `seed` should be a secret where hosts can choose keys.
    ///
    /// # Panics
    /// A limit is 0.
    pub fn new(limits: Sizes, seed: u64) -> Self {
        let Sizes { bytes_max, chunks_max } = limits;
        assert!(bytes_max > 0, "a limit is 0: {limits:?}");
        Self {
            limits,
            random: seed | 1,
            held: Held::new(chunks_max, seed),
            remembered: Remembered::new(REMEMBERED * chunks_max),
            returns: Returns::new(),
            quotas: [Quota { least: 0, most: bytes_max }; NAMESPACES_MAX],
            hand: 0,
            now: 0,
        }
    }

    pub fn limits(&self) -> &Sizes {
        &self.limits
    }

    /// Returns the number of chunks held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.len() == 0
    }

    pub fn set_quota(&mut self, namespace: u8, quota: Quota) {
        self.quotas[usize::from(namespace)] = quota;
    }

    /// Returns the namespace that a chunk belongs to.
    pub fn namespace_of(&self, key: &ChunkKey) -> Option<u8> {
        self.held.find(key).map(|at| self.held.at(at).namespace)
    }

    /// Gives a chunk of one namespace to another, if that one's quota has room for it.
    pub fn hand_over(&mut self, key: &ChunkKey, from: u8, to: u8) -> bool {
        let Some(at) = self.held.find(key) else { return false };
        let HeldChunk { namespace, bytes, .. } = *self.held.at(at);
        if namespace != from || self.bytes_of(to) + u64::from(bytes) > self.quotas[usize::from(to)].most {
            return false;
        }
        self.held.hand_over(at, to);
        true
    }

    /// Returns the bytes that a namespace holds.
    pub fn bytes_of(&self, namespace: u8) -> u64 {
        self.held.bytes_of(namespace.into())
    }

    /// Counts a use of the leading chunks of one prompt, held or not, and links those that are held to their parents.
    pub fn used(&mut self, prefix: &[ChunkKey], now_ms: u64) {
        self.count(prefix.iter(), now_ms);
    }

    /// The same for one chunk, which stands behind `parent` in its prompt.
    pub fn used_behind(&mut self, parent: Option<&ChunkKey>, key: &ChunkKey, now_ms: u64) {
        let before = parent.and_then(|parent| {
            let hash = self.held.hash(parent);
            match self.held.find_hashed(hash, parent) {
                Some(at) => Some(Counted { at, history: self.held.at(at).history }),
                None => self.remembered.find(hash).map(|history| Counted { at: NONE, history }),
            }
        });
        self.count_one(key, before, ticks(now_ms));
    }

    fn count<'k>(&mut self, prefix: impl Iterator<Item = &'k ChunkKey>, now_ms: u64) {
        prefix.fold(None, |before, key| Some(self.count_one(key, before, ticks(now_ms))));
    }

    fn count_one(&mut self, key: &ChunkKey, before: Option<Counted>, now: u32) -> Counted {
        self.sweep(now);
        let hash = self.held.hash(key);
        if let Some(at) = self.held.find_hashed(hash, key) {
            if let Some(Counted { at: parent, .. }) = before
                && parent != NONE
                && !self.held.has_parent(at)
            {
                self.held.link(at, parent);
            }
            let history = &mut self.held.at_mut(at).history;
            self.returns.used(history, now);
            return Counted { at, history: *history };
        }
        let history = match self.remembered.take(hash) {
            Some(mut history) => {
                self.returns.used(&mut history, now);
                history
            }
            None => History::first(now, before.map(|before| before.history)),
        };
        self.remember(hash, history);
        Counted { at: NONE, history }
    }

    /// Counts the time that some chunks have been waited for.
    fn sweep(&mut self, now: u32) {
        self.now = now;
        let places = self.held.places();
        let all = places + self.remembered.len();
        for _ in 0..SWEPT.min(all) {
            self.hand = if self.hand + 1 < all { self.hand + 1 } else { 0 };
            let history = match self.hand.checked_sub(places) {
                Some(at) => self.remembered.get_mut(at),
                None => {
                    Some(self.held.at_mut(self.hand as u32)).filter(|entry| entry.held).map(|entry| &mut entry.history)
                }
            };
            if let Some(history) = history {
                self.returns.waited(history, now);
            }
        }
    }

    fn remember(&mut self, hash: u64, history: History) {
        if let Some(mut forgotten) = self.remembered.put(hash, history) {
            self.returns.waited(&mut forgotten, self.now);
        }
    }

    /// Takes in a chunk that was just used (and counted), if it is worth that. `leaves` hears who leaves for it, also
    /// where it does not come in after all.
    ///
    /// # Errors
    /// Why not.
    pub fn offer(
        &mut self,
        chunk: &CandidateChunk,
        parent: Option<&ChunkKey>,
        now_ms: u64,
        leaves: &mut dyn FnMut(&ChunkKey, u32),
    ) -> Result<(), Refusal> {
        let now = ticks(now_ms);
        let hash = self.held.hash(&chunk.key);
        if self.held.find_hashed(hash, &chunk.key).is_some() {
            return Err(Refusal::Held);
        }
        let parent = match parent {
            Some(parent) => self.held.find(parent).ok_or(Refusal::Orphan)?,
            None => NONE,
        };
        if !chunk.is_sound() || u64::from(chunk.bytes) > self.quota_of(chunk).most.min(self.limits.bytes_max) {
            return Err(Refusal::Large);
        }
        let history = self.remembered.find(hash).unwrap_or(History::first(now, None));
        // While room is made, its parent and with it all that are before have a child.
        self.held.gain_child(parent);
        let score = self.score(&history, chunk.importance, chunk.cost_us / chunk.bytes as f32, now);
        let made = self.make_room(chunk, score, now, leaves);
        self.held.lose_child(parent);
        made?;
        let at = self.held.insert(chunk, hash);
        // Making room may have made it forgotten.
        self.held.at_mut(at).history = self.remembered.take(hash).unwrap_or(history);
        if parent != NONE {
            self.held.link(at, parent);
        }
        Ok(())
    }

    /// Takes in a chunk that an earlier life held and that is still there, used last at `used_ms`. Its parent is not
    /// known until it is used. `false`: no room.
    pub fn adopt(&mut self, chunk: &CandidateChunk, used_ms: u64) -> bool {
        let hash = self.held.hash(&chunk.key);
        let fits = self.held.bytes() + u64::from(chunk.bytes) <= self.limits.bytes_max
            && self.bytes_of(chunk.namespace) + u64::from(chunk.bytes) <= self.quota_of(chunk).most;
        if self.held.is_full() || !fits || !chunk.is_sound() || self.held.find_hashed(hash, &chunk.key).is_some() {
            return false;
        }
        let at = self.held.insert(chunk, hash);
        self.held.at_mut(at).history = History::kept(ticks(used_ms));
        true
    }

    /// Takes out a chunk whose bytes are gone, whatever the reason. Children stay: their parent may come back.
    pub fn remove(&mut self, key: &ChunkKey) -> bool {
        let Some(at) = self.held.find(key) else { return false };
        self.let_go(at);
        true
    }

    /// Pins a chunk, which then does not leave; pins count.
    pub fn pin(&mut self, key: &ChunkKey) -> bool {
        let Some(at) = self.held.find(key) else { return false };
        self.held.pin(at);
        true
    }

    /// Takes one pin back. A chunk that was removed meanwhile, or came anew, has none.
    pub fn unpin(&mut self, key: &ChunkKey) {
        if let Some(at) = self.held.find(key) {
            self.held.unpin(at);
        }
    }

    /// Notes what a chunk is worth to the host. `false`: it is not held, or this is no importance.
    pub fn rate(&mut self, key: &ChunkKey, importance: f32) -> bool {
        let Some(at) = self.held.find(key) else { return false };
        let sound = importance.is_finite() && importance > 0.0;
        if sound {
            self.held.at_mut(at).importance = importance;
        }
        sound
    }

    /// Shows every chunk that is held.
    pub fn each(&self, now_ms: u64, mut show: impl FnMut(HeldView<'_>)) {
        for entry in self.held.iter() {
            show(HeldView {
                key: &entry.key,
                bytes: entry.bytes,
                namespace: entry.namespace,
                children: entry.children,
                pins: entry.pins,
                score: self.score(&entry.history, entry.importance, entry.cost, ticks(now_ms)) * TICKS_PER_MINUTE,
            });
        }
    }

    /// Computes a score by tick.
    fn score(&self, history: &History, importance: f32, cost: f32, now: u32) -> f64 {
        self.returns.rate(history, now) * f64::from(importance) * f64::from(cost)
    }

    fn quota_of(&self, chunk: &CandidateChunk) -> Quota {
        self.quotas[usize::from(chunk.namespace)]
    }

    /// Lets the worst leave until the chunk fits, if it is worth that.
    fn make_room(
        &mut self,
        chunk: &CandidateChunk,
        score: f64,
        now: u32,
        leaves: &mut dyn FnMut(&ChunkKey, u32),
    ) -> Result<(), Refusal> {
        let bytes = u64::from(chunk.bytes);
        let own = usize::from(chunk.namespace);
        loop {
            let over_quota = self.held.bytes_of(own) + bytes > self.quotas[own].most;
            let full = self.held.bytes() + bytes > self.limits.bytes_max || self.held.is_full();
            if !(over_quota || full) {
                return Ok(());
            }
            let (victim, least) = self.least(own, over_quota, now).ok_or(Refusal::Worse)?;
            if least >= score {
                return Err(Refusal::Worse);
            }
            let HeldChunk { key, bytes, .. } = *self.held.at(victim);
            self.let_go(victim);
            leaves(&key, bytes);
        }
    }

    /// Finds the least of those drawn from the leaves of one namespace, or of all that it may take from, and its score.
    fn least(&mut self, own: usize, only_own: bool, now: u32) -> Option<(u32, f64)> {
        let sets: [usize; NAMESPACES_MAX] = std::array::from_fn(|of| match self.may_lose(of, 0, own, only_own) {
            true => self.held.leaves(of).len(),
            false => 0,
        });
        let all: usize = sets.iter().sum();
        let mut least: Option<(u32, f64)> = None;
        for turn in 0..DRAWN.min(all) {
            let mut at = if all <= DRAWN { turn } else { self.draw(all) };
            let mut of = 0;
            while at >= sets[of] {
                at -= sets[of];
                of += 1;
            }
            let place = self.held.leaves(of)[at];
            let HeldChunk { history, importance, cost, bytes, .. } = self.held.at(place);
            let score = self.score(history, *importance, *cost, now);
            if self.may_lose(of, *bytes, own, only_own) && least.is_none_or(|(_, least)| score < least) {
                least = Some((place, score));
            }
        }
        least
    }

    /// Whether namespace `of` may lose so many bytes to namespace `own`.
    fn may_lose(&self, of: usize, bytes: u32, own: usize, only_own: bool) -> bool {
        of == own || !only_own && self.held.bytes_of(of) >= self.quotas[of].least + u64::from(bytes)
    }

    /// Takes a chunk out; what was seen of it is remembered.
    fn let_go(&mut self, at: u32) {
        let history = self.held.at(at).history;
        let hash = self.held.remove(at);
        self.remember(hash, history);
    }

    /// Draws one of `count`.
    fn draw(&mut self, count: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((u128::from(self.random) * count as u128) >> 64) as usize
    }
}

impl Policy for Worth {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn holds(&self, key: &ChunkKey) -> bool {
        self.held.find(key).is_some()
    }

    fn bytes(&self) -> u64 {
        self.held.bytes()
    }

    fn request(&mut self, prompt: &[CandidateChunk], now_ms: u64) {
        self.count(prompt.iter().map(|chunk| &chunk.key), now_ms);
        let mut parent: Option<ChunkKey> = None;
        for chunk in prompt {
            match self.offer(chunk, parent.as_ref(), now_ms, &mut |_, _| {}) {
                Ok(()) | Err(Refusal::Held) => parent = Some(chunk.key),
                Err(_) => return,
            }
        }
    }
}

fn ticks(now_ms: u64) -> u32 {
    u32::try_from(now_ms / TICK_MS).unwrap_or(u32::MAX)
}
