//! Which node and which connection a question goes to, and what it is there.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::errand::{ErrandStep, Work};
use super::lookup::AskedLookup;
use super::{CONTROL, RedisReader};
use crate::redis::RedisStore;
use crate::redis::inflow::{Due, Recipient, Wants};
use crate::redis::name::{KeyName, MANIFEST_FIELD, slot_of};
use crate::redis::options::ReadFrom;
use crate::redis::resp::Digits;
use crate::{BlockMemory, Lookup, StoreError};

/// Bytes of the longest command of a reader, and of a redirected one with ASKING before it.
const COMMAND_BYTES: usize = 256;

/// Which of a node's connections a question takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The one for small questions.
    Small,
    /// One of those for blocks, with room in its window for these.
    Block { bytes: usize },
}

impl<M: BlockMemory> RedisReader<'_, M> {
    /// Sends what waits and can be sent.
    pub(super) fn dispatch(&mut self, now: Instant) {
        for _ in 0..self.errands.waiting.len() {
            let place = self.errands.waiting.pop_front().expect("counted");
            let Some(errand) = self.errands.get(place).filter(|errand| errand.waits) else { continue };
            let sent = errand.not_before <= now
                && match errand.work {
                    Work::Lookup(_) => self.send_lookup(place, now),
                    _ => self.send(place, now),
                };
            match self.errands.get(place) {
                Some(errand) if sent => errand.waits = false,
                Some(errand) if errand.waits => self.errands.waiting.push_back(place),
                _ => {}
            }
        }
        for index in 0..self.lanes.len() {
            if !self.lanes[index].is_closed()
                && let Err(loss) = self.lanes[index].flush(&self.epoll, index as u64)
            {
                self.close_lane(index, loss);
            }
        }
    }

    /// Finds a lane to a node with room; `None`: there is none yet, and one is being opened. An error: it cannot be
    /// asked.
    fn lane_for(&mut self, node: u16, way: Way, bytes: usize, replies: usize) -> Result<Option<usize>, StoreError> {
        let nodes = &self.store.nodes;
        if !nodes.admits(node) {
            return Err(nodes.error_of(node));
        }
        self.open_lanes(node);
        let first = usize::from(node) * self.lanes_per_node;
        let window = self.store.connector.options.window;
        let lanes = &self.lanes;
        let fits = |index: &usize| lanes[*index].is_ready() && lanes[*index].has_room(bytes, replies);
        Ok(match way {
            Way::Small => Some(first).filter(fits),
            Way::Block { bytes: block } => {
                let all = first + CONTROL..first + self.lanes_per_node;
                let has_window = |index: &usize| lanes[*index].owed() == 0 || lanes[*index].owed() + block <= window;
                all.filter(fits).filter(has_window).min_by_key(|index| lanes[*index].owed())
            }
        })
    }

    /// Sends the next question of an errand about one chunk. `true`: it does not wait any more.
    fn send(&mut self, place: u16, now: Instant) -> bool {
        if !self.store.nodes.is_found() {
            self.errands.fail(place, StoreError::Miss);
            return true;
        }
        let errand = self.errands.errand(place);
        let (slot, aside, step) = (errand.slot, errand.aside, errand.step);
        let way = match errand.work {
            Work::Read { bytes, .. } if step == ErrandStep::Ask && !errand.anew => Way::Block { bytes },
            Work::Open { .. } if errand.anew => Way::Block { bytes: 0 },
            _ => Way::Small,
        };
        let owner = errand.owner;
        let Some(node) = route(self.store, slot, aside, owner) else {
            self.store.surveyor.ask();
            self.errands.later(place, now);
            return false;
        };
        let index = match self.lane_for(node, way, 2 * COMMAND_BYTES, 3) {
            Ok(Some(index)) => index,
            Ok(None) => return false,
            Err(error) => {
                self.store.surveyor.ask();
                self.errands.fail(place, error);
                return true;
            }
        };
        let (lane, nodes) = (&mut self.lanes[index], &self.store.nodes);
        let generation = self.errands.generations[usize::from(place)];
        let errand = self.errands.errand(place);
        let small = |owner| Due { owner, since: now, wants: Wants::Reply };
        if errand.aside.is_some() {
            lane.send(nodes, &[b"ASKING"], small(Recipient::Nobody));
        }
        let name = KeyName::of(&errand.key);
        let owner = Recipient::Errand { place, generation, item: 0 };
        match (&mut errand.work, step) {
            (Work::Read { index, bytes, memory, .. }, ErrandStep::Ask) => {
                let memory = Some(memory.take().expect("it is here while the errand waits"));
                let wants = Wants::Block { bytes: *bytes, memory };
                let mut digits = Digits::default();
                let words: [&[u8]; 3] = [b"HGET", name.bytes(), digits.of(*index)];
                lane.send(nodes, &words, Due { owner, since: now, wants });
            }
            (work, _) => {
                lane.send(nodes, &[b"HGET", name.bytes(), MANIFEST_FIELD], small(owner));
                if let (Work::Open { .. }, Some(ttl)) = (work, self.store.connector.options.ttl) {
                    let mut digits = Digits::default();
                    let words: [&[u8]; 3] = [b"PEXPIRE", name.bytes(), digits.of(ttl.as_millis() as usize)];
                    lane.send(nodes, &words, small(Recipient::Nobody));
                }
            }
        }
        true
    }

    /// Asks for the keys of a look-up that have not been asked for. `true`: none is left.
    fn send_lookup(&mut self, place: u16, now: Instant) -> bool {
        if !self.store.nodes.is_found() {
            self.errands.end(place, Ok(0));
            return true;
        }
        let Work::Lookup(asked) = &mut self.errands.errand(place).work else { unreachable!("the caller looked") };
        // Out of the table while lanes are opened, which may change other errands.
        let mut asked = std::mem::replace(asked, AskedLookup::new(Lookup::leading(Vec::new())));
        let generation = self.errands.generations[usize::from(place)];
        let (mut all, mut turn) = (true, 0);
        while let Some(item) = asked.lookup.place(turn) {
            turn += 1;
            if !asked.wants(item) {
                continue;
            }
            let key = asked.lookup.keys()[item];
            let aside = asked.aside(item);
            let Some(node) = route(self.store, slot_of(&key), aside, false) else {
                self.store.surveyor.ask();
                self.errands.later(place, now);
                all = false;
                break;
            };
            match self.lane_for(node, Way::Small, 2 * COMMAND_BYTES, 2) {
                Ok(Some(index)) => {
                    let (lane, nodes) = (&mut self.lanes[index], &self.store.nodes);
                    let due = |owner| Due { owner, since: now, wants: Wants::Reply };
                    if aside.is_some() {
                        lane.send(nodes, &[b"ASKING"], due(Recipient::Nobody));
                    }
                    let name = KeyName::of(&key);
                    let words: [&[u8]; 3] = [b"HEXISTS", name.bytes(), MANIFEST_FIELD];
                    lane.send(nodes, &words, due(Recipient::Errand { place, generation, item: item as u16 }));
                    asked.asked.add(item);
                }
                Ok(None) => all = false,
                Err(error) => {
                    self.store.surveyor.ask();
                    asked.cut(item, error);
                }
            }
        }
        // Nobody ends a look-up meanwhile.
        self.errands.errand(place).work = Work::Lookup(asked);
        self.errands.settle_lookup(place);
        all
    }
}

/// Chooses the node that a question about a slot goes to.
pub(super) fn route(store: &RedisStore, slot: u16, aside: Option<u16>, owner: bool) -> Option<u16> {
    if aside.is_some() {
        return aside;
    }
    let nodes = &store.nodes;
    let master = nodes.master(slot.into());
    if store.connector.options.read == ReadFrom::Master || owner {
        return master;
    }
    let all = || master.into_iter().chain(nodes.replicas(slot.into()));
    let load = |node: &u16| nodes.at(*node).in_flight.load(Relaxed);
    all().filter(|node| nodes.admits(*node)).min_by_key(load).or(master)
}
