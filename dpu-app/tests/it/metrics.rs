//! What monitoring sees: valid, true, never going back, whatever clients do, and at nobody's expense.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::*;
use crate::scrape::{Samples, connect, dpu_app, free_address, get, say, scrape, start, until};
use block::Header;
use dpu_app::{CONNECTION_TIMEOUT, CONNECTIONS_MAX, MetricKind, REPLY_BYTES, REQUEST_BYTES, families};
use host_ctl::{Arrangement, CardStatus, Client, Transfer};
use mailbox::Status;

const CHUNKS: usize = 6;

fn watched() -> (Card, SocketAddr) {
    watched_with(|_| ())
}

fn watched_with(change: impl FnOnce(&mut dpu_app::Config)) -> (Card, SocketAddr) {
    let address = free_address();
    let card = Card::start_with(doca_emulator::Config::default(), |config| {
        config.metrics = Some(address);
        change(config);
    });
    (card, address)
}

fn memory() -> host_ctl::Memory {
    empty(Arrangement::Vllm, geometry(), CHUNKS)
}

/// Stores, fetches, misses and looks up.
fn traffic(card: &Card, salt: u8) {
    let (keys, _) = stored(card, "lossless", salt, CHUNKS);
    let mut host = card.attach("lossless", memory());
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
    card.store.remove(&keys[2]);
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, 2);
    assert_eq!(lookup(&mut host, &keys).chunks_done, 2);
    host.close(WAIT).unwrap();
}

