//! Claims about a cluster: its map, its moves, its failovers. Real servers, three masters and three replicas.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use store::{Lookup, NodeRole, Readable, StoreError};

use crate::chunks::{self, Questions, get, key, limits, noise, put, soon, with_caller};
use crate::servers::cluster::Cluster;
use crate::servers::program;

type Any = dyn Readable<Vec<u8>>;

const LENGTHS: [usize; 3] = [3000, 70_000, 500];

fn blocks(n: u64) -> Vec<Vec<u8>> {
    LENGTHS.iter().map(|&bytes| noise(n * 10 + bytes as u64, bytes)).collect()
}

fn open(cluster: &Cluster, options: &str) -> Box<Any> {
    store::open(&cluster.url(options), &limits()).expect("a running cluster")
}

fn name_of(n: u64) -> String {
    format!("kvlane:{{{}}}", key(n))
}

fn slot_of(cluster: &Cluster, n: u64) -> u16 {
    cluster.servers[0].cli(&["CLUSTER", "KEYSLOT", &name_of(n)]).parse().expect("a slot")
}

fn read(store: &Any, n: u64) -> Result<(), StoreError> {
    let (_, found) = get(store, 0, &key(n), &LENGTHS)?;
    assert!(found == blocks(n), "wrong bytes were reported as loaded");
    Ok(())
}

#[test]
fn a_long_prefix_is_looked_up_in_a_few_round_trips_over_all_masters() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(program);
    let store = open(&cluster, "");
    for n in 0..300 {
        put(&*store, 0, &key(n), &[noise(n, 50)], b"m").expect("put");
    }
    let keys: Vec<_> = (0..1024).map(key).collect();
    with_caller(&*store, |caller| {
        assert_eq!(caller.lookup(&keys, soon()), Ok(300));
        let started = Instant::now();
        for _ in 0..10 {
            assert_eq!(caller.lookup(&keys, soon()), Ok(300));
        }
        println!("1024 keys, 300 there: {:?}", started.elapsed() / 10);
        // The last few of a window, wherever they are: all keys may have to be asked for, and at once.
        let windows = Instant::now();
        for trailing in [1, 16, 299, 300, 301].repeat(2) {
            assert_eq!(caller.look(Lookup::trailing(keys.clone(), trailing), soon()), Ok(300), "the last {trailing}");
        }
        println!("the end of a window: {:?}", windows.elapsed() / 10);
        assert!(windows.elapsed() / 10 < Duration::from_millis(100), "{:?}", windows.elapsed() / 10);
        let started = started + windows.elapsed();
        // One after the other would be more than a thousand round trips.
        assert!(started.elapsed() / 10 < Duration::from_millis(100), "{:?}", started.elapsed() / 10);
    });
    let (mut masters, mut replicas) = (0, 0);
    store.nodes(&mut |node| match node.role {
        NodeRole::Master => {
            masters += 1;
            assert!(node.requests > 100, "{node:?}");
        }
        NodeRole::Replica => replicas += 1,
        NodeRole::Unused => panic!("{node:?}"),
    });
    assert_eq!((masters, replicas), (3, 3));
}

#[test]
fn replicas_are_read_from_when_that_is_allowed() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(program);
    let store = open(&cluster, "?read=any");
    for n in 0..30 {
        put(&*store, 0, &key(n), &blocks(n), b"m").expect("put");
    }
    std::thread::sleep(Duration::from_millis(500));
    // Those of the masters are read from masters alone without the option: the other tests see to that.
    std::thread::scope(|scope| {
        for seat in 0..3 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..30 {
                    assert!(get(&**store, seat, &key(n), &LENGTHS).expect("get").1 == blocks(n));
                }
            });
        }
    });
    let mut from_replicas = 0;
    store.nodes(&mut |node| from_replicas += if node.role == NodeRole::Replica { node.bytes_read } else { 0 });
    assert!(from_replicas > 0);
}

/// A replica that cannot follow has nothing, or what was there before: only its master knows.
#[test]
fn a_stale_replica_proves_nothing() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(program);
    let store = open(&cluster, "?read=any");
    for n in 0..20 {
        put(&*store, 0, &key(n), &blocks(n), b"old").expect("put");
    }
    for master in cluster.masters() {
        let server = &cluster.servers[master];
        server.cli(&["WAIT", "1", "2000"]);
        server.cli(&["ACL", "SETUSER", "default", "-psync", "-replconf", "-sync"]);
        server.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    }
    let longer = |n: u64| -> Vec<Vec<u8>> { LENGTHS.iter().map(|&bytes| noise(n * 10 + 7, bytes + 1)).collect() };
    // Half are other chunks now, and as many are new: of neither the replicas know.
    (10..30).for_each(|n| put(&*store, 0, &key(n), &longer(n), b"new").expect("put"));
    let lengths = LENGTHS.map(|bytes| bytes + 1);
    let (mut right, mut missed) = (0, 0);
    for _ in 0..5 {
        for n in 0..30 {
            let (lengths, whole) = if n < 10 { (LENGTHS, blocks(n)) } else { (lengths, longer(n)) };
            match with_caller(&*store, |caller| {
                let bytes = caller.open(0, &key(n), None, &mut [0; 4096], soon())?;
                let read = |(index, bytes): (usize, &usize)| caller.read(0, index, *bytes, soon());
                let found = lengths.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>();
                if found.is_err() {
                    caller.discard(0, chunks::WHY, soon());
                }
                store.close(0);
                found.map(|found| (bytes, found))
            }) {
                Ok((_, found)) => {
                    assert!(found == whole, "wrong bytes were reported as loaded");
                    right += 1;
                }
                Err(StoreError::Miss) => missed += 1,
                Err(error) => panic!("chunk {n}: {error}"),
            }
        }
    }
    println!("{right} whole, {missed} missed");
    assert!(right >= 50, "what the masters have is there");
    assert_eq!(store.stats().corrupt, 0);
    let there = |n: &u64| {
        let master = cluster.master_of(slot_of(&cluster, *n));
        cluster.servers[master].cli(&["EXISTS", &name_of(*n)]) == "1"
    };
    assert_eq!((0..30).filter(there).count(), 30, "good chunks were unlinked on a replica's word");
}

