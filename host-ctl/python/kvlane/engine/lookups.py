"""Look-ups in order: they wait here, and the card has few at a time.

    asked --in order--> with the card --> answered

A prompt asks one question for each section and rank, all at once, and its answer is the longest hit that all of them
have: a section of which only the last chunks are needed may have to be asked again, within what the others have.

A look-up's deadline runs from when the card has it. A card that answers neither it nor anything younger is silent:
everybody who waits is told so at once, nobody else asks, and one look-up that nobody waits for tries, until one is
answered in time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .. import KEY_BYTES
from .._kvlane import CardGone, KvlaneError
from .backoff import Backoff
from .faults import Faults
from .link import Link
from .options import Options

WINDOW = 24
"""Look-ups with the card at once: each has a slot of the page at once, and the rest of the 28 is for tries."""
SILENT = "look-ups"
"""What a silent card is called in the log."""


@dataclass(frozen=True)
class Question:
    """How long a hit one rank's section has; of one with `trailing`, only so many chunks before its end need be
    there."""

    keys: bytes
    section: int = 0
    trailing: int = 0

    def within(self, chunks: int) -> Question:
        return Question(self.keys[: chunks * KEY_BYTES], self.section, self.trailing)


@dataclass
class Lookup:
    request: str
    questions: Sequence[Question]
    posted_at: float = 0.0
    waiting: dict[int, int] = field(default_factory=dict)
    """Which question each look-up with the card is about."""
    hits: list[int] = field(default_factory=list)
    """Chunks, by question: the last answer."""
    firsts: tuple[int, ...] = ()
    """The first answers: of all that the prompt has."""

    def again(self, hit: int) -> list[int]:
        """Questions whose answer says nothing of a hit of that length."""
        return [at for at, asked in enumerate(self.questions) if asked.trailing and self.hits[at] > hit > 0]


class Lookups:
    def __init__(
        self,
        options: Options,
        link: Link,
        answered: Callable[[str, int | None, str, tuple[int, ...]], None],
        faults: Faults,
    ) -> None:
        """`answered` hears of each request how many chunks its hit has, or None and why not, and what each question
        alone was answered."""
        self._link, self._answered, self._faults = link, answered, faults
        self._late = options.lookup_deadline_ms / 1e3
        self._session: Any = None
        self._asked: dict[str, Lookup] = {}
        self._queue: deque[Lookup] = deque()
        self._flying: dict[int, Lookup] = {}
        self._abandoned: set[int] = set()
        """Nobody waits for these any more; the card has them all the same."""
        self._newest = 0
        """The youngest look-up that was answered: the card numbers them in order."""
        self._backoff = Backoff(options.retry_s, options.retry_max_s)
        self._try: int | None = None
        self._try_keys = b""

    @property
    def silent(self) -> bool:
        return self._backoff.failing

    @property
    def waiting(self) -> bool:
        return bool(self._asked)

    def session(self) -> Any:
        """The session to ask. With a new one, what was asked of the one before is over."""
        session = self._link.session
        if session is not self._session:
            self._session = session
            self._flying.clear()
            self._abandoned.clear()
            self._try, self._newest = None, 0
            self._heard_again()
            self._all_over("lookup_errors")
        return session

    def ask(self, request: str, questions: Sequence[Question]) -> None:
        self.session()
        self.drop(request)
        self._asked[request] = lookup = Lookup(request, questions, hits=[0] * len(questions))
        self._queue.append(lookup)
        self.pump()

    def drop(self, request: str) -> None:
        """The request needs no answer any more."""
        if (lookup := self._asked.pop(request, None)) is not None:
            self._abandon(lookup)

    def pump(self) -> None:
        """Takes what the card has answered and posts what waits. Never waits: for every call of the engine's."""
        self._pump(lambda session: session.poll())

    def wait(self, seconds: float) -> bool:
        """The same, waiting for an answer. False: there was none."""
        return bool(self._flying) and self._pump(lambda session: session.wait(seconds))

    def _pump(self, first: Callable[[Any], Any]) -> bool:
        session, took = self.session(), False
        if session is None or not (self._asked or self._abandoned or self.silent):
            return False
        try:
            done = first(session)
            while done is not None:
                took = True
                self._take(done)
                done = session.poll()
            now = time.monotonic()
            self._expire(now)
            self._post(session, now)
        except CardGone as error:
            self._link.lose(session, error)
            self.session()
        return took

    def _take(self, done: Any) -> None:
        if done.status != "cancelled":
            self._newest = max(self._newest, done.id)
        self._abandoned.discard(done.id)
        if done.id == self._try:
            return self._tried(done)
        if self.silent:
            self._backoff.soon(time.monotonic())
        if (lookup := self._flying.pop(done.id, None)) is None:
            return
        lookup.hits[lookup.waiting.pop(done.id)] = done.chunks_done
        if not done.ok:
            self._faults.seen(f"look-ups {done.status}", "the card could not ask its store, and prompts are computed")
            self._over(lookup, None, "lookup_errors")
        elif not lookup.waiting:
            self._heard(lookup)

    def _heard(self, lookup: Lookup) -> None:
        """Every question is answered: what they have in common, or one more round within it."""
        lookup.firsts = lookup.firsts or tuple(lookup.hits)
        hit = min(lookup.hits)
        if again := lookup.again(hit):
            self._post_one(self._session, lookup, again, hit, time.monotonic())
        else:
            self._over(lookup, hit, "")

    def _expire(self, now: float) -> None:
        while self._flying:
            lookup = next(iter(self._flying.values()))
            if now - lookup.posted_at <= self._late:
                return
            silent = self._newest < min(lookup.waiting)
            self._over(lookup, None, "lookup_timeouts")
            if silent:
                return self.suspect(lookup.questions[0].keys, f"not answered within {self._late:g} s", now)

    def _post(self, session: Any, now: float) -> None:
        if self.silent:
            if self._try is None and self._backoff.due(now):
                self._backoff.begin()
                self._try = session.lookup(self._try_keys)
            return
        while self._queue:
            lookup = self._queue[0]
            if not self._room(len(self._flying) + len(self._abandoned), len(lookup.questions)):
                if not self._flying:
                    left = f"{len(self._abandoned)} not answered, long after their deadline"
                    self.suspect(lookup.questions[0].keys, left, now)
                return
            self._queue.popleft()
            if self._asked.get(lookup.request) is lookup:
                self._post_one(session, lookup, range(len(lookup.questions)), None, now)

    @staticmethod
    def _room(with_card: int, more: int) -> bool:
        return not with_card or with_card + more <= WINDOW

    def _post_one(
        self, session: Any, lookup: Lookup, which: Iterable[int], within: int | None, now: float
    ) -> None:
        """Asks these questions, of the first `within` chunks alone if it is given."""
        lookup.posted_at = now
        try:
            for at in which:
                asked = lookup.questions[at] if within is None else lookup.questions[at].within(within)
                number = session.lookup(asked.keys, section=asked.section, trailing=asked.trailing)
                self._flying[number] = lookup
                lookup.waiting[number] = at
        except CardGone:
            raise
        except KvlaneError:
            self._over(lookup, None, "lookup_errors")

    def suspect(self, keys: bytes, what: str, now: float) -> None:
        """The card is taken for silent until it answers a look-up of the first of `keys`."""
        self._try_keys = keys[:KEY_BYTES]
        self._backoff.failed(now)
        self._backoff.soon(now)
        self._faults.seen(SILENT, f"{what}: prompts are computed until the card answers again", lasting=True)
        self._all_over("silent")

    def _tried(self, done: Any) -> None:
        self._try = None
        in_time = done.ok and min(done.elapsed_seconds, done.card_seconds) <= self._late
        if in_time and len(self._abandoned) < WINDOW // 2:
            self._heard_again()
        else:
            self._backoff.failed(time.monotonic())

    def _heard_again(self) -> None:
        self._backoff.worked()
        self._faults.over(SILENT)

    def _all_over(self, why: str) -> None:
        for lookup in list(self._asked.values()):
            self._over(lookup, None, why)
        self._queue.clear()

    def _over(self, lookup: Lookup, chunks: int | None, why: str) -> None:
        del self._asked[lookup.request]
        self._abandon(lookup)
        self._answered(lookup.request, chunks, why, lookup.firsts)

    def _abandon(self, lookup: Lookup) -> None:
        for number in lookup.waiting:
            if self._flying.pop(number, None) is not None:
                self._abandoned.add(number)
                with suppress(KvlaneError):  # It may be over already, or the card gone: that is heard elsewhere.
                    self._session.cancel(number)
        lookup.waiting = {}
