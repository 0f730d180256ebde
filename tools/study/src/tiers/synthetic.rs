//! Traces made by a seeded generator. They are SYNTHETIC: shapes that operators describe, not measurements of anybody's
//! traffic. Equal seeds make equal traces on every machine.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use clap::ValueEnum;

use super::trace::{Prompt, Trace};

/// What kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Chats of several turns under shared system prompts of Zipf popularity
    Chat,
    /// The same, and as many long documents again that are read once
    Scan,
    /// Agents that work on long documents in many short steps, while it shifts which documents are popular
    Agents,
}

/// System prompts, and exponent of their popularity.
const SYSTEMS: usize = 200;
const ZIPF: f64 = 1.0;
/// Documents of agents, and how long one order of popularity lasts.
const DOCUMENTS: usize = 400;
const SHIFT_MS: u64 = 30 * 60_000;

/// Makes `requests` requests.
pub fn synthetic(scenario: Scenario, requests: usize, seed: u64) -> Trace {
    let mut maker =
        Maker { state: seed.wrapping_mul(2) | 1, next_chunk: 1, now_ms: 0, waiting: BinaryHeap::new(), talks: vec![] };
    let name = scenario.to_possible_value().expect("none is skipped").get_name().to_owned();
    let heads: Vec<Vec<u64>> = match scenario {
        Scenario::Chat | Scenario::Scan => (0..SYSTEMS).map(|_| maker.fresh_between(2, 12)).collect(),
        Scenario::Agents => (0..DOCUMENTS).map(|_| maker.fresh_between(16, 64)).collect(),
    };
    let made = (0..requests).map(|_| maker.next(scenario, &heads)).collect();
    Trace { name, requests: made }
}

/// A conversation that goes on.
#[derive(Debug)]
struct Talk {
    chunks: Vec<u64>,
    turns_left: u32,
}

struct Maker {
    state: u64,
    next_chunk: u64,
    now_ms: u64,
    /// When which talk goes on.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    talks: Vec<Talk>,
}

impl Maker {
    fn next(&mut self, scenario: Scenario, heads: &[Vec<u64>]) -> Prompt {
        // One new arrival a second; what goes on meanwhile comes before it.
        let arrival = self.now_ms + self.exponential(1000.0);
        if let Some(&Reverse((at_ms, talk))) = self.waiting.peek()
            && at_ms <= arrival
        {
            self.waiting.pop();
            self.now_ms = self.now_ms.max(at_ms);
            return self.turn(scenario, talk);
        }
        self.now_ms = arrival;
        if scenario == Scenario::Scan && self.uniform() < 0.6 {
            return Prompt { at_ms: self.now_ms, chunks: self.fresh_between(8, 48) };
        }
        let mut head = self.zipf(heads.len());
        if scenario == Scenario::Agents {
            head = (head + (self.now_ms / SHIFT_MS) as usize * 37) % heads.len();
        }
        let mean_turns = if scenario == Scenario::Agents { 12.0 } else { 5.0 };
        let turns_left = 1 + self.exponential(mean_turns) as u32;
        self.talks.push(Talk { chunks: heads[head].clone(), turns_left });
        self.turn(scenario, self.talks.len() - 1)
    }

    fn turn(&mut self, scenario: Scenario, talk: usize) -> Prompt {
        let (most, pause_ms) = if scenario == Scenario::Agents { (1, 8_000.0) } else { (3, 90_000.0) };
        let added = self.fresh_between(1, most);
        let at_ms = self.now_ms;
        let again = at_ms + self.exponential(pause_ms);
        let Talk { chunks, turns_left } = &mut self.talks[talk];
        chunks.extend(added);
        *turns_left -= 1;
        let (chunks, more) = if *turns_left == 0 { (std::mem::take(chunks), false) } else { (chunks.clone(), true) };
        if more {
            self.waiting.push(Reverse((again, talk)));
        }
        Prompt { at_ms, chunks }
    }

    fn fresh_between(&mut self, least: u64, most: u64) -> Vec<u64> {
        let count = least + (self.uniform() * (most - least + 1) as f64) as u64;
        let from = self.next_chunk;
        self.next_chunk += count;
        (from..self.next_chunk).collect()
    }

    /// The n-th most popular of `count`.
    fn zipf(&mut self, count: usize) -> usize {
        let total: f64 = (1..=count).map(|n| (n as f64).powf(-ZIPF)).sum();
        let mut left = self.uniform() * total;
        (1..count)
            .find(|&n| {
                left -= (n as f64).powf(-ZIPF);
                left < 0.0
            })
            .unwrap_or(count)
            - 1
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-(1.0 - self.uniform()).ln() * mean) as u64
    }

    /// A number in [0, 1): xorshift64*.
    fn uniform(&mut self) -> f64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_make_equal_traces_in_the_order_of_time() {
        for scenario in [Scenario::Chat, Scenario::Scan, Scenario::Agents] {
            let trace = synthetic(scenario, 2000, 7);
            assert_eq!(trace, synthetic(scenario, 2000, 7));
            assert_ne!(trace, synthetic(scenario, 2000, 8));
            assert!(trace.requests.is_sorted_by_key(|request| request.at_ms));
            let (all, different) = trace.chunks();
            assert!(different < all && different > 1000, "{scenario:?}: {different} of {all}");
        }
    }
}
