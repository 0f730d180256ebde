//! The known servers, which slots they serve, and whether it is worth asking them.
//!
//! A place in the table belongs to one node for good, and its address never changes, so a reader may keep the place.
//! What changes is the map of slots, by redirects and by the surveyor, and each node's state.
//!
//! Error budget: a node that failed three times in ten seconds, or that refused us once, is `Open` for one second, and
//! twice as long each time that its next answer is a failure again, up to thirty. While it is open, requests to it fail
//! at once.
//!
//! Trouble is what keeps the store from serving at all: no server has answered since the start, or one refuses us.

use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::StoreError;
use crate::node::{Histogram, NodeFacts, NodeRole, NodeState};

/// Slots of a cluster. Without one, all are of the one node.
pub(super) const SLOTS: usize = 16384;
/// Replicas of a shard that may be read from.
pub(super) const REPLICAS: usize = 3;
const NOBODY: u16 = u16::MAX;

const FAILURES_MAX: usize = 3;
const FAILURES_WITHIN: Duration = Duration::from_secs(10);
const FAILURES_APART: Duration = Duration::from_millis(50);
const OPEN_LEAST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_secs(30);

/// What keeps the store from serving, in words.
type Trouble = heapless::String<320>;

/// One server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: SocketAddr,
    /// The address as text.
    name: String,
    role: AtomicU32,
    /// Milliseconds of the table's clock until which it is open; 0: closed.
    open_until_ms: AtomicU64,
    /// The node is open because it refuses us.
    refuses: AtomicBool,
    budget: Mutex<Budget>,
    pub(super) connections: AtomicU64,
    pub(super) in_flight: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_put: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) redirects: AtomicU64,
    pub(super) latency: Histogram,
}

#[derive(Debug, Default)]
struct Budget {
    /// The last failures, newest last.
    failures: heapless::Deque<Instant, FAILURES_MAX>,
    /// How long it was open the last time.
    open: Duration,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Nodes {
    started: Instant,
    places: Box<[OnceLock<Node>]>,
    len: AtomicUsize,
    /// Held while a node is added.
    adding: Mutex<()>,
    /// Place of each slot's master.
    masters: Box<[AtomicU16]>,
    /// Places of each slot's replicas.
    replicas: Box<[[AtomicU16; REPLICAS]]>,
    /// The nodes are those of a cluster.
    cluster: AtomicBool,
    /// A server has answered since the start.
    found: AtomicBool,
    trouble: Mutex<Trouble>,
}

impl Nodes {
    /// Makes the table of what was found: a cluster, or one server.
    pub(super) fn new(nodes_max: usize, cluster: bool) -> Self {
        let nodes = Self::with_slots(nodes_max, if cluster { SLOTS } else { 1 });
        nodes.is_there(cluster);
        nodes
    }

    /// Makes the table of a store that is not there yet, which may be either.
    pub(super) fn unknown(nodes_max: usize) -> Self {
        Self::with_slots(nodes_max, SLOTS)
    }

    fn with_slots(nodes_max: usize, slots: usize) -> Self {
        Self {
            started: Instant::now(),
            places: (0..nodes_max).map(|_| OnceLock::new()).collect(),
            len: 0.into(),
            adding: Mutex::new(()),
            masters: (0..slots).map(|_| NOBODY.into()).collect(),
            replicas: (0..slots).map(|_| std::array::from_fn(|_| NOBODY.into())).collect(),
            cluster: false.into(),
            found: false.into(),
            trouble: Mutex::default(),
        }
    }

    /// Notes that a server has answered, and that every node that it knows is entered.
    pub(super) fn is_there(&self, cluster: bool) {
        self.cluster.store(cluster, Relaxed);
        // Pairs with the Acquire in `is_found`: who sees it sees whether it is a cluster, and the map.
        self.found.store(true, Release);
    }

    /// Whether a server has answered since the start. Until then every chunk is a miss.
    pub(super) fn is_found(&self) -> bool {
        self.found.load(Acquire)
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.is_found() && self.cluster.load(Relaxed)
    }

