//! Keeps what is worth most.
//!
//! **Score** = frequency x importance x cost to get it back / bytes, so that a byte of the tier saves as much time as it
//! can. The frequency halves every half-life: the sum over a chunk's uses of 2^(-age). Told forwards (2^time of each use,
//! in logarithms) it needs no sweep, and the order of two chunks changes only when one of them is used: that is what lets
//! heaps keep it. A long half-life is LFU, a short one LRU. It never counts more than four uses at once.
//!
//! **Prefixes.** Only chunks without children here are in a heap. A chunk comes in after its parent and leaves before it.
//!
//! **Scans.** A chunk that is remembered for no earlier use comes in on probation. Those on probation have a share of the
//! bytes; above it they push out each other, and never one that was used again. A second use ends probation; a chunk with
//! a remembered use comes in without, if its score beats that of whoever would leave. The share learns, as ARC's does: a
//! chunk that comes back and was used once before left probation too early, which grows the share; one that had been
//! used more often left the rest too early, which shrinks it. What a scan brings does not come back and teaches nothing.
//!
//! **Quotas.** A namespace never holds more than its `most`, and what it holds up to its `least` no other can take.
//!
//! All memory is taken in `new`; each call takes time logarithmic in the chunks held (and linear in its own arguments).

use std::hash::{DefaultHasher, Hasher};

use block::{ChunkKey, KEY_BYTES};

use crate::heap::Heaps;
use crate::sketch::Sketch;
use crate::table::{NONE, Table};
use crate::{Chunk, Policy};

/// Namespaces of one tier.
pub const NAMESPACES_MAX: usize = 32;
/// Uses that a frequency counts at most, as a power of two: what was popular is given up some half-lives after it ceased,
/// however popular it was.
const USES_LOG2_MAX: f64 = 2.0;
/// Bounds of the share that probation has of the bytes.
const SHARE_LEAST: f64 = 0.05;
const SHARE_MOST: f64 = 1.0;
/// A chunk that comes back and had this frequency before, or less, had been used once.
const ONCE_USES: f64 = 1.1;

/// A frequency from here on, in uses, ends probation: two uses, the first of them up to 1.3 half-lives ago.
const PROVEN_USES: f64 = 1.4;

/// What a tier is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub bytes_max: u64,
    /// Entries of the tables: chunks held at most.
    pub chunks_max: usize,
    pub half_life_ms: u64,
    /// Of the bytes, for chunks that were used once: where learning begins.
    pub probation_share: f64,
}

impl Limits {
    /// What a card's tiers have: docs/tiers.md says on which traces they were chosen.
    pub const HALF_LIFE_MS: u64 = 300_000;
    pub const PROBATION_SHARE: f64 = 0.1;

    /// With those.
    #[must_use]
    pub const fn of(bytes_max: u64, chunks_max: usize) -> Self {
        let (half_life_ms, probation_share) = (Self::HALF_LIFE_MS, Self::PROBATION_SHARE);
        Self { bytes_max, chunks_max, half_life_ms, probation_share }
    }
}

/// What one namespace may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Nobody else can push it below this.
    pub least: u64,
    /// It never holds more than this.
    pub most: u64,
}

/// Whether a chunk was used more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Probation,
    Proven,
}

/// Why a chunk does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is here.
    Held,
    /// Its parent is not.
    Orphan,
    /// It is larger than the tier, its namespace's quota, or what probation may take.
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
    pub class: Class,
    pub children: u32,
    pub pins: u32,
    /// log2 of the score as it was when the chunk was used last, plus that time in half-lives.
    pub priority: f64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: ChunkKey,
    /// log2 of the sum over its uses of 2^(their time in half-lives).
    frequency: f64,
    /// log2 of importance x cost / bytes.
    weight: f32,
    /// As they were given, so that one can change without the others.
    importance: f32,
    bytes: u32,
    /// Place of the parent, or the next free place; [`NONE`].
    parent: u32,
    /// Of the parent's place when this came in: another one, and the parent is gone.
    parent_life: u32,
    life: u32,
    children: u32,
    pins: u32,
    namespace: u8,
    class: Class,
    held: bool,
}

/// Bytes and heaps of one namespace.
#[derive(Clone, Copy, Debug)]
struct Space {
    quota: Quota,
    bytes: u64,
    roots: [u32; 2],
}

