"""Posts what the scheduler ordered, polls, and says how it went. Knows no tensor and no vLLM class.

A load ends in one of three ways: all of it is in place; a leading part is (the rest of its pages is reported as bad); or the
card does not answer, and it is given up: the engine recomputes into other pages while these stay held until the card has
answered or is known to be gone. A page is never given away while somebody may still write it.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import Any

from .. import KEY_BYTES
from .._kvlane import CardGone, KvlaneError
from .link import Link
from .options import Options
from .words import Load, Report, Save

CLOSE_TIMEOUT = 10.0
"""How long a card that broke the rules has to let go of the memory."""


@dataclass
class Flight:
    order: Load | Save
    posted_at: float
    until: float
    given_up: bool = False


@dataclass
class Results:
    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    """Received, and nothing of it may be used: not even pages that were right."""
    bad_pages: set[int] = field(default_factory=set)
    report: Report = field(default_factory=Report)


class Worker:
    def __init__(self, options: Options, link: Link, *, rank: int, page_tokens: int, chunk_tokens: int) -> None:
        self.options, self.link, self.rank = options, link, rank
        self.page_tokens, self.chunk_tokens = page_tokens, chunk_tokens
        self.stats: Counter[str] = Counter()
        self.fetch_seconds: list[float] = []
        self._flights: dict[tuple[int, int], Flight] = {}
        self._closing: list[tuple[Future[bool], int]] = []
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="kvlane-close")
        self._results = Results()
        self._idle_at = 0.0
        """When the card last ended a load: what it works on next it began then, or when it was posted."""

    def load(self, load: Load) -> None:
        session = self.link.session
        if session is None or session.recipe != load.recipe:
            return self._fail_load(load, "load_card_gone")
        now = time.monotonic()
        try:
            number = session.fetch(
                load.keys[self.rank], list(load.pages), tokens=load.tokens, deadline=load.deadline
            )
        except KvlaneError as error:
            self._fail_load(load, "load_card_gone" if isinstance(error, CardGone) else "load_errors")
            return self._lost(session, error)
        self._flights[id(session), number] = Flight(load, now, now + load.deadline + self.options.load_grace_s)

    def save(self, save: Save) -> None:
        session = self.link.session
        if session is None or session.recipe != save.recipe:
            return self._end_save(save, 0, "card_gone")
        try:
            keys = save.keys[self.rank]
            importance = self.options.importances(save.first_chunk, len(keys) // KEY_BYTES)
            number = session.store(keys, list(save.pages), importance=importance, deadline=save.deadline)
        except KvlaneError as error:
            self._end_save(save, 0, "card_gone" if isinstance(error, CardGone) else "not_taken")
            return self._lost(session, error)
        self._flights[id(session), number] = Flight(save, time.monotonic(), float("inf"))

    def take(self, wait: float = 0.0) -> Results:
        """What happened since the last call; waits up to `wait` seconds if nothing has."""
        self._poll(0.0)
        if wait > 0 and not (self._results.received or self._results.report):
            began = time.monotonic()
            self._poll(wait)
            # With nothing in flight of this session nothing was waited for: the engine shall not spin all the same.
            if not (self._results.received or self._results.report):
                time.sleep(max(0.0, wait - (time.monotonic() - began)))
        self._closed()
        self._give_up(time.monotonic())
        results, self._results = self._results, Results()
        return results

    def shutdown(self) -> None:
        """The engine frees its memory next: the card must be done with it."""
        session = self.link.close()
        if session is not None:
            session.close(CLOSE_TIMEOUT)
        self._closer.shutdown(wait=True)

    def let_go(self) -> bool:
        """The memory goes, and no session comes before another link does. False while a card may still touch it."""
        if (session := self.link.close()) is not None:
            self._close(session)
        self.link.join(CLOSE_TIMEOUT)
        wait_for([future for future, _ in self._closing], CLOSE_TIMEOUT)
        self._closed()
        return not self._flights

    def drop(self, save: Save) -> None:
        """A save whose pages are not read any more."""
        self._end_save(save, 0, "cancelled")

    def _poll(self, wait: float) -> None:
        session = self.link.session
        if session is None:
            return
        try:
            done = session.wait(wait) if wait > 0 else session.poll()
            while done is not None:
                self._done(session, done)
                done = session.poll()
        except KvlaneError as error:
            self._lost(session, error)

    def _done(self, session: Any, done: Any) -> None:
        flight = self._flights.pop((id(session), done.id), None)
        if flight is None:
            return
        order = flight.order
        if isinstance(order, Save):
            self.stats["saved_chunks"] += done.chunks_done
            self.stats["saved_wire_bytes"] += done.wire_bytes
            if not done.ok:
                self.stats[f"save_{done.status}"] += 1
            return self._end_save(order, done.chunks_done, "not_stored" if done.ok else done.status)
        if flight.given_up:
            self._results.report.let_go[order.job] += 1
            return
        self.stats["fetched_bytes"] += done.restored_bytes
        self.stats["wire_bytes"] += done.wire_bytes
        self.fetch_seconds.append(done.elapsed_seconds)
        self._restored(flight, done.chunks_done, flight.posted_at + min(done.elapsed_seconds, done.card_seconds))
        if done.chunks_done == done.chunks_asked:
            self.stats["hit_tokens"] += order.tokens[1] - order.tokens[0]
            self._results.received.add(order.request)
            return
        why = "load_short" if done.ok else f"load_{done.status}"
        self._fail_load(order, why, done.chunks_done)

    def _restored(self, flight: Flight, chunks_done: int, ended_at: float) -> None:
        """What this load says of the card's pace. When it ended the card's own time says best: a completion is taken once
        a step, and a load in parts adds up the times of all."""
        load = flight.order
        assert isinstance(load, Load)
        seconds = max(0.0, ended_at - max(flight.posted_at, self._idle_at))
        self._idle_at = max(self._idle_at, ended_at)
        in_place = min(chunks_done * self.chunk_tokens, load.tokens[1]) - load.tokens[0]
        self._results.report.restored[load.job] = (max(0, in_place), seconds)

    def _fail_load(self, load: Load, why: str, chunks_done: int = 0) -> None:
        """`chunks_done` leading chunks are in place, the pages behind them are not."""
        self.stats[why] += 1
        in_place = min(max(chunks_done * self.chunk_tokens, load.tokens[0]), load.tokens[1])
        self.stats["hit_tokens"] += in_place - load.tokens[0]
        bad = load.pages[in_place // self.page_tokens : load.tokens[1] // self.page_tokens]
        self._results.received.add(load.request)
        self._results.bad_pages.update(bad)
        self._results.report.short[load.job] = chunks_done
        if why != "load_short":
            self._results.report.failed[load.job] = why.removeprefix("load_")

    def _end_save(self, save: Save, chunks_done: int, why: str) -> None:
        """`why` is said if not all of it was stored."""
        self._results.report.saved[save.job] += 1
        if chunks_done < len(save.keys[self.rank]) // KEY_BYTES:
            self._results.report.unsaved[save.job] = chunks_done
            self._results.report.failed[save.job] = why

    def _lost(self, session: Any, error: Exception) -> None:
        """The card is gone. Beside this thread its end of the channel is waited for: then its flights are over."""
        if not isinstance(error, CardGone):
            return
        self.link.lose(session, error)
        self.stats["card_lost"] += 1
        self._close(session)

    def _close(self, session: Any) -> None:
        if all(number != id(session) for _, number in self._closing):
            self._closing.append((self._closer.submit(session.close, CLOSE_TIMEOUT), id(session)))

    def _closed(self) -> None:
        for future, number in [entry for entry in self._closing if entry[0].done()]:
            self._closing.remove((future, number))
            if future.exception() is None and future.result():
                self._over(number)

    def _over(self, number: int) -> None:
        """Nobody writes or reads for this session's flights any more."""
        for key in [key for key in self._flights if key[0] == number]:
            flight = self._flights.pop(key)
            order = flight.order
            if isinstance(order, Save):
                self._end_save(order, 0, "card_gone")
            elif flight.given_up:
                self._results.report.let_go[order.job] += 1
            else:
                self._fail_load(order, "load_card_gone")

    def _give_up(self, now: float) -> None:
        for flight in self._flights.values():
            if flight.given_up or now < flight.until or isinstance(flight.order, Save):
                continue
            flight.given_up = True
            self.stats["load_given_up"] += 1
            self._results.received.add(flight.order.request)
            self._results.failed.add(flight.order.request)
            self._results.report.given_up[flight.order.job] += 1
            self._results.report.short[flight.order.job] = 0
            self._results.report.failed[flight.order.job] = "given_up"
            self._restored(flight, 0, now)
