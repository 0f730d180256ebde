//! Sessions that fetch one prefix at one time have it read, inflated and dequantized once, and it is written to the
//! pages of all of them; nobody is hurt by what becomes of another.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::dying::dying_host;
use crate::rig::*;
use block::ChunkKey;
use doca_emulator::FlipWay;
use dpu_app::Verify;
use host_ctl::{Arrangement, CardStatus, Client, Completion, Memory, RequestId, Route, Transfer};
use mailbox::{Status, Tokens};

const MEMBERS: usize = 8;
const CHUNKS: usize = 24;
/// More than one window of records, which has 36 chunks of four pages.
const LONG: usize = 80;
const RECIPES: [&str; 4] = ["lossless", "q5", "lossless+raw", "q4p+lz4"];

fn card(change: impl FnOnce(&mut dpu_app::Config)) -> Card {
    Card::start_with(doca_emulator::Config::default(), change)
}

/// A host with memory of its own.
struct Member {
    host: Client,
    memory: Memory,
}

impl Member {
    fn new(card: &Card, recipe: &str, arrangement: Arrangement, chunks: usize) -> Self {
        let memory = empty(arrangement, geometry(), chunks);
        Self { host: card.attach(recipe, memory.clone()), memory }
    }

    fn post(&mut self, keys: &[ChunkKey]) -> RequestId {
        self.host.post_fetch(&transfer(keys, &linear(keys.len()))).unwrap()
    }

    fn wait(&mut self, id: RequestId) -> Completion {
        self.host.wait(id, WAIT).unwrap()
    }

    fn content(&self, chunks: usize) -> Vec<u8> {
        logical(&self.memory, &linear(chunks))
    }
}

fn members(card: &Card, recipe: &str, chunks: usize) -> Vec<Member> {
    (0..MEMBERS).map(|_| Member::new(card, recipe, Arrangement::Vllm, chunks)).collect()
}

/// Bytes that have gone through each stage that is to work once: out of the store, into the engine, into tiles.
fn work(card: &Card) -> [u64; 3] {
    let status: CardStatus = card.status();
    let stage = |name: &str, way: &str| status.value()["stages"][name][way].as_u64().unwrap();
    [stage("fetch", "bytes_out"), stage("inflate", "bytes_in"), stage("dequantize", "bytes_out")]
}

fn worked(card: &Card, during: impl FnOnce()) -> [u64; 3] {
    let before = work(card);
    during();
    let after = work(card);
    [0, 1, 2].map(|stage| after[stage] - before[stage])
}

/// Has all reads of a chunk hang until `joined` more chunks have joined.
fn until_joined(card: &Card, joined: u64, since: u64) {
    let until = Instant::now() + WAIT;
    while card.counter("chunks_joined") < since + joined {
        assert!(Instant::now() < until, "{} of {joined} have joined", card.counter("chunks_joined") - since);
        thread::sleep(Duration::from_millis(2));
    }
    card.store.let_go();
}

fn hang_at(card: &Card, key: ChunkKey) -> u64 {
    *card.store.key_to_hang.lock().unwrap() = Some(key);
    card.counter("chunks_joined")
}

/// What one session gets that nobody joins: the truth for a recipe that loses something.
fn truth(card: &Card, recipe: &str, keys: &[ChunkKey]) -> Vec<u8> {
    let mut member = Member::new(card, recipe, Arrangement::Vllm, keys.len());
    let id = member.post(keys);
    assert_eq!(member.wait(id).chunks_done, keys.len());
    member.content(keys.len())
}

