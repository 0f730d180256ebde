//! Store down, slow, full or read-only; deadlines, cancels, drains; visitors that never finish. Each has its answer.

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::*;
use host_ctl::{Arrangement, Client, Error, Gone, Route, Transfer};
use mailbox::Status;
use mailbox::attach::{ATTACH_MESSAGE_MAX, Farewell, Message, Reason, Refuse};
use mailbox::channel::{ChannelError, HostChannel};
use store::StoreError;

const CHUNKS: usize = 6;

fn memory() -> host_ctl::Memory {
    empty(Arrangement::Vllm, geometry(), CHUNKS)
}

fn leading_are_right(target: &host_ctl::Memory, content: &[u8], done: usize) {
    let after = logical(target, &linear(CHUNKS));
    for index in 0..done {
        let same = chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(content, geometry(), CHUNKS, index);
        assert!(same, "chunk {index} of {done} was reported and is wrong");
    }
}

#[test]
fn a_store_that_fails_for_a_moment_is_asked_again() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.reads_to_fail.store(2, Relaxed);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let fetched = fetch(&mut host, &keys, &linear(CHUNKS));
    assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS));
    leading_are_right(&target, &content, CHUNKS);
}

#[test]
fn a_store_that_is_down_is_an_answer_after_a_bounded_number_of_tries() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    for bad in [0, 3, CHUNKS - 1] {
        *card.store.key_to_fail.lock().unwrap() = Some(keys[bad]);
        card.store.reads.store(0, Relaxed);
        let fetched = fetch(&mut host, &keys, &linear(CHUNKS));
        assert_eq!((fetched.status, fetched.chunks_done), (Status::StoreDown, bad));
        leading_are_right(&target, &content, bad);
        let blocks = card.store.chunk(&keys[0]).unwrap().blocks.len();
        let reads = card.store.reads.load(Relaxed) as usize;
        assert!(reads <= (CHUNKS + 2) * blocks * 3, "{reads} reads");
    }
    assert_eq!(card.store.corrupt_noted.load(Relaxed), 0, "an I/O error says nothing of the bytes");
    *card.store.key_to_fail.lock().unwrap() = None;
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS, "it works again when the store does");
    drop(host);
    card.await_empty();
}

#[test]
fn a_slow_store_meets_its_deadline_with_what_is_in_place() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    // Two workers, so a chunk of four blocks takes some 40 ms: two or so of six are done in time.
    card.store.read_delay_us.store(20_000, Relaxed);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let pages = linear(CHUNKS);
    let deadline = Duration::from_millis(110);
    let since = Instant::now();
    let ask = Transfer { deadline: Some(deadline), ..transfer(&keys, &pages) };
    let id = host.post_fetch(&ask).unwrap();
    let fetched = host.wait(id, WAIT).unwrap();
    let took = since.elapsed();
    assert_eq!(fetched.status, Status::DeadlineExceeded);
    assert!(fetched.chunks_done < CHUNKS, "{} chunks", fetched.chunks_done);
    assert!(took >= deadline && took < deadline + Duration::from_millis(400), "took {took:?}");
    leading_are_right(&target, &content, fetched.chunks_done);
    // Nothing arrives late: the memory is the host's again.
    let answered = bytes_of(&target);
    thread::sleep(Duration::from_millis(60));
    assert!(bytes_of(&target) == answered, "written to after the answer");
    card.store.read_delay_us.store(0, Relaxed);
    assert_eq!(fetch(&mut host, &keys, &pages).chunks_done, CHUNKS);
    drop(host);
    card.await_empty();
}

#[test]
fn what_was_read_is_delivered_while_the_next_read_hangs() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.fetch_workers = 1);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(5_000, Relaxed);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let pages = linear(CHUNKS);
    for hangs in [1, 2] {
        *card.store.key_to_delay.lock().unwrap() = Some((keys[hangs], Duration::from_secs(2)));
        let ask = Transfer { deadline: Some(Duration::from_millis(400)), ..transfer(&keys, &pages) };
        let id = host.post_fetch(&ask).unwrap();
        let fetched = host.wait(id, WAIT).unwrap();
        assert_eq!((fetched.status, fetched.chunks_done), (Status::DeadlineExceeded, hangs));
        leading_are_right(&target, &content, hangs);
    }
}

#[test]
fn the_card_s_own_deadline_holds_where_a_host_names_none() {
    let card =
        Card::start_with(doca_emulator::Config::default(), |config| config.deadline = Duration::from_millis(80).into());
    let (keys, _) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(50_000, Relaxed);
    let mut host = card.attach("lossless", memory());
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).status, Status::DeadlineExceeded);
}