    /// Notes what keeps the store from serving. `true`: that is news.
    pub(super) fn set_trouble(&self, text: &dyn std::fmt::Display) -> bool {
        let mut next = Trouble::new();
        // What is too long is cut.
        let _ = std::fmt::write(&mut Cut(&mut next), format_args!("{text}"));
        let mut trouble = self.trouble.lock().expect(crate::POISONED);
        std::mem::replace(&mut *trouble, next.clone()) != next
    }

    /// Notes that nothing keeps the store from serving any more. `true`: something did.
    pub(super) fn clear_trouble(&self) -> bool {
        !std::mem::take(&mut *self.trouble.lock().expect(crate::POISONED)).is_empty()
    }

    /// Shows what keeps the store from serving, if anything does.
    pub(super) fn trouble(&self, show: &mut dyn FnMut(&str)) {
        let trouble = self.trouble.lock().expect(crate::POISONED);
        if !trouble.is_empty() {
            show(&trouble);
        }
    }

    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    pub(super) fn at(&self, place: u16) -> &Node {
        self.places[usize::from(place)].get().expect("only places that were filled are handed out")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Node)> {
        self.places.iter().enumerate().map_while(|(place, node)| Some((place as u16, node.get()?)))
    }

    /// Finds the place of an address, or takes a new one, which allocates; `None` where the table is full.
    pub(super) fn place_of(&self, address: SocketAddr) -> Option<u16> {
        let find = || self.iter().find(|(_, node)| node.address == address).map(|(place, _)| place);
        if let Some(place) = find() {
            return Some(place);
        }
        let _adding = self.adding.lock().expect(crate::POISONED);
        if let Some(place) = find() {
            return Some(place);
        }
        let place = self.len();
        let Some(free) = self.places.get(place) else {
            log::warn!("store: no place for node {address}: {place} are known: raise the URL's option `nodes`");
            return None;
        };
        free.set(Node::new(address)).expect("nobody else adds");
        self.len.store(place + 1, Relaxed);
        Some(place as u16)
    }

    pub(super) fn master(&self, slot: usize) -> Option<u16> {
        Some(self.masters[slot % self.masters.len()].load(Relaxed)).filter(|place| *place != NOBODY)
    }

    pub(super) fn replicas(&self, slot: usize) -> impl Iterator<Item = u16> {
        let places = &self.replicas[slot % self.replicas.len()];
        places.iter().map(|place| place.load(Relaxed)).filter(|place| *place != NOBODY)
    }

    /// Notes that a slot has another master now.
    pub(super) fn moved(&self, slot: usize, place: u16) {
        self.masters[slot % self.masters.len()].store(place, Relaxed);
    }

    /// Enters who serves a range of slots.
    pub(super) fn serve(&self, slots: std::ops::RangeInclusive<usize>, master: u16, replicas: &[u16]) {
        for slot in slots.take_while(|slot| *slot < self.masters.len()) {
            self.masters[slot].store(master, Relaxed);
            for (index, place) in self.replicas[slot].iter().enumerate() {
                place.store(replicas.get(index).copied().unwrap_or(NOBODY), Relaxed);
            }
        }
    }

    /// Counts the slots that nobody serves.
    pub(super) fn unserved(&self) -> usize {
        self.masters.iter().filter(|master| master.load(Relaxed) == NOBODY).count()
    }

    /// Whether requests may go to a node.
    pub(super) fn admits(&self, place: u16) -> bool {
        self.now_ms() >= self.at(place).open_until_ms.load(Relaxed)
    }

    /// Why requests to a node that is open fail.
    pub(super) fn error_of(&self, place: u16) -> StoreError {
        match self.at(place).refuses.load(Relaxed) {
            true => StoreError::Denied { call: "connect" },
            false => StoreError::Down { call: "connect", errno: Errno::ECONNREFUSED },
        }
    }