#[test]
fn eight_sessions_cost_what_one_costs() {
    // One fetch worker, which hangs until all have asked: who asks first has not read ahead then.
    let card = card(|config| (config.block_bytes, config.fetch_workers) = (4 << 10, 1));
    for (salt, recipe) in RECIPES.into_iter().enumerate() {
        for chunks in [CHUNKS, LONG] {
            let (keys, _) = stored(&card, recipe, salt as u8, chunks);
            let mut right = Vec::new();
            let one = worked(&card, || right = truth(&card, recipe, &keys));
            let mut team = members(&card, recipe, chunks);
            let all = worked(&card, || {
                let since = hang_at(&card, keys[0]);
                let posted: Vec<_> = team.iter_mut().map(|member| member.post(&keys)).collect();
                until_joined(&card, MEMBERS as u64 - 1, since);
                for (member, id) in team.iter_mut().zip(posted) {
                    let done = member.wait(id);
                    assert_eq!((done.status, done.chunks_done), (Status::Ok, chunks), "{recipe}");
                    assert_eq!(done.restored_bytes as usize, right.len());
                }
            });
            for (place, member) in team.iter().enumerate() {
                assert!(member.content(chunks) == right, "{recipe}: what member {place} has");
            }
            let ratio = [0, 1, 2].map(|stage| all[stage] as f64 / one[stage].max(1) as f64);
            println!("{recipe}, {chunks} chunks: {ratio:.3?} of one session's work");
            assert!(ratio.iter().all(|ratio| *ratio < 1.1), "{recipe}, {chunks} chunks: {ratio:.3?}");
            team.into_iter().for_each(|member| member.host.close(WAIT).unwrap());
        }
    }
    card.await_empty();
    assert_eq!(card.counter("chunks_failed"), 0);
}

#[test]
fn where_it_is_off_each_session_reads_for_itself() {
    let card = card(|config| config.join = false);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let mut team = members(&card, "lossless", CHUNKS);
    let reads = card.store.reads.load(Relaxed);
    let posted: Vec<_> = team.iter_mut().map(|member| member.post(&keys)).collect();
    for (member, id) in team.iter_mut().zip(posted) {
        assert_eq!(member.wait(id).chunks_done, CHUNKS);
        assert!(member.content(CHUNKS) == content);
    }
    assert_eq!(card.store.reads.load(Relaxed) - reads, (MEMBERS * CHUNKS * 4) as u64);
    assert_eq!(card.counter("chunks_joined"), 0);
}

/// Pages of other sizes, other regions and other tokens join; pages of another order of heads do not.
#[test]
fn whoever_joins_has_what_it_asked_for() {
    let card = card(|config| config.block_bytes = 4 << 10);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let rows = geometry().row_bytes();
    let chunk_tokens = u32::from(CHUNK_TOKENS);
    let end = CHUNKS as u32 * chunk_tokens;
    let asked = [
        (Arrangement::Vllm, 16, 0, end),
        (Arrangement::Contiguous, 16, 33, end),
        (Arrangement::VllmJoint, 32, 63, end - 1),
        (Arrangement::Vllm, 8, 16, end - 48),
        (Arrangement::HeadMajor, 16, 0, end),
        (Arrangement::HeadMajor, 16, 5, end - 20),
    ];
    let since = hang_at(&card, keys[0]);
    let mut team = Vec::new();
    for (arrangement, page_tokens, start, end) in asked {
        let pages = CHUNKS as u32 * chunk_tokens / u32::from(page_tokens);
        let memory: Memory = arrangement.allocate(geometry(), page_tokens, pages).unwrap();
        let mut host = card.attach("lossless", memory.clone());
        let pages: Vec<u32> = (0..pages).rev().collect();
        let tokens = Tokens { start, end };
        let id = host.post_fetch(&Transfer { tokens, ..transfer(&keys, &pages) }).unwrap();
        team.push((host, memory, pages, id));
    }
    // Three behind the first of four, and one behind the first of two.
    until_joined(&card, 4, since);
    for ((host, memory, pages, id), (arrangement, page_tokens, start, end)) in team.iter_mut().zip(asked) {
        let done = host.wait(*id, WAIT).unwrap();
        assert_eq!((done.status, done.chunks_done), (Status::Ok, CHUNKS), "{arrangement:?} {page_tokens}");
        let found = logical(memory, pages);
        let tokens = CHUNKS * usize::from(CHUNK_TOKENS);
        for (row, (found, right)) in found.chunks(rows).zip(content.chunks(rows)).enumerate() {
            let token = (row % tokens) as u32;
            match (start..end).contains(&token) {
                true => assert!(found == right, "{arrangement:?} {page_tokens}: token {token}"),
                false => assert!(found.iter().all(|byte| *byte == 0), "{arrangement:?} {page_tokens}: token {token}"),
            }
        }
    }
    drop(team);
    card.await_empty();
}

