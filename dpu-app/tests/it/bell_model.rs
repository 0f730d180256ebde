//! Queues and the bell of a thread that sleeps on a descriptor (bell.rs), every interleaving of them: two threads that
//! put an answer into a queue of their own and ring, and one that takes the answers and sleeps.
//!
//! The model follows `EventBell` and the loops around it line by line. A store buffer stands before each thread (the
//! flag and the queues are Relaxed or Release stores); a fence and a swap empty it. Rules can be dropped one by one:
//! the model must then find what they are for, or it proves nothing.

use std::collections::{HashSet, VecDeque};

const RINGERS: usize = 2;
/// Answers that each of them gives.
const ANSWERS: u8 = 3;
/// Steps within which a sleeper that nobody disturbs comes to rest.
const REST_MAX: usize = 32;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Store {
    /// The tail of a ringer's queue.
    Tail(usize, u8),
    Asleep(bool),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Ringing {
    #[default]
    Enqueue,
    Fence,
    Swap,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Sleeping {
    #[default]
    Take,
    RaiseFlag,
    Fence,
    LastLook,
    /// In epoll, until the event is readable.
    Asleep,
    Swap,
    Read,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Ringer {
    at: Ringing,
    given: u8,
    stores: VecDeque<Store>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct State {
    // Memory, as others see it, and the eventfd's counter.
    tails: [u8; RINGERS],
    asleep: bool,
    event: u8,
    ringers: [Ringer; RINGERS],
    // The sleeper.
    at: Sleeping,
    taken: [u8; RINGERS],
    owed: u8,
    stores: VecDeque<Store>,
}

#[derive(Clone, Copy)]
struct Rules {
    ringer_fence: bool,
    sleeper_fence: bool,
    last_look: bool,
    /// Writes that are still to come are kept in mind.
    owes: bool,
}

const ALL_RULES: Rules = Rules { ringer_fence: true, sleeper_fence: true, last_look: true, owes: true };

impl State {
    fn land(&mut self, store: Store) {
        match store {
            Store::Tail(queue, count) => self.tails[queue] = count,
            Store::Asleep(flag) => self.asleep = flag,
        }
    }

    fn all_taken(&self) -> bool {
        self.taken == [ANSWERS; RINGERS]
    }

    /// What the sleeper may do next: one thing, or one of its stores becomes visible.
    fn sleeper(&self, rules: Rules) -> Vec<Self> {
        let mut next = Vec::new();
        if !self.stores.is_empty() {
            let mut one = self.clone();
            let store = one.stores.pop_front().unwrap();
            one.land(store);
            next.push(one);
        }
        let mut one = self.clone();
        one.at = match self.at {
            Sleeping::Take => {
                one.taken = self.tails;
                if self.taken == self.tails { Sleeping::RaiseFlag } else { Sleeping::Take }
            }
            Sleeping::RaiseFlag => {
                one.stores.push_back(Store::Asleep(true));
                Sleeping::Fence
            }
            Sleeping::Fence if self.stores.is_empty() || !rules.sleeper_fence => Sleeping::LastLook,
            Sleeping::LastLook if rules.last_look && self.taken != self.tails => Sleeping::Swap,
            Sleeping::LastLook => Sleeping::Asleep,
            Sleeping::Asleep if self.event > 0 => Sleeping::Swap,
            // A swap is done in memory, after the thread's own stores.
            Sleeping::Swap if self.stores.is_empty() => {
                let rung = !self.asleep;
                one.asleep = false;
                one.owed = if rules.owes { self.owed } else { 0 } + u8::from(rung);
                if one.owed > 0 { Sleeping::Read } else { Sleeping::Take }
            }
            Sleeping::Read => {
                // What has come, at once; or nothing (WouldBlock).
                one.owed = self.owed.saturating_sub(self.event);
                one.event = 0;
                Sleeping::Take
            }
            _ => return next,
        };
        next.push(one);
        next
    }

    fn ringer(&self, number: usize, rules: Rules) -> Vec<Self> {
        let mut next = Vec::new();
        if !self.ringers[number].stores.is_empty() {
            let mut one = self.clone();
            let store = one.ringers[number].stores.pop_front().unwrap();
            one.land(store);
            next.push(one);
        }
        let mut one = self.clone();
        let ringer = &mut one.ringers[number];
        let is_flushed = ringer.stores.is_empty();
        ringer.at = match ringer.at {
            Ringing::Enqueue if ringer.given < ANSWERS => {
                ringer.given += 1;
                ringer.stores.push_back(Store::Tail(number, ringer.given));
                Ringing::Fence
            }
            Ringing::Fence if is_flushed || !rules.ringer_fence => Ringing::Swap,
            Ringing::Swap if is_flushed || !rules.ringer_fence => match std::mem::take(&mut one.asleep) {
                true => Ringing::Write,
                false => Ringing::Enqueue,
            },
            Ringing::Write => {
                one.event += 1;
                Ringing::Enqueue
            }
            _ => return next,
        };
        next.push(one);
        next
    }

    /// Whether the sleeper, with all others stopped where they are, sleeps before long: on every way that it can take.
    fn comes_to_rest(&self, rules: Rules, steps: usize) -> bool {
        let next = self.sleeper(rules);
        next.is_empty() || steps > 0 && next.iter().all(|one| one.comes_to_rest(rules, steps - 1))
    }
}

#[derive(Debug)]
enum Flaw {
    /// Everybody is at rest, and an answer was not taken.
    Lost,
    /// Nobody does anything, and the sleeper does not sleep.
    Spins(#[allow(dead_code, reason = "shown where a test fails")] State),
}

/// Walks every state; the first flaw, or how many states there were.
fn explore(rules: Rules) -> Result<usize, Flaw> {
    let mut seen = HashSet::from([State::default()]);
    let mut queue = VecDeque::from([State::default()]);
    while let Some(state) = queue.pop_front() {
        if !state.comes_to_rest(rules, REST_MAX) {
            return Err(Flaw::Spins(state));
        }
        let mut next = state.sleeper(rules);
        next.extend((0..RINGERS).flat_map(|number| state.ringer(number, rules)));
        if next.is_empty() && !state.all_taken() {
            return Err(Flaw::Lost);
        }
        queue.extend(next.into_iter().filter(|one| seen.insert(one.clone())));
    }
    Ok(seen.len())
}

#[test]
fn no_interleaving_loses_a_wake_up_or_leaves_the_sleeper_spinning() {
    let states = explore(ALL_RULES).unwrap_or_else(|flaw| panic!("{flaw:?}"));
    assert!(states > 10_000, "only {states} states: the model does not model");
}

#[test]
fn a_write_that_comes_late_ends_every_sleep_unless_it_is_kept_in_mind() {
    assert!(matches!(explore(Rules { owes: false, ..ALL_RULES }), Err(Flaw::Spins(_))));
}

#[test]
fn each_fence_and_the_last_look_keep_a_wake_up_from_being_lost() {
    for rules in [
        Rules { ringer_fence: false, ..ALL_RULES },
        Rules { sleeper_fence: false, ..ALL_RULES },
        Rules { last_look: false, ..ALL_RULES },
    ] {
        assert!(matches!(explore(rules), Err(Flaw::Lost)));
    }
}