#[test]
fn a_deadline_holds_after_a_miss_further_on() {
    // The miss is known at once; the chunk before it is slow and its deadline passes.
    let card = Card::start();
    let (keys, _) = stored(&card, "lossless", 1, CHUNKS);
    card.store.remove(&keys[1]);
    card.store.read_delay_us.store(100_000, Relaxed);
    let mut host = card.attach("lossless", memory());
    let pages = linear(CHUNKS);
    let id =
        host.post_fetch(&Transfer { deadline: Some(Duration::from_millis(30)), ..transfer(&keys, &pages) }).unwrap();
    let fetched = host.wait(id, WAIT).unwrap();
    assert_eq!((fetched.status, fetched.chunks_done), (Status::DeadlineExceeded, 0));
}

#[test]
fn a_full_or_read_only_store_says_so_and_keeps_serving() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let more = crate::rig::keys(geometry(), "lossless", 2, CHUNKS);
    for (error, status) in [
        (StoreError::Full { bytes: 1 << 20 }, Status::NoSpace),
        (StoreError::ReadOnly, Status::ReadOnly),
        (StoreError::Io { call: "begin_put", errno: nix::errno::Errno::EIO }, Status::StoreDown),
    ] {
        for late in [false, true] {
            let place = if late { &card.store.put_block_error } else { &card.store.put_error };
            *place.lock().unwrap() = Some(error);
            let source = filled(Arrangement::Contiguous, geometry(), CHUNKS, 5);
            let mut host = card.attach("lossless", source);
            let answer = store(&mut host, &more, &linear(CHUNKS));
            assert_eq!((answer.status, answer.chunks_done), (status, 0), "late {late}");
            *place.lock().unwrap() = None;
            let target = memory();
            let mut host = card.attach("lossless", target.clone());
            assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
            leading_are_right(&target, &content, CHUNKS);
        }
    }
    assert_eq!(card.store.len(), CHUNKS, "nothing of a failed put is left");
    card.await_empty();
}

#[test]
fn a_cancelled_fetch_ends_soon_with_what_is_in_place() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(20_000, Relaxed);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let id = host.post_fetch(&transfer(&keys, &linear(CHUNKS))).unwrap();
    thread::sleep(Duration::from_millis(70));
    let since = Instant::now();
    host.cancel(id).unwrap();
    let answer = host.wait(id, WAIT).unwrap();
    assert_eq!(answer.status, Status::Cancelled);
    assert!(answer.chunks_done < CHUNKS);
    assert!(since.elapsed() < Duration::from_millis(400), "took {:?}", since.elapsed());
    leading_are_right(&target, &content, answer.chunks_done);
    let answered = bytes_of(&target);
    thread::sleep(Duration::from_millis(60));
    assert!(bytes_of(&target) == answered, "written to after the answer");
    // The session goes on.
    card.store.read_delay_us.store(0, Relaxed);
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
    drop(host);
    card.await_empty();
}

#[test]
fn many_cancels_at_any_moment_leave_nothing_behind() {
    let seed = 0xca_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(300, Relaxed);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let mut seen = [0; 2];
    for _ in 0..80 {
        let id = host.post_fetch(&transfer(&keys, &linear(CHUNKS))).unwrap();
        thread::sleep(Duration::from_micros(random.below(6000) as u64));
        let _ = host.cancel(id);
        let answer = host.wait(id, WAIT).unwrap();
        match answer.status {
            Status::Ok => assert_eq!(answer.chunks_done, CHUNKS),
            Status::Cancelled => assert!(answer.chunks_done < CHUNKS),
            other => panic!("{other:?}"),
        }
        seen[usize::from(answer.status == Status::Cancelled)] += 1;
        leading_are_right(&target, &content, answer.chunks_done);
    }
    assert!(seen[1] > 0, "some were cancelled: {seen:?}");
    drop(host);
    card.await_empty();
}

