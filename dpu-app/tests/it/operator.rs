//! Sessions: how many there are, the one that is always the operator's, and what only the operator may say.

use std::time::{Duration, Instant};

use crate::rig::*;
use host_ctl::{Arrangement, Client, Error, Gone, Options};
use mailbox::Status;
use mailbox::attach::{Farewell, Reason};

/// Sessions of an engine with tensor parallelism 8: eight workers and a scheduler.
const TP_8: usize = 9;

fn small_memory() -> host_ctl::Memory {
    empty(Arrangement::Contiguous, geometry(), 1)
}

fn pings(client: &mut Client) -> bool {
    let id = client.post_ping().unwrap();
    client.wait(id, WAIT).is_ok_and(|answer| answer.status == Status::Ok)
}

fn answer(client: &mut Client, post: impl FnOnce(&mut Client) -> Result<host_ctl::RequestId, Error>) -> Status {
    let id = post(client).unwrap();
    client.wait(id, WAIT).unwrap().status
}

#[test]
fn sixteen_engines_with_tensor_parallelism_8_share_a_card_and_the_operator_still_gets_in() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.sessions = 16 * TP_8);
    let (keys, content) = stored(&card, "lossless", 1, 1);
    card.await_empty();
    let mut hosts: Vec<Client> = Vec::new();
    for index in 0..16 * TP_8 {
        let scheduler = index % TP_8 == TP_8 - 1;
        // Engines on the host, and on the card itself.
        let route = if index % 2 == 0 { card.comch.clone() } else { card.socket.clone() };
        let options = Options { route, ..card.options("lossless") };
        hosts.push(Client::attach(&options, (!scheduler).then(small_memory)).unwrap());
    }
    assert!(hosts.iter_mut().all(pings));
    for route in card.routes() {
        let options = Options { route, ..card.options("lossless") };
        for memory in [None, Some(small_memory())] {
            match Client::attach(&options, memory).unwrap_err() {
                Error::Refused(refuse) => assert_eq!((refuse.reason(), refuse.ours), (Some(Reason::Sessions), 144)),
                error => panic!("{error}"),
            }
        }
    }
    let mut operator = card.operator();
    assert!(pings(&mut operator));
    let seen = status(&mut operator);
    assert_eq!(seen.value()["sessions_attached"], 145, "{:?}", seen.value()["sessions_attached"]);
    // The operator's place is for that only.
    assert_eq!(lookup(&mut operator, &keys).status, Status::Busy);
    // All of them work.
    for (index, host) in hosts.iter_mut().enumerate().filter(|(index, _)| index % TP_8 != TP_8 - 1).step_by(7) {
        let found = fetch(host, &keys, &linear(1));
        assert_eq!((found.status, found.chunks_done), (Status::Ok, 1), "session {index}");
        let memory = host.memory().unwrap();
        assert!(logical(memory, &linear(1)) == content, "session {index}");
    }
}

#[test]
fn the_operators_place_is_never_kept_from_the_next_operator() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.sessions = 1);
    let _engine = card.attach("lossless", small_memory());
    // One that stays, as `status --watch` does.
    let mut first = card.operator();
    assert!(pings(&mut first));
    let since = Instant::now();
    let mut second = card.operator();
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert!(pings(&mut second));
    assert!(first.wait_end(WAIT));
    let gone = first.poll().unwrap_err();
    assert!(matches!(gone, Error::CardGone(Gone::Left(Farewell::Replaced))), "{gone:?}");
    second.close(WAIT).unwrap();
    // Free again, at once.
    let since = Instant::now();
    assert!(pings(&mut card.operator()));
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[test]
fn a_drain_can_be_undone_and_a_stop_cannot() {
    let mut card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, 4);
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), 4));
    let mut operator = card.operator();
    for _ in 0..3 {
        assert_eq!(answer(&mut operator, Client::post_drain), Status::Ok);
        assert_eq!(fetch(&mut host, &keys, &linear(4)).status, Status::Draining);
        assert!(host.is_draining());
        assert_eq!(status(&mut operator).value()["card"]["state"], "draining");
        assert_eq!(answer(&mut operator, Client::post_resume), Status::Ok);
        // Twice is once.
        assert_eq!(answer(&mut operator, Client::post_resume), Status::Ok);
        let found = fetch(&mut host, &keys, &linear(4));
        assert_eq!((found.status, found.chunks_done), (Status::Ok, 4), "the same session goes on");
        assert!(logical(host.memory().unwrap(), &linear(4)) == content);
        assert_eq!(status(&mut operator).value()["card"]["state"], "steady");
    }
    // A request keeps the card, so that there is somebody to ask it to stay.
    card.store.read_delay_us.store(100_000, std::sync::atomic::Ordering::Relaxed);
    host.post_fetch(&transfer(&keys, &linear(4))).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(answer(&mut operator, Client::post_stop), Status::Ok);
    let id = operator.post_resume().unwrap();
    let late = operator.wait(id, WAIT);
    assert!(late.is_err() || late.unwrap().status == Status::Draining);
    card.join().unwrap();
}

#[test]
fn a_host_steers_the_card_only_with_its_operators_leave() {
    let card = Card::start();
    let mut host = card.control();
    for post in [Client::post_drain, Client::post_resume, Client::post_stop] {
        assert_eq!(answer(&mut host, post), Status::Forbidden);
    }
    let error = {
        let id = host.post_stop().unwrap();
        host.wait(id, WAIT).unwrap().ok().unwrap_err()
    };
    assert!(error.to_string().contains("--allow-host-stop") && error.to_string().contains("--socket"), "{error}");
    assert_eq!(error.exit_code(), 4);
    assert_eq!(status(&mut host).value()["card"]["state"], "steady");

    let mut card = Card::start_with(doca_emulator::Config::default(), |config| config.allow_host_stop = true);
    let mut host = card.control();
    assert_eq!(answer(&mut host, Client::post_drain), Status::Ok);
    assert_eq!(answer(&mut host, Client::post_resume), Status::Ok);
    assert_eq!(answer(&mut host, Client::post_stop), Status::Ok);
    card.join().unwrap();
}
