//! A look at a Redis or Valkey store from end to end, for an operator: what it is, whether it lets us do all that we
//! do, how fast it is from here, and what to change. It puts one chunk of noise under a name of its own and takes it
//! away again.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use block::ChunkKey;
use nix::sys::eventfd::EventFd;
use std::os::fd::AsFd;

use super::fault::Fault;
use super::line::{BlockingConnection, CallError, fault_of};
use super::name::{KeyName, MANIFEST_FIELD, slot_of};
use super::resp::Reply;
use super::{RedisStore, advice, random};
use crate::node::{NodeFacts, NodeRole, Quantiles};
use crate::{Answer, Ask, Limits, OpenError, Outcome, Readable, Reader, Store, StoreError};

/// Bytes of the longest INFO section that is understood.
const INFO_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
const BLOCKS: usize = 16;
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks asked for at once.
const PIPELINE: usize = 16;
const LOOKUPS: usize = 200;
const READ_FOR: Duration = Duration::from_secs(1);

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Good,
    /// It works; something would be better.
    Advice,
    /// Something that dpu-app needs does not work.
    Bad,
}

/// One thing that was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFinding {
    pub weight: Weight,
    pub what: String,
    pub fix: Option<String>,
}

/// One server, by its own account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    pub address: String,
    pub role: &'static str,
    /// `redis 7.0.15` or `valkey 8.1.0`; empty where INFO is not allowed.
    pub version: String,
    pub maxmemory_policy: String,
    pub maxmemory: u64,
    pub used_memory: u64,
}

/// The whole check.
#[derive(Clone, Debug)]
pub struct CheckReport {
    pub store: String,
    pub servers: Vec<ServerFacts>,
    pub findings: Vec<CheckFinding>,
    pub connect: Duration,
    /// Latency of look-ups of one key, one after the other.
    pub lookup: Option<Quantiles>,
    /// Bytes a second of blocks of 256 KiB, 16 at once, one reader.
    pub read_bytes_per_s: Option<f64>,
    pub put_bytes_per_s: Option<f64>,
}

impl CheckReport {
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.weight != Weight::Bad)
    }

    fn add(&mut self, weight: Weight, what: impl Into<String>, fix: Option<&str>) {
        self.findings.push(CheckFinding { weight, what: what.into(), fix: fix.map(str::to_owned) });
    }
}

/// Checks the store at `url`.
pub(super) fn check(url: &str) -> Result<CheckReport, OpenError> {
    let limits = Limits { chunks_open_max: 1, puts_max: 1, asks_max: PIPELINE, writers_max: 1, ..Limits::default() };
    let started = Instant::now();
    let store = RedisStore::open(url, &limits)?;
    let mut report = CheckReport {
        store: store.describe(),
        servers: Vec::new(),
        findings: Vec::new(),
        connect: started.elapsed(),
        lookup: None,
        read_bytes_per_s: None,
        put_bytes_per_s: None,
    };
    let unserved = store.nodes.unserved();
    if unserved > 0 {
        let what = format!("{unserved} slots of the cluster are served by nobody");
        report.add(Weight::Bad, what, Some("redis-cli --cluster fix HOST:PORT"));
    }
    servers(&store, &mut report);
    let mut bytes = [0; block::KEY_BYTES];
    bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = random().to_be_bytes());
    let key = ChunkKey::new(bytes);
    if permissions(&store, &key, &mut report) {
        speed(&store, &key, &mut report);
    }
    Ok(report)
}