#[test]
fn a_draining_card_finishes_what_runs_and_takes_nothing_new() {
    let mut card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(10_000, Relaxed);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let running = host.post_fetch(&transfer(&keys, &linear(CHUNKS))).unwrap();
    thread::sleep(Duration::from_millis(20));
    let mut control = card.operator();
    let id = control.post_drain().unwrap();
    assert_eq!(control.wait(id, WAIT).unwrap().status, Status::Ok);
    let mut other = card.attach("lossless", memory());
    let refused = fetch(&mut other, &keys, &linear(CHUNKS));
    assert_eq!((refused.status, refused.chunks_done), (Status::Draining, 0));
    assert_eq!(lookup(&mut other, &keys).status, Status::Draining);
    let finished = host.wait(running, WAIT).unwrap();
    assert_eq!((finished.status, finished.chunks_done), (Status::Ok, CHUNKS), "what runs is finished");
    leading_are_right(&target, &content, CHUNKS);
    assert_eq!(status(&mut control).value()["card"]["state"], "draining");
    // A stop after a drain: all sessions hear good-bye and the card leaves.
    let id = control.post_stop().unwrap();
    assert_eq!(control.wait(id, WAIT).unwrap().status, Status::Ok);
    assert!(control.wait_end(WAIT) && other.wait_end(WAIT));
    let id = other.post_ping();
    assert!(matches!(id, Err(Error::CardGone(Gone::Left(Farewell::Stopping)))), "{id:?}");
    card.join().unwrap();
}

#[test]
fn a_stopping_card_answers_first_and_leaves_then() {
    for busy_poll in [false, true] {
        let mut card = Card::start_with(doca_emulator::Config::default(), |config| config.busy_poll = busy_poll);
        let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
        card.store.read_delay_us.store(5_000, Relaxed);
        let target = memory();
        let mut host = card.attach("lossless", target.clone());
        let running = host.post_fetch(&transfer(&keys, &linear(CHUNKS))).unwrap();
        thread::sleep(Duration::from_millis(15));
        card.ring_stop();
        // What is asked meanwhile is answered, and does not keep the card.
        let id = host.post_ping().unwrap();
        assert_eq!(host.wait(id, WAIT).unwrap().status, Status::Ok);
        card.join().unwrap();
        let finished = host.wait(running, WAIT).unwrap();
        assert_eq!((finished.status, finished.chunks_done), (Status::Ok, CHUNKS), "busy poll {busy_poll}");
        leading_are_right(&target, &content, CHUNKS);
        let error = Client::attach(&card.options("lossless"), None).unwrap_err();
        assert!(matches!(error, Error::Comch(doca::comch::Error::NobodyThere { .. })), "{error}");
    }
}

#[test]
fn one_session_too_many_is_refused_and_told_why() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.sessions = 3);
    let mut open: Vec<_> = (0..3).map(|_| card.attach("lossless", memory())).collect();
    for _ in 0..10 {
        let error = Client::attach(&card.options("lossless"), Some(memory())).unwrap_err();
        match error {
            Error::Refused(refuse) => assert_eq!((refuse.reason(), refuse.ours), (Some(Reason::Sessions), 3)),
            error => panic!("{error:?}"),
        }
    }
    for host in &mut open {
        let id = host.post_ping().unwrap();
        assert_eq!(host.wait(id, WAIT).unwrap().status, Status::Ok);
    }
    open.pop().unwrap().close(WAIT).unwrap();
    card.attach("lossless", memory()).close(WAIT).unwrap();
}

/// Whether the other end hangs up in time.
fn hangs_up(line: &mut dyn HostChannel, within: Duration) -> bool {
    let until = Instant::now() + within;
    let mut bytes = [0; ATTACH_MESSAGE_MAX];
    while Instant::now() < until {
        match line.receive(&mut bytes) {
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Ok(Some(_)) => {}
            Err(_) => return true,
        }
    }
    false
}

#[test]
fn a_silent_visitor_is_dropped_and_makes_room() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| {
        config.sessions = 2;
        config.attach_timeout = Duration::from_millis(150).into();
    });
    for route in card.routes() {
        let since = Instant::now();
        let mut silent: Vec<_> = (0..2).map(|_| line(&route)).collect();
        assert!(!hangs_up(silent[0].as_mut(), Duration::from_millis(60)), "it has its time");
        assert!(Client::attach(&card.options("lossless"), None).is_err(), "visitors count");
        assert!(silent.iter_mut().all(|visitor| hangs_up(visitor.as_mut(), WAIT)));
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        card.control();
    }
}

/// The card's next word.
fn answer(line: &mut dyn HostChannel) -> Option<Refuse> {
    let until = Instant::now() + WAIT;
    let mut bytes = [0; ATTACH_MESSAGE_MAX];
    loop {
        match line.receive(&mut bytes) {
            Ok(None) => assert!(line.wait(until.saturating_duration_since(Instant::now())).unwrap(), "no answer"),
            Ok(Some(count)) => match Message::decode(&bytes[..count]).unwrap() {
                Message::Refuse(refuse) => return Some(refuse),
                other => panic!("{other:?}"),
            },
            Err(_) => return None,
        }
    }
}

