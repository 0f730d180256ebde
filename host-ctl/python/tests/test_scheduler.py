"""What the connector's scheduler decides: hits, loads, saves, and which pages are held."""

from __future__ import annotations

from collections import Counter

import kvlane
import pytest
from fakes import FakeSession, Pool, linked
from kvlane.engine.options import Options
from kvlane.engine.scheduler import Scheduler
from kvlane.engine.sections import one_section
from kvlane.engine.words import Report

CHUNK, PAGE = 64, 16
GEOMETRY = kvlane.Geometry(2, 2, 16, "bf16", CHUNK)


def make(ranks=1, page_count=1000, **options):
    session, pool = FakeSession(), Pool()
    options = {"lookup_wait_ms": 0.0, **options}
    scheduler = Scheduler(
        Options(chunk_tokens=CHUNK, **options), linked(session), model="m", sections=one_section(GEOMETRY, PAGE),
        page_count=page_count, ranks=ranks,
    )  # fmt: skip
    scheduler.holds.hold, scheduler.holds.let_go = pool.hold, pool.let_go
    return scheduler, session, pool


def arrive(scheduler, session, tokens, found, request="a"):
    """A request comes and its look-up is answered."""
    before = set(session.posted)
    scheduler.arrived(request, list(range(tokens)))
    for number in set(session.posted) - before:
        session.complete(number, found)


def test_a_hit_is_none_until_the_card_answers_and_asking_again_posts_nothing():
    scheduler, session, _ = make()
    scheduler.arrived("a", list(range(200)))
    for _ in range(5):
        assert scheduler.matched("a", 0, 200, 0) is None
    assert len(session.posted) == 1
    session.complete(1, 2)
    assert scheduler.matched("a", 0, 200, 0) == 128
    assert scheduler.matched("a", 32, 200, 0) == 96
    assert len(session.posted) == 1


@pytest.mark.parametrize(
    ("tokens", "found", "computed", "hit"),
    [(200, 3, 0, 192), (192, 3, 0, 176), (193, 3, 0, 192), (65, 1, 0, 64), (64, 1, 0, 48), (200, 1, 64, 0), (200, 0, 0, 0)],
)
def test_the_last_token_is_left_to_compute_and_hits_are_whole_pages(tokens, found, computed, hit):
    scheduler, session, _ = make()
    arrive(scheduler, session, tokens, found)
    assert scheduler.matched("a", computed, tokens, 0) == hit


def test_prompts_shorter_than_a_chunk_ask_nobody():
    scheduler, session, _ = make()
    scheduler.arrived("a", list(range(63)))
    assert scheduler.matched("a", 0, 63, 0) == 0 and not session.posted