#[test]
fn one_order_of_heads_does_not_join_another() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(300, Relaxed);
    let mut team = [Arrangement::Vllm, Arrangement::HeadMajor]
        .map(|arrangement| Member::new(&card, "lossless", arrangement, CHUNKS));
    let posted = team.each_mut().map(|member| member.post(&keys));
    for (member, id) in team.iter_mut().zip(posted) {
        assert_eq!(member.wait(id).chunks_done, CHUNKS);
        assert!(member.content(CHUNKS) == content);
    }
    assert_eq!(card.counter("chunks_joined"), 0);
}

/// All members at chunk 0, which hangs; `act` happens; the rest go on and have it all. `leader`: whether it concerns
/// the one that reads.
fn with_one_that(leads: bool, act: impl FnOnce(&Card, &mut Member, RequestId)) -> (Card, Member) {
    let card = card(|config| config.block_bytes = 4 << 10);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let mut team = members(&card, "lossless", CHUNKS);
    let since = hang_at(&card, keys[0]);
    let mut posted = Vec::new();
    let mut odd = team.remove(0);
    let mut id = None;
    if leads {
        id = Some(odd.post(&keys));
        let until = Instant::now() + WAIT;
        while card.store.seats() == 0 {
            assert!(Instant::now() < until, "it starts");
        }
    }
    posted.extend(team.iter_mut().map(|member| member.post(&keys)));
    let id = id.unwrap_or_else(|| odd.post(&keys));
    let until = Instant::now() + WAIT;
    while card.counter("chunks_joined") < since + MEMBERS as u64 - 1 {
        assert!(Instant::now() < until, "they join");
    }
    act(&card, &mut odd, id);
    card.store.let_go();
    for (member, id) in team.iter_mut().zip(posted) {
        let done = member.wait(id);
        assert_eq!((done.status, done.chunks_done), (Status::Ok, CHUNKS));
        assert!(member.content(CHUNKS) == content);
    }
    team.into_iter().for_each(|member| member.host.close(WAIT).unwrap());
    (card, odd)
}

#[test]
fn one_that_is_cancelled_harms_nobody_and_nothing_is_written_to_it_after_the_answer() {
    for leads in [true, false] {
        let mut answered = Vec::new();
        let (card, odd) = with_one_that(leads, |_, odd, id| {
            odd.host.cancel(id).unwrap();
            let done = odd.wait(id);
            assert_eq!((done.status, done.chunks_done), (Status::Cancelled, 0), "leads: {leads}");
            answered = bytes_of(&odd.memory);
        });
        assert!(bytes_of(&odd.memory) == answered, "written to after the answer, leads: {leads}");
        drop(odd);
        card.await_empty();
    }
}

#[test]
fn one_that_reads_no_completions_or_leaves_harms_nobody() {
    for leads in [true, false] {
        let (card, odd) = with_one_that(leads, |_, _, _| ());
        drop(odd);
        card.await_empty();
    }
    for leads in [true, false] {
        let gone = std::cell::RefCell::new(None);
        let (card, odd) = with_one_that(leads, |card, odd, _| {
            // Says good-bye in the middle; the card lets go of its memory when nothing moves there.
            let fresh = Member::new(card, "lossless", Arrangement::Vllm, 1);
            let left = std::mem::replace(odd, fresh);
            gone.replace(Some(thread::spawn(move || drop(left))));
        });
        gone.take().unwrap().join().unwrap();
        drop(odd);
        card.await_empty();
    }
}

#[test]
fn a_deadline_of_a_millisecond_is_one_members_own() {
    let card = card(|config| config.block_bytes = 4 << 10);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    for hasty in [0, 5] {
        let mut team = members(&card, "lossless", CHUNKS);
        let pages = linear(CHUNKS);
        let since = hang_at(&card, keys[3]);
        let posted = team.iter_mut().enumerate().map(|(place, member)| {
            let deadline = (place == hasty).then_some(Duration::from_millis(1));
            member.host.post_fetch(&Transfer { deadline, ..transfer(&keys, &pages) }).unwrap()
        });
        let posted: Vec<_> = posted.collect();
        let answered = team[hasty].wait(posted[hasty]);
        assert_eq!(answered.status, Status::DeadlineExceeded);
        assert!(answered.elapsed < Duration::from_millis(300), "{:?}", answered.elapsed);
        let before = bytes_of(&team[hasty].memory);
        until_joined(&card, 1, since);
        for (place, member) in team.iter_mut().enumerate().filter(|(place, _)| *place != hasty) {
            let done = member.wait(posted[place]);
            assert_eq!((done.status, done.chunks_done), (Status::Ok, CHUNKS), "member {place}");
            assert!(member.content(CHUNKS) == content);
        }
        assert!(bytes_of(&team[hasty].memory) == before, "written to after the answer");
        drop(team);
        card.await_empty();
    }
}

