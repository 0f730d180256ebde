//! The client against a card in this process: order, cutting, waiting, and cards that die, stall or lie.

use std::time::{Duration, Instant};

use block::{ChunkKey, ElementType, Geometry};
use host_ctl::{
    Arrangement, Client, Completion, Error, Gone, JOBS_MAX, Memory, Options, PageOrder, Route, Section, Transfer,
};
use mailbox::attach::{Farewell, Reason, Refuse};
use mailbox::{Operation, Status, Tokens};

use crate::fake::{FakeCard, Manner};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

fn geometry() -> Geometry {
    Geometry::new(3, 2, 4, 16, ElementType::Bf16).unwrap()
}

fn key(index: usize) -> ChunkKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    ChunkKey::new(bytes)
}

fn keys(count: usize) -> Vec<ChunkKey> {
    (0..count).map(key).collect()
}

fn memory(arrangement: Arrangement, chunks: usize) -> Memory {
    arrangement.allocate(geometry(), 4, chunks as u32 * 4).unwrap()
}

fn fill(memory: &Memory, seed: u8) {
    for region in &memory.regions {
        let bytes: Vec<u8> = (0..region.mapping.bytes()).map(|index| (index as u8).wrapping_mul(37) ^ seed).collect();
        region.mapping.write(0, &bytes);
    }
}

/// An element by its coordinates, through nothing but the layout's formula.
fn element(
    memory: &Memory,
    pages: &[u32],
    layer: usize,
    kind: usize,
    token: usize,
    head: usize,
    index: usize,
) -> [u8; 2] {
    let (form, base) = (&memory.form, memory.bases[2 * layer + kind]);
    let page_tokens = usize::from(form.page_tokens);
    let offset = base.offset
        + u64::from(pages[token / page_tokens]) * form.page_stride
        + (token % page_tokens) as u64 * form.token_stride
        + head as u64 * form.head_stride
        + 2 * index as u64;
    let mut bytes = [0; 2];
    memory.regions[usize::from(base.region)].mapping.read(offset as usize, &mut bytes);
    bytes
}

fn transfer<'a>(keys: &'a [ChunkKey], pages: &'a [u32]) -> Transfer<'a> {
    Transfer::new(keys, pages)
}

fn stored(client: &mut Client, keys: &[ChunkKey], pages: &[u32]) -> Completion {
    let id = client.post_store(&transfer(keys, pages)).unwrap();
    client.wait(id, LONG).unwrap().ok().unwrap()
}

#[test]
fn what_is_stored_from_one_arrangement_is_fetched_into_any_other() {
    let card = FakeCard::start(Manner::default());
    let keys = keys(5);
    for (seed, from) in Arrangement::ALL.into_iter().enumerate() {
        let source = memory(from, 5);
        fill(&source, seed as u8);
        let from_pages = PageOrder::Shuffled { seed: 3 }.table(20);
        let mut client = card.attach(Some(source.clone())).unwrap();
        // The card has these chunks of the arrangement before.
        let again = Transfer { again: true, ..transfer(&keys, &from_pages) };
        let id = client.post_store(&again).unwrap();
        assert_eq!(client.wait(id, LONG).unwrap().ok().unwrap().chunks_done, 5);
        client.close(SECOND).unwrap();
        for to in Arrangement::ALL {
            let target = memory(to, 6);
            // A table with holes: page 24 of 24 is never used.
            let to_pages: Vec<u32> = PageOrder::Shuffled { seed: 9 }.table(20).iter().map(|page| page + 3).collect();
            let mut client = card.attach(Some(target.clone())).unwrap();
            let id = client.post_fetch(&transfer(&keys, &to_pages)).unwrap();
            let completion = client.wait(id, LONG).unwrap();
            assert_eq!((completion.status, completion.chunks_done), (Status::Ok, 5));
            assert_eq!(completion.restored_bytes, 5 * geometry().chunk_bytes() as u64);
            for layer in 0..3 {
                for (kind, token, head, index) in [(0, 0, 0, 0), (1, 79, 1, 3), (0, 33, 1, 2), (1, 17, 0, 1)] {
                    let one = element(&source, &from_pages, layer, kind, token, head, index);
                    let other = element(&target, &to_pages, layer, kind, token, head, index);
                    assert_eq!(one, other, "{from:?} -> {to:?}, layer {layer}, token {token}");
                }
            }
        }
    }
}

