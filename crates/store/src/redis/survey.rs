//! Finds out who serves which slot: at start, and again whenever a redirect or a lost connection suggests a change.
//!
//! The surveyor is a thread that sleeps until somebody asks. It
//!
//! * looks for a store that was not there at start, with growing pauses, until a server answers;
//! * tries nodes that are open when their time is over, so that a store that is back is known to be back without
//!   traffic;
//! * surveys a cluster at most five times a second, once a second while slots are without a node, and once a minute
//!   anyway, since nobody announces a new replica.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::ChunkKey;

use super::fault::{Fault, Said, said};
use super::line::{BlockingConnection, CallError, fault_of};
use super::name::{KeyName, MANIFEST_FIELD};
use super::nodes::{Nodes, REPLICAS, SLOTS};
use super::resp::{Reply, elements};
use super::{Connector, advice};
use crate::POISONED;
use crate::node::NodeRole;
use crate::open_error::OpenError;

/// Bytes of the longest CLUSTER SLOTS that is understood: some thousand ranges.
const SLOTS_REPLY_BYTES: usize = 512 << 10;
const APART: Duration = Duration::from_millis(200);
const WHILE_UNSERVED: Duration = Duration::from_secs(1);
const AT_LEAST: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks for a store that is not there: the first time, and at most.
const LOOK_LEAST: Duration = Duration::from_millis(200);
const LOOK_MOST: Duration = Duration::from_secs(5);
/// Places of a cluster's table at least, and of what is not there yet.
const PLACES_LEAST: usize = 16;

/// One line of the map.
#[derive(Debug)]
struct Range {
    slots: RangeInclusive<usize>,
    master: SocketAddr,
    replicas: heapless::Vec<SocketAddr, REPLICAS>,
}

/// What was found where the URL says.
#[derive(Debug)]
enum Found {
    Server(SocketAddr),
    Cluster(Vec<Range>),
}

/// The first survey: finds a server that answers and what it is part of.
pub(super) fn first(connector: &Connector) -> Result<Nodes, OpenError> {
    let found = find(connector, &mut BlockingConnection::new(SLOTS_REPLY_BYTES))?;
    let nodes = match &found {
        Found::Server(_) => Nodes::new(1, false),
        Found::Cluster(ranges) => {
            let known = nodes_of(ranges);
            Nodes::new(connector.options.nodes_max.unwrap_or((2 * known).max(PLACES_LEAST)).max(known), true)
        }
    };
    enter_all(&nodes, &found);
    Ok(nodes)
}

/// The table of a store that is not there yet, of fixed size all the same.
pub(super) fn unknown(connector: &Connector) -> Nodes {
    Nodes::unknown(connector.options.nodes_max.unwrap_or(PLACES_LEAST))
}

/// Asks one host after the other.
fn find(connector: &Connector, line: &mut BlockingConnection) -> Result<Found, OpenError> {
    let mut why = None;
    for (host, addresses) in connector.options.resolve() {
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                why = Some(OpenError::Unreachable { node: host, what: advice::of_resolver(&error) });
                continue;
            }
        };
        for address in addresses {
            line.hang_up();
            let asked =
                line.dial(connector, address, Instant::now() + PATIENCE).and_then(|()| ask(connector, line, address));
            match asked {
                Ok(Ok(found)) if matches!(found, Found::Server(_)) && connector.options.hosts.len() > 1 => {
                    let what =
                        format!("{host} is a single server and several hosts are named: name one, or a cluster's");
                    return Err(OpenError::Option { url: "redis://".into(), what });
                }
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(said)) => {
                    let what = format!("{said}: it is starting and passes by itself");
                    why = Some(OpenError::Unreachable { node: host.clone(), what });
                }
                Err(CallError::Refused(refusal)) if !refusal.later => {
                    return Err(OpenError::Refused { node: host, what: refusal.to_string() });
                }
                Err(CallError::Refused(refusal)) => {
                    why = Some(OpenError::Unreachable { node: host.clone(), what: refusal.to_string() });
                }
                Err(CallError::Lost(error)) => {
                    let what = advice::of_loss(&error, &connector.options);
                    why = Some(OpenError::Unreachable { node: host.clone(), what });
                }
            }
        }
    }
    Err(why.expect("a URL has a host, and a name that resolves has an address"))
}

