//! Keeps what is worth most.
//!
//! **Score** = uses to expect x importance x cost to get it back / bytes, so that a byte of the tier saves as much time as it
//! can. How many uses are to be expected of a chunk, by how often and how long ago it was used, is learned from all chunks
//! that came back or did not (returns.rs), of which those that are not held are remembered for a while (remembered.rs). So
//! there is nothing to tune: where sessions go on within seconds a chunk is given up after seconds, and what a scan
//! brings does not come in where scans do not come back.
//!
//! **Who leaves** is the least of [`DRAWN`] chunks that are drawn at random (of all, if they are so few): scores change
//! with time, so no order could be kept, and a chunk that is worth much is all but never the least of so many.
//!
//! **Prefixes.** Only chunks without children here can leave (sets.rs). A chunk comes in after its parent.
//!
//! **Quotas.** A namespace never holds more than its `most`, and what it holds up to its `least` no other can take.
//!
//! All memory is taken in `new`; each call takes constant time (and linear in its own arguments).

use std::hash::{DefaultHasher, Hasher};

use block::{ChunkKey, KEY_BYTES};

use crate::remembered::Remembered;
use crate::returns::{History, Returns, TICK_MS};
use crate::sets::Sets;
use crate::table::{NONE, Table};
use crate::{Chunk, NAMESPACES_MAX, Policy};

/// Chunks that are compared when one has to leave.
const DRAWN: usize = 16;
/// Chunks that are remembered for each that can be held.
const REMEMBERED: usize = 4;
/// Places that are looked at with each use, for the time that chunks have been waited for.
const SWEPT: usize = 4;
/// Uses are told per minute.
const TICKS_PER_MINUTE: f64 = 60_000.0 / TICK_MS as f64;

/// What a tier is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub bytes_max: u64,
    /// Entries of the tables: chunks held at most.
    pub chunks_max: usize,
}

/// What one namespace may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nobody else can push it below this.
    pub least: u64,
    /// It never holds more than this.
    pub most: u64,
}

/// Why a chunk does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is here.
    Held,
    /// Its parent is not.
    Orphan,
    /// It is larger than the tier or its namespace's quota, or a number of it is none.
    Large,
    /// Everything that would have to leave is worth more, is pinned or belongs to others.
    Worse,
}

/// One chunk that is held, for those who look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View<'a> {
    pub key: &'a ChunkKey,
    pub bytes: u32,
    pub namespace: u8,
    pub children: u32,
    pub pins: u32,
    /// Uses to expect in a minute x importance x microseconds to get it back / bytes.
    pub score: f64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: ChunkKey,
    history: History,
    importance: f32,
    /// Microseconds to get it back, by byte.
    cost: f32,
    bytes: u32,
    /// Place of the parent, or the next free place; [`NONE`].
    parent: u32,
    /// Of the parent's place when this came in: another one, and the parent is gone.
    parent_life: u32,
    life: u32,
    children: u32,
    pins: u32,
    namespace: u8,
    held: bool,
}

/// Quota and bytes of one namespace.
#[derive(Clone, Copy, Debug)]
struct Space {
    quota: Quota,
    bytes: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Worth {
    limits: Limits,
    seed: u64,
    /// Of the draws: xorshift64.
    random: u64,
    entries: Box<[Entry]>,
    table: Table,
    /// By namespace, those that can leave.
    leaves: Sets,
    remembered: Remembered,
    returns: Returns,
    spaces: [Space; NAMESPACES_MAX],
    free: u32,
    /// Places that ever had a chunk.
    places: usize,
    /// Where looking for those who wait goes on: among the places, and then among those remembered.
    hand: usize,
    /// Of the use that was counted last.
    now: u32,
    chunks: usize,
    bytes: u64,
}

/// A chunk that was counted.
#[derive(Clone, Copy)]
struct Counted {
    /// Its place, or [`NONE`].
    at: u32,
    history: History,
}

impl Worth {
    /// Bytes of bookkeeping for `chunks_max` chunks.
    pub const fn memory_bytes(chunks_max: usize) -> usize {
        chunks_max * size_of::<Entry>()
            + Table::memory_bytes(chunks_max)
            + Sets::memory_bytes(chunks_max)
            + Remembered::memory_bytes(REMEMBERED * chunks_max)
            + Returns::MEMORY_BYTES
    }