#[test]
fn long_requests_are_cut_and_leading_counts_put_together_again() {
    for backwards in [false, true] {
        let card = FakeCard::start(Manner { backwards, chunks_max: 7, ..Manner::default() });
        let options = Options { part_chunks: Some(3), ..card.options.clone() };
        let keys = keys(40);
        let memory = memory(Arrangement::Vllm, 40);
        let pages = PageOrder::Linear.table(160);
        let mut client = card.attach_as(&options, Some(memory)).unwrap();
        assert_eq!(stored(&mut client, &keys, &pages).chunks_done, 40);
        assert_eq!(card.chunks(), 40);
        assert_eq!(card.commands(), 14, "13 parts of 3, one of 1");
        for hole in [39, 20, 4, 0] {
            card.forget(&keys[hole]);
            for operation in [Operation::Lookup, Operation::Fetch] {
                let id = match operation {
                    Operation::Lookup => client.post_lookup(&keys).unwrap(),
                    _ => client.post_fetch(&transfer(&keys, &pages)).unwrap(),
                };
                let completion = client.wait(id, LONG).unwrap();
                assert_eq!((completion.status, completion.chunks_done), (Status::Ok, hole), "{operation:?}");
                assert_eq!((completion.chunks_asked, client.outstanding()), (40, 0));
            }
        }
    }
}

#[test]
fn answers_that_come_backwards_find_their_requests() {
    let card = FakeCard::start(Manner { backwards: true, ..Manner::default() });
    let keys = keys(8);
    keys[..5].iter().for_each(|&key| card.put(key, Vec::new()));
    let mut client = card.attach(None).unwrap();
    let ids: Vec<_> = (1..=8).map(|count| client.post_lookup(&keys[..count]).unwrap()).collect();
    let status = client.post_status().unwrap();
    let mut order = Vec::new();
    while let Some(completion) = client.wait_any(LONG).unwrap() {
        if completion.id == status {
            assert!(completion.answer.starts_with("{\"card\""), "{}", completion.answer);
            continue;
        }
        let at = ids.iter().position(|&id| id == completion.id).unwrap();
        assert_eq!((completion.chunks_asked, completion.chunks_done), (at + 1, (at + 1).min(5)));
        order.push(at);
    }
    assert_eq!(order.len(), 8);
    assert!(!order.is_sorted(), "this card answers backwards: {order:?}");
}

#[test]
fn two_hundred_requests_share_the_page_and_the_next_is_back_pressure() {
    let card = FakeCard::start(Manner { requests_max: 3, ..Manner::default() });
    let keys = keys(4);
    keys.iter().for_each(|&key| card.put(key, Vec::new()));
    let mut client = card.attach(None).unwrap();
    let ids: Vec<_> = (0..JOBS_MAX).map(|_| client.post_lookup(&keys).unwrap()).collect();
    assert!(matches!(client.post_ping(), Err(Error::Full { limit: JOBS_MAX })));
    for id in ids {
        assert_eq!(client.wait(id, LONG).unwrap().chunks_done, 4);
    }
    let ping = client.post_ping().unwrap();
    assert_eq!(client.wait(ping, LONG).unwrap().status, Status::Ok);
}

#[test]
fn a_card_that_dies_is_an_error_with_advice_and_what_it_had_completed_counts() {
    let card = FakeCard::start(Manner { dies_after: Some(2), ..Manner::default() });
    let mut client = card.attach(None).unwrap();
    let first = client.post_ping().unwrap();
    assert_eq!(client.wait(first, LONG).unwrap().status, Status::Ok);
    let second = client.post_ping().unwrap();
    let since = Instant::now();
    let error = client.wait(second, LONG).unwrap_err();
    assert!(matches!(error, Error::CardGone(Gone::Died)), "{error:?}");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("start it"), "{error}");
    assert!(since.elapsed() < 5 * SECOND, "noticed late");
    assert!(matches!(client.post_ping(), Err(Error::CardGone(_))), "and stays so");
    assert!(matches!(client.poll(), Err(Error::CardGone(_))));
}