#[test]
fn the_text_is_what_prometheus_takes_and_holds_every_family_and_no_other() {
    let (card, address) = watched();
    traffic(&card, 1);
    let page = get(address, "/metrics");
    assert!(page.head.contains("Content-Type: text/plain; version=0.0.4"), "{}", page.head);
    assert!(page.body.len() < REPLY_BYTES / 2, "{} bytes: room for the families with a node label", page.body.len());

    let types: Vec<_> = page.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let wanted: Vec<_> = families().map(|family| format!("{} {}", family.name, family.kind.name())).collect();
    assert_eq!(types, wanted);
    let series = scrape(address).0;
    for family in families() {
        let end = if family.kind == MetricKind::Histogram { "_bucket" } else { "" };
        let mine = |name: &&String| name.split('{').next() == Some(&format!("{}{end}", family.name));
        if family.labels.contains(&"node") || family.labels.contains(&"tier") {
            assert_eq!(series.keys().find(mine), None, "a directory has no servers and no tiers");
            continue;
        }
        let first = series.keys().find(mine).unwrap_or_else(|| panic!("{} has no series", family.name));
        assert!(family.labels.iter().all(|label| first.contains(&format!("{label}=\""))), "{first}");
    }

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match promtool {
        Err(error) => println!("promtool: skipped: {error}: scripts/setup.sh --test installs it"),
        Ok(mut promtool) => {
            promtool.stdin.take().unwrap().write_all(page.body.as_bytes()).unwrap();
            let output = promtool.wait_with_output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }
}

#[test]
fn numbers_are_those_of_what_was_done() {
    let (card, address) = watched_with(|config| config.sessions = 2);
    let start = scrape(address);
    assert!(start.0.iter().all(|(name, value)| !name.contains("chunks_total") || *value == 0.0));
    traffic(&card, 1);
    // What the engine thread shows may be a tenth of a second old.
    let over = |now: &Samples| now.at("kvlane_sessions") == 0.0 && now.at("kvlane_store_chunks") == 5.0;
    let now = until(|| scrape(address), over);

    let chunk_bytes = geometry().chunk_bytes() as f64;
    let tokens = f64::from(CHUNK_TOKENS);
    let exact = [
        ("kvlane_requests_total{operation=\"fetch\",status=\"ok\"}", 2.0),
        ("kvlane_requests_total{operation=\"store\",status=\"ok\"}", 1.0),
        ("kvlane_requests_total{operation=\"lookup\",status=\"ok\"}", 1.0),
        ("kvlane_request_duration_seconds_count{operation=\"fetch\"}", 2.0),
        ("kvlane_request_duration_seconds_bucket{operation=\"fetch\",le=\"+Inf\"}", 2.0),
        ("kvlane_prefix_queried_chunks_total{operation=\"fetch\"}", 12.0),
        ("kvlane_prefix_hit_chunks_total{operation=\"fetch\"}", 8.0),
        ("kvlane_prefix_queried_chunks_total{operation=\"lookup\"}", 6.0),
        ("kvlane_prefix_hit_chunks_total{operation=\"lookup\"}", 2.0),
        ("kvlane_prefix_queried_tokens_total{operation=\"lookup\"}", 6.0 * tokens),
        ("kvlane_prefix_hit_tokens_total{operation=\"lookup\"}", 2.0 * tokens),
        ("kvlane_prefix_hit_tokens_total{operation=\"fetch\"}", 8.0 * tokens),
        ("kvlane_chunks_total{result=\"stored\"}", 6.0),
        ("kvlane_restored_bytes_total{operation=\"store\"}", 6.0 * chunk_bytes),
        ("kvlane_stage_input_bytes_total{stage=\"gather\"}", 6.0 * chunk_bytes),
        ("kvlane_slots{state=\"free\"}", 6.0),
        ("kvlane_sessions_limit", 2.0),
        ("kvlane_sessions_attached_total", 2.0),
        ("kvlane_chunks_in_progress", 0.0),
        ("kvlane_state{state=\"steady\"}", 1.0),
        ("kvlane_store_chunks", 5.0),
        ("kvlane_corrupt_blocks_total", 0.0),
    ];
    for (series, value) in exact {
        assert_eq!(now.at(series), value, "{series}");
    }
    // Chunks after a miss may have been on their way.
    assert!(now.at("kvlane_restored_bytes_total{operation=\"fetch\"}") >= 8.0 * chunk_bytes);
    assert!(
        now.at("kvlane_wire_bytes_total{operation=\"fetch\"}")
            < now.at("kvlane_restored_bytes_total{operation=\"fetch\"}")
    );
    for stage in ["fetch", "inflate", "dequantize", "write", "gather", "encode", "put"] {
        for what in ["operations", "busy_seconds", "input_bytes", "output_bytes"] {
            let series = format!("kvlane_stage_{what}_total{{stage=\"{stage}\"}}");
            assert!(now.at(&series) > 0.0, "{series}");
        }
    }
    let took = now.at("kvlane_request_duration_seconds_sum{operation=\"fetch\"}");
    assert!(took > 0.0 && took < 30.0, "{took} s");
    assert!(now.at("kvlane_process_resident_bytes") > 1e6 && now.at("kvlane_process_cpu_seconds_total") > 0.0);

    // A deadline, and a host too many.
    card.store.read_delay_us.store(50_000, Relaxed);
    let (keys, pages) = (keys(geometry(), "lossless", 1, 2), linear(2));
    let mut host = card.attach("lossless", memory());
    let late = Transfer { deadline: Some(Duration::from_millis(20)), ..transfer(&keys, &pages) };
    let id = host.post_fetch(&late).unwrap();
    assert_eq!(host.wait(id, WAIT).unwrap().status, Status::DeadlineExceeded);
    let _second = card.control();
    Client::attach(&card.options("lossless"), None).unwrap_err();
    let now = until(|| scrape(address), |now| now.at("kvlane_sessions_refused_total") == 1.0);
    assert_eq!(now.at("kvlane_requests_total{operation=\"fetch\",status=\"deadline_exceeded\"}"), 1.0);
    assert_eq!(counter(&card_status(address), "deadlines_missed"), 1);
    assert_eq!(now.at("kvlane_sessions"), 2.0);
}

/// `/status`, parsed.
fn card_status(address: SocketAddr) -> CardStatus {
    CardStatus::parse(&get(address, "/status").body).unwrap()
}

/// Raises a flag when its scope ends, however it ends: threads that wait for it are not waited for in vain.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What may only rise.
fn counters(samples: &Samples) -> impl Iterator<Item = (&String, f64)> {
    let counts = |name: &str| ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
    samples
        .0
        .iter()
        .filter(move |(name, _)| counts(name.split('{').next().unwrap()))
        .map(|(name, value)| (name, *value))
}

#[test]
fn counters_never_go_down_and_buckets_add_up_under_load() {
    let (card, address) = watched();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _raise = Raise(&over);
        scope.spawn(|| (1..=u8::MAX).cycle().take_while(|_| !over.load(Relaxed)).for_each(|salt| traffic(&card, salt)));
        let mut before = scrape(address);
        for _ in 0..200 {
            let now = scrape(address);
            for ((name, then), (same, value)) in counters(&before).zip(counters(&now)) {
                assert_eq!(name, same);
                assert!(value >= then, "{name}: {then} -> {value}");
            }
            for operation in ["lookup", "fetch", "store"] {
                let start = format!("kvlane_request_duration_seconds_bucket{{operation=\"{operation}\"");
                let mut buckets: Vec<_> =
                    now.0.iter().filter(|(name, _)| name.starts_with(&start)).map(|(_, value)| *value).collect();
                buckets.sort_by(f64::total_cmp);
                let count = now.at(&format!("kvlane_request_duration_seconds_count{{operation=\"{operation}\"}}"));
                assert_eq!(buckets.last(), Some(&count));
            }
            before = now;
        }
        assert!(before.at("kvlane_chunks_total{result=\"stored\"}") > 0.0, "nothing went on");
    });
}

