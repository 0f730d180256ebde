//! What the cards are asked for: a trace, what is known when each of its requests comes, and which card it goes to.

use std::collections::{BTreeSet, HashMap, HashSet};

use study::tiers::{Scenario, synthetic};

/// A request: its chunks, and how many of them, from the first on, some card has computed before.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) chunks: Vec<u64>,
    pub(crate) known: usize,
}

/// The whole trace.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) requests: Vec<Request>,
    /// Every different chunk, by number.
    pub(crate) different: BTreeSet<u64>,
    /// Where the measured part begins: what is before it fills the tiers.
    pub(crate) measured: usize,
}

impl Work {
    pub(crate) fn new(requests: usize, seed: u64) -> Self {
        let mut different = BTreeSet::new();
        let mut known_to_all = |chunks: &[u64]| {
            let known = chunks.iter().take_while(|chunk| different.contains(*chunk)).count();
            different.extend(chunks);
            known
        };
        let trace = synthetic(Scenario::Chat, requests, seed);
        let of = |request: study::tiers::Prompt| {
            let known = known_to_all(&request.chunks);
            Request { chunks: request.chunks, known }
        };
        let requests: Vec<Request> = trace.requests.into_iter().map(of).collect();
        let measured = requests.len() * 2 / 3;
        Self { requests, different, measured }
    }

    /// Chunks that are asked for.
    pub(crate) fn known(&self) -> usize {
        self.requests.iter().map(|request| request.known).sum()
    }

    /// Chunks of the longest request.
    pub(crate) fn longest(&self) -> usize {
        self.requests.iter().map(|request| request.chunks.len()).max().unwrap_or(0)
    }

    /// The card of each request: a system prompt stays with the card that had least to do when it first came.
    fn route(&self, cards: usize) -> Vec<usize> {
        let mut homes = HashMap::new();
        let mut load = vec![0; cards];
        let route = |request: &Request| {
            let least = (0..cards).min_by_key(|&card| load[card]).expect("a card");
            let card = *homes.entry(request.chunks[0]).or_insert(least);
            load[card] += request.known;
            card
        };
        self.requests.iter().map(route).collect()
    }
}

/// The requests of one card, in order.
pub(crate) fn assigned(work: &Work, card: usize, cards: usize) -> impl Iterator<Item = &Request> {
    part(work, card, cards, 0..work.requests.len())
}

/// Those of them that lie in a part of the trace.
pub(crate) fn part(
    work: &Work,
    card: usize,
    cards: usize,
    range: std::ops::Range<usize>,
) -> impl Iterator<Item = &Request> {
    let own: HashSet<usize> =
        work.route(cards).into_iter().enumerate().filter(|&(_, home)| home == card).map(|(at, _)| at).collect();
    range.filter(move |at| own.contains(at)).map(|at| &work.requests[at])
}
