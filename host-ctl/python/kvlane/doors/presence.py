"""Which blocks the store has. A card answers how many leading names of a list are stored, so behind the first that is
missing it is asked again, if whoever asks wants that: in pieces of one name, then two, then four, until another is
missing.

    asked --in order--> with the card --> answered, or late

Nobody waits beyond the deadline, which runs from the question on. A card that answers nothing is silent: everybody who
waits is told so at once, nobody else asks, and one look-up that nobody waits for tries, until one is answered in time.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .._kvlane import CardGone, KvlaneError
from ..engine.backoff import Backoff
from ..engine.faults import Faults
from ..engine.link import Link
from ..engine.options import Options
from .closing import Closing

WINDOW = 24
"""Look-ups with the card at once."""
SILENT = "look-ups"
"""What a silent card is called in the log."""

Answer = Callable[[dict[bytes, bool], str], None]
"""Hears of the names that are known, stored or not, and why nothing more will be: empty where the card answered."""


@dataclass(eq=False)
class Question:
    names: list[bytes]
    follow: int
    """Missing names behind which it may be asked on."""
    until: float
    answer: Answer
    piece: int
    at: int = 0
    posted_at: float = 0.0
    found: dict[bytes, bool] = field(default_factory=dict)
    over: bool = False


class Presence:
    def __init__(self, options: Options, link: Link, closing: Closing, faults: Faults, stats: Counter[str]) -> None:
        self._link, self._closing, self._faults, self._stats = link, closing, faults, stats
        self._late = options.lookup_deadline_ms / 1e3
        self._session: Any = None
        self._queue: deque[Question] = deque()
        self._flying: dict[int, Question] = {}
        """Also those that are over: the card has them all the same."""
        self._heard_at = 0.0
        self._backoff = Backoff(options.retry_s, options.retry_max_s)
        self._try: tuple[int, bytes] = (0, b"")
        """Number (0: none) and name of the look-up that tries a silent card."""

    @property
    def silent(self) -> bool:
        return self._backoff.failing

    @property
    def waiting(self) -> bool:
        return bool(self._queue or self._flying)

    def ask(self, names: list[bytes], follow: int, answer: Answer) -> None:
        """`answer` is called in a later `turn`."""
        self._queue.append(Question(names, follow, time.monotonic() + self._late, answer, len(names)))

    def turn(self) -> None:
        """Takes what the card has answered, ends what is late, posts what waits. Never waits."""
        session, now = self._renewed(), time.monotonic()
        if session is None:
            return self._end_all("away")
        try:
            while (done := session.poll()) is not None:
                self._take(done)
            self._expire(now)
            self._post(session, now)
        except CardGone as error:
            self._link.lose(session, error)
            self._closing.begin(session)
            self._stats["card_lost"] += 1
            self._renewed()

    def _renewed(self) -> Any:
        """The session to ask. With a new one, what was asked of the one before is over."""
        session = self._link.session
        if session is not self._session:
            self._session = session
            lost = list(self._flying.values())
            self._flying.clear()
            self._try = (0, b"")
            self._heard_again()
            for question in lost:
                self._end(question, "lookup_errors")
        return session

    def _take(self, done: Any) -> None:
        now = time.monotonic()
        self._heard_at = now
        if done.id == self._try[0]:
            return self._tried(done, now)
        self._backoff.soon(now)
        question = self._flying.pop(done.id, None)
        if question is None or question.over:
            return
        if not done.ok:
            self._faults.seen(f"look-ups {done.status}", "the card could not ask its store: blocks count as missing")
            return self._end(question, "lookup_errors")
        asked = question.names[question.at : question.at + question.piece]
        question.found.update(dict.fromkeys(asked[: done.chunks_done], True))
        question.at += done.chunks_done
        if done.chunks_done < len(asked):
            question.found[asked[done.chunks_done]] = False
            question.at += 1
            question.follow -= 1
            question.piece = max(1, done.chunks_done)
        else:
            question.piece *= 2
        if question.at == len(question.names) or question.follow < 0:
            self._end(question, "")
        else:
            self._queue.appendleft(question)

    def _expire(self, now: float) -> None:
        flying = [question for question in self._flying.values() if not question.over]
        for question in flying + list(self._queue):
            if now > question.until:
                self._end(question, "lookup_timeouts")
        oldest = next(iter(self._flying.values()), None)
        if oldest is not None and not self.silent and now - max(oldest.posted_at, self._heard_at) > self._late:
            self._suspect(oldest.names[0], now)

    def _suspect(self, name: bytes, now: float) -> None:
        self._try = (0, name)
        self._backoff.failed(now)
        self._backoff.soon(now)
        what = f"not answered within {self._late:g} s: blocks count as missing until the card answers again"
        self._faults.seen(SILENT, what, lasting=True)
        self._end_all("silent")

    def _tried(self, done: Any, now: float) -> None:
        self._try = (0, self._try[1])
        if done.ok and min(done.elapsed_seconds, done.card_seconds) <= self._late:
            self._heard_again()
        else:
            self._backoff.failed(now)

    def _heard_again(self) -> None:
        self._backoff.worked()
        self._faults.over(SILENT)

    def _post(self, session: Any, now: float) -> None:
        if self.silent:
            number, name = self._try
            if not number and self._backoff.due(now):
                self._backoff.begin()
                self._try = (session.lookup(name), name)
            return self._end_all("silent")
        while self._queue and len(self._flying) < WINDOW:
            question = self._queue.popleft()
            if question.over:
                continue
            piece = question.names[question.at : question.at + question.piece]
            try:
                number = session.lookup(b"".join(piece))
            except CardGone:
                self._queue.appendleft(question)
                raise
            except KvlaneError:
                self._end(question, "lookup_errors")
                continue
            question.posted_at = now
            self._flying[number] = question

    def _end_all(self, why: str) -> None:
        for question in [*self._flying.values(), *self._queue]:
            self._end(question, why)
        self._queue.clear()

    def _end(self, question: Question, why: str) -> None:
        if question.over:
            return
        question.over = True
        if why:
            self._stats[why] += 1
            for number in [number for number, flying in self._flying.items() if flying is question]:
                if self._session is not None:
                    with suppress(KvlaneError):  # It may be over already, or the card gone: that is heard elsewhere.
                        self._session.cancel(number)
        question.answer(question.found, why)
