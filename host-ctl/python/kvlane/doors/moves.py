"""Loads and stores of blocks, judged block by block.

A request of the card's ends with its leading blocks done. Of a load whose next block is missing or damaged, that block
has failed and the rest is asked for again: in pieces of one block, then two, then four, until another fails. A store
ends with what was stored.

A row is never given back while somebody may still touch it: a move ends when the card has answered, or has let go of
the memory, and not before. What is not with the card yet ends at its deadline, and so does everything else as long as
the card answers, because it keeps deadlines itself. A card that stands still keeps the rows that it had, and gets no
others.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .._kvlane import CardGone, KvlaneError
from ..engine.backoff import Backoff
from ..engine.faults import Faults
from ..engine.link import Link
from ..engine.options import Options
from .closing import CLOSE_TIMEOUT, Closing

FAILED_MAX = 8
"""Blocks of a load that fail one after the other, after which the rest of it has failed, too."""
LOST = ("ok", "corrupt")
"""Ends of a load that say something of one block only: it is missing, or damaged."""
NO_FAULT = ("cancelled", "card_gone", "draining", "away", "refused")
"""Ends of stores that say nothing of the store."""
STORES, LOADS = "stores", "loads"
"""What faults are called in the log."""


@dataclass(eq=False)
class Move:
    number: int
    names: list[bytes]
    rows: list[int]
    """As many of each block."""
    recipe: str
    until: float
    is_load: bool
    asked_at: float
    piece: int = 0
    at: int = 0
    """Blocks that are judged."""
    done: list[bool] = field(default_factory=list)
    failed: int = 0
    """Blocks that failed one after the other."""
    why: str = ""
    given_up: bool = False


@dataclass(frozen=True)
class Moved:
    """How a move ended: which of its blocks are in place or stored, and why one is not."""

    number: int
    done: list[bool]
    why: str
    seconds: float


class Moves:
    def __init__(self, options: Options, link: Link, closing: Closing, faults: Faults, stats: Counter[str]) -> None:
        self._options, self._link, self._closing, self._faults, self._stats = options, link, closing, faults, stats
        self._loads: deque[Move] = deque()
        self._flying: dict[tuple[Any, int], Move] = {}
        self._moved: list[Moved] = []
        self._backoff = Backoff(options.save_retry_s, options.save_retry_max_s)

    @property
    def busy(self) -> bool:
        return bool(self._loads or self._flying)

    @property
    def silent(self) -> bool:
        """The card holds rows long after it should have answered."""
        return any(move.given_up for move in self._flying.values())

    def load(self, number: int, names: list[bytes], rows: list[int], recipe: str, seconds: float) -> None:
        """Blocks into rows. At most `loads_max` are with the card; the others wait here."""
        now = time.monotonic()
        self._loads.append(Move(number, names, rows, recipe, now + seconds, True, now, piece=len(names)))

    def store(self, number: int, names: list[bytes], rows: list[int], recipe: str, seconds: float) -> None:
        """Rows into blocks. None waits: what the card or its store has no room for is refused."""
        now = time.monotonic()
        move = Move(number, names, rows, recipe, now + seconds, False, now, piece=len(names))
        stores = sum(not each.is_load for each in self._flying.values())
        room = stores < self._options.saves_max and not self.silent and self._backoff.due(now)
        if not room or not self._options.save:
            self._stats["save_refused_blocks"] += len(names)
            self._faults.more(STORES)
            return self._end(move, "refused")
        self._backoff.begin()
        self._post(move, now)

    def turn(self) -> None:
        """Takes what the card has done, ends what is late, posts what waits. Never waits."""
        self._poll(0.0)
        now = time.monotonic()
        for session in self._closing.let_go():
            self._over(session)
        for (session, number), move in self._flying.items():
            if not move.given_up and now >= move.until + self._options.load_grace_s:
                self._give_up(session, number, move)
        self._post_loads(now)

    def take(self) -> list[Moved]:
        """What ended since the last call."""
        moved, self._moved = self._moved, []
        return moved

    def cancel(self) -> None:
        """Gives everything up. What is with the card ends when it says so."""
        while self._loads:
            self._end(self._loads.popleft(), "cancelled")
        for session, number in self._flying:
            self._cancel(session, number)

    def wait(self, seconds: float) -> None:
        """As `turn`, waiting for something to happen."""
        self._poll(seconds)
        if self._link.session is None:
            self._closing.wait(seconds)
        self.turn()

    def close(self) -> bool:
        """Ends the session. False: the card may still touch rows."""
        self.cancel()
        if (session := self._link.close()) is not None:
            self._closing.begin(session)
        self._link.join(CLOSE_TIMEOUT)
        self._closing.close()
        for session in self._closing.let_go():
            self._over(session)
        return not self._flying

    def _post_loads(self, now: float) -> None:
        flying = sum(move.is_load for move in self._flying.values())
        waiting: deque[Move] = deque()
        while self._loads:
            move = self._loads.popleft()
            if self.silent or now >= move.until:
                self._end(move, "silent" if self.silent else "deadline_exceeded")
            elif flying < self._options.loads_max:
                flying += 1
                self._post(move, now)
            else:
                waiting.append(move)
        self._loads = waiting

    def _post(self, move: Move, now: float) -> None:
        session = self._link.session
        if session is None or session.recipe != move.recipe:
            return self._end(move, "away")
        pages = len(move.rows) // len(move.names)
        names = b"".join(move.names[move.at :][: move.piece])
        rows = move.rows[move.at * pages :][: move.piece * pages]
        post = session.fetch if move.is_load else session.store
        try:
            self._flying[session, post(names, rows, deadline=max(1e-3, move.until - now))] = move
        except KvlaneError as error:
            self._end(move, "card_gone" if isinstance(error, CardGone) else "errors")
            self._lost(session, error)

    def _poll(self, wait: float) -> None:
        session = self._link.session
        if session is None:
            return
        try:
            done = session.wait(wait) if wait > 0 else session.poll()
            while done is not None:
                self._take(session, done)
                done = session.poll()
        except KvlaneError as error:
            self._lost(session, error)

    def _take(self, session: Any, done: Any) -> None:
        move = self._flying.pop((session, done.id), None)
        if move is None:
            return
        kind = "fetched" if move.is_load else "saved"
        self._stats[f"{kind}_bytes"] += done.restored_bytes
        self._stats[f"{kind}_wire_bytes"] += done.wire_bytes
        count, now = done.chunks_done, time.monotonic()
        move.at += count
        move.done += [True] * count
        if move.given_up and not self.silent:
            self._faults.over(LOADS if move.is_load else STORES)
        if count == done.chunks_asked:
            move.failed = 0
            move.piece *= 2
        elif not move.is_load or move.given_up or done.status not in LOST:
            return self._end(move, "missing" if done.ok else done.status)
        else:
            move.failed = move.failed + 1 if not count else 1
            self._fail_one(move, "missing" if done.ok else done.status)
            move.piece = max(1, count)
        if move.at == len(move.names) or move.failed >= FAILED_MAX:
            self._end(move, move.why)
        elif now >= move.until or self.silent:
            self._end(move, "deadline_exceeded")
        else:
            self._post(move, now)

    def _fail_one(self, move: Move, why: str) -> None:
        self._stats[f"load_{why}"] += 1
        if why == "corrupt":
            self._faults.seen("loads corrupt", "blocks that are damaged in the store count as missing")
        move.why = why
        move.at += 1
        move.done.append(False)

    def _end(self, move: Move, why: str) -> None:
        """What is not judged has failed, for this reason."""
        left = len(move.names) - move.at
        move.done += [False] * left
        if left:
            self._stats[f"{'load' if move.is_load else 'save'}_{why}"] += 1
            move.why = why
        self._moved.append(Moved(move.number, move.done, move.why, time.monotonic() - move.asked_at))
        if move.is_load or why == "refused":
            return
        if not left:
            self._backoff.worked()
            self._faults.over(STORES)
        elif why not in NO_FAULT or self._backoff.failing:
            self._backoff.failed(time.monotonic())
            what = f"{why}: nothing new is stored, and from time to time one store tries"
            self._faults.seen(STORES, what, lasting=True)

    def _give_up(self, session: Any, number: int, move: Move) -> None:
        """The card should have said by itself that it is late."""
        move.given_up = True
        kind = "load" if move.is_load else "save"
        self._stats[f"{kind}_given_up"] += 1
        what = "not answered, long after the deadline: their rows stay out of use until the card answers or is gone"
        self._faults.seen(LOADS if move.is_load else STORES, what, lasting=True)
        self._cancel(session, number)

    def _cancel(self, session: Any, number: int) -> None:
        # A session that is being closed is not to be waited for.
        if session is self._link.session:
            with suppress(KvlaneError):
                session.cancel(number)

    def _lost(self, session: Any, error: Exception) -> None:
        """The card is gone. Beside this thread its end of the channel is waited for: then its moves are over."""
        if isinstance(error, CardGone):
            self._link.lose(session, error)
            self._stats["card_lost"] += 1
            self._closing.begin(session)

    def _over(self, session: Any) -> None:
        """Nobody touches this session's rows any more."""
        for key in [key for key in self._flying if key[0] is session]:
            move = self._flying.pop(key)
            if move.given_up and not self.silent:
                self._faults.over(LOADS if move.is_load else STORES)
            self._end(move, "card_gone")