/// Asks every server what it is.
fn servers(store: &RedisStore, report: &mut CheckReport) {
    let mut roles = Vec::new();
    store.nodes.facts(&mut |node: &NodeFacts<'_>| roles.push(node.role));
    for ((place, node), role) in store.nodes.iter().zip(roles).filter(|(_, role)| *role != NodeRole::Unused) {
        let mut server = ServerFacts { address: node.address.to_string(), role: role.name(), ..ServerFacts::default() };
        let mut line = BlockingConnection::new(INFO_BYTES);
        match info(store, place, &mut line, &mut server) {
            Ok(None) => memory(store, role, &server, report),
            Ok(Some(_)) => report.add(
                Weight::Advice,
                format!("{}: INFO is not allowed: version and eviction policy were not looked at", server.address),
                Some("allow it: ACL SETUSER ... +info"),
            ),
            Err(CallError::Refused(refusal)) => report.add(
                Weight::Bad,
                format!("{} ({}) refuses us: {refusal}", server.address, server.role),
                Some("use the same users and passwords on all nodes"),
            ),
            Err(CallError::Lost(error)) => report.add(
                Weight::Bad,
                format!("{} ({}) does not answer", server.address, server.role),
                Some(&advice::of_loss(&error, &store.connector.options)),
            ),
        }
        report.servers.push(server);
    }
}

fn info(
    store: &RedisStore,
    place: u16,
    line: &mut BlockingConnection,
    server: &mut ServerFacts,
) -> Result<Option<Fault>, CallError> {
    let until = Instant::now() + PATIENCE;
    line.dial(&store.connector, store.nodes.at(place).address, until)?;
    for section in [&b"server"[..], b"memory"] {
        let reply = line.call(&[b"INFO", section], until)?;
        let text = match reply {
            Reply::Bulk(text) => String::from_utf8_lossy(text),
            Reply::Error(error) => return Ok(Some(Fault::read(error))),
            // RESP3 answers with a string that says its kind: `=123\r\ntxt:...`.
            Reply::Other(text) => String::from_utf8_lossy(text),
            _ => continue,
        };
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            match name {
                "redis_version" if server.version.is_empty() => server.version = format!("redis {value}"),
                "valkey_version" => server.version = format!("valkey {value}"),
                "maxmemory" => server.maxmemory = value.parse().unwrap_or(0),
                "used_memory" => server.used_memory = value.parse().unwrap_or(0),
                "maxmemory_policy" => value.clone_into(&mut server.maxmemory_policy),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// What a server does when it is full decides whether it is a cache.
fn memory(store: &RedisStore, role: NodeRole, server: &ServerFacts, report: &mut CheckReport) {
    if role != NodeRole::Master {
        return;
    }
    let (address, policy) = (&server.address, server.maxmemory_policy.as_str());
    let with_ttl = store.connector.options.ttl.is_some();
    if server.maxmemory == 0 {
        report.add(
            Weight::Advice,
            format!("{address}: maxmemory is not set: it grows until the machine has no memory left"),
            Some("CONFIG SET maxmemory 64gb (and in its configuration file)"),
        );
    }
    match policy {
        "allkeys-lru" | "allkeys-lfu" => report.add(Weight::Good, format!("{address}: evicts by {policy}"), None),
        "noeviction" => report.add(
            Weight::Advice,
            format!("{address}: maxmemory-policy noeviction: when it is full, stores fail with NoSpace"),
            Some("CONFIG SET maxmemory-policy allkeys-lru"),
        ),
        "allkeys-random" => report.add(
            Weight::Advice,
            format!("{address}: maxmemory-policy allkeys-random evicts chunks that are in use as soon as others"),
            Some("CONFIG SET maxmemory-policy allkeys-lru"),
        ),
        policy if policy.starts_with("volatile") && !with_ttl => report.add(
            Weight::Advice,
            format!(
                "{address}: maxmemory-policy {policy} evicts only what expires, and chunks do not: stores will fail"
            ),
            Some("CONFIG SET maxmemory-policy allkeys-lru, or give the URL ttl-s=N"),
        ),
        policy => report.add(Weight::Good, format!("{address}: evicts by {policy}"), None),
    }
}

/// Tries each command that dpu-app uses. `false`: without those that are missing nothing more can be tried.
fn permissions(store: &RedisStore, key: &ChunkKey, report: &mut CheckReport) -> bool {
    let Some(place) = store.nodes.master(slot_of(key).into()) else { return false };
    let mut line = BlockingConnection::new(INFO_BYTES);
    let until = Instant::now() + PATIENCE;
    if line.dial(&store.connector, store.nodes.at(place).address, until).is_err() {
        return false;
    }
    let (chunk, put) = (KeyName::of(key), KeyName::of_put(key, 0));
    let (chunk, put) = (chunk.bytes(), put.bytes());
    let reads: [&[&[u8]]; 2] = [&[b"HEXISTS", chunk, MANIFEST_FIELD], &[b"HGET", chunk, MANIFEST_FIELD]];
    let writes: [&[&[u8]]; 6] = [
        &[b"HSET", put, b"0", b"x"],
        &[b"PEXPIRE", put, b"10000"],
        &[b"HLEN", put],
        &[b"RENAME", put, chunk],
        &[b"PERSIST", chunk],
        &[b"UNLINK", chunk],
    ];
    let mut missing = Vec::new();
    let mut refused = |commands: &[&[&[u8]]]| {
        let mut names = String::new();
        for words in commands {
            let name = String::from_utf8_lossy(words[0]);
            let fault = line.call(words, until).map_or(Some(Fault::Permission), |reply| fault_of(&reply));
            match fault {
                Some(Fault::Permission | Fault::Login) => drop(write!(names, " +{}", name.to_lowercase())),
                Some(Fault::Unknown) => missing.push(name.into_owned()),
                _ => {}
            }
        }
        names
    };
    let (no_reads, no_writes) = (refused(&reads), refused(&writes));
    match no_reads.as_str() {
        "" => report.add(Weight::Good, "reading is allowed", None),
        names => {
            let fix = format!("ACL SETUSER ... ~kvlane:*{names}");
            report.add(Weight::Bad, "reading is not allowed", Some(&fix));
        }
    }
    match no_writes.as_str() {
        "" => report.add(Weight::Good, "storing is allowed", None),
        names => {
            let fix = format!("if this card is to store: ACL SETUSER ... ~kvlane:*{names}");
            report.add(Weight::Advice, "storing is not allowed: this card can only fetch", Some(&fix));
        }
    }
    for name in &missing {
        let fix = advice::of_command(Fault::Unknown, name);
        report.add(Weight::Bad, format!("the server does not know {name}"), Some(&fix));
    }
    no_reads.is_empty() && no_writes.is_empty() && missing.is_empty()
}

fn speed(store: &RedisStore, key: &ChunkKey, report: &mut CheckReport) {
    if let Err(error) = measure(store, key, report) {
        report.add(Weight::Bad, format!("a chunk of noise could not be stored and fetched: {error}"), None);
    }
    // It would expire only if the URL says so.
    store.remove(key);
}

fn measure(store: &RedisStore, key: &ChunkKey, report: &mut CheckReport) -> Result<(), StoreError> {
    let until = Instant::now() + 4 * PATIENCE;
    let noise: Vec<u8> = (0..BLOCK_BYTES as u64 / 8).flat_map(|_| random().to_le_bytes()).collect();
    let started = Instant::now();
    store.begin_put(0, key, None, until)?;
    for index in 0..BLOCKS {
        if let Err(error) = store.put_block(0, index, &noise) {
            store.abort_put(0);
            return Err(error);
        }
    }
    store.commit_put(0, BLOCKS, b"store-check")?;
    report.put_bytes_per_s = Some((BLOCKS * BLOCK_BYTES) as f64 / started.elapsed().as_secs_f64());

    let bell = EventFd::new().expect("a descriptor");
    let mut caller = crate::BlockingReader::new(store, &bell).expect("a descriptor");
    let latency = crate::node::Histogram::default();
    for _ in 0..LOOKUPS {
        let asked = Instant::now();
        caller.lookup(std::slice::from_ref(key), until)?;
        latency.count(asked.elapsed());
    }
    report.lookup = Some(latency.quantiles());
    caller.open(0, key, None, &mut vec![0; store.limits.manifest_bytes_max], until)?;
    drop(caller);
    let read = read_for(store, &bell, &noise, until);
    store.close(0);
    let (bytes, took, good) = read?;
    report.read_bytes_per_s = Some(bytes as f64 / took.as_secs_f64());
    if !good {
        report.add(Weight::Bad, "a block came back with other bytes than were put", Some("do not use this store"));
    }
    Ok(())
}

/// Keeps a pipeline of reads full for a second: bytes, time, and whether they were what was put.
fn read_for(
    store: &RedisStore,
    bell: &impl AsFd,
    noise: &[u8],
    until: Instant,
) -> Result<(usize, Duration, bool), StoreError> {
    let mut reader: Box<dyn Reader<Vec<u8>> + '_> = store.reader(bell.as_fd()).expect("a descriptor");
    let started = Instant::now();
    let ask = |index: usize, memory| Ask::Read { seat: 0, index: index % BLOCKS, bytes: BLOCK_BYTES, memory, until };
    (0..PIPELINE).for_each(|index| reader.begin(index, ask(index, vec![0; BLOCK_BYTES])));
    let (mut bytes, mut good, mut next, mut failed) = (0, true, PIPELINE, None);
    while !reader.is_idle() {
        while let Some(Answer { tag, outcome }) = reader.poll(&mut []) {
            let Outcome::Read { memory, result } = outcome else { unreachable!("only reads were asked") };
            match result {
                Ok(()) => bytes += BLOCK_BYTES,
                Err(error) => failed = Some(error),
            }
            // The first round is looked at, the others are timed.
            good &= next >= 2 * PIPELINE || failed.is_some() || memory == noise;
            if failed.is_none() && started.elapsed() < READ_FOR {
                reader.begin(tag, ask(next, memory));
                next += 1;
            }
        }
        if !reader.is_idle() {
            reader.sleep();
        }
    }
    failed.map_or(Ok((bytes, started.elapsed(), good)), Err)
}