#[test]
fn a_slot_that_moves_while_it_is_read_and_written_costs_nothing() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(program);
    let store = open(&cluster, "");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    let slot = slot_of(&cluster, 1);
    let (moves, done) = (4, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let (mut reads, mut absent) = (0, 0);
            while !done.load(SeqCst) {
                read(&*store, 1).expect("it only moves");
                assert_eq!(store.lookup(&[key(1), key(2)], soon()), Ok(1));
                absent += 1;
                reads += 1;
            }
            (reads, absent)
        });
        let writes = scope.spawn(|| {
            let mut writes = 0;
            while !done.load(SeqCst) {
                put(&*store, 1, &key(1), &blocks(1), b"m").expect("it only moves");
                writes += 1;
            }
            writes
        });
        for _ in 0..moves {
            let from = cluster.master_of(slot);
            let to = cluster.masters().into_iter().find(|other| *other != from).expect("three");
            let (from_id, to_id, slot) = (cluster.id(from), cluster.id(to), slot.to_string());
            assert_eq!(cluster.servers[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]), "OK");
            assert_eq!(cluster.servers[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]), "OK");
            std::thread::sleep(Duration::from_millis(100));
            // A put in progress makes new keys all the time; those that it makes behind our back are redirected.
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                let names = cluster.servers[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
                if names.is_empty() {
                    break;
                }
                assert!(Instant::now() < end, "the slot does not empty: {names}");
                for name in names.lines() {
                    let port = cluster.servers[to].port.to_string();
                    cluster.servers[from].cli(&["MIGRATE", "127.0.0.1", &port, name, "0", "5000", "REPLACE"]);
                }
            }
            std::thread::sleep(Duration::from_millis(100));
            for server in [to, from] {
                assert_eq!(cluster.servers[server].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]), "OK");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        done.store(true, SeqCst);
        let (reads, writes) = (reads.join().expect("reads"), writes.join().expect("writes"));
        println!("{reads:?} reads and {writes} writes over {moves} moves");
        assert!(reads.0 > 20 && writes > 5);
    });
    let mut redirects = 0;
    store.nodes(&mut |node| redirects += node.redirects);
    assert!(redirects > 0, "nobody was sent elsewhere");
    assert_eq!((store.stats().corrupt, store.stats().io_errors), (0, 0));
}

#[test]
fn a_killed_master_is_replaced_by_its_replica_and_reads_go_on() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(program);
    let store = open(&cluster, "");
    for n in 0..30 {
        put(&*store, 0, &key(n), &blocks(n), b"m").expect("put");
    }
    for master in cluster.masters() {
        cluster.servers[master].cli(&["WAIT", "1", "2000"]);
    }
    let victim = cluster.master_of(slot_of(&cluster, 0));
    let (of_victim, of_others): (Vec<u64>, Vec<u64>) =
        (0..30).partition(|&n| cluster.master_of(slot_of(&cluster, n)) == victim);
    assert!(!of_victim.is_empty() && !of_others.is_empty());
    cluster.servers[victim].kill();
    let killed = Instant::now();
    let mut failures = 0;
    loop {
        // Chunks of other masters never notice.
        of_others.iter().for_each(|&n| read(&*store, n).expect("another master"));
        let asked = Instant::now();
        match read(&*store, of_victim[0]) {
            Ok(()) => break,
            Err(error @ (StoreError::Down { .. } | StoreError::Late { .. })) => {
                failures += 1;
                assert!(killed.elapsed() < Duration::from_secs(30), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
        assert!(asked.elapsed() < Duration::from_secs(15), "an answer took {:?}", asked.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("back after {:?} and {failures} answers that said so", killed.elapsed());
    of_victim.iter().for_each(|&n| read(&*store, n).expect("the replica has all"));
    put(&*store, 0, &key(of_victim[0]), &blocks(of_victim[0]), b"m").expect("and takes more");
    // The old master comes back as a replica.
    cluster.servers[victim].up();
    std::thread::sleep(Duration::from_secs(2));
    (0..30).for_each(|n| read(&*store, n).expect("all"));
    assert_eq!(store.stats().corrupt, 0);
}