#[test]
fn a_card_that_says_why_it_leaves_is_quoted() {
    let manner = Manner { dies_after: Some(1), farewell: Some(Farewell::DeviceError), ..Manner::default() };
    let card = FakeCard::start(manner);
    let mut client = card.attach(None).unwrap();
    let id = client.post_ping().unwrap();
    let error = client.wait(id, LONG).unwrap_err();
    assert!(matches!(error, Error::CardGone(Gone::Left(Farewell::DeviceError))), "{error:?}");
}

#[test]
fn a_card_that_lies_loses_its_session() {
    let card = FakeCard::start(Manner { lies_after: Some(1), ignores: Some(Operation::Ping), ..Manner::default() });
    let mut client = card.attach(None).unwrap();
    let id = client.post_ping().unwrap();
    let error = client.wait(id, LONG).unwrap_err();
    assert!(matches!(error, Error::CardGone(Gone::Lied(_))), "{error:?}");
    assert_eq!(error.exit_code(), 4);
}

#[test]
fn a_silent_card_is_a_timeout_and_the_request_can_be_given_up() {
    let card = FakeCard::start(Manner { ignores: Some(Operation::Lookup), ..Manner::default() });
    let options = Options { part_chunks: Some(2), ..card.options.clone() };
    let mut client = card.attach_as(&options, None).unwrap();
    let id = client.post_lookup(&keys(9)).unwrap();
    let error = client.wait(id, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Timeout { what: "lookup", .. }), "{error:?}");
    assert_eq!(client.outstanding(), 1, "it goes on");
    client.cancel(id).unwrap();
    let completion = client.wait(id, LONG).unwrap();
    assert_eq!((completion.status, completion.chunks_done), (Status::Cancelled, 0));
    assert!(matches!(client.wait(id, SECOND), Err(Error::UnknownRequest { .. })));
    assert!(matches!(client.cancel(id), Err(Error::UnknownRequest { .. })));
    // The page is whole afterwards.
    let ping = client.post_ping().unwrap();
    assert_eq!(client.wait(ping, LONG).unwrap().status, Status::Ok);
}

#[test]
fn doorbells_wake_a_sleeping_card_and_a_sleeping_host() {
    let card = FakeCard::start(Manner::default());
    let mut client = card.attach(None).unwrap();
    for _ in 0..40 {
        // Longer than the card stays awake.
        std::thread::sleep(Duration::from_millis(8));
        let id = client.post_ping().unwrap();
        let completion = client.wait(id, LONG).unwrap();
        assert!(completion.elapsed < SECOND, "{:?}", completion.elapsed);
    }
    let (sleeps, late) = card.sleeps();
    assert!(sleeps >= 20, "{sleeps} sleeps");
    assert_eq!(late, 0, "lost wake-ups");
}

#[test]
fn a_refusal_names_its_reason() {
    for reason in Reason::ALL {
        let refuse = Refuse::new(reason, 3, 4);
        let card = FakeCard::start(Manner { refuses: Some(refuse), ..Manner::default() });
        let error = card.attach(Some(memory(Arrangement::Vllm, 1))).unwrap_err();
        assert!(matches!(error, Error::Refused(found) if found == refuse), "{error:?}");
        assert_eq!(error.exit_code(), 4);
    }
}

#[test]
fn a_mute_card_is_an_attach_timeout() {
    let card = FakeCard::start(Manner { mute: true, ..Manner::default() });
    let options = Options { timeout: Duration::from_millis(100), ..card.options.clone() };
    assert!(matches!(card.attach_as(&options, None), Err(Error::Timeout { what: "attach", .. })));
}