def test_a_load_names_whole_chunks_and_clips_what_the_engine_has():
    scheduler, session, _ = make()
    arrive(scheduler, session, 192, 3)
    assert scheduler.matched("a", 80, 192, 0) == 96
    scheduler.allocated("a", [list(range(100, 112))], 80, 96)
    (load,) = scheduler.orders().loads
    (part,) = load.parts
    assert (part.first_chunk, part.tokens, len(part.keys[0]) // 32) == (1, (16, 112), 2)
    assert part.pages == tuple(range(104, 112))
    assert part.wanted(PAGE) == tuple(range(105, 111))
    # The engine calls again after the load, with nothing to load; and nothing is loaded twice.
    scheduler.allocated("a", [list(range(100, 112))], 176, 0)
    assert scheduler.matched("a", 0, 192, 0) == 0
    assert not scheduler.orders().loads


def test_a_failed_load_is_not_tried_again_until_a_preemption():
    scheduler, session, _ = make()
    arrive(scheduler, session, 200, 3)
    scheduler.allocated("a", [list(range(13))], 0, scheduler.matched("a", 0, 200, 0))
    assert scheduler.matched("a", 0, 200, 0) == 0
    assert scheduler.matched("a", 0, 200, 1) is None
    session.complete(2, 1)
    assert scheduler.matched("a", 0, 200, 1) == 64


def test_a_card_that_does_not_answer_is_waited_for_once():
    scheduler, session, _ = make(lookup_deadline_ms=0.0)
    scheduler.arrived("a", list(range(200)))
    assert scheduler.matched("a", 0, 200, 0) == 0
    assert scheduler.stats["lookup_timeouts"] == 1
    scheduler.arrived("b", list(range(200)))
    assert scheduler.matched("b", 0, 200, 0) == 0, "nobody else waits for it"
    session.complete(1, 3)
    assert scheduler.matched("a", 0, 200, 0) == 0, "a late answer changes nothing"


def test_a_lost_card_answers_nothing_and_everything_goes_on():
    scheduler, session, _ = make()
    scheduler.arrived("a", list(range(200)))
    session.gone = True
    assert scheduler.matched("a", 0, 200, 0) == 0
    scheduler.scheduled("a", [list(range(13))], True, 200)
    assert not scheduler.orders().saves, "nobody knows what is stored"


def test_of_two_ranks_the_one_that_has_less_counts():
    scheduler, session, _ = make(ranks=2)
    scheduler.arrived("a", list(range(200)))
    session.complete(1, 3)
    assert scheduler.matched("a", 0, 200, 0) is None
    session.complete(2, 1)
    assert scheduler.matched("a", 0, 200, 0) == 64


def test_new_chunks_are_saved_once_as_prefill_completes_them():
    scheduler, session, pool = make()
    arrive(scheduler, session, 300, 1)
    assert scheduler.matched("a", 0, 300, 0) == 64
    scheduler.scheduled("a", [list(range(10))], True, 150)
    (save,) = scheduler.orders().saves
    assert save.pages == tuple(range(4, 8)) and pool.held == [4, 5, 6, 7]
    scheduler.scheduled("a", [list(range(10, 19))], False, 300)
    (second,) = scheduler.orders().saves
    assert second.pages == tuple(range(8, 16))
    scheduler.scheduled("a", [[]], False, 301)
    assert not scheduler.orders().saves
    scheduler.finished("a")
    assert pool.held == list(range(4, 16)), "pages outlive their request"
    scheduler.heard(Report(saved=Counter({save.job: 1, second.job: 1})))
    assert not pool.held and not scheduler.pending


def test_a_prefix_that_another_request_saves_is_not_saved_again():
    scheduler, session, _ = make()
    for request in ("a", "b"):
        arrive(scheduler, session, 200, 0, request)
        scheduler.matched(request, 0, 200, 0)
    scheduler.scheduled("a", [list(range(13))], True, 200)
    scheduler.scheduled("b", [list(range(20, 33))], True, 200)
    assert len(scheduler.orders().saves) == 1


def test_what_the_store_lost_or_refused_is_saved_by_the_next():
    scheduler, session, _ = make()
    for request in ("a", "b", "c"):
        arrive(scheduler, session, 200, 0, request)
        scheduler.matched(request, 0, 200, 0)
        scheduler.scheduled(request, [list(range(13))], True, 200)
        saves = scheduler.orders().saves
        assert len(saves) == 1, request
        # a: stored and evicted before b asks. b: refused after its first chunk.
        scheduler.heard(Report(saved=Counter({saves[0].job: 1}), unsaved={} if request == "a" else {saves[0].job: 1}))


def save_of(scheduler, session, request):
    """A request that nobody has stored is computed: its save, if one is ordered."""
    scheduler.arrived(request, [ord(request)] * 200)
    session.complete(len(session.posted), 0)
    scheduler.matched(request, 0, 200, 0)
    scheduler.scheduled(request, [list(range(13))], True, 200)
    return next(iter(scheduler.orders().saves), None)


def refused(save, why="no_space"):
    return Report(saved=Counter({save.job: 1}), unsaved={save.job: 0}, failed={save.job: why})


def test_a_full_store_is_not_asked_at_every_request(clock, log):
    scheduler, session, pool = make()
    scheduler.heard(refused(save_of(scheduler, session, "a")))
    assert save_of(scheduler, session, "b") is None and not pool.held
    assert scheduler.stats["save_refused_chunks"] == 3
    for index, pause in enumerate((1.0, 2.0, 4.0)):
        clock.now += 0.9 * pause
        assert save_of(scheduler, session, "cde"[index]) is None, "the pause doubles"
        clock.now += 0.1 * pause
        one = save_of(scheduler, session, "fgh"[index])
        assert one is not None, "one tries after each pause"
        assert save_of(scheduler, session, "ijk"[index]) is None, "one at a time"
        scheduler.heard(refused(one))
    clock.now += 8.0
    scheduler.heard(Report(saved=Counter({save_of(scheduler, session, "x").job: 1})))
    assert save_of(scheduler, session, "y") is not None, "there is room again"
    assert [line.split(":")[2].strip() for line in log()] == ["no_space", "over"], "said when it begins and when it ends"


def test_an_unanswered_save_lets_the_engine_sleep_and_is_heard_of(clock):
    scheduler, session, pool = make(idle_wait_max_s=16.0)
    save = save_of(scheduler, session, "a")
    scheduler.finished("a")
    looks = 0
    for _ in range(36000):
        assert scheduler.pending, "its pages come back whenever it ends"
        if scheduler.idle.left(clock.now) <= 0:
            looks += 1
            assert scheduler.orders(0).wait <= 0.002
        clock.now += 0.1
    assert looks < 250, "of an hour the engine sleeps all but some seconds"
    scheduler.orders(100)
    assert scheduler.idle.left(clock.now) < 0.01, "after work it looks soon again"
    scheduler.heard(Report(saved=Counter({save.job: 1})))
    assert not pool.held and not scheduler.pending and scheduler.orders(0).wait == 0.0


def test_saves_are_dropped_and_not_queued_when_the_card_is_behind():
    scheduler, session, pool = make(saves_max=1)
    for request in ("a", "b"):
        scheduler.arrived(request, [ord(request)] * 200)
        session.complete(len(session.posted), 0)
        scheduler.matched(request, 0, 200, 0)
        scheduler.scheduled(request, [list(range(13))], True, 200)
    assert len(scheduler.orders().saves) == 1 and len(pool.held) == 12
    assert scheduler.stats["save_dropped_chunks"] == 3
    small, session, pool = make(page_count=20)
    arrive(small, session, 200, 0)
    small.matched("a", 0, 200, 0)
    small.scheduled("a", [list(range(13))], True, 200)
    assert not pool.held, "more than a quarter of the pages is not held"


def test_pages_of_a_load_that_was_given_up_are_held_until_every_worker_has_let_go():
    scheduler, session, pool = make(ranks=2)
    scheduler.arrived("a", list(range(200)))
    for number in (1, 2):
        session.complete(number, 3)
    scheduler.allocated("a", [list(range(13))], 0, scheduler.matched("a", 0, 200, 0))
    (load,) = scheduler.orders().loads
    scheduler.heard(Report(given_up=Counter({load.job: 1})))
    scheduler.heard(Report(given_up=Counter({load.job: 1})))
    scheduler.received({"a"})
    assert pool.held == list(range(12))
    scheduler.heard(Report(let_go=Counter({load.job: 1})))
    assert pool.held == list(range(12))
    scheduler.heard(Report(let_go=Counter({load.job: 1})))
    assert not pool.held


def test_chunks_that_failed_to_load_are_saved_again_after_recomputation():
    scheduler, session, _ = make()
    arrive(scheduler, session, 200, 3)
    scheduler.allocated("a", [list(range(13))], 0, scheduler.matched("a", 0, 200, 0))
    (load,) = scheduler.orders().loads
    scheduler.heard(Report(short={load.job: 1}))
    scheduler.received({"a"})
    scheduler.scheduled("a", [list(range(13))], True, 200)
    (save,) = scheduler.orders().saves
    assert save.pages == tuple(range(4, 12))


def test_misspelt_options_are_errors():
    with pytest.raises(ValueError, match="chunk_token'"):
        Options.parse({"chunk_token": 64})
    assert Options().deadline(1024) == pytest.approx(2.1) and Options().deadline(10**7) == 30.0