#[test]
fn a_babbling_visitor_is_refused_and_nobody_else_notices() {
    let seed = 0xbab_b1e;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    for (round, route) in (0..60).flat_map(|round| card.routes().map(|route| (round, route))) {
        let mut babbler = line(&route);
        let bytes: Vec<u8> = match round % 4 {
            // Noise, noise with our magic, a good message out of turn, one that is as long as may be.
            0 => (0..1 + random.below(3999)).map(|_| random.next() as u8).collect(),
            1 => b"kvat".iter().copied().chain((0..60).map(|_| random.next() as u8)).collect(),
            2 => {
                let mut bytes = [0; ATTACH_MESSAGE_MAX];
                let message = [Message::Doorbell, Message::Bye(Farewell::Done)][round / 4 % 2];
                message.encode(&mut bytes).unwrap().to_vec()
            }
            _ => vec![7; ATTACH_MESSAGE_MAX],
        };
        babbler.send(&bytes).unwrap();
        let refuse = answer(babbler.as_mut()).expect("it is told why");
        assert!(matches!(refuse.reason(), Some(Reason::Malformed | Reason::Order)), "round {round}: {refuse}");
        // One that does not leave by itself lingers for a moment and is then hung up on.
        assert!(round > 0 || hangs_up(babbler.as_mut(), WAIT));
        if round % 10 == 0 {
            assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
            leading_are_right(&target, &content, CHUNKS);
        }
    }
    // Another kind of socket altogether is the kernel's to refuse.
    let Route::Socket(path) = &card.socket else { unreachable!() };
    assert!(UnixStream::connect(path).is_err());
}

#[test]
fn a_host_that_rings_all_the_time_costs_only_itself() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    for route in card.routes() {
        let over = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // A visitor that sends good messages without end: refused, and it comes again.
                let mut bytes = [0; ATTACH_MESSAGE_MAX];
                let bell = Message::Doorbell.encode(&mut bytes).unwrap().to_vec();
                while !over.load(Relaxed) {
                    let Ok((mut line, _)) = route.open(&doca::Selector::First, WAIT) else { continue };
                    while !over.load(Relaxed) {
                        match line.send(&bell) {
                            Ok(()) => {}
                            Err(ChannelError::Full) => {
                                let _ = line.wait_for_room(Duration::from_millis(10));
                            }
                            Err(_) => break,
                        }
                    }
                }
            });
            let target = memory();
            let mut host = card.attach("lossless", target.clone());
            for _ in 0..20 {
                assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
            }
            leading_are_right(&target, &content, CHUNKS);
            over.store(true, Relaxed);
        });
    }
}

#[test]
fn a_hundred_sessions_in_a_row_leave_nothing_behind() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.sessions = 2);
    let (keys, content) = stored(&card, "lossless", 1, 2);
    for round in 0..100 {
        let target = empty(Arrangement::Vllm, geometry(), 2);
        let mut host = card.attach("lossless", target.clone());
        match round % 3 {
            // In order; in the middle of a fetch; without a word of work.
            0 => {
                assert_eq!(fetch(&mut host, &keys, &linear(2)).chunks_done, 2);
                assert!(logical(&target, &linear(2)) == content);
                host.close(WAIT).unwrap();
            }
            1 => {
                host.post_fetch(&transfer(&keys, &linear(2))).unwrap();
                drop(host);
            }
            _ => drop(host),
        }
    }
    card.await_empty();
    let status = card.status();
    assert!(counter(&status, "sessions_opened") > 100);
    assert_eq!(counter(&status, "sessions_lost"), 0);
}

#[test]
fn sessions_that_attach_at_the_same_time_have_names_of_their_own() {
    let card = Card::start();
    for _ in 0..5 {
        let clients: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| card.control())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut names: Vec<_> = clients.iter().map(|client| client.card_facts().session).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), clients.len(), "{names:?}");
    }
}

#[test]
fn a_request_beyond_the_session_s_memory_is_refused_by_status() {
    let card = Card::start();
    let (keys, _) = stored(&card, "lossless", 1, CHUNKS);
    // Control sessions can look up and nothing else; the client library refuses the rest before the card hears of it.
    let mut control = card.control();
    assert_eq!(lookup(&mut control, &keys).chunks_done, CHUNKS);
    let pages = linear(CHUNKS);
    let ask = Transfer::new(&keys, &pages);
    assert!(matches!(control.post_fetch(&ask), Err(Error::Input { .. })));
}
