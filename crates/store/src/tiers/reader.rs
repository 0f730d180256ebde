//! A fetch worker's reader over tiers: what T0 or T1 has is answered at once (at most one such answer waits), the
//! rest is asked of T2.
//!
//! A look-up that T0 and T1 answer in part asks T2 for the rest: what they have is noted in it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use block::ChunkKey;

use super::breaker::Breaker;
use super::{Tier, Tiers};
use crate::{Answer, Ask, BlockMemory, Direct, Lookup, Opening, Outcome, Position, Reader, StoreError, retry};

/// See the module's head.
pub(super) struct TierReader<'a, M> {
    tiers: &'a Tiers,
    bottom: Box<dyn Reader<M> + 'a>,
    /// An answer of T0 or T1; an opened chunk's manifest is in `manifest`.
    local: Option<Answer<M>>,
    manifest: Vec<u8>,
    /// Questions to T2 that are more than passed on, by tag.
    asked: Vec<(usize, Asked)>,
    /// Lane of this thread in T1's breaker.
    lane: usize,
    /// T1, and T2 where that is a directory, are not opened.
    off_disks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// The hit that T0 and T1 have by themselves.
    Lookup {
        found: usize,
    },
    Open {
        seat: usize,
        key: ChunkKey,
        position: Option<Position>,
    },
    Read {
        seat: usize,
        index: usize,
        bytes: usize,
    },
}

impl<'a, M: BlockMemory> TierReader<'a, M> {
    pub(super) fn new(tiers: &'a Tiers, bottom: Box<dyn Reader<M> + 'a>) -> Self {
        let manifest = vec![0; tiers.limits.manifest_bytes_max];
        let asked = Vec::with_capacity(tiers.limits.asks_max + 1);
        let lane = Breaker::lane(tiers.readers.fetch_add(1, Relaxed));
        Self { tiers, bottom, local: None, manifest, asked, lane, off_disks: false }
    }

    fn pass_on(&mut self, tag: usize, asked: Asked, ask: Ask<M>) {
        if matches!(asked, Asked::Read { .. }) {
            self.tiers.fetching.fetch_add(1, Relaxed);
        }
        self.asked.push((tag, asked));
        self.bottom.begin(tag, ask);
    }

    fn lookup(&mut self, tag: usize, mut lookup: Lookup, until: Instant) {
        lookup.note_those_of(|key| self.tiers.holds(key));
        if let Some(found) = lookup.answer().filter(|_| Instant::now() < until) {
            self.local = Some(Answer { tag, outcome: Outcome::Looked { keys: lookup.into_keys(), found: Ok(found) } });
            return;
        }
        self.pass_on(tag, Asked::Lookup { found: lookup.at_least() }, Ask::Lookup { lookup, until });
    }

    fn open(&mut self, tag: usize, seat: usize, key: ChunkKey, position: Option<Position>, anew: bool, until: Instant) {
        let opened_in = |tier: Tier| self.tiers.opened_in[seat].store(tier as u8, Relaxed);
        if anew {
            // Its use was counted the first time.
            self.tiers.doubt(&key);
        } else if let Some(position) = &position {
            self.tiers.used(&key, position);
        }
        if !anew && Instant::now() < until {
            let dram = self.tiers.dram.as_ref().and_then(|dram| dram.open(seat, &key, &mut self.manifest));
            if let Some(Ok(bytes)) = dram {
                self.tiers.dram().hits.fetch_add(1, Relaxed);
                opened_in(Tier::Dram);
                self.local = Some(Answer { tag, outcome: Outcome::Opened(Ok(bytes)) });
                return;
            }
            // Whatever is wrong with T1, T2 has it, too.
            if let Some(disk) = self.tiers.disk.as_ref().filter(|disk| !self.off_disks && disk.store.holds(&key)) {
                let opening = Opening::of(&key);
                let open = || retry(|| disk.store.open(seat, &opening, &mut self.manifest, until));
                match disk.reads.watch(self.lane, open) {
                    Ok(bytes) => {
                        opened_in(Tier::Disk);
                        disk.recall(&key, &self.manifest[..bytes], self.tiers.ratings.get(&key));
                        self.local = Some(Answer { tag, outcome: Outcome::Opened(Ok(bytes)) });
                        return;
                    }
                    Err(StoreError::Corrupt { .. }) => self.tiers.doubt(&key),
                    Err(_) => {}
                }
            }
        }
        if self.off_disks && !self.tiers.bottom.is_off_disk() {
            // It was in T0 when this reader was asked, and has left it.
            self.local = Some(Answer { tag, outcome: Outcome::Opened(Err(StoreError::Miss)) });
            return;
        }
        self.pass_on(tag, Asked::Open { seat, key, position }, Ask::Open { seat, key, position, anew, until });
    }

