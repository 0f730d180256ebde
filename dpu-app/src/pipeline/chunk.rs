//! A chunk in progress, as the engine thread sees it.
//!
//! ```text
//! fetch: Opening -> Flowing -> Closing -> (free)        store: Opening -> Flowing -> Closing -> (free)
//!        manifest   blocks     seat back                       begin put   blocks     commit or abort
//!           ^________________________/  read anew: bad or gone, and not proven
//!
//!        Following -> (free), or Opening: what another session fetches is written to this one's pages too
//! ```
//!
//! **Once is no proof.** A chunk that was found bad is fetched once more from its owner, by another way. The same bad
//! bytes at the same place are what is stored, and the chunk leaves the store; others are the doing of whatever lies
//! between, and nothing is taken out. One that went while it was read is asked for once more, too: what a tier or a
//! replica has not, the store may have.

use block::{ChunkKey, Geometry, Plan, TileOrder};
use mailbox::{PAGES_PER_CHUNK_MAX, Tokens};

use crate::pipeline::block_set::BlockSet;
use crate::pipeline::job::{Evidence, Failure, Seat};
use nix::errno::Errno;
use store::{StoreError, Why};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Store to host.
    Fetch,
    /// Host to store.
    Store,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It opens nothing: its blocks are those of a chunk that another session fetches (follow.rs).
    Following,
    Opening,
    Flowing,
    Closing,
}

impl Phase {
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Opening, Self::Flowing)
                | (Self::Flowing, Self::Closing)
                | (Self::Closing | Self::Following, Self::Opening)
        )
    }
}

/// Fetches of a chunk, the first and those that are made anew, before it is given up.
pub(crate) const FETCHES_MAX: usize = 3;

/// Judgement on a fetched chunk that did not come whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchVerdict {
    /// It ends as it is.
    Over,
    /// It is fetched anew.
    Anew,
    /// It is proven to be bad.
    Bad(Why),
}

/// Host pages of one chunk.
pub type Pages = heapless::Vec<u32, PAGES_PER_CHUNK_MAX>;

/// Failure of a chunk that came otherwise each time that it was read.
pub(crate) const OTHERWISE: Failure = Failure::Store(StoreError::Io { call: "read_block", errno: Errno::EBADMSG });

/// Progress of one chunk. Its place in the table is its seat.
#[derive(Debug)]
pub struct ChunkInFlight {
    pub session: usize,
    /// Place in the session's table of requests.
    pub request: usize,
    /// Number of the chunk in the request.
    pub index: u32,
    pub direction: Direction,
    /// Section of the session that it is of.
    pub section: u16,
    /// Its name, by which fetches of one chunk find each other; `None`: it shares nothing.
    pub key: Option<ChunkKey>,
    pub pages: Pages,
    /// Tokens of this chunk that move.
    pub tokens: Tokens,
    pub geometry: Geometry,
    pub order: TileOrder,
    pub phase: Phase,
    pub plan: Plan,
    pub blocks: u16,
    /// Blocks that it does not fetch: none of their tokens is wanted, or they came with another session's fetch.
    pub skips: BlockSet,
    /// Seat of the chunk that it follows; while it is in `Phase::Following`, `None` is an end of that.
    pub leader: Option<Seat>,
    /// Chunks that follow this one.
    pub followers: usize,
    /// The next block to give a slot.
    pub next: u16,
    pub in_flight: u16,
    /// Blocks in flight that the DMA engine moves from or to the host's pages now.
    pub moving: u16,
    pub done: u16,
    pub failure: Option<Failure>,
    /// The block that failed; `None`: the manifest.
    pub failed_at: Option<u16>,
    /// Evidence of earlier fetches: what was bad, and where.
    pub(crate) doubts: heapless::Vec<(Option<u16>, Evidence), FETCHES_MAX>,
    /// Number of fetches before this one.
    pub(crate) fetched: usize,
    /// Block that was bad the last time; it comes first, and alone.
    pub(crate) doubted: Option<u16>,
    /// Whether it is fetched anew when its seat is back.
    pub reopens: bool,
    /// Whether the request does not wait for it: its time is over, or a chunk before this one has failed.
    pub given_up: bool,
    pub wire_bytes: u64,
    /// Whether the request has been told how the chunk ended.
    pub concluded: bool,
}

