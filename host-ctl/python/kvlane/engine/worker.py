"""Posts what the scheduler ordered, polls, and says how it went. Knows no tensor and no vLLM class.

A load ends in one of three ways: all of it is in place; a leading part is (the rest of its pages is reported as bad);
or the card does not answer, and it is given up: the engine recomputes into other pages while these stay held until the
card has answered or is known to be gone. A page is never given away while somebody may still write it.

Of a model with several sections a load has a part for each, which end one by one; it ends with the last, and if one of
them is not whole nothing of the load is used.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import Any

from .. import KEY_BYTES
from .._kvlane import CardGone, KvlaneError
from .link import Link
from .options import Options
from .sections import Section
from .words import Load, Part, Report, Save

CLOSE_TIMEOUT = 10.0
"""How long a card that broke the rules has to let go of the memory."""


@dataclass
class Loading:
    """A load of which not all parts have ended."""

    load: Load
    posted_at: float
    until: float
    open: int
    done: list[int]
    """Leading chunks in place, by part."""
    why: str = ""
    """What went wrong with the first part that is not whole."""
    ended_at: float = 0.0
    elapsed: float = 0.0
    given_up: bool = False


@dataclass
class Flight:
    """A command that the card has: a save, or a part of a load."""

    order: Save | Part
    of: Loading | None = None
    place: int = 0


@dataclass
class Results:
    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    """Received, and nothing of it may be used: not even pages that were right."""
    bad_pages: set[int] = field(default_factory=set)
    report: Report = field(default_factory=Report)


class Worker:
    def __init__(
        self,
        options: Options,
        link: Link,
        *,
        rank: int,
        sections: Sequence[Section],
        replicas: int = 1,
        splits: Sequence[int] | None = None,
    ) -> None:
        """`replicas`: consecutive ranks that hold equal bytes, of which the first saves. `splits`: pages of the
        kernels, which are what was registered, in one of the engine's pages, by section."""
        self.options, self.link, self.rank, self.sections = options, link, rank, sections
        self._splits = splits or [1] * len(sections)
        self._keys_of, self._saves = rank // replicas, rank % replicas == 0
        self.stats: Counter[str] = Counter()
        self.fetch_seconds: list[float] = []
        self._flights: dict[tuple[int, int], Flight] = {}
        self._closing: list[tuple[Future[bool], int]] = []
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="kvlane-close")
        self._results = Results()
        self._idle_at = 0.0
        """When the card last ended a load: what it works on next it began then, or when it was posted."""

    def load(self, load: Load) -> None:
        session, now = self.link.session, time.monotonic()
        loading = Loading(
            load, now, now + load.deadline + self.options.load_grace_s, len(load.parts), [0] * len(load.parts)
        )
        if not load.parts:
            return self._end_load(loading, "load_pages")
        for place, part in enumerate(load.parts):
            flight = Flight(part, loading, place)
            if session is None or session.recipe != load.recipe:
                self._end_part(flight, 0, "load_card_gone")
                continue
            try:
                keys, pages = part.keys[self._keys_of], self._registered(part.section, part.pages)
                number = session.fetch(keys, pages, tokens=part.tokens, deadline=load.deadline, section=part.section)
            except KvlaneError as error:
                self._end_part(flight, 0, "load_card_gone" if isinstance(error, CardGone) else "load_errors")
                self._lost(session, error)
                continue
            self._flights[id(session), number] = flight

    def save(self, save: Save) -> None:
        if not self._saves:
            return
        session = self.link.session
        if session is None or session.recipe != save.recipe:
            return self._end_save(save, 0, "card_gone")
        try:
            keys, pages = save.keys[self._keys_of], self._registered(save.section, save.pages)
            importance = self.options.importances(save.first_chunk, len(keys) // KEY_BYTES)
            number = session.store(
                keys, pages, importance=importance, deadline=save.deadline, section=save.section
            )
        except KvlaneError as error:
            self._end_save(save, 0, "card_gone" if isinstance(error, CardGone) else "not_taken")
            return self._lost(session, error)
        self._flights[id(session), number] = Flight(save)

    def _registered(self, section: int, pages: Sequence[int]) -> list[int]:
        """Pages as they were registered."""
        split = self._splits[section]
        return list(pages) if split == 1 else [page * split + part for page in pages for part in range(split)]

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
        if self._saves:
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
        loading = flight.of
        assert loading is not None
        if not loading.given_up:
            self.stats["fetched_bytes"] += done.restored_bytes
            self.stats["wire_bytes"] += done.wire_bytes
            ended_at = loading.posted_at + min(done.elapsed_seconds, done.card_seconds)
            loading.ended_at = max(loading.ended_at, ended_at)
            loading.elapsed = max(loading.elapsed, done.elapsed_seconds)
        whole = done.chunks_done == done.chunks_asked
        self._end_part(flight, done.chunks_done, "" if whole else "load_short" if done.ok else f"load_{done.status}")

    def _end_part(self, flight: Flight, chunks_done: int, why: str) -> None:
        """`why` is said if not all of it is in place."""
        loading, part = flight.of, flight.order
        assert loading is not None and isinstance(part, Part)
        loading.open -= 1
        loading.done[flight.place] = chunks_done
        loading.why = loading.why or why
        if why and not loading.given_up:
            self._results.report.short[part.job] = chunks_done
        if not loading.open:
            self._end_load(loading, loading.why)

    def _end_load(self, loading: Loading, why: str) -> None:
        """Nobody writes for this load any more."""
        load = loading.load
        if loading.given_up:
            self._results.report.let_go[load.job] += 1
            return
        in_place = self._in_place(loading, why)
        if loading.ended_at:
            self.fetch_seconds.append(loading.elapsed)
            self._restored(loading, in_place, loading.ended_at)
        self.stats["hit_tokens"] += in_place
        self._results.received.add(load.request)
        if why:
            self.stats[why] += 1
            if why != "load_short":
                self._results.report.failed[load.job] = why.removeprefix("load_")
            if len(load.parts) != 1:
                self._results.failed.add(load.request)

    def _in_place(self, loading: Loading, why: str) -> int:
        """Tokens that the engine may use. Of a model with one section those before the first chunk that is missing; its
        pages behind them are bad."""
        if not why:
            return loading.load.tokens
        if len(loading.load.parts) != 1:
            return 0
        part = loading.load.parts[0]
        section = self.sections[part.section]
        end = min(max(loading.done[0] * section.chunk, part.tokens[0]), part.tokens[1])
        self._results.bad_pages.update(part.wanted(section.page_rows)[(end - part.tokens[0]) // section.page_rows :])
        return end - part.tokens[0]

    def _restored(self, loading: Loading, in_place: int, ended_at: float) -> None:
        """What this load says of the card's pace. When it ended the card's own time says best: a completion is taken
        once a step, and a load in parts adds up the times of all."""
        seconds = max(0.0, ended_at - max(loading.posted_at, self._idle_at))
        self._idle_at = max(self._idle_at, ended_at)
        self._results.report.restored[loading.load.job] = (in_place, seconds)

    def _end_save(self, save: Save, chunks_done: int, why: str) -> None:
        """`why` is said if not all of it was stored."""
        self._results.report.saved[save.job] += 1
        if chunks_done < len(save.keys[self._keys_of]) // KEY_BYTES:
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
            if isinstance(flight.order, Save):
                self._end_save(flight.order, 0, "card_gone")
            else:
                self._end_part(flight, 0, "load_card_gone")

    def _give_up(self, now: float) -> None:
        for flight in self._flights.values():
            loading = flight.of
            if loading is None or loading.given_up or now < loading.until:
                continue
            loading.given_up = True
            load, report = loading.load, self._results.report
            self.stats["load_given_up"] += 1
            self._results.received.add(load.request)
            self._results.failed.add(load.request)
            report.given_up[load.job] += 1
            report.short |= {part.job: 0 for part in load.parts}
            report.failed[load.job] = "given_up"
            self._restored(loading, 0, now)