#[test]
fn a_damaged_block_is_reported_by_nobody_as_loaded() {
    let card = card(|config| config.block_bytes = 4 << 10);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let good = card.store.chunk(&keys[5]).unwrap();
    let mut blocks = good.blocks.clone();
    let middle = blocks[3].len() / 2;
    blocks[3][middle] ^= 0x10;
    card.store.replace(keys[5], Chunk { manifest: good.manifest.clone(), blocks });
    let mut team = members(&card, "lossless", CHUNKS);
    let since = hang_at(&card, keys[0]);
    let posted: Vec<_> = team.iter_mut().map(|member| member.post(&keys)).collect();
    until_joined(&card, MEMBERS as u64 - 1, since);
    let mut corrupt = 0;
    for (member, id) in team.iter_mut().zip(posted) {
        let done = member.wait(id);
        assert!(matches!(done.status, Status::Corrupt | Status::Ok), "{:?}", done.status);
        corrupt += usize::from(done.status == Status::Corrupt);
        assert_eq!(done.chunks_done, 5);
        for index in 0..5 {
            let found = chunk_of(&member.content(CHUNKS), geometry(), CHUNKS, index);
            assert!(found == chunk_of(&content, geometry(), CHUNKS, index));
        }
    }
    assert!(corrupt >= 1, "who read it says so");
    assert!(card.store.chunk(&keys[5]).is_none(), "it has left the store");
    drop(team);
    card.await_empty();
}

#[test]
fn what_a_bus_flips_on_its_way_to_one_of_them_is_found_there() {
    let seed = 0x5eed_0170;
    println!("seed {seed:#x}");
    let emulator = doca_emulator::Config {
        seed: Some(seed),
        dma_flip: 0.1,
        dma_flip_way: FlipWay::ToHost,
        dma_flip_bytes: 16 << 10,
        ..Default::default()
    };
    let card = Card::start_with(emulator, |config| config.verify_dma = Verify::All);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let mut team = members(&card, "lossless", CHUNKS);
    let since = hang_at(&card, keys[0]);
    let posted: Vec<_> = team.iter_mut().map(|member| member.post(&keys)).collect();
    until_joined(&card, MEMBERS as u64 - 1, since);
    let mut whole = 0;
    for (member, id) in team.iter_mut().zip(posted) {
        let done = member.wait(id);
        assert!(matches!(done.status, Status::Ok | Status::DeviceError), "{:?}", done.status);
        whole += usize::from(done.chunks_done == CHUNKS);
        for index in 0..done.chunks_done {
            let found = chunk_of(&member.content(CHUNKS), geometry(), CHUNKS, index);
            assert!(found == chunk_of(&content, geometry(), CHUNKS, index), "chunk {index} is reported and wrong");
        }
    }
    let status = card.status();
    println!("{whole} whole, {} differed", counter(&status, "blocks_differed"));
    assert!(counter(&status, "blocks_differed") > 50 && counter(&status, "blocks_shared") > 100);
    drop(team);
    card.await_empty();
}

#[test]
fn a_member_that_is_killed_in_mid_flight_harms_nobody() {
    let card = card(|config| config.block_bytes = 4 << 10);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    card.store.read_delay_us.store(300, Relaxed);
    let Route::Comch { name } = &card.comch else { unreachable!("cards of tests have Comch") };
    for round in 0..6_u64 {
        let mut child = dying_host(name.as_ref(), CHUNKS);
        let mut team = members(&card, "lossless", CHUNKS);
        let posted: Vec<_> = team.iter_mut().map(|member| member.post(&keys)).collect();
        thread::sleep(Duration::from_millis(3 + round * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        for (member, id) in team.iter_mut().zip(posted) {
            let done = member.wait(id);
            assert_eq!((done.status, done.chunks_done), (Status::Ok, CHUNKS), "round {round}");
            assert!(member.content(CHUNKS) == content);
        }
        team.into_iter().for_each(|member| member.host.close(WAIT).unwrap());
    }
    card.await_empty();
    let status = card.status();
    assert!(counter(&status, "sessions_lost") >= 6 && counter(&status, "chunks_joined") > 0);
}
