//! The table of slots against a model that keeps a list: whatever happens in whatever order, both say the same.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dpu_app::{SLOTS_MAX, Seat, SlotState, SlotTable, Ticket};
use proptest::prelude::*;

/// One step: take a slot for a fetch or a store, or move one that is taken to some state, allowed or not.
#[derive(Clone, Debug)]
enum Step {
    Take { fetch: bool },
    Move { which: usize, to: usize },
    Stale { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(|fetch| Step::Take { fetch }),
        6 => (any::<usize>(), 0..SlotState::ALL.len()).prop_map(|(which, to)| Step::Move { which, to }),
        1 => any::<usize>().prop_map(|which| Step::Stale { which }),
    ]
}

/// A call that must be refused by an assertion, without a word on the terminal.
fn is_refused(call: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_its_model(slots in 1..=SLOTS_MAX, steps in prop::collection::vec(step(), 1..200)) {
        std::panic::set_hook(Box::new(|_| ()));
        let mut table = SlotTable::new(slots);
        let mut taken: Vec<(Ticket, SlotState, u16)> = Vec::new();
        let mut gone: Vec<Ticket> = Vec::new();
        let mut generations: HashMap<u16, u32> = HashMap::new();
        for (block, step) in steps.into_iter().enumerate() {
            let block = block as u16;
            match step {
                Step::Take { fetch } => {
                    let state = if fetch { SlotState::Fetching } else { SlotState::Gathering };
                    let ticket = table.take(Seat(block % 7), block, state);
                    prop_assert_eq!(ticket.is_some(), taken.len() < slots);
                    if let Some(ticket) = ticket {
                        prop_assert!(taken.iter().all(|(other, ..)| other.index != ticket.index), "one holder a slot");
                        let last = generations.insert(ticket.index, ticket.generation);
                        prop_assert_ne!(last, Some(ticket.generation));
                        taken.push((ticket, state, block));
                    }
                }
                Step::Move { which, to } if !taken.is_empty() => {
                    let which = which % taken.len();
                    let (ticket, from, _) = taken[which];
                    let to = SlotState::ALL[to];
                    if !from.may_become(to) {
                        prop_assert!(is_refused(|| table.set(ticket, to)), "{:?} -> {:?}", from, to);
                        continue;
                    }
                    table.set(ticket, to);
                    taken[which].1 = to;
                    if to == SlotState::Free {
                        gone.push(taken.swap_remove(which).0);
                    }
                }
                // A slot that is free still answers to its last ticket; one that has changed hands does not.
                Step::Stale { which } if !gone.is_empty() => {
                    let ticket = gone[which % gone.len()];
                    let stale = generations[&ticket.index] != ticket.generation;
                    prop_assert_eq!(is_refused(|| { table.at(ticket); }), stale);
                }
                _ => {}
            }
            let storing = |state: &SlotState| {
                matches!(state, SlotState::Gathering | SlotState::Confirming | SlotState::Encoding)
            };
            prop_assert_eq!(table.free(), slots - taken.len());
            prop_assert_eq!(table.storing(), taken.iter().filter(|(_, state, _)| storing(state)).count());
            for state in SlotState::ALL {
                let count = taken.iter().filter(|(_, held, _)| *held == state).count();
                let expected = if state == SlotState::Free { slots - taken.len() } else { count };
                prop_assert_eq!(table.count(state), expected);
            }
            for (ticket, state, block) in &taken {
                let work = table.at(*ticket);
                prop_assert_eq!((work.state, work.block, work.seat), (*state, *block, Seat(*block % 7)));
            }
        }
    }
}