/// Asks one server what it is. `Err` in the answer: it cannot say yet.
fn ask(
    connector: &Connector,
    line: &mut BlockingConnection,
    address: SocketAddr,
) -> Result<Result<Found, Said>, CallError> {
    let until = Instant::now() + PATIENCE;
    let mut ranges = Vec::new();
    match survey(line, address, until, &mut |range| ranges.push(range))? {
        None if ranges.is_empty() => {
            let none = "it is a cluster's and knows of nobody who serves a slot yet";
            return Ok(Err(none.try_into().expect("a short text")));
        }
        None => return Ok(Ok(Found::Cluster(ranges))),
        Some(Fault::Later) => {}
        Some(Fault::Permission) => {
            log::warn!("store: {address} does not let us ask for CLUSTER SLOTS: taken for a single server");
        }
        Some(_) => {}
    }
    // A server that still loads says so to whatever is asked of its keys.
    let name = KeyName::of(&ChunkKey::new([0; block::KEY_BYTES]));
    let reply = line.call(&[b"HEXISTS", name.bytes(), MANIFEST_FIELD], until)?;
    Ok(match reply {
        Reply::Error(text) if Fault::read(text) == Fault::Later => Err(said(text, &connector.login())),
        _ => Ok(Found::Server(address)),
    })
}

/// How many servers a map names.
fn nodes_of(ranges: &[Range]) -> usize {
    let mut known: Vec<SocketAddr> = ranges.iter().flat_map(|r| r.replicas.iter().copied().chain([r.master])).collect();
    known.sort_unstable();
    known.dedup();
    known.len()
}

fn enter_all(nodes: &Nodes, found: &Found) {
    match found {
        Found::Server(address) => {
            let place = nodes.place_of(*address).expect("the first place");
            nodes.serve(0..=SLOTS - 1, place, &[]);
            nodes.set_role(place, NodeRole::Master);
        }
        Found::Cluster(ranges) => {
            if nodes_of(ranges) > nodes.places() {
                let (known, places) = (nodes_of(ranges), nodes.places());
                log::error!("store: a cluster of {known} nodes, and room for {places}: give the URL nodes={known}");
            }
            ranges.iter().for_each(|range| enter(nodes, range));
        }
    }
    nodes.is_there(matches!(found, Found::Cluster(_)));
    if nodes.unserved() > 0 {
        log::warn!("store: {} of {SLOTS} slots of the cluster are served by nobody", nodes.unserved());
    }
}

/// Enters a line of the map.
fn enter(nodes: &Nodes, range: &Range) {
    let Some(master) = nodes.place_of(range.master) else { return };
    let replicas: heapless::Vec<u16, REPLICAS> = range.replicas.iter().filter_map(|at| nodes.place_of(*at)).collect();
    nodes.set_role(master, NodeRole::Master);
    replicas.iter().for_each(|place| nodes.set_role(*place, NodeRole::Replica));
    nodes.serve(range.slots.clone(), master, &replicas);
}

/// Asks one server for its map. `Ok(Some)`: it answered with an error.
fn survey(
    line: &mut BlockingConnection,
    address: SocketAddr,
    until: Instant,
    each: &mut dyn FnMut(Range),
) -> std::io::Result<Option<Fault>> {
    let reply = line.call(&[b"CLUSTER", b"SLOTS"], until)?;
    if let Some(fault) = fault_of(&reply) {
        return Ok(Some(fault));
    }
    let Reply::Other(ranges) = reply else { return Err(ErrorKind::InvalidData.into()) };
    for range in elements(ranges) {
        let Reply::Other(range) = range else { return Err(ErrorKind::InvalidData.into()) };
        let mut parts = elements(range);
        let (Some(Reply::Number(first)), Some(Reply::Number(last))) = (parts.next(), parts.next()) else {
            return Err(ErrorKind::InvalidData.into());
        };
        let mut servers = parts.filter_map(|part| match part {
            Reply::Other(server) => address_of(server, address.ip()),
            _ => None,
        });
        let Some(master) = servers.next() else { continue };
        let slots = first.clamp(0, SLOTS as i64) as usize..=last.clamp(0, SLOTS as i64 - 1) as usize;
        each(Range { slots, master, replicas: servers.take(REPLICAS).collect() });
    }
    Ok(None)
}

/// `[host, port, ...]`; without a host it is that of the server that was asked.
fn address_of(server: &[u8], asked: IpAddr) -> Option<SocketAddr> {
    let mut words = elements(server);
    let (host, port) = (words.next()?, words.next()?);
    let Reply::Number(port) = port else { return None };
    let port = u16::try_from(port).ok()?;
    match host {
        Reply::Null => Some(SocketAddr::new(asked, port)),
        Reply::Bulk(b"") | Reply::Simple(b"") => Some(SocketAddr::new(asked, port)),
        Reply::Bulk(host) | Reply::Simple(host) => {
            let host = std::str::from_utf8(host).ok()?;
            let literal = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
            literal.or_else(|| (host, port).to_socket_addrs().ok()?.next())
        }
        _ => None,
    }
}