#[test]
fn another_recipe_than_asked_for_is_refused_here() {
    let card = FakeCard::start(Manner { recipe: "q5+deflate", ..Manner::default() });
    let asked = |recipe: &str| Options { recipe: Some(recipe.parse().unwrap()), ..card.options.clone() };
    let error = card.attach_as(&asked("lossless"), None).unwrap_err();
    assert!(matches!(error, Error::Recipe { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 4);
    // Keys depend on the transform, not on the codec.
    assert_eq!(card.attach_as(&asked("q5+lz4"), None).unwrap().card_facts().recipe.to_string(), "q5+deflate");
}

#[test]
fn words_of_a_welcome_that_cannot_be_are_not_believed() {
    for manner in [
        Manner { chunks_max: 0, ..Manner::default() },
        Manner { requests_max: 0, ..Manner::default() },
        Manner { recipe: "quantum", ..Manner::default() },
    ] {
        let card = FakeCard::start(manner);
        let error = card.attach(None).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error:?}");
    }
}

#[test]
fn requests_that_do_not_fit_the_session_are_refused_before_they_are_posted() {
    let card = FakeCard::start(Manner::default());
    let keys = keys(2);
    let mut control = card.attach(None).unwrap();
    let no_memory = control.post_fetch(&transfer(&keys, &[0, 1, 2, 3, 4, 5, 6, 7])).unwrap_err();
    assert_eq!(no_memory.exit_code(), 2);
    assert!(control.post_lookup(&[]).is_err());
    let mut client = card.attach(Some(memory(Arrangement::HeadMajor, 2))).unwrap();
    let clip = |start, end| Transfer { tokens: Tokens { start, end }, ..transfer(&keys, &[0, 1, 2, 3, 4, 5, 6, 7]) };
    for wrong in [
        transfer(&keys, &[0, 1, 2, 3]),
        transfer(&keys, &[0, 1, 2, 3, 4, 5, 6, 8]),
        clip(16, 32),
        clip(0, 16),
        clip(0, 33),
        clip(9, 9),
    ] {
        assert_eq!(client.post_fetch(&wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
    }
    assert_eq!(card.commands(), 0);
    assert!(client.post_fetch(&clip(15, 17)).is_ok());
}

#[test]
fn a_deadline_ends_a_transfer_that_waits_for_room() {
    let card = FakeCard::start(Manner { requests_max: 1, ignores: Some(Operation::Store), ..Manner::default() });
    let mut client = card.attach(Some(memory(Arrangement::Vllm, 2))).unwrap();
    let keys = keys(2);
    let pages = PageOrder::Linear.table(8);
    let stuck = client.post_store(&transfer(&keys, &pages)).unwrap();
    let deadline = Some(Duration::from_millis(30));
    let late = client.post_fetch(&Transfer { deadline, ..transfer(&keys, &pages) }).unwrap();
    let completion = client.wait(late, LONG).unwrap();
    assert_eq!((completion.status, completion.chunks_done), (Status::DeadlineExceeded, 0));
    client.cancel(stuck).unwrap();
    assert_eq!(client.wait(stuck, LONG).unwrap().status, Status::Cancelled);
}

#[test]
fn nobody_at_the_socket_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { route: Route::Socket(dir.path().join("none.sock")), ..Options::default() };
    let error = Client::attach(&options, None).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("is dpu-app running?"), "{error}");
}

#[test]
fn a_layout_that_cannot_be_is_refused_before_anybody_is_asked() {
    let mut wrong = memory(Arrangement::Vllm, 1);
    wrong.form.page_count += 1;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { route: Route::Socket(dir.path().join("none.sock")), ..Options::default() };
    assert_eq!(Client::attach(&options, Some(wrong)).unwrap_err().exit_code(), 2);
}

#[test]
fn a_client_may_move_to_another_thread() {
    fn moves<T: Send>() {}
    moves::<Client>();
}

#[test]
fn a_card_from_before_sections_is_told_apart_from_a_broken_one() {
    let refuses = Some(Refuse::new(Reason::Malformed, 0, 0));
    let card = FakeCard::start(Manner { refuses, ..Manner::default() });
    let one = memory(Arrangement::Vllm, 2);
    let section = Section { geometry: one.geometry, form: one.form, bases: one.bases.clone() };
    let two = Memory { further: vec![section], ..one.clone() };
    assert!(matches!(card.attach(Some(one)), Err(Error::Refused(_))));
    let error = card.attach(Some(two)).unwrap_err();
    assert!(matches!(error, Error::Sections { sections: 2 }) && error.exit_code() == 4, "{error}");
    assert!(error.to_string().ends_with("upgrade dpu-app on the card"), "{error}");
}