    /// Init. `seed` should be a secret where hosts can choose keys.
    ///
    /// # Panics
    /// With a limit of 0.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let Limits { bytes_max, chunks_max } = limits;
        assert!(chunks_max > 0 && chunks_max < NONE as usize / 8, "chunks_max {chunks_max} is out of range");
        assert!(bytes_max > 0, "a limit is 0: {limits:?}");
        let blank = |at| Entry {
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
            limits,
            seed,
            random: seed | 1,
            entries: (0..chunks_max).map(blank).collect(),
            table: Table::new(chunks_max),
            leaves: Sets::new(chunks_max),
            remembered: Remembered::new(REMEMBERED * chunks_max),
            returns: Returns::new(),
            spaces: [Space { quota: Quota { least: 0, most: bytes_max }, bytes: 0 }; NAMESPACES_MAX],
            free: 0,
            places: 0,
            hand: 0,
            now: 0,
            chunks: 0,
            bytes: 0,
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Chunks held.
    pub fn len(&self) -> usize {
        self.chunks
    }

    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    pub fn set_quota(&mut self, namespace: u8, quota: Quota) {
        self.spaces[usize::from(namespace)].quota = quota;
    }

    /// Whose a chunk is.
    pub fn namespace_of(&self, key: &ChunkKey) -> Option<u8> {
        let at = self.find(self.hash(key), key)?;
        Some(self.entries[at as usize].namespace)
    }

    /// A chunk of one namespace is another's from now on, if that one's quota has room for it.
    pub fn hand_over(&mut self, key: &ChunkKey, from: u8, to: u8) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        let Entry { namespace, bytes, .. } = self.entries[at as usize];
        let (bytes, most) = (u64::from(bytes), self.spaces[usize::from(to)].quota.most);
        if namespace != from || self.bytes_of(to) + bytes > most {
            return false;
        }
        self.leaves.remove(usize::from(from), at);
        self.spaces[usize::from(from)].bytes -= bytes;
        self.spaces[usize::from(to)].bytes += bytes;
        self.entries[at as usize].namespace = to;
        self.sort(at);
        true
    }

    /// Bytes that a namespace holds.
    pub fn bytes_of(&self, namespace: u8) -> u64 {
        self.spaces[usize::from(namespace)].bytes
    }

    /// Counts a use of the leading chunks of one prompt, held or not, and links those that are held to their parents.
    pub fn used(&mut self, prefix: &[ChunkKey], now_ms: u64) {
        self.count(prefix.iter(), now_ms);
    }

