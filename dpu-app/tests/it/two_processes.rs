//! The real binary and a host in another process: the whole path, and every way for either to go.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::process::{Dpu, Home, refused};
use crate::rig::*;
use block::ElementType;
use host_ctl::{Arrangement, Client, Error, Gone};
use mailbox::Status;
use nix::sys::signal::Signal;

const CHUNKS: usize = 8;

#[test]
fn what_one_process_stored_another_fetches_also_after_a_restart() {
    let home = Home::new();
    let pages = linear(CHUNKS);
    let source = filled(Arrangement::Vllm, geometry(), CHUNKS, 3);
    let content = logical(&source, &pages);
    let keys = keys(geometry(), "lossless", 1, CHUNKS);
    // The window is how the emulator reaches shared mappings; without it the kernel copies.
    for emulator in ["", "window=0"] {
        let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), emulator);
        let mut host = dpu.attach(&source);
        let stored = store(&mut host, &keys, &pages);
        assert_eq!((stored.status, stored.chunks_done), (Status::Ok, CHUNKS));
        host.close(WAIT).unwrap();
        for arrangement in Arrangement::ALL {
            let target = empty(arrangement, geometry(), CHUNKS);
            let mut host = dpu.attach(&target);
            let fetched = fetch(&mut host, &keys, &pages);
            assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS), "{arrangement:?}");
            assert!(logical(&target, &pages) == content, "{arrangement:?}");
            host.close(WAIT).unwrap();
        }
        let mut last = dpu.attach(&source);
        dpu.signal(Signal::SIGTERM);
        let (status, log) = dpu.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("EMULATOR"), "it says that no card is used: {log}");
        assert!(log.contains("limit slots: 6"), "it says its limits: {log}");
        assert!(last.wait_end(WAIT));
    }
}

#[test]
fn a_card_that_is_killed_in_mid_fetch_is_gone_and_its_store_is_whole() {
    let home = Home::new();
    let pages = linear(CHUNKS);
    let source = filled(Arrangement::Contiguous, geometry(), CHUNKS, 4);
    let content = logical(&source, &pages);
    let stored_keys = keys(geometry(), "lossless", 1, CHUNKS);
    for round in 0..3_u8 {
        // Slow engines, so that the end comes in the middle.
        let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "seed=1,delay_us=20000");
        let mut host = dpu.attach(&source);
        let id = host.post_store(&transfer(&stored_keys, &pages)).unwrap();
        assert_eq!(host.wait(id, WAIT).unwrap().chunks_done, CHUNKS);
        // A second put is in progress, too.
        let others = keys(geometry(), "lossless", 10 + round, CHUNKS);
        host.post_store(&transfer(&others, &pages)).unwrap();
        let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
        let mut fetcher = dpu.attach(&target);
        let id = fetcher.post_fetch(&transfer(&stored_keys, &pages)).unwrap();
        thread::sleep(Duration::from_millis(20 + u64::from(round) * 25));
        dpu.signal(Signal::SIGKILL);
        let since = Instant::now();
        let error = fetcher.wait(id, WAIT).unwrap_err();
        assert!(matches!(error, Error::CardGone(Gone::Died)), "{error:?}");
        assert!(since.elapsed() < Duration::from_secs(3), "noticed after {:?}", since.elapsed());
        dpu.wait();

        let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "");
        let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
        let mut host = dpu.attach(&target);
        let fetched = fetch(&mut host, &stored_keys, &pages);
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS), "round {round}");
        assert!(logical(&target, &pages) == content);
        // Of the interrupted put there are whole chunks or nothing.
        let found = fetch(&mut host, &others, &pages);
        assert_eq!(found.status, Status::Ok, "no chunk is half there");
        let after = logical(&target, &pages);
        for index in 0..found.chunks_done {
            assert!(chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(&content, geometry(), CHUNKS, index));
        }
        host.close(WAIT).unwrap();
        dpu.signal(Signal::SIGINT);
        assert_eq!(dpu.wait().0.code(), Some(0), "SIGINT is a way to stop, too");
    }
}

#[test]
fn a_hundred_hosts_in_a_row_cost_no_descriptor_and_no_memory() {
    let home = Home::new();
    let dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "");
    let proc = |what: &str| format!("/proc/{}/{what}", dpu.child.id());
    let descriptors = || std::fs::read_dir(proc("fd")).unwrap().count();
    let resident_kib = || {
        let status = std::fs::read_to_string(proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    };
    let pages = linear(CHUNKS);
    let keys = keys(geometry(), "lossless", 1, CHUNKS);
    let mut before = (0, 0);
    for round in 0..180 {
        let memory = filled(Arrangement::Vllm, geometry(), CHUNKS, 3);
        let mut host = dpu.attach(&memory);
        match round % 3 {
            0 => assert_eq!(store(&mut host, &keys, &pages).chunks_done, CHUNKS),
            1 => assert_eq!(fetch(&mut host, &keys, &pages).chunks_done, CHUNKS),
            _ => {
                host.post_fetch(&transfer(&keys, &pages)).unwrap();
            }
        }
        drop(host);
        // The emulator remembers its last 64 connections, with their descriptors.
        if round == 80 {
            thread::sleep(Duration::from_millis(300));
            before = (descriptors(), resident_kib());
        }
    }
    // The last one has said good-bye; the card may still be at it.
    let until = Instant::now() + WAIT;
    while descriptors() > before.0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    let after = (descriptors(), resident_kib());
    println!("descriptors and KiB after 80 hosts {before:?}, after 180 {after:?}");
    assert!(after.0 <= before.0, "{after:?} {before:?}");
    assert!(after.1 <= before.1 + 1024, "{after:?} {before:?}");
}