impl ChunkInFlight {
    /// Describes a fetch of a whole chunk, the first of its request, of which nothing has happened yet.
    #[must_use]
    pub fn opening(session: usize, pages: Pages, (geometry, order, plan): (Geometry, TileOrder, Plan)) -> Self {
        Self {
            session,
            request: 0,
            index: 0,
            direction: Direction::Fetch,
            section: 0,
            key: None,
            pages,
            tokens: Tokens::ALL,
            geometry,
            order,
            phase: Phase::Opening,
            plan,
            blocks: plan.block_count(&geometry) as u16,
            skips: BlockSet::EMPTY,
            leader: None,
            followers: 0,
            next: 0,
            in_flight: 0,
            moving: 0,
            done: 0,
            failure: None,
            failed_at: None,
            doubts: heapless::Vec::new(),
            fetched: 0,
            doubted: None,
            reopens: false,
            given_up: false,
            wire_bytes: 0,
            concluded: false,
        }
    }

    pub fn become_phase(&mut self, next: Phase) {
        assert!(self.phase.may_become(next), "chunk {:?} -> {next:?}", self.phase);
        self.phase = next;
    }

    /// Ends the chunk at its first failure.
    pub fn fail(&mut self, failure: Failure, at: Option<u16>) {
        if self.failure.is_none() {
            (self.failure, self.failed_at) = (Some(failure), at);
        }
    }

    /// Ends the request's wait for it, for this reason. What was not proven to be bad is not called so.
    pub fn cut_off(&mut self, failure: Failure) {
        self.given_up = true;
        let of = |failure| if matches!(failure, Failure::Corrupt(_)) { Failure::Miss } else { failure };
        self.failure = Some(of(self.failure.unwrap_or(failure)));
    }

    /// Tells whether it is proven to be bad, and about to leave the store.
    #[must_use]
    pub fn is_condemned(&self) -> bool {
        self.phase == Phase::Closing && !self.reopens && matches!(self.failure, Some(Failure::Corrupt(_)))
    }

    /// Judges a fetch that failed. `went`: the chunk was there when it was opened.
    pub fn verdict(&mut self, went: bool) -> FetchVerdict {
        let again = self.fetched + 1 < FETCHES_MAX;
        match self.failure {
            _ if self.given_up => FetchVerdict::Over,
            Some(Failure::Miss) if went && self.fetched == 0 => FetchVerdict::Anew,
            Some(Failure::Corrupt(evidence)) => {
                let doubt = (self.failed_at, evidence);
                if self.doubts.contains(&doubt) {
                    return FetchVerdict::Bad(Why { what: evidence.what, block: self.failed_at });
                }
                if again {
                    self.doubts.push(doubt).expect("a place for each fetch");
                    return FetchVerdict::Anew;
                }
                self.failure = Some(OTHERWISE);
                FetchVerdict::Over
            }
            _ => FetchVerdict::Over,
        }
    }

    /// Starts anew: nothing has happened yet.
    pub fn start_over(&mut self) {
        if self.phase != Phase::Opening {
            self.become_phase(Phase::Opening);
        }
        self.fetched += 1;
        self.doubted = self.failed_at.filter(|_| matches!(self.failure, Some(Failure::Corrupt(_))));
        (self.next, self.done, self.wire_bytes) = (0, 0, 0);
        (self.failure, self.failed_at, self.reopens) = (None, None, false);
    }

    #[must_use]
    pub fn wants_slot(&self) -> bool {
        let alone = self.doubted.is_none() || self.next == 0 || self.done > 0;
        self.phase == Phase::Flowing && self.failure.is_none() && self.next < self.blocks && alone
    }

    /// Returns the block that is the `nth` to get a slot.
    #[must_use]
    pub fn block_at(&self, nth: u16) -> u16 {
        match (self.doubted.filter(|doubted| *doubted < self.blocks), nth) {
            (Some(doubted), 0) => doubted,
            (Some(doubted), nth) if nth <= doubted => nth - 1,
            _ => nth,
        }
    }