    /// The same for one chunk, which stands behind `parent` in its prompt.
    pub fn used_behind(&mut self, parent: Option<&ChunkKey>, key: &ChunkKey, now_ms: u64) {
        let before = parent.and_then(|parent| {
            let hash = self.hash(parent);
            match self.find(hash, parent) {
                Some(at) => Some(Counted { at, history: self.entries[at as usize].history }),
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
        let hash = self.hash(key);
        if let Some(at) = self.find(hash, key) {
            if let Some(Counted { at: parent, .. }) = before
                && parent != NONE
                && !self.has_parent(at)
            {
                self.link(at, parent);
            }
            let history = &mut self.entries[at as usize].history;
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
        for _ in 0..SWEPT.min(self.places + self.remembered.len()) {
            self.hand = if self.hand + 1 < self.places + self.remembered.len() { self.hand + 1 } else { 0 };
            let history = match self.hand.checked_sub(self.places) {
                Some(at) => self.remembered.get_mut(at),
                None => Some(&mut self.entries[self.hand]).filter(|entry| entry.held).map(|entry| &mut entry.history),
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

    /// A chunk that was just used (and counted) is at hand: may it come in? `leaves` hears who leaves for it, also where
    /// it does not come in after all.
    ///
    /// # Errors
    /// Why not.
    pub fn offer(
        &mut self,
        chunk: &Chunk,
        parent: Option<&ChunkKey>,
        now_ms: u64,
        leaves: &mut dyn FnMut(&ChunkKey, u32),
    ) -> Result<(), Refusal> {
        let now = ticks(now_ms);
        let hash = self.hash(&chunk.key);
        if self.find(hash, &chunk.key).is_some() {
            return Err(Refusal::Held);
        }
        let parent = match parent {
            Some(parent) => self.find(self.hash(parent), parent).ok_or(Refusal::Orphan)?,
            None => NONE,
        };
        if !chunk.is_sound() || u64::from(chunk.bytes) > self.quota_of(chunk).most.min(self.limits.bytes_max) {
            return Err(Refusal::Large);
        }
        let history = self.remembered.find(hash).unwrap_or(History::first(now, None));
        // While room is made, its parent and with it all that are before have a child.
        self.adopt_child(parent);
        let score = self.score(&history, chunk.importance, chunk.cost_us / chunk.bytes as f32, now);
        let made = self.make_room(chunk, score, now, leaves);
        self.lose_child(parent);
        made?;
        let at = self.take_place(chunk, hash);
        // Making room may have made it forgotten.
        self.entries[at as usize].history = self.remembered.take(hash).unwrap_or(history);
        if parent != NONE {
            self.link(at, parent);
        }
        Ok(())
    }

    /// A chunk that an earlier life held is still there, used last at `used_ms`. Its parent is not known until it is
    /// used. `false`: no room.
    pub fn adopt(&mut self, chunk: &Chunk, used_ms: u64) -> bool {
        let hash = self.hash(&chunk.key);
        let fits = self.bytes + u64::from(chunk.bytes) <= self.limits.bytes_max
            && self.bytes_of(chunk.namespace) + u64::from(chunk.bytes) <= self.quota_of(chunk).most;
        if self.free == NONE || !fits || !chunk.is_sound() || self.find(hash, &chunk.key).is_some() {
            return false;
        }
        let at = self.take_place(chunk, hash);
        self.entries[at as usize].history = History::kept(ticks(used_ms));
        true
    }

    /// The bytes are gone, whatever the reason. Children stay: their parent may come back.
    pub fn remove(&mut self, key: &ChunkKey) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        self.give_place(at);
        true
    }

    /// A pinned chunk does not leave; pins count.
    pub fn pin(&mut self, key: &ChunkKey) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        self.entries[at as usize].pins += 1;
        self.sort(at);
        true
    }

    /// Takes one pin back. A chunk that was removed meanwhile, or came anew, has none.
    pub fn unpin(&mut self, key: &ChunkKey) {
        if let Some(at) = self.find(self.hash(key), key) {
            let pins = &mut self.entries[at as usize].pins;
            *pins = pins.saturating_sub(1);
            self.sort(at);
        }
    }

    /// The host says what a chunk is worth to it. `false`: it is not held, or this is no importance.
    pub fn rate(&mut self, key: &ChunkKey, importance: f32) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        let sound = importance.is_finite() && importance > 0.0;
        if sound {
            self.entries[at as usize].importance = importance;
        }
        sound
    }

    /// Shows every chunk that is held.
    pub fn each(&self, now_ms: u64, mut show: impl FnMut(View<'_>)) {
        for entry in self.entries[..self.places].iter().filter(|entry| entry.held) {
            show(View {
                key: &entry.key,
                bytes: entry.bytes,
                namespace: entry.namespace,
                children: entry.children,
                pins: entry.pins,
                score: self.score(&entry.history, entry.importance, entry.cost, ticks(now_ms)) * TICKS_PER_MINUTE,
            });
        }
    }

    /// By tick.
    fn score(&self, history: &History, importance: f32, cost: f32, now: u32) -> f64 {
        self.returns.rate(history, now) * f64::from(importance) * f64::from(cost)
    }

    fn quota_of(&self, chunk: &Chunk) -> Quota {
        self.spaces[usize::from(chunk.namespace)].quota
    }

    fn hash(&self, key: &ChunkKey) -> u64 {
        // SipHash with a secret in front of a key of fixed length.
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(key.bytes());
        hasher.finish()
    }

    fn find(&self, hash: u64, key: &ChunkKey) -> Option<u32> {
        self.table.find(hash, |at| self.entries[at as usize].key == *key)
    }

    /// Lets the worst leave until the chunk fits, if it is worth that.
    fn make_room(
        &mut self,
        chunk: &Chunk,
        score: f64,
        now: u32,
        leaves: &mut dyn FnMut(&ChunkKey, u32),
    ) -> Result<(), Refusal> {
        let bytes = u64::from(chunk.bytes);
        let own = usize::from(chunk.namespace);
        loop {
            let over_quota = self.spaces[own].bytes + bytes > self.spaces[own].quota.most;
            let full = self.bytes + bytes > self.limits.bytes_max || self.free == NONE;
            if !(over_quota || full) {
                return Ok(());
            }
            let (victim, least) = self.least(own, over_quota, now).ok_or(Refusal::Worse)?;
            if least >= score {
                return Err(Refusal::Worse);
            }
            let Entry { key, bytes, .. } = self.entries[victim as usize];
            self.give_place(victim);
            leaves(&key, bytes);
        }
    }

    /// The least of those drawn from the leaves of one namespace, or of all that it may take from, and its score.
    fn least(&mut self, own: usize, only_own: bool, now: u32) -> Option<(u32, f64)> {
        let may_lose = |spaces: &[Space; NAMESPACES_MAX], of: usize, bytes: u32| {
            of == own || !only_own && spaces[of].bytes >= spaces[of].quota.least + u64::from(bytes)
        };
        let sets: [usize; NAMESPACES_MAX] = std::array::from_fn(|of| match may_lose(&self.spaces, of, 0) {
            true => self.leaves.members(of).len(),
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
            let place = self.leaves.members(of)[at];
            let Entry { history, importance, cost, bytes, .. } = &self.entries[place as usize];
            let score = self.score(history, *importance, *cost, now);
            if may_lose(&self.spaces, of, *bytes) && least.is_none_or(|(_, least)| score < least) {
                least = Some((place, score));
            }
        }
        least
    }

    /// One of `count`.
    fn draw(&mut self, count: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((u128::from(self.random) * count as u128) >> 64) as usize
    }

    fn take_place(&mut self, chunk: &Chunk, hash: u64) -> u32 {
        let at = self.free;
        let entry = &mut self.entries[at as usize];
        self.free = entry.parent;
        *entry = Entry {
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
        self.table.insert(hash, at);
        self.places = self.places.max(at as usize + 1);
        self.chunks += 1;
        self.bytes += u64::from(chunk.bytes);
        self.spaces[usize::from(chunk.namespace)].bytes += u64::from(chunk.bytes);
        self.sort(at);
        at
    }

    fn give_place(&mut self, at: u32) {
        let parent = self.parent(at);
        let Entry { key, bytes, namespace, history, .. } = self.entries[at as usize];
        let hash = self.hash(&key);
        self.table.remove(hash, at);
        self.remember(hash, history);
        self.leaves.remove(usize::from(namespace), at);
        self.chunks -= 1;
        self.bytes -= u64::from(bytes);
        self.spaces[usize::from(namespace)].bytes -= u64::from(bytes);
        let entry = &mut self.entries[at as usize];
        entry.held = false;
        entry.life = entry.life.wrapping_add(1);
        entry.parent = self.free;
        self.free = at;
        self.lose_child(parent);
    }

    fn parent(&self, at: u32) -> u32 {
        let entry = &self.entries[at as usize];
        match entry.parent {
            NONE => NONE,
            parent if self.entries[parent as usize].life == entry.parent_life => parent,
            _ => NONE,
        }
    }

    fn has_parent(&self, at: u32) -> bool {
        self.parent(at) != NONE
    }

    fn link(&mut self, at: u32, parent: u32) {
        self.entries[at as usize].parent = parent;
        self.entries[at as usize].parent_life = self.entries[parent as usize].life;
        self.adopt_child(parent);
    }

    fn adopt_child(&mut self, parent: u32) {
        if parent != NONE {
            self.entries[parent as usize].children += 1;
            self.sort(parent);
        }
    }

    fn lose_child(&mut self, parent: u32) {
        if parent != NONE {
            self.entries[parent as usize].children -= 1;
            self.sort(parent);
        }
    }

    /// Puts it among those that can leave, or takes it out.
    fn sort(&mut self, at: u32) {
        let Entry { children, pins, namespace, .. } = self.entries[at as usize];
        match (children, pins) {
            (0, 0) => self.leaves.insert(usize::from(namespace), at),
            _ => self.leaves.remove(usize::from(namespace), at),
        }
    }
}

impl Policy for Worth {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn holds(&self, key: &ChunkKey) -> bool {
        self.find(self.hash(key), key).is_some()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn request(&mut self, prompt: &[Chunk], now_ms: u64) {
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