#[test]
fn a_second_card_on_a_socket_or_a_store_is_refused_and_names_the_first() {
    let home = Home::new();
    let dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "");
    let other_store = format!("dir:{}", home.dir.path().join("other").display());
    // 1: the first may be leaving, so a supervisor tries again.
    let (code, said) = refused(&other_store, &home.socket("card.sock"), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("pid {}", dpu.child.id())), "{said}");
    let (code, said) = refused(&home.store(), &home.socket("other.sock"), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("store") && said.contains("in use"), "{said}");
    // The first is none the worse.
    let mut host = Client::attach(&dpu.options(), None).unwrap();
    let id = host.post_ping().unwrap();
    assert_eq!(host.wait(id, WAIT).unwrap().status, Status::Ok);
}

#[test]
fn what_an_operator_can_mistype_is_exit_code_2_and_named() {
    let home = Home::new();
    let socket = home.socket("card.sock");
    let nowhere = home.dir.path().join("no/such/place");
    let file = home.dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let good = home.store();
    let cases: Vec<(String, PathBuf, Vec<&str>, String)> = vec![
        (format!("dir:{}", nowhere.display()), socket.clone(), vec![], nowhere.display().to_string()),
        (format!("dir:{}", file.display()), socket.clone(), vec![], file.display().to_string()),
        ("warp:somewhere".into(), socket.clone(), vec![], "warp".into()),
        (format!("{good}?bytes=lots"), socket.clone(), vec![], "lots".into()),
        (good.clone(), socket.clone(), vec!["--slots", "65"], "--slots 65".into()),
        (good.clone(), socket.clone(), vec!["--slots", "many"], "--slots".into()),
        (good.clone(), socket.clone(), vec!["--block-bytes", "1"], "--block-bytes 1".into()),
        (good.clone(), socket.clone(), vec!["--recipe", "q99"], "q99".into()),
        (good.clone(), socket.clone(), vec!["--colour", "red"], "--colour".into()),
        (good.clone(), nowhere.join("card.sock"), vec![], "no/such/place".into()),
        (good, file.clone(), vec![], file.display().to_string()),
    ];
    for (store, socket, more, named) in cases {
        let (code, said) = refused(&store, &socket, &more);
        assert_eq!(code, Some(2), "{store} {more:?}: {said}");
        assert!(said.contains(&named), "{store} {more:?} names {named}: {said}");
        assert_eq!(said.matches("dpu-app: ").count().max(1), 1, "said once: {said}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory", "what is in the way stays");
}

#[test]
fn no_such_device_is_exit_code_3() {
    let home = Home::new();
    let (code, said) = refused(&home.store(), &home.socket("card.sock"), &["--device", "99:00.0"]);
    assert_eq!(code, Some(3), "{said}");
}

#[test]
fn a_stale_socket_is_replaced() {
    let home = Home::new();
    let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "");
    dpu.signal(Signal::SIGKILL);
    dpu.wait();
    assert!(home.socket("card.sock").exists(), "a killed card leaves its socket");
    let mut dpu = Dpu::start(&home.store(), &home.socket("card.sock"), "");
    dpu.signal(Signal::SIGTERM);
    assert_eq!(dpu.wait().0.code(), Some(0));
    assert!(!home.socket("card.sock").exists(), "one that leaves in order does not");
}

#[test]
fn a_store_that_is_full_evicts_and_never_lies() {
    let home = Home::new();
    // Room for about half of what is stored.
    let geometry = block::Geometry::new(4, 2, 32, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap();
    let dpu = Dpu::start(&format!("{}?bytes=320K", home.store()), &home.socket("card.sock"), "");
    let pages = linear(CHUNKS);
    let mut contents = Vec::new();
    for salt in 1..=3_u8 {
        let source = filled(Arrangement::Contiguous, geometry, CHUNKS, salt.into());
        let keys = keys(geometry, "lossless", salt, CHUNKS);
        contents.push((keys.clone(), logical(&source, &pages)));
        let mut host = dpu.attach(&source);
        let stored = store(&mut host, &keys, &pages);
        assert_eq!((stored.status, stored.chunks_done), (Status::Ok, CHUNKS));
    }
    let target = empty(Arrangement::Contiguous, geometry, CHUNKS);
    let mut host = dpu.attach(&target);
    let mut found = 0;
    for (keys, content) in &contents {
        let fetched = fetch(&mut host, keys, &pages);
        assert_eq!(fetched.status, Status::Ok);
        let after = logical(&target, &pages);
        for index in 0..fetched.chunks_done {
            assert!(chunk_of(&after, geometry, CHUNKS, index) == chunk_of(content, geometry, CHUNKS, index));
        }
        found += fetched.chunks_done;
    }
    assert!(found < 3 * CHUNKS, "some were evicted");
    let status = status(&mut host);
    assert!(status.value()["store"]["evicted"].as_u64().unwrap() > 0, "{status:?}");
    assert!(status.value()["store"]["bytes"].as_u64().unwrap() <= 320 << 10, "{status:?}");
}