    /// Takes over how the chunk is cut into blocks, as its manifest says.
    pub fn adopt(&mut self, plan: Plan, blocks: u16) {
        if plan != self.plan {
            self.skips = BlockSet::EMPTY;
        }
        (self.plan, self.blocks) = (plan, blocks);
        for block in 0..blocks {
            if self.is_clipped(block) {
                self.skips.insert(block);
            }
        }
    }

    /// Tells whether no token of a block is wanted.
    fn is_clipped(&self, block: u16) -> bool {
        let part = self.plan.part(&self.geometry, usize::from(block)).expect("blocks are counted by the plan");
        let (first, end) = (u32::from(part.first_token), u32::from(part.first_token + part.tokens));
        self.tokens.end <= first || self.tokens.start >= end
    }

    /// Tells whether all blocks of a fetch are in its pages: slots may still bring them to others.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let fetched = self.phase == Phase::Flowing && self.failure.is_none() && self.done == self.blocks;
        self.direction == Direction::Fetch && fetched
    }

    /// Tells whether others that follow it may still get blocks of it.
    #[must_use]
    pub fn leads(&self) -> bool {
        let goes_on = matches!(self.phase, Phase::Opening | Phase::Flowing) || self.reopens;
        // What is about to leave the store is not to be read from there once more.
        !self.given_up && (goes_on || self.is_condemned())
    }

    /// Tells whether no block is in flight and none will be started.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.phase == Phase::Flowing && self.in_flight == 0 && (self.failure.is_some() || self.done == self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(blocks: u16) -> ChunkInFlight {
        let geometry = Geometry::new(1, 1, 1, 16, block::ElementType::Bf16).unwrap();
        let plan = Plan { layers_per_block: 1, tokens_per_block: 16 };
        ChunkInFlight { blocks, ..ChunkInFlight::opening(0, Pages::new(), (geometry, TileOrder::TokenMajor, plan)) }
    }

    /// Fails a chunk and has it judged, as far as its phase goes.
    fn judged(chunk: &mut ChunkInFlight, failure: Failure, at: Option<u16>) -> FetchVerdict {
        chunk.become_phase(Phase::Flowing);
        chunk.fail(failure, at);
        chunk.become_phase(Phase::Closing);
        chunk.verdict(true)
    }

    fn bad(digest: u32) -> Failure {
        Failure::Corrupt(Evidence { what: "its codes", digest })
    }

    #[test]
    fn the_same_bad_bytes_twice_are_proof_and_others_are_the_paths_doing() {
        let mut same = chunk(4);
        assert_eq!(judged(&mut same, bad(1), Some(2)), FetchVerdict::Anew);
        same.start_over();
        let order: Vec<u16> = (0..4).map(|nth| same.block_at(nth)).collect();
        assert_eq!(order, [2, 0, 1, 3], "what is in doubt comes first");
        assert_eq!(judged(&mut same, bad(1), Some(2)), FetchVerdict::Bad(Why { what: "its codes", block: Some(2) }));
        let mut other = chunk(4);
        for digest in 0..FETCHES_MAX as u32 - 1 {
            assert_eq!(judged(&mut other, bad(digest), Some(2)), FetchVerdict::Anew);
            other.start_over();
        }
        assert_eq!((judged(&mut other, bad(77), Some(2)), other.failure), (FetchVerdict::Over, Some(OTHERWISE)));
    }

    #[test]
    fn what_went_while_it_was_read_is_asked_for_once_more_and_what_nobody_wants_is_not() {
        let mut gone = chunk(4);
        assert_eq!(judged(&mut gone, Failure::Miss, Some(1)), FetchVerdict::Anew);
        gone.start_over();
        assert!(gone.block_at(0) == 0 && gone.failure.is_none());
        assert_eq!(judged(&mut gone, Failure::Miss, Some(1)), FetchVerdict::Over);
        let mut cut = chunk(4);
        cut.cut_off(Failure::Deadline);
        assert_eq!((judged(&mut cut, bad(1), Some(0)), cut.failure), (FetchVerdict::Over, Some(Failure::Deadline)));
        let mut cut = chunk(4);
        assert_eq!(judged(&mut cut, bad(1), Some(0)), FetchVerdict::Anew);
        cut.cut_off(Failure::Deadline);
        assert_eq!(cut.failure, Some(Failure::Miss), "nothing is proven");
    }
}