/// The thread, and the bell that wakes it.
#[derive(Debug)]
pub(super) struct Surveyor {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Bell {
    state: Mutex<Wanted>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    survey: bool,
    leave: bool,
}

impl Surveyor {
    pub(super) fn start(connector: Arc<Connector>, nodes: Arc<Nodes>) -> Self {
        let bell = Arc::new(Bell::default());
        let theirs = Arc::clone(&bell);
        let line = BlockingConnection::new(SLOTS_REPLY_BYTES);
        let work = move || watch(&connector, &nodes, &theirs, line);
        let thread = std::thread::Builder::new().name("surveyor".into()).spawn(work).expect("Init may start threads");
        Self { bell, thread: Some(thread) }
    }

    /// Asks for a survey: the map may be old. Returns at once.
    pub(super) fn ask(&self) {
        self.bell.state.lock().expect(POISONED).survey = true;
        self.bell.rung.notify_one();
    }
}

impl Drop for Surveyor {
    fn drop(&mut self) {
        self.bell.state.lock().expect(POISONED).leave = true;
        self.bell.rung.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Bell {
    /// Sleeps until somebody asks, or for `patience`. `false`: leave.
    fn wait(&self, patience: Option<Duration>) -> bool {
        let mut wanted = self.state.lock().expect(POISONED);
        while !wanted.survey && !wanted.leave {
            wanted = match patience {
                None => self.rung.wait(wanted).expect(POISONED),
                Some(patience) => {
                    let (mut told, timeout) = self.rung.wait_timeout(wanted, patience).expect(POISONED);
                    told.survey |= timeout.timed_out();
                    told
                }
            };
        }
        wanted.survey = false;
        !wanted.leave
    }

    /// Sleeps for a time, whoever asks.
    fn rest(&self, time: Duration) {
        let wanted = self.state.lock().expect(POISONED);
        let _ = self.rung.wait_timeout_while(wanted, time, |wanted| !wanted.leave).expect(POISONED);
    }
}

fn watch(connector: &Connector, nodes: &Nodes, bell: &Bell, mut line: BlockingConnection) {
    let mut look = LOOK_LEAST;
    while !nodes.is_found() {
        if !bell.wait(Some(look)) {
            return;
        }
        look = (look * 2).min(LOOK_MOST);
        look_for(connector, nodes, &mut line);
    }
    let mut turn = 0;
    loop {
        let patience = match nodes.is_cluster() {
            _ if nodes.any_open() => Some(WHILE_UNSERVED),
            true if nodes.unserved() > 0 => Some(WHILE_UNSERVED),
            true => Some(AT_LEAST),
            false => None,
        };
        if !bell.wait(patience) {
            return;
        }
        if let Some(place) = nodes.on_probation() {
            try_again(connector, nodes, place, &mut line);
        }
        if nodes.is_cluster() {
            // One that answers, not always the same one first.
            turn += 1;
            let count = nodes.len();
            for index in 0..count {
                let place = ((turn + index) % count) as u16;
                if nodes.admits(place) && ask_one(connector, nodes, place, &mut line) {
                    break;
                }
            }
        }
        bell.rest(APART);
    }
}

/// Looks for a store that was not there at start. What is in its way is said once.
fn look_for(connector: &Connector, nodes: &Nodes, line: &mut BlockingConnection) {
    match find(connector, line) {
        Ok(found) => {
            enter_all(nodes, &found);
            nodes.clear_trouble();
            match found {
                Found::Server(address) => log::info!("store: {address} is there now: fetches and stores go there"),
                Found::Cluster(_) => log::info!("store: a cluster of {} nodes is there now", nodes.len()),
            }
        }
        Err(error) => {
            if nodes.set_trouble(&error.cause()) {
                log::warn!("{error} (it is tried again)");
            }
        }
    }
    line.hang_up();
}

/// Sees whether a node answers again.
fn try_again(connector: &Connector, nodes: &Nodes, place: u16, line: &mut BlockingConnection) {
    line.hang_up();
    match line.dial(connector, nodes.at(place).address, Instant::now() + PATIENCE) {
        Ok(()) => nodes.succeeded(place),
        Err(CallError::Refused(refusal)) if !refusal.later => nodes.refused(place, &refusal),
        Err(CallError::Refused(refusal)) => drop(nodes.failed(place, &refusal)),
        Err(CallError::Lost(error)) => drop(nodes.failed(place, &advice::Lost(&error, &connector.options))),
    }
    line.hang_up();
}

/// Whether a node told its map.
fn ask_one(connector: &Connector, nodes: &Nodes, place: u16, line: &mut BlockingConnection) -> bool {
    let address = nodes.at(place).address;
    let until = Instant::now() + PATIENCE;
    let mut ask = || -> Result<bool, CallError> {
        line.dial(connector, address, until)?;
        // A node that is no master or replica of the map any more keeps its place.
        let told = survey(line, address, until, &mut |range| enter(nodes, &range))?;
        Ok(told.is_none())
    };
    let told = ask();
    line.hang_up();
    matches!(told, Ok(true))
}