#[test]
fn status_and_config_are_what_the_command_line_shows() {
    let (card, address) = watched();
    traffic(&card, 1);
    let page = until(|| get(address, "/status"), |page| page.body.contains("\"sessions\":[]"));
    assert!(page.head.contains("Content-Type: application/json"), "{}", page.head);
    let mine = CardStatus::parse(&page.body).unwrap();
    let theirs = card.status();
    for place in
        ["/limits", "/stages", "/counters/chunks_fetched", "/counters/wire_bytes", "/latency_us/fetch", "/store"]
    {
        assert_eq!(mine.value().pointer(place), theirs.value().pointer(place), "{place}");
        assert!(mine.value().pointer(place).is_some(), "{place}");
    }
    let fetch = &theirs.value()["latency_us"]["fetch"];
    assert_eq!(fetch["requests"], 2);
    assert!(fetch["p50"].as_u64().unwrap() > 0 && fetch["p99"].as_u64() >= fetch["p50"].as_u64(), "{fetch}");

    let config = CardStatus::parse(&get(address, "/config").body).unwrap();
    assert_eq!(config.value()["metrics"], address.to_string());
    let home = tempfile::tempdir().unwrap();
    let same = dpu_app::Config { metrics: Some(address), ..small(home.path()) };
    for (name, value) in dpu_app::settings(&same) {
        assert_eq!(config.value()["limits"][name], value, "{name}");
    }
}

fn health(address: SocketAddr) -> (u16, String) {
    let page = get(address, "/healthcheck");
    (page.code, page.body.trim().to_owned())
}

#[test]
fn a_store_that_is_down_is_unwell_until_it_answers() {
    let (card, address) = watched();
    let (keys, _) = stored(&card, "lossless", 1, CHUNKS);
    assert_eq!(health(address), (200, "ok".into()));
    let mut host = card.attach("lossless", memory());
    card.store.reads_to_fail.store(u64::MAX, Relaxed);
    while health(address).0 == 200 {
        assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).status, Status::StoreDown);
    }
    let (code, text) = health(address);
    assert!(code == 503 && text.starts_with("store down"), "{code} {text}");
    assert_eq!(scrape(address).at("kvlane_unwell{reason=\"store_down\"}"), 1.0);
    card.store.reads_to_fail.store(0, Relaxed);
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
    until(|| health(address), |(code, _)| *code == 200);
}