/// See the module's head.
#[derive(Debug)]
pub struct Worth {
    limits: Limits,
    seed: u64,
    entries: Box<[Entry]>,
    table: Table,
    heaps: Heaps,
    sketch: Sketch,
    spaces: Box<[Space; NAMESPACES_MAX]>,
    free: u32,
    chunks: usize,
    bytes: u64,
    probation_bytes: u64,
    /// What probation may have of the bytes now.
    share: f64,
}

impl Worth {
    /// Bytes of bookkeeping for `chunks_max` chunks.
    pub const fn memory_bytes(chunks_max: usize) -> usize {
        chunks_max * size_of::<Entry>()
            + Table::memory_bytes(chunks_max)
            + Heaps::memory_bytes(chunks_max)
            + Sketch::memory_bytes(chunks_max)
    }

    /// Init. `seed` should be a secret where hosts can choose keys.
    ///
    /// # Panics
    /// With a limit of 0, or a share that is none.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let Limits { bytes_max, chunks_max, half_life_ms, probation_share } = limits;
        assert!(chunks_max > 0 && chunks_max < NONE as usize / 4, "chunks_max {chunks_max} is out of range");
        assert!(bytes_max > 0 && half_life_ms > 0, "a limit is 0: {limits:?}");
        assert!((0.0..=1.0).contains(&probation_share), "probation_share {probation_share} is no share");
        let blank = |at| Entry {
            key: ChunkKey::new([0; KEY_BYTES]),
            frequency: 0.0,
            weight: 0.0,
            importance: 1.0,
            bytes: 0,
            parent: if at + 1 < chunks_max { at as u32 + 1 } else { NONE },
            parent_life: 0,
            life: 0,
            children: 0,
            pins: 0,
            namespace: 0,
            class: Class::Probation,
            held: false,
        };
        let space = Space { quota: Quota { least: 0, most: bytes_max }, bytes: 0, roots: [NONE; 2] };
        Self {
            limits,
            seed,
            entries: (0..chunks_max).map(blank).collect(),
            table: Table::new(chunks_max),
            heaps: Heaps::new(chunks_max),
            sketch: Sketch::new(chunks_max),
            spaces: Box::new([space; NAMESPACES_MAX]),
            free: 0,
            chunks: 0,
            bytes: 0,
            probation_bytes: 0,
            share: probation_share.clamp(SHARE_LEAST, SHARE_MOST),
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
        self.leave_heap(at);
        self.spaces[usize::from(from)].bytes -= bytes;
        self.spaces[usize::from(to)].bytes += bytes;
        self.entries[at as usize].namespace = to;
        self.enter_heap(at);
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
        let before = parent.and_then(|parent| self.find(self.hash(parent), parent)).unwrap_or(NONE);
        self.count_one(key, before, self.time(now_ms));
    }