    /// Reads a block of a chunk that was opened in T0 or T1.
    fn read(&mut self, tag: usize, tier: Tier, seat: usize, index: usize, bytes: usize, mut memory: M, until: Instant) {
        let into = &mut memory[..bytes];
        let result = if Instant::now() >= until {
            Err(StoreError::Late { call: "read_block" })
        } else if tier == Tier::Dram {
            self.tiers.dram().read(seat, index, into)
        } else {
            let disk = self.tiers.disk();
            disk.reads.watch(self.lane, || retry(|| disk.store.read_block(seat, index, into, until))).map(|()| None)
        };
        // T2 has the chunk, whatever is wrong here: to who asks that is one that went, and is opened anew, there.
        let result = result.map_err(|error| match error {
            StoreError::Late { .. } => error,
            _ => StoreError::Miss,
        });
        let outcome = match result {
            Ok(Some(at)) => Outcome::Lies { memory, at },
            Ok(None) => Outcome::Read { memory, result: Ok(()) },
            Err(error) => Outcome::Read { memory, result: Err(error) },
        };
        self.local = Some(Answer { tag, outcome });
    }

    fn key_of(&self, tier: Tier, seat: usize) -> ChunkKey {
        match tier {
            Tier::Dram => self.tiers.dram().key_of(seat),
            _ => self.tiers.disk().store.key_of(seat),
        }
    }

    /// Takes out a copy in T0 or T1 that is bad: T2 has the chunk.
    fn discard(&mut self, tag: usize, tier: Tier, seat: usize) {
        self.tiers.doubt(&self.key_of(tier, seat));
        self.local = Some(Answer { tag, outcome: Outcome::Discarded });
    }

    /// Completes T2's answer by what T0 and T1 have.
    fn complete(&mut self, mut answer: Answer<M>, manifest: &[u8]) -> Answer<M> {
        let Some(index) = self.asked.iter().position(|(tag, _)| *tag == answer.tag) else { return answer };
        let (_, asked) = self.asked.swap_remove(index);
        match (asked, &mut answer.outcome) {
            (Asked::Lookup { found }, Outcome::Looked { found: result, .. }) => {
                // What T0 and T1 have is there, whatever is wrong with T2.
                *result = result.or_else(|error| if found > 0 { Ok(found) } else { Err(error) });
            }
            (Asked::Open { seat, key, position }, Outcome::Opened(opened)) => {
                self.tiers.opened_in[seat].store(Tier::Bottom as u8, Relaxed);
                if let (Ok(bytes), Some(position)) = (opened, &position) {
                    self.tiers.begin_arrival(seat, &key, position, &manifest[..*bytes], &mut self.manifest);
                }
            }
            (Asked::Read { seat, index, bytes }, Outcome::Read { memory, result }) => {
                self.tiers.fetching.fetch_sub(1, Relaxed);
                if result.is_ok() {
                    self.tiers.bring(seat, index, &memory[..bytes]);
                }
            }
            (asked, _) => unreachable!("{asked:?} was answered with something else"),
        }
        answer
    }
}

impl<M: BlockMemory> Reader<M> for TierReader<'_, M> {
    fn keep_off_disks(&mut self) {
        self.off_disks = true;
    }

    fn has_room(&self) -> bool {
        self.local.is_none() && self.bottom.has_room()
    }

    fn is_idle(&self) -> bool {
        self.local.is_none() && self.bottom.is_idle()
    }

    fn begin(&mut self, tag: usize, ask: Ask<M>) {
        assert!(self.local.is_none(), "begin: an answer of a tier waits");
        match ask {
            Ask::Lookup { lookup, until } => self.lookup(tag, lookup, until),
            Ask::Open { seat, key, position, anew, until } => self.open(tag, seat, key, position, anew, until),
            Ask::Read { seat, index, bytes, memory, until } => match self.tiers.tier_of(seat) {
                Tier::Bottom => {
                    let asked = Asked::Read { seat, index, bytes };
                    self.pass_on(tag, asked, Ask::Read { seat, index, bytes, memory, until });
                }
                tier => self.read(tag, tier, seat, index, bytes, memory, until),
            },
            Ask::Discard { seat, why, until } => match self.tiers.tier_of(seat) {
                Tier::Bottom => {
                    self.tiers.end_arrival(seat, false);
                    self.bottom.begin(tag, Ask::Discard { seat, why, until });
                }
                tier => self.discard(tag, tier, seat),
            },
        }
    }

    fn poll(&mut self, manifest: &mut [u8]) -> Option<Answer<M>> {
        if let Some(answer) = self.local.take() {
            if let Outcome::Opened(Ok(bytes)) = answer.outcome {
                manifest[..bytes].copy_from_slice(&self.manifest[..bytes]);
            }
            return Some(answer);
        }
        let answer = self.bottom.poll(manifest)?;
        Some(self.complete(answer, manifest))
    }

    fn sleep(&mut self) {
        if self.local.is_none() {
            self.bottom.sleep();
        }
    }
}