#[test]
fn neither_damaged_chunks_nor_an_engine_that_fails_now_and_then_make_a_card_unwell() {
    let address = free_address();
    let emulator = doca_emulator::Config { fail: 0.02, seed: Some(7), ..doca_emulator::Config::default() };
    let card = Card::start_with(emulator, |config| config.metrics = Some(address));
    // More in a row than an engine may fail without a success before the card gives it up.
    for salt in 1..=100 {
        let (keys, _) = stored(&card, "lossless", salt, 1);
        let chunk = card.store.chunk(&keys[0]).unwrap();
        let mut blocks = chunk.blocks.clone();
        for block in &mut blocks {
            // What nothing can inflate: a block type that Deflate does not have.
            let payload = Header::parse(block).unwrap().payload_range();
            block[payload].fill(0xff);
        }
        card.store.replace(keys[0], Chunk { manifest: chunk.manifest.clone(), blocks });
        let mut host = card.attach("lossless", memory());
        assert_eq!(fetch(&mut host, &keys, &linear(1)).status, Status::Corrupt);
        host.close(WAIT).unwrap();
        assert_eq!(health(address), (200, "ok".into()));
    }
    let samples = scrape(address);
    assert!(samples.at("kvlane_engine_restarts_total{engine=\"inflate\"}") >= 100.0);
    assert!(samples.at("kvlane_engine_restarts_total{engine=\"dma\"}") >= 1.0);
    assert!(samples.at("kvlane_corrupt_blocks_total") >= 100.0);
    assert_eq!(samples.at("kvlane_requests_total{operation=\"fetch\",status=\"corrupt\"}"), 100.0);
}

#[test]
fn a_draining_card_is_unwell_and_still_tells_its_numbers() {
    let (card, address) = watched();
    let mut control = card.operator();
    let id = control.post_drain().unwrap();
    assert_eq!(control.wait(id, WAIT).unwrap().status, Status::Ok);
    let (code, text) = until(|| health(address), |(code, _)| *code == 503);
    assert!(text.starts_with("draining"), "{code} {text}");
    assert_eq!(scrape(address).at("kvlane_state{state=\"draining\"}"), 1.0);
}

#[test]
fn an_engine_thread_that_hangs_is_seen_and_costs_a_scrape_a_moment_only() {
    let (card, address) = watched();
    assert_eq!(health(address).0, 200);
    // The engine thread asks the store for its numbers when it shows itself, and hangs there.
    card.store.stats_hang.store(true, Relaxed);
    thread::sleep(Duration::from_millis(120));
    let since = Instant::now();
    assert_eq!(health(address).0, 200, "what was shown last stands for a while");
    let first = since.elapsed();
    let (_, text) = until(|| health(address), |(code, _)| *code == 503);
    let noticed = since.elapsed();
    assert!(text.starts_with("silent"), "{text}");
    assert!(first < Duration::from_secs(1) && noticed < Duration::from_secs(4), "{first:?} {noticed:?}");
    let page = get(address, "/status");
    assert_eq!(page.code, 503, "{page:?}");
    assert_eq!(scrape(address).at("kvlane_unwell{reason=\"silent\"}"), 1.0);
    card.store.stats_hang.store(false, Relaxed);
    until(|| health(address), |(code, _)| *code == 200);
}

#[test]
fn what_is_no_request_is_told_so() {
    let (_card, address) = watched();
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(REQUEST_BYTES));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    for (bytes, code) in [
        (&b"GET /nothing HTTP/1.1\r\n\r\n"[..], 404),
        (b"GET /metrics?name=x HTTP/1.0\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /status HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n", 400),
        (b"\0\0\0\0\0\0\0\0", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (long.as_bytes(), 431),
        (many.as_bytes(), 431),
    ] {
        assert_eq!(say(address, bytes).code, code, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
    }
    let (head, page) = (say(address, b"HEAD /config HTTP/1.1\r\n\r\n"), get(address, "/config"));
    assert!(head.code == 200 && head.body.is_empty());
    assert!(head.head.contains(&format!("Content-Length: {}", page.body.len())), "{}", head.head);
}

#[test]
fn hostile_clients_hold_up_neither_each_other_nor_the_data_plane() {
    let (card, address) = watched();
    let (keys, _) = stored(&card, "lossless", 1, CHUNKS);
    let mut host = card.attach("lossless", memory());
    let over = AtomicBool::new(false);
    let (mut slowest_page, mut slowest_fetch) = (Duration::ZERO, Duration::ZERO);
    thread::scope(|scope| {
        let _raise = Raise(&over);
        // Twice as many as there are places: each says one byte now and then, for as long as it may, and comes back.
        for _ in 0..2 * CONNECTIONS_MAX {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    let mut socket = connect(address);
                    while !over.load(Relaxed) && socket.write_all(b"G").is_ok() {
                        thread::sleep(Duration::from_millis(50));
                    }
                }
            });
        }
        // One that talks without end and never reads, and one that asks and goes without listening.
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let mut socket = connect(address);
                while !over.load(Relaxed) && socket.write_all(&[b'x'; 4096]).is_ok() {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while !over.load(Relaxed) {
                let _ = connect(address).write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
                thread::sleep(Duration::from_millis(5));
            }
        });
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let since = Instant::now();
            // With more clients than places one may be shown the door: then it asks again.
            while !is_served(address) {}
            slowest_page = slowest_page.max(since.elapsed());
            let since = Instant::now();
            assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
            slowest_fetch = slowest_fetch.max(since.elapsed());
            thread::sleep(Duration::from_millis(10));
        }
    });
    println!("slowest page {slowest_page:?}, slowest fetch {slowest_fetch:?}");
    assert!(slowest_page < CONNECTION_TIMEOUT, "{slowest_page:?}");
    assert!(slowest_fetch < Duration::from_secs(1), "{slowest_fetch:?}");
}

