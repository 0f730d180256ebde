//! Sessions take turns: a short fetch passes a long one.

use crate::rig::*;
use host_ctl::Arrangement;

const LONG: usize = 48;
const TRIES: usize = 5;

#[test]
fn a_short_fetch_does_not_wait_for_what_a_long_one_has_queued() {
    // Engines that take a millisecond for a block, and one block at a time: everything else waits for them.
    let emulator = doca_emulator::Config { timing: true, task_ns: 1_000_000, depth: 1, ..Default::default() };
    let card = Card::start_with(emulator, |config| {
        config.block_bytes = 4 << 10;
        (config.chunks, config.sessions) = (4, 4);
    });
    let (long, _) = stored(&card, "lossless", 1, LONG);
    let (short, content) = stored(&card, "lossless", 2, 1);
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), LONG));
    let target = empty(Arrangement::Vllm, geometry(), 1);
    let mut other = card.attach("lossless", target.clone());
    let (long_pages, short_pages) = (linear(LONG), linear(1));
    let shares = (0..TRIES).map(|_| {
        let id = host.post_fetch(&transfer(&long, &long_pages)).unwrap();
        let done = fetch(&mut other, &short, &short_pages);
        assert_eq!((done.chunks_done, logical(&target, &short_pages) == content), (1, true));
        let all = host.wait(id, WAIT).unwrap();
        assert_eq!(all.chunks_done, LONG);
        done.elapsed.as_secs_f64() / (all.elapsed.as_secs_f64() / LONG as f64)
    });
    // 16 blocks of one and of the other in turn, behind the 6 that the engine had, which is less than 3 chunks' time.
    // By age it would be that of the 4 that had seats, and its own. The best of some, since a busy machine disturbs
    // both, but not alike.
    let share = shares.fold(f64::INFINITY, f64::min);
    assert!(share < 4.0, "a chunk of the short fetch took as long as {share:.1} of the long one");
}
