"""What the connector's worker reports when loads end well, short, late, or with the card."""

from __future__ import annotations

import time

import kvlane
import pytest
from fakes import FakeSession, linked
from kvlane.engine.options import Options
from kvlane.engine.sections import one_section
from kvlane.engine.words import Load, Part, Save
from kvlane.engine.worker import Worker

CHUNK, PAGE = 64, 16
SECTIONS = one_section(kvlane.Geometry(2, 2, 16, "bf16", CHUNK), PAGE)


def make(**options):
    session = FakeSession()
    return Worker(Options(**options), linked(session), rank=0, sections=SECTIONS), session


def load(job=1, chunks=3, tokens=None, deadline=60.0, recipe="lossless"):
    pages = tuple(range(100, 100 + 4 * chunks))
    tokens = tokens or (0, chunks * CHUNK)
    part = Part(job, (b"k" * 32 * chunks,), pages, tokens, 0)
    return Load(job, f"r{job}", recipe, deadline, tokens[1] - tokens[0], (part,))


def save(job=9, chunks=2):
    return Save(job, f"r{job}", "lossless", (b"k" * 32 * chunks,), tuple(range(4 * chunks)), 60.0, 0)


def settled(worker):
    """Results once the session's end was waited for beside the engine's thread."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        results = worker.take()
        if results.received or results.report:
            return results
        time.sleep(0.001)
    raise AssertionError("nothing came")


def test_a_whole_load_is_received_without_bad_pages():
    worker, session = make()
    worker.load(load(tokens=(16, 176)))
    assert session.posted[1][3] == (16, 176)
    assert not worker.take().received
    session.complete(1)
    results = worker.take()
    assert results.received == {"r1"} and not results.bad_pages and not results.failed
    assert worker.stats["hit_tokens"] == 160 and worker.fetch_seconds == [0.01]


def test_pages_behind_the_leading_chunks_are_bad():
    worker, session = make()
    worker.load(load(tokens=(16, 176)))
    session.complete(1, chunks=1, status="corrupt")
    results = worker.take()
    assert results.received == {"r1"} and results.bad_pages == set(range(104, 111))
    assert results.report.short == {1: 1} and worker.stats["load_corrupt"] == 1
    worker.load(load(job=2, tokens=(16, 176)))
    session.complete(2, chunks=0)
    assert worker.take().bad_pages == set(range(101, 111)), "the engine's own page is not among them"


def test_without_a_card_a_load_fails_at_once():
    worker, session = make()
    session.gone = True
    worker.load(load())
    results = settled(worker)
    assert results.received == {"r1"} and results.bad_pages == set(range(100, 112))
    worker.load(load(job=2, recipe="q5+deflate"))
    assert worker.take().received == {"r2"}


def test_a_silent_card_is_given_up_and_its_pages_are_let_go_when_it_answers():
    worker, session = make(load_grace_s=0.0)
    worker.load(load(deadline=0.0))
    results = worker.take()
    assert results.received == results.failed == {"r1"} and not results.bad_pages
    assert results.report.given_up == {1: 1} and not results.report.let_go
    assert not worker.take().report, "given up once"
    session.complete(1, status="deadline_exceeded", chunks=0)
    results = worker.take()
    assert results.report.let_go == {1: 1} and not results.received, "the request is over already"


def test_a_lost_card_ends_its_loads_and_saves_when_it_has_let_go():
    worker, session = make()
    worker.load(load())
    worker.save(save())
    session.gone = True
    results = settled(worker)
    assert results.received == {"r1"} and results.bad_pages == set(range(100, 112))
    assert results.report.saved == {9: 1} and results.report.unsaved == {9: 0}


def test_a_lost_card_that_did_not_let_go_keeps_its_pages():
    worker, session = make(load_grace_s=0.05)
    session.lets_go = False
    worker.load(load(deadline=0.0))
    worker.save(save())
    session.gone = True
    results = settled(worker)
    assert results.report.given_up == {1: 1} and results.failed == {"r1"} and not results.bad_pages
    time.sleep(0.1)
    assert not worker.take().report, "neither saved nor let go"


def test_saves_end_with_what_was_stored():
    worker, session = make()
    worker.save(save())
    session.complete(1, chunks=1, status="no_space")
    results = worker.take()
    assert results.report.saved == {9: 1} and results.report.unsaved == {9: 1}
    assert worker.stats["save_no_space"] == 1 and worker.stats["saved_chunks"] == 1


def test_an_idle_step_sleeps_whether_something_is_in_flight_or_not():
    worker, _ = make()
    for _ in range(2):
        began = time.monotonic()
        assert not worker.take(0.02).report
        assert time.monotonic() - began >= 0.02
        worker.save(save())


def test_a_load_says_how_long_the_card_worked_on_nothing_older(clock):
    worker, session = make()
    worker.load(load(job=1))
    worker.load(load(job=2))
    clock.now += 10.0
    session.complete(1, seconds=0.3)
    session.complete(2, chunks=1, status="deadline_exceeded", seconds=0.5)
    results = worker.take()
    assert results.report.restored[1] == (3 * CHUNK, pytest.approx(0.3))
    assert results.report.restored[2] == (CHUNK, pytest.approx(0.2)), "it waited for the first"
    assert results.report.failed == {2: "deadline_exceeded"}


def test_a_load_that_was_given_up_was_slow(clock):
    worker, _ = make(load_grace_s=0.5)
    worker.load(load(deadline=1.0))
    clock.now += 1.6
    results = worker.take()
    assert results.report.restored == {1: (0, pytest.approx(1.6))} and results.report.failed == {1: "given_up"}