    fn count<'k>(&mut self, prefix: impl Iterator<Item = &'k ChunkKey>, now_ms: u64) {
        let time = self.time(now_ms);
        prefix.fold(NONE, |before, key| self.count_one(key, before, time));
    }

    /// Its place, if it is held; `before` is its parent's.
    fn count_one(&mut self, key: &ChunkKey, before: u32, time: f64) -> u32 {
        let hash = self.hash(key);
        let Some(at) = self.find(hash, key) else {
            self.sketch.add(hash, time);
            return NONE;
        };
        self.leave_heap(at);
        if before != NONE && !self.has_parent(at) {
            self.link(at, before);
        }
        let entry = &mut self.entries[at as usize];
        entry.frequency = log2_sum(entry.frequency, time).min(time + USES_LOG2_MAX);
        if entry.class == Class::Probation {
            entry.class = Class::Proven;
            self.probation_bytes -= u64::from(entry.bytes);
        }
        self.enter_heap(at);
        at
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
        let time = self.time(now_ms);
        let hash = self.hash(&chunk.key);
        if self.find(hash, &chunk.key).is_some() {
            return Err(Refusal::Held);
        }
        let parent = match parent {
            Some(parent) => self.find(self.hash(parent), parent).ok_or(Refusal::Orphan)?,
            None => NONE,
        };
        let weight = weight(chunk, chunk.importance).ok_or(Refusal::Large)?;
        let frequency = self.sketch.frequency_log2(hash, time).unwrap_or(time).min(time + USES_LOG2_MAX);
        let class = if frequency - time >= PROVEN_USES.log2() { Class::Proven } else { Class::Probation };
        if class == Class::Proven {
            self.learn(chunk.bytes, (frequency - time).exp2() - 1.0);
        }
        if u64::from(chunk.bytes) > self.spaces[usize::from(chunk.namespace)].quota.most.min(self.limits.bytes_max)
            || (class == Class::Probation && u64::from(chunk.bytes) > self.probation_max())
        {
            return Err(Refusal::Large);
        }
        // While room is made, its parent and with it all that are before have a child.
        self.adopt_child(parent);
        let made = self.make_room(chunk, class, frequency + f64::from(weight), time, leaves);
        self.lose_child(parent);
        made?;
        let at = self.take_place(chunk, hash);
        let entry = &mut self.entries[at as usize];
        (entry.frequency, entry.class) = (frequency, class);
        if class == Class::Probation {
            self.probation_bytes += u64::from(chunk.bytes);
        }
        if parent != NONE {
            self.link(at, parent);
        }
        self.enter_heap(at);
        Ok(())
    }

    /// A chunk that an earlier life held is still there, used last at `used_ms`. Its parent is not known until it is
    /// used. `false`: no room.
    pub fn adopt(&mut self, chunk: &Chunk, used_ms: u64) -> bool {
        let hash = self.hash(&chunk.key);
        let most = self.spaces[usize::from(chunk.namespace)].quota.most;
        let fits = self.bytes + u64::from(chunk.bytes) <= self.limits.bytes_max
            && self.bytes_of(chunk.namespace) + u64::from(chunk.bytes) <= most;
        if self.free == NONE || !fits || self.find(hash, &chunk.key).is_some() {
            return false;
        }
        if weight(chunk, chunk.importance).is_none() {
            return false;
        }
        let at = self.take_place(chunk, hash);
        let frequency = self.time(used_ms);
        let entry = &mut self.entries[at as usize];
        (entry.frequency, entry.class) = (frequency, Class::Proven);
        self.enter_heap(at);
        true
    }

    /// The bytes are gone, whatever the reason. Children stay: their parent may come back.
    pub fn remove(&mut self, key: &ChunkKey) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        self.leave_heap(at);
        self.give_place(at);
        true
    }

    /// A pinned chunk does not leave; pins count.
    pub fn pin(&mut self, key: &ChunkKey) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        self.leave_heap(at);
        self.entries[at as usize].pins += 1;
        true
    }

    /// Takes one pin back. A chunk that was removed meanwhile, or came anew, has none.
    pub fn unpin(&mut self, key: &ChunkKey) {
        if let Some(at) = self.find(self.hash(key), key)
            && self.entries[at as usize].pins > 0
        {
            self.entries[at as usize].pins -= 1;
            self.enter_heap(at);
        }
    }

    /// The host says what a chunk is worth to it. `false`: it is not held, or this is no importance.
    pub fn rate(&mut self, key: &ChunkKey, importance: f32) -> bool {
        let Some(at) = self.find(self.hash(key), key) else { return false };
        if !(importance.is_finite() && importance > 0.0) {
            return false;
        }
        self.leave_heap(at);
        let entry = &mut self.entries[at as usize];
        entry.weight += (importance / entry.importance).log2();
        entry.importance = importance;
        self.enter_heap(at);
        true
    }

    /// Shows every chunk that is held.
    pub fn each(&self, mut show: impl FnMut(View<'_>)) {
        for entry in self.entries.iter().filter(|entry| entry.held) {
            show(View {
                key: &entry.key,
                bytes: entry.bytes,
                namespace: entry.namespace,
                class: entry.class,
                children: entry.children,
                pins: entry.pins,
                priority: entry.frequency + f64::from(entry.weight),
            });
        }
    }

    /// In half-lives, the unit of everything inside.
    pub fn time(&self, now_ms: u64) -> f64 {
        now_ms as f64 / self.limits.half_life_ms as f64
    }

    /// A chunk came back that had been used so often before.
    fn learn(&mut self, bytes: u32, uses: f64) {
        let step = f64::from(bytes) / self.limits.bytes_max as f64;
        let step = if uses <= ONCE_USES { step } else { -step };
        self.share = (self.share + step).clamp(SHARE_LEAST, SHARE_MOST);
    }

    fn probation_max(&self) -> u64 {
        (self.limits.bytes_max as f64 * self.share) as u64
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
        class: Class,
        priority: f64,
        time: f64,
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
            let over_probation = class == Class::Probation && self.probation_bytes + bytes > self.probation_max();
            let from = |class| self.least(class, over_quota.then_some(own), own);
            let probation_is_large = self.probation_bytes > self.probation_max();
            let victim = if over_probation {
                from(Class::Probation)
            } else if probation_is_large {
                from(Class::Probation).or_else(|| from(Class::Proven))
            } else {
                self.worse(from(Class::Probation), from(Class::Proven))
            };
            let victim = victim.ok_or(Refusal::Worse)?;
            if self.heaps.priority(victim) >= priority {
                return Err(Refusal::Worse);
            }
            self.evict(victim, time, leaves);
        }
    }

    /// The least of a class, of one namespace or of all that may be taken from.
    fn least(&self, class: Class, only: Option<usize>, own: usize) -> Option<u32> {
        let may_lose = |at: usize, space: &Space, root: u32| match only {
            Some(only) => at == only,
            None => at == own || space.bytes - u64::from(self.entries[root as usize].bytes) >= space.quota.least,
        };
        let roots = self.spaces.iter().enumerate().filter_map(|(at, space)| {
            let root = space.roots[class as usize];
            (root != NONE && may_lose(at, space, root)).then_some(root)
        });
        roots.reduce(|a, b| if self.heaps.priority(b) < self.heaps.priority(a) { b } else { a })
    }

    /// The one of less priority.
    fn worse(&self, a: Option<u32>, b: Option<u32>) -> Option<u32> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if self.heaps.priority(b) < self.heaps.priority(a) { b } else { a }),
            _ => a.or(b),
        }
    }

    fn evict(&mut self, at: u32, time: f64, leaves: &mut dyn FnMut(&ChunkKey, u32)) {
        let Entry { key, bytes, frequency, .. } = self.entries[at as usize];
        self.leave_heap(at);
        self.give_place(at);
        let hash = self.hash(&key);
        self.sketch.keep(hash, time, frequency);
        leaves(&key, bytes);
    }

    fn take_place(&mut self, chunk: &Chunk, hash: u64) -> u32 {
        let at = self.free;
        let entry = &mut self.entries[at as usize];
        self.free = entry.parent;
        *entry = Entry {
            key: chunk.key,
            weight: weight(chunk, chunk.importance).expect("the caller has looked"),
            importance: chunk.importance,
            bytes: chunk.bytes,
            parent: NONE,
            children: 0,
            pins: 0,
            namespace: chunk.namespace,
            held: true,
            ..*entry
        };
        self.table.insert(hash, at);
        self.chunks += 1;
        self.bytes += u64::from(chunk.bytes);
        self.spaces[usize::from(chunk.namespace)].bytes += u64::from(chunk.bytes);
        at
    }

    /// It is in no heap any more.
    fn give_place(&mut self, at: u32) {
        let parent = self.parent(at);
        let Entry { key, bytes, namespace, class, .. } = self.entries[at as usize];
        self.table.remove(self.hash(&key), at);
        self.chunks -= 1;
        self.bytes -= u64::from(bytes);
        self.spaces[usize::from(namespace)].bytes -= u64::from(bytes);
        if class == Class::Probation {
            self.probation_bytes -= u64::from(bytes);
        }
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
            self.leave_heap(parent);
            self.entries[parent as usize].children += 1;
        }
    }

    fn lose_child(&mut self, parent: u32) {
        if parent != NONE {
            self.entries[parent as usize].children -= 1;
            self.enter_heap(parent);
        }
    }

    fn may_leave(&self, at: u32) -> bool {
        let entry = &self.entries[at as usize];
        entry.children == 0 && entry.pins == 0
    }

    /// To be called before anything that its place depends on changes.
    fn leave_heap(&mut self, at: u32) {
        if self.may_leave(at) {
            let entry = &self.entries[at as usize];
            let root = &mut self.spaces[usize::from(entry.namespace)].roots[entry.class as usize];
            self.heaps.remove(root, at);
        }
    }

    /// To be called after that. Does nothing for one that may not leave.
    fn enter_heap(&mut self, at: u32) {
        if self.may_leave(at) {
            let entry = &self.entries[at as usize];
            let root = &mut self.spaces[usize::from(entry.namespace)].roots[entry.class as usize];
            self.heaps.insert(root, at, entry.frequency + f64::from(entry.weight));
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

/// log2(2^a + 2^b).
fn log2_sum(a: f64, b: f64) -> f64 {
    let (most, least) = if a > b { (a, b) } else { (b, a) };
    most + (least - most).exp2().ln_1p() / std::f64::consts::LN_2
}

/// log2 of what a use of the chunk saves for each byte that it takes; `None` where a number is none.
fn weight(chunk: &Chunk, importance: f32) -> Option<f32> {
    let weight = (importance * chunk.cost_us / chunk.bytes as f32).log2();
    weight.is_finite().then_some(weight)
}
