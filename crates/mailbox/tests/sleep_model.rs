//! The sleep protocol, every interleaving of it: a producer of work and a sleeper, each behind a store buffer.
//!
//! One model serves both directions of the page. A store buffer stands for a CPU's on the host's side and for DMA
//! writes under way on the card's; a fence, or waiting for a write's completion, empties it. A line's face is written
//! in two steps, torn between them, and a reader copies the two faces one after the other. The rules can be dropped one
//! by one: the model must then find the lost wake-up, or it proves nothing. Not under miri: safe code on plain values,
//! and far too many states.
#![forbid(unsafe_code)]
#![cfg(not(miri))]

use std::collections::{HashSet, VecDeque};

/// A face: torn, or (sequence, sleep number or 0).
type Face = Option<(u8, u8)>;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Store {
    Items(u8),
    Tear(usize),
    Face(usize, u8, u8),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct State {
    // Memory, as the other side sees it.
    items: u8,
    faces: [Face; 2],
    bells: u8,
    // Producer.
    producer: u8,
    posted: u8,
    copied: [Face; 2],
    last_seen: u8,
    rung: u8,
    producer_stores: VecDeque<Store>,
    // Sleeper.
    sleeper: u8,
    taken: u8,
    sleeps: u8,
    sequence: u8,
    sleeper_stores: VecDeque<Store>,
}

#[derive(Clone, Copy)]
struct Rules {
    producer_fence: bool,
    sleeper_fence: bool,
    recheck: bool,
    two_faces: bool,
}

const ALL_RULES: Rules = Rules { producer_fence: true, sleeper_fence: true, recheck: true, two_faces: true };

struct Model {
    rules: Rules,
    items: u8,
}

/// Steps of the producer.
const POST: u8 = 0;
const PRODUCER_FENCE: u8 = 1;
const COPY_FIRST: u8 = 2;
const COPY_SECOND: u8 = 3;
const DECIDE: u8 = 4;
/// Steps of the sleeper.
const LOOK: u8 = 0;
const SAY_ASLEEP: u8 = 1;
const SLEEPER_FENCE: u8 = 2;
const RECHECK: u8 = 3;
const ASLEEP: u8 = 4;
const SAY_AWAKE: u8 = 5;

fn land(state: &mut State, store: Store) {
    match store {
        Store::Items(count) => state.items = count,
        Store::Tear(face) => state.faces[face] = None,
        Store::Face(face, sequence, asleep) => state.faces[face] = Some((sequence, asleep)),
    }
}

impl Model {
    /// Every state that may follow.
    fn after(&self, state: &State) -> Vec<State> {
        let mut next = Vec::new();
        let mut push = |change: &dyn Fn(&mut State)| {
            let mut one = state.clone();
            change(&mut one);
            next.push(one);
        };
        if !state.producer_stores.is_empty() {
            push(&|one| {
                let store = one.producer_stores.pop_front().unwrap();
                land(one, store);
            });
        }
        if !state.sleeper_stores.is_empty() {
            push(&|one| {
                let store = one.sleeper_stores.pop_front().unwrap();
                land(one, store);
            });
        }
        match state.producer {
            POST if state.posted < self.items => push(&|one| {
                one.posted += 1;
                one.producer_stores.push_back(Store::Items(one.posted));
                one.producer = PRODUCER_FENCE;
            }),
            PRODUCER_FENCE if state.producer_stores.is_empty() || !self.rules.producer_fence => {
                push(&|one| one.producer = COPY_FIRST);
            }
            COPY_FIRST => push(&|one| {
                one.copied[0] = one.faces[0];
                one.producer = COPY_SECOND;
            }),
            COPY_SECOND => push(&|one| {
                one.copied[1] = one.faces[1];
                one.producer = DECIDE;
            }),
            DECIDE => push(&|one| decide(one)),
            _ => {}
        }
        match state.sleeper {
            LOOK => push(&|one| {
                one.sleeper = if one.items > one.taken { LOOK } else { SAY_ASLEEP };
                one.taken = one.items;
            }),
            SAY_ASLEEP => push(&|one| {
                one.sleeps += 1;
                let asleep = one.sleeps;
                self.write_face(one, asleep);
                one.sleeper = SLEEPER_FENCE;
            }),
            SLEEPER_FENCE if state.sleeper_stores.is_empty() || !self.rules.sleeper_fence => {
                push(&|one| one.sleeper = RECHECK);
            }
            RECHECK => push(&|one| {
                let work = self.rules.recheck && one.items > one.taken;
                one.sleeper = if work { SAY_AWAKE } else { ASLEEP };
            }),
            ASLEEP if state.bells > 0 => push(&|one| {
                one.bells -= 1;
                one.sleeper = SAY_AWAKE;
            }),
            SAY_AWAKE => push(&|one| {
                self.write_face(one, 0);
                one.sleeper = LOOK;
            }),
            _ => {}
        }
        next
    }

    fn write_face(&self, state: &mut State, asleep: u8) {
        state.sequence += 1;
        let face = if self.rules.two_faces { usize::from(state.sequence % 2) } else { 0 };
        state.sleeper_stores.push_back(Store::Tear(face));
        state.sleeper_stores.push_back(Store::Face(face, state.sequence, asleep));
    }

    /// Walks every state; the first bad one, or how many there were.
    fn explore(&self) -> Result<usize, State> {
        let first = State { faces: [Some((0, 0)), None], ..State::default() };
        let mut seen = HashSet::from([first.clone()]);
        let mut queue = VecDeque::from([first]);
        while let Some(state) = queue.pop_front() {
            let next = self.after(&state);
            let all_taken = state.taken == self.items && state.posted == self.items;
            let at_rest = state.sleeper == ASLEEP && state.producer == POST;
            if next.is_empty() && !(all_taken && at_rest) {
                return Err(state);
            }
            // One doorbell per sleep: they never pile up, and none is sent to a sleep that was rung.
            if state.bells > state.sleeps {
                return Err(state);
            }
            queue.extend(next.into_iter().filter(|one| seen.insert(one.clone())));
        }
        Ok(seen.len())
    }
}

/// The reader of a line, as in `line.rs`: the newest whole face, none older than one seen before, else copy again.
fn decide(state: &mut State) {
    let newest = state.copied.into_iter().flatten().max();
    match newest {
        Some((sequence, asleep)) if sequence >= state.last_seen => {
            state.last_seen = sequence;
            if asleep != 0 && asleep != state.rung {
                state.rung = asleep;
                state.bells += 1;
            }
            state.producer = POST;
        }
        _ => state.producer = COPY_FIRST,
    }
    state.copied = [None, None];
}

fn explore(rules: Rules) -> Result<usize, State> {
    Model { rules, items: 4 }.explore()
}

#[test]
fn no_interleaving_loses_a_wake_up() {
    let states = explore(ALL_RULES).unwrap_or_else(|state| panic!("lost: {state:?}"));
    assert!(states > 500, "only {states} states: the model does not model");
}

#[test]
fn without_the_producers_fence_a_wake_up_is_lost() {
    let lost = explore(Rules { producer_fence: false, ..ALL_RULES }).unwrap_err();
    assert_eq!((lost.sleeper, lost.bells), (ASLEEP, 0));
}

#[test]
fn without_the_sleepers_fence_a_wake_up_is_lost() {
    let lost = explore(Rules { sleeper_fence: false, ..ALL_RULES }).unwrap_err();
    assert_eq!((lost.sleeper, lost.bells), (ASLEEP, 0));
}

#[test]
fn without_the_last_look_a_wake_up_is_lost() {
    let lost = explore(Rules { recheck: false, ..ALL_RULES }).unwrap_err();
    assert_eq!((lost.sleeper, lost.bells), (ASLEEP, 0));
}

/// A line of one face only: a reader that meets a stopped writer finds nothing to believe: it has to copy again for as
/// long as the writer is stopped, and nobody can tell that from a lie. Two faces always leave one.
#[test]
fn two_faces_always_leave_one_to_believe() {
    let blind = |rules: Rules| {
        let model = Model { rules, items: 2 };
        let mut seen = HashSet::from([State { faces: [Some((0, 0)), None], ..State::default() }]);
        let mut queue: VecDeque<State> = seen.iter().cloned().collect();
        while let Some(state) = queue.pop_front() {
            if state.faces == [None, None] {
                return true;
            }
            queue.extend(model.after(&state).into_iter().filter(|one| seen.insert(one.clone())));
        }
        false
    };
    assert!(!blind(ALL_RULES));
    assert!(blind(Rules { two_faces: false, ..ALL_RULES }));
}