    /// Picks a node that is open and should be tried, to see whether it answers again; each once in its time.
    pub(super) fn on_probation(&self) -> Option<u16> {
        let wants = |(place, node): (u16, &Node)| node.open_until_ms.load(Relaxed) != 0 && self.admits(place);
        self.iter().find(|(place, node)| wants((*place, node))).map(|(place, _)| place)
    }

    /// Whether any node is open.
    pub(super) fn any_open(&self) -> bool {
        self.iter().any(|(_, node)| node.open_until_ms.load(Relaxed) != 0)
    }

    /// Allows all that are open to be tried now: we come as somebody else.
    pub(super) fn try_all(&self) {
        for (_, node) in self.iter() {
            let mut budget = node.budget.lock().expect(crate::POISONED);
            budget.open = Duration::ZERO;
            if node.open_until_ms.load(Relaxed) != 0 {
                node.open_until_ms.store(self.now_ms(), Relaxed);
            }
        }
    }

    /// Notes that a node answered.
    pub(super) fn succeeded(&self, place: u16) {
        let node = self.at(place);
        if node.open_until_ms.load(Relaxed) != 0 {
            let mut budget = node.budget.lock().expect(crate::POISONED);
            budget.failures.clear();
            budget.open = Duration::ZERO;
            if node.open_until_ms.swap(0, Relaxed) != 0 {
                node.refuses.store(false, Relaxed);
                self.clear_trouble();
                log::info!("store: node {} answers again", node.name);
            }
        }
    }

    /// Notes that a connection to a node failed or was given up. `true`: requests stop going there.
    pub(super) fn failed(&self, place: u16, why: &dyn std::fmt::Display) -> bool {
        let node = self.at(place);
        node.errors.fetch_add(1, Relaxed);
        let now = Instant::now();
        let mut budget = node.budget.lock().expect(crate::POISONED);
        // All connections of a server that dies fail at once: that is one failure.
        if budget.failures.back().is_none_or(|last| now - *last >= FAILURES_APART) {
            if budget.failures.is_full() {
                budget.failures.pop_front();
            }
            budget.failures.push_back(now).expect("there is room");
        }
        // Once open, it is on probation until it answers.
        let probation = node.open_until_ms.load(Relaxed) != 0;
        let all = budget.failures.is_full() && budget.failures.front().is_some_and(|at| now - *at <= FAILURES_WITHIN);
        let open = probation && self.admits(place) || !probation && all;
        if open {
            self.open(node, &mut budget);
            log::warn!("store: node {} fails ({why}): not asked for {} s", node.name, budget.open.as_secs());
        }
        open
    }

    /// Notes that a node refuses us, which no second question changes. Said once, until it answers or says something
    /// else.
    pub(super) fn refused(&self, place: u16, why: &dyn std::fmt::Display) {
        let node = self.at(place);
        node.errors.fetch_add(1, Relaxed);
        node.refuses.store(true, Relaxed);
        {
            let mut budget = node.budget.lock().expect(crate::POISONED);
            if node.open_until_ms.load(Relaxed) == 0 || self.admits(place) {
                self.open(node, &mut budget);
            }
        }
        if self.set_trouble(&format_args!("{} refuses us: {why}", node.name)) {
            log::error!("store: {} refuses us: {why} (it is tried again)", node.name);
        }
    }

    fn open(&self, node: &Node, budget: &mut Budget) {
        budget.open = (budget.open * 2).clamp(OPEN_LEAST, OPEN_MOST);
        node.open_until_ms.store(self.now_ms() + budget.open.as_millis() as u64, Relaxed);
    }

    fn now_ms(&self) -> u64 {
        // Never 0, which means closed.
        self.started.elapsed().as_millis() as u64 + 1
    }

    pub(super) fn set_role(&self, place: u16, role: NodeRole) {
        self.at(place).role.store(role as u32, Relaxed);
    }

