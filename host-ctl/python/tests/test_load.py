"""The connector's two halves with a real dpu-app, without vLLM: many at once, and a card that stands still."""

from __future__ import annotations

import time

import kvlane
from kvlane.engine.link import Link
from kvlane.engine.options import Options
from kvlane.engine.scheduler import Scheduler
from kvlane.engine.sections import one_section
from kvlane.engine.worker import Worker

CHUNK, PAGE, PAGES, PROMPT = 64, 16, 64, 70
ROW = 2 * 16 * 2
GEOMETRY = kvlane.Geometry(2, 2, 16, "bf16", CHUNK)
FORM = kvlane.Form("token-major", PAGE, PAGES, PAGE * ROW, ROW, 32)
STEP, PATIENCE = 0.002, 60.0


def tokens(number):
    return [number // 250, number % 250, *range(PROMPT - 2)]


class Engine:
    """It admits what the scheduler half finds, and computes nothing."""

    def __init__(self, card, **options):
        options = Options(chunk_tokens=CHUNK, **options)
        memory = kvlane.register(GEOMETRY, [bytearray(2 * PAGES * PAGE * ROW) for _ in range(2)], FORM)
        links = [
            Link(name, lambda held=held: kvlane.attach(held, socket=card.socket), retry=0.1, retry_max=0.5)
            for name, held in (("scheduler", None), ("worker", memory))
        ]
        for link in links:
            link.connect()
        self.links, self.recipe = links, links[0].session.recipe
        self.scheduler = Scheduler(
            options, links[0], model="m", sections=one_section(GEOMETRY, PAGE), page_count=PAGES, ranks=1
        )
        self.scheduler.holds.hold = lambda pages: None
        self.worker = Worker(options, links[1], rank=0, sections=one_section(GEOMETRY, PAGE))
        self.waiting, self.loading, self.bad = [], set(), set()
        self.loaded, self.computed, self.arrived = 0, 0, 0

    def store(self, count):
        """In stores of a few chunks each, whatever the bytes."""
        session = self.links[1].session
        for first in range(0, count, 16):
            names = [
                kvlane.chunk_keys(tokens(number), model="m", geometry=GEOMETRY, recipe=self.recipe)
                for number in range(first, min(first + 16, count))
            ]
            session.store(b"".join(names), list(range(4 * len(names))))
            done = session.wait(PATIENCE)
            assert done is not None and done.chunks_done == len(names)

    def arrive(self, numbers):
        for number in numbers:
            self.arrived += 1
            self.scheduler.arrived(f"r{self.arrived}", tokens(number))
            self.waiting.append(f"r{self.arrived}")

    def step(self):
        for request in list(self.waiting):
            found = self.scheduler.matched(request, 0, PROMPT, 0)
            if found is not None:
                self.waiting.remove(request)
                self.computed += not found
            if found:
                self.loading.add(request)
                self.scheduler.allocated(request, [list(range(5))], 0, found)
        orders = self.scheduler.orders(0)
        for load in orders.loads:
            self.worker.load(load)
        results = self.worker.take(orders.wait)
        self.scheduler.heard(results.report)
        self.scheduler.received(results.received)
        self.loaded += len(results.received) if not results.bad_pages and not results.failed else 0
        self.bad |= results.bad_pages | results.failed
        self.loading -= results.received

    def run(self):
        until = time.monotonic() + PATIENCE
        while self.waiting or self.loading:
            assert time.monotonic() < until, f"{len(self.waiting)} wait, {len(self.loading)} are being loaded"
            self.step()
            time.sleep(STEP)

    def close(self):
        self.worker.shutdown()
        self.links[0].close().close(1.0)


def test_two_thousand_prefixes_at_once_are_loaded_without_an_error(card):
    engine = Engine(card, lookup_deadline_ms=20000.0)
    engine.store(2000)
    engine.arrive(range(2000))
    engine.run()
    assert (engine.loaded, engine.computed, engine.bad) == (2000, 0, set())
    assert not engine.scheduler.stats
    engine.close()


def test_a_card_that_stood_still_is_used_again_without_a_request_that_waits_for_it(card):
    engine = Engine(card, lookup_deadline_ms=300.0)
    engine.store(20)
    card.freeze()
    engine.arrive(range(10))
    engine.run()
    assert engine.computed == 10 and engine.scheduler.pending
    paid = engine.scheduler.stats["lookup_timeouts"]
    engine.arrive(range(10, 20))
    engine.run()
    assert engine.computed == 20 and engine.scheduler.stats["lookup_timeouts"] == paid, "nobody pays twice"
    card.thaw()
    until = time.monotonic() + PATIENCE
    while engine.scheduler.pending and time.monotonic() < until:
        engine.step()
    engine.arrive([0, 1])
    engine.run()
    assert engine.loaded == 2
    engine.close()