/// Whether an honest client got its page.
fn is_served(address: SocketAddr) -> bool {
    let mut socket = connect(address);
    let mut answer = String::new();
    socket.write_all(b"GET /healthcheck HTTP/1.1\r\n\r\n").is_ok()
        && socket.read_to_string(&mut answer).is_ok()
        && answer.ends_with("ok\n")
}

#[test]
fn who_never_finishes_is_hung_up_on_in_time() {
    let (_card, address) = watched();
    let mut slow = connect(address);
    let since = Instant::now();
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer);
    let took = since.elapsed();
    assert!(answer.is_empty());
    assert!(took >= CONNECTION_TIMEOUT / 2 && took < CONNECTION_TIMEOUT * 2, "{took:?}");
}

#[test]
fn a_port_that_is_taken_is_the_operators_to_change() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = dpu_app(home.path()).arg("--metrics").arg(address.to_string()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for words in [&address.to_string()[..], "in use", "choose another address or port with --metrics"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let output = dpu_app(home.path()).args(["--metrics", "card:9400"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("give an IP address and a port"));
}

#[test]
fn flag_environment_and_file_all_turn_it_on_and_only_they() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("dpu-app.conf");
    std::fs::write(&file, "metrics = 127.0.0.1:0\n").unwrap();
    let (mut flag, mut environment, mut config) = (dpu_app(home.path()), dpu_app(home.path()), dpu_app(home.path()));
    flag.args(["--metrics", "0.0.0.0:0"]);
    environment.env("KVLANE_METRICS", "0");
    config.arg("--config").arg(&file);
    for (command, on, warned) in
        [(dpu_app(home.path()), false, false), (flag, true, true), (environment, true, false), (config, true, false)]
    {
        let (_dpu, log, port) = start(command);
        assert_eq!(log.contains("without a password"), warned, "{log}");
        assert_eq!(port.is_some(), on, "{log}");
        if let Some(port) = port {
            assert_eq!(health(([127, 0, 0, 1], port).into()), (200, "ok".into()));
        }
    }
}

/// Processor time of the threads of one name.
fn thread_time(pid: u32, name: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let named = tasks.filter(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == name);
    let time = |task: std::path::PathBuf| {
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    Duration::from_nanos(named.map(time).sum())
}

#[test]
fn a_scrape_costs_the_engine_thread_next_to_nothing() {
    const SCRAPES: u32 = 20;
    let home = tempfile::tempdir().unwrap();
    let mut command = dpu_app(home.path());
    command.args(["--metrics", "0"]);
    let (dpu, _, port) = start(command);
    let (pid, address) = (dpu.0.id(), ([127, 0, 0, 1], port.unwrap()).into());
    scrape(address);
    let times = || [thread_time(pid, "metrics"), thread_time(pid, "dpu-app")];
    let before = times();
    for _ in 0..SCRAPES {
        // Far enough apart that the engine thread is asked each time.
        thread::sleep(Duration::from_millis(110));
        scrape(address);
    }
    let [metrics, engine] = std::array::from_fn(|index| (times()[index] - before[index]) / SCRAPES);
    println!("a scrape costs {metrics:?} of the metrics thread and {engine:?} of the engine thread");
    assert!(metrics > Duration::ZERO && metrics < Duration::from_millis(5), "{metrics:?}");
    assert!(engine > Duration::ZERO && engine < Duration::from_millis(1), "{engine:?}");
}