    pub(super) fn facts(&self, each: &mut dyn FnMut(&NodeFacts<'_>)) {
        for (place, node) in self.iter() {
            let role = match node.role.load(Relaxed) {
                role if role == NodeRole::Master as u32 => NodeRole::Master,
                role if role == NodeRole::Replica as u32 => NodeRole::Replica,
                _ => NodeRole::Unused,
            };
            each(&NodeFacts {
                address: &node.name,
                role,
                state: if self.admits(place) { NodeState::Closed } else { NodeState::Open },
                connections: node.connections.load(Relaxed),
                in_flight: node.in_flight.load(Relaxed),
                requests: node.requests.load(Relaxed),
                bytes_read: node.bytes_read.load(Relaxed),
                bytes_put: node.bytes_put.load(Relaxed),
                errors: node.errors.load(Relaxed),
                retries: node.retries.load(Relaxed),
                reconnects: node.reconnects.load(Relaxed),
                redirects: node.redirects.load(Relaxed),
                latency: node.latency.quantiles(),
            });
        }
    }
}

impl Node {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            name: address.to_string(),
            role: (NodeRole::Unused as u32).into(),
            open_until_ms: 0.into(),
            refuses: false.into(),
            budget: Mutex::default(),
            connections: 0.into(),
            in_flight: 0.into(),
            requests: 0.into(),
            bytes_read: 0.into(),
            bytes_put: 0.into(),
            errors: 0.into(),
            retries: 0.into(),
            reconnects: 0.into(),
            redirects: 0.into(),
            latency: Histogram::default(),
        }
    }
}

/// Cuts what does not fit.
struct Cut<'a>(&'a mut Trouble);

impl std::fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        text.chars().try_for_each(|c| self.0.push(c).map_err(|_| std::fmt::Error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (Nodes, u16) {
        let nodes = Nodes::new(1, false);
        let place = nodes.place_of("127.0.0.1:6379".parse().unwrap()).unwrap();
        (nodes, place)
    }

    #[test]
    fn three_failures_open_a_node_and_an_answer_closes_it() {
        let (nodes, place) = one();
        let why = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for _ in 0..2 {
            (0..20).for_each(|_| assert!(!nodes.failed(place, &why), "many at once are one"));
            std::thread::sleep(FAILURES_APART);
        }
        assert!(nodes.admits(place));
        assert!(nodes.failed(place, &why) && !nodes.admits(place));
        assert!(!nodes.failed(place, &why), "others that fail meanwhile do not make it longer");
        nodes.succeeded(place);
        assert!(nodes.admits(place));
        assert!(!nodes.failed(place, &why), "and the count starts anew");
    }

    #[test]
    fn a_table_that_is_full_takes_no_stranger() {
        let (nodes, place) = one();
        assert_eq!(nodes.place_of("127.0.0.1:6379".parse().unwrap()), Some(place));
        assert_eq!(nodes.place_of("127.0.0.1:6380".parse().unwrap()), None);
        assert_eq!((nodes.len(), nodes.master(0)), (1, None));
        nodes.serve(0..=16383, place, &[]);
        assert_eq!((nodes.master(12_000), nodes.unserved()), (Some(place), 0));
    }

    #[test]
    fn one_refusal_opens_a_node_and_is_said_until_it_answers() {
        let (nodes, place) = one();
        nodes.refused(place, &"NOAUTH");
        assert!(!nodes.admits(place) && matches!(nodes.error_of(place), StoreError::Denied { .. }));
        let mut said = String::new();
        nodes.trouble(&mut |text| said = text.to_owned());
        assert_eq!(said, "127.0.0.1:6379 refuses us: NOAUTH");
        assert_eq!(nodes.on_probation(), None);
        nodes.try_all();
        assert!(nodes.admits(place) && nodes.on_probation() == Some(place));
        nodes.succeeded(place);
        nodes.trouble(&mut |text| panic!("{text}"));
        assert!(matches!(nodes.error_of(place), StoreError::Down { .. }) && !nodes.any_open());
    }
}
