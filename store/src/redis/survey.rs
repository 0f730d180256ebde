//! Who serves which slot: asked at start, and again whenever a redirect or a lost connection says that it may have changed.
//!
//! The surveyor is a thread that sleeps until somebody asks; it surveys at most five times a second, once a second while
//! slots are without a node, and once a minute anyway: a replica that comes is told by nobody. Without a cluster it has
//! nothing to do and is not started.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Door;
use super::fault::Fault;
use super::line::{Line, LineError, fault_of};
use super::nodes::{Nodes, REPLICAS, SLOTS};
use super::resp::{Reply, elements};
use crate::POISONED;
use crate::node::Role;
use crate::url::OpenError;

/// Bytes of the longest CLUSTER SLOTS that is understood: some thousand ranges.
const SLOTS_REPLY_BYTES: usize = 512 << 10;
const APART: Duration = Duration::from_millis(200);
const WHILE_UNSERVED: Duration = Duration::from_secs(1);
const AT_LEAST: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(1);
/// Places of a cluster's table at least.
const PLACES_LEAST: usize = 16;

/// One line of the map.
#[derive(Debug)]
struct Range {
    slots: RangeInclusive<usize>,
    master: SocketAddr,
    replicas: heapless::Vec<SocketAddr, REPLICAS>,
}

/// The first survey: finds a server that answers and what it is part of.
pub(super) fn first(door: &Door) -> Result<Nodes, OpenError> {
    let mut line = Line::new(SLOTS_REPLY_BYTES);
    let mut why = None;
    for (host, addresses) in door.options.resolve() {
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                why = Some(OpenError::Unreachable { node: host, what: error.to_string() });
                continue;
            }
        };
        for address in addresses {
            let until = Instant::now() + PATIENCE;
            match line.dial(door, address, until) {
                Ok(()) => return start(door, &mut line, address, &host),
                Err(LineError::Denied) => return Err(OpenError::Refused { node: host }),
                Err(LineError::Lost(error)) => {
                    why = Some(OpenError::Unreachable { node: host.clone(), what: error.to_string() });
                }
            }
        }
    }
    Err(why.expect("a URL has a host"))
}

fn start(door: &Door, line: &mut Line, address: SocketAddr, host: &str) -> Result<Nodes, OpenError> {
    let mut ranges = Vec::new();
    let unreachable = |what: String| OpenError::Unreachable { node: host.to_owned(), what };
    match survey(line, address, Instant::now() + PATIENCE, &mut |range| ranges.push(range)) {
        Ok(None) => {}
        Ok(Some(Fault::Denied)) => {
            log::warn!("store: {host} does not let us ask for CLUSTER SLOTS: taken for a single server");
            ranges.clear();
        }
        Ok(Some(_)) => ranges.clear(),
        Err(error) => return Err(unreachable(error.to_string())),
    }
    if ranges.is_empty() {
        if door.options.hosts.len() > 1 {
            let what = "it is a single server and the URL names several hosts: name one, or a cluster's".to_owned();
            return Err(unreachable(what));
        }
        let nodes = Nodes::new(1, false);
        let place = nodes.place_of(address).expect("the first place");
        nodes.serve(0..=0, place, &[]);
        nodes.set_role(place, Role::Master);
        return Ok(nodes);
    }
    let mut known: Vec<SocketAddr> = ranges.iter().flat_map(|r| r.replicas.iter().copied().chain([r.master])).collect();
    known.sort_unstable();
    known.dedup();
    let places = door.options.nodes_max.unwrap_or((2 * known.len()).max(PLACES_LEAST)).max(known.len());
    let nodes = Nodes::new(places, true);
    ranges.iter().for_each(|range| enter(&nodes, range));
    if nodes.unserved() > 0 {
        log::warn!("store: {} of {SLOTS} slots of the cluster are served by nobody", nodes.unserved());
    }
    Ok(nodes)
}

/// Enters a line of the map.
fn enter(nodes: &Nodes, range: &Range) {
    let Some(master) = nodes.place_of(range.master) else { return };
    let replicas: heapless::Vec<u16, REPLICAS> = range.replicas.iter().filter_map(|at| nodes.place_of(*at)).collect();
    nodes.set_role(master, Role::Master);
    replicas.iter().for_each(|place| nodes.set_role(*place, Role::Replica));
    nodes.serve(range.slots.clone(), master, &replicas);
}

/// Asks one server for its map. `Ok(Some)`: it answered with an error.
fn survey(
    line: &mut Line,
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

/// The thread.
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
    pub(super) fn start(door: Arc<Door>, nodes: Arc<Nodes>) -> Self {
        let bell = Arc::new(Bell::default());
        let thread = nodes.is_cluster().then(|| {
            let bell = Arc::clone(&bell);
            let line = Line::new(SLOTS_REPLY_BYTES);
            let work = move || watch(&door, &nodes, &bell, line);
            std::thread::Builder::new().name("surveyor".into()).spawn(work).expect("Init may start threads")
        });
        Self { bell, thread }
    }

    /// The map may be old. Returns at once.
    pub(super) fn ask(&self) {
        if self.thread.is_some() {
            self.bell.state.lock().expect(POISONED).survey = true;
            self.bell.rung.notify_one();
        }
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

fn watch(door: &Door, nodes: &Nodes, bell: &Bell, mut line: Line) {
    let mut turn = 0;
    loop {
        {
            let mut wanted = bell.state.lock().expect(POISONED);
            while !wanted.survey && !wanted.leave {
                let patience = if nodes.unserved() > 0 { WHILE_UNSERVED } else { AT_LEAST };
                let (mut told, timeout) = bell.rung.wait_timeout(wanted, patience).expect(POISONED);
                told.survey |= timeout.timed_out();
                wanted = told;
            }
            if wanted.leave {
                return;
            }
            wanted.survey = false;
        }
        // One that answers, not always the same one first.
        turn += 1;
        let count = nodes.len();
        for index in 0..count {
            let place = ((turn + index) % count) as u16;
            if nodes.admits(place) && ask_one(door, nodes, place, &mut line) {
                break;
            }
        }
        let wanted = bell.state.lock().expect(POISONED);
        let (_wanted, _) = bell.rung.wait_timeout_while(wanted, APART, |wanted| !wanted.leave).expect(POISONED);
    }
}

/// Whether a node told its map.
fn ask_one(door: &Door, nodes: &Nodes, place: u16, line: &mut Line) -> bool {
    let address = nodes.at(place).address;
    let until = Instant::now() + PATIENCE;
    let mut ask = || -> Result<bool, LineError> {
        line.dial(door, address, until)?;
        // A node that is no master or replica of the map any more keeps its place.
        let told = survey(line, address, until, &mut |range| enter(nodes, &range))?;
        Ok(told.is_none())
    };
    let told = ask();
    line.hang_up();
    matches!(told, Ok(true))
}
