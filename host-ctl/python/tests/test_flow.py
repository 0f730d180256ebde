"""Scheduler and worker together, with an engine that only admits and a card that answers so much a step."""

from __future__ import annotations

import kvlane
from fakes import FakeSession, linked
from kvlane.engine.options import Options
from kvlane.engine.scheduler import Scheduler
from kvlane.engine.sections import one_section
from kvlane.engine.worker import Worker

CHUNK, PAGE, PROMPT = 64, 16, 200
SECTIONS = one_section(kvlane.Geometry(2, 2, 16, "bf16", CHUNK), PAGE)
SLOTS = 28
"""Of a session's page: what is posted beyond them has not reached the card."""


class Engine:
    def __init__(self, **options):
        options = Options(chunk_tokens=CHUNK, lookup_wait_ms=0.0, **options)
        self.asked, self.moved = FakeSession(), FakeSession()
        self.scheduler = Scheduler(
            options, linked(self.asked), model="m", sections=SECTIONS,
            page_count=10000, ranks=1,
        )  # fmt: skip
        self.worker = Worker(options, linked(self.moved), rank=0, sections=SECTIONS)
        self.waiting, self.loading, self.loaded, self.computed = [], set(), set(), set()
        self.failed = set()

    def arrive(self, count):
        for number in range(count):
            self.scheduler.arrived(f"r{number}", [number // 200, number % 200, *range(PROMPT - 2)])
            self.waiting.append(f"r{number}")

    def step(self, lookups, loads):
        """One step, in which the card answers so many of what it has been asked longest."""
        for request in list(self.waiting):
            found = self.scheduler.matched(request, 0, PROMPT, 0)
            if found is None:
                continue
            self.waiting.remove(request)
            if found:
                self.loading.add(request)
                self.scheduler.allocated(request, [list(range(13))], 0, found)
            else:
                self.computed.add(request)
        orders = self.scheduler.orders(0)
        for load in orders.loads:
            self.worker.load(load)
        assert self.asked.outstanding <= SLOTS and self.moved.outstanding <= SLOTS, "the card has all that has a deadline"
        self._answer(self.asked, lookups)
        self._answer(self.moved, loads)
        results = self.worker.take(0.0)
        self.scheduler.heard(results.report)
        self.scheduler.received(results.received)
        self.failed |= results.failed
        self.loaded |= results.received if not results.bad_pages else set()
        self.loading -= results.received

    @staticmethod
    def _answer(session, count):
        answered = session.outstanding and len(session.posted) - session.outstanding
        for number in list(session.posted)[answered : answered + min(count, session.outstanding)]:
            session.complete(number, 3)


def test_two_thousand_at_once_are_all_loaded(clock):
    engine = Engine()
    engine.arrive(2000)
    steps = 0
    while engine.waiting or engine.loading:
        engine.step(lookups=16, loads=4)
        clock.now += 0.05
        steps += 1
        assert steps < 10000
    assert len(engine.loaded) == 2000 and not engine.computed and not engine.failed
    assert not engine.scheduler.stats, engine.scheduler.stats
    assert set(engine.worker.stats) == {"fetched_bytes", "wire_bytes", "hit_tokens"}


def test_a_load_that_nobody_answered_is_paid_for_by_those_under_way(clock):
    engine = Engine(load_deadline_s=1.0, load_grace_s=0.5)
    engine.arrive(20)
    engine.step(lookups=24, loads=0)
    engine.step(lookups=24, loads=0)
    under_way = set(engine.loading)
    assert len(under_way) == 8
    clock.now += 1.6
    engine.step(lookups=0, loads=0)
    assert engine.failed == under_way
    engine.step(lookups=0, loads=0)
    assert not engine.waiting and len(engine.computed) == 12, "nobody else waits for this card"
    assert engine.scheduler.pending, "their pages come back some day"
