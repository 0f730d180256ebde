"""A door: two sessions with the card, one to ask and one to move blocks, so that no look-up waits behind a move.

For one thread at a time. `connect`, `drain` and `close` wait; nothing else does.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from .. import Session, attach
from ..engine.faults import Faults
from ..engine.link import Link
from ..engine.options import Options
from .closing import Closing
from .moves import Moved, Moves
from .names import Names
from .options import load_seconds
from .presence import Answer, Presence
from .rows import Rows

logger = logging.getLogger("vllm.kvlane")

DRAIN_WAIT = 0.05
"""Seconds of one wait of a drain."""
DRAIN_SAY = 5.0
"""Seconds after which a drain that goes on is said, and said again."""


class Door:
    def __init__(self, options: Options, rows: Rows, *, door: str, words: Mapping[str, object]) -> None:
        """`words` say all of a block that the engine's own name of it leaves open."""
        self._options, self._door, self._row_bytes = options, door, rows.bytes
        self._words = {"model": options.model, **words, "geometry": repr(rows.geometry)}
        self._names: dict[str, Names] = {}
        self.stats: Counter[str] = Counter()
        self.faults = Faults()
        self._blocks = _link(options, f"{door} blocks", rows)
        self._asking = _link(options, f"{door} look-ups", None)
        closing = Closing()
        self._presence = Presence(options, self._asking, closing, self.faults, self.stats)
        self._moves = Moves(options, self._blocks, closing, self.faults, self.stats)

    def connect(self) -> None:
        """The first try to attach; a card that is away is tried again beside the engine's thread."""
        for link in (self._asking, self._blocks):
            link.connect()
        if (session := self._blocks.session) is not None:
            logger.info("kvlane: keys name blocks by their hash and %s", self._naming(session.recipe).text)

    @property
    def answers(self) -> bool:
        """Whether there is a card that answers."""
        here = self._blocks.session is not None and self._asking.session is not None
        return here and not self._presence.silent and not self._moves.silent

    @property
    def busy(self) -> bool:
        return self._moves.busy

    def ask(self, blocks: Sequence[bytes], follow: int, answer: Answer) -> None:
        """Which blocks the store has. `answer` is called in a later `turn`, with what the engine calls them."""
        session = self._blocks.session
        if session is None:
            return answer({}, "away")
        names = self._naming(session.recipe)
        block_of = {names.name(block): block for block in blocks}

        def answered(found: dict[bytes, bool], why: str) -> None:
            answer({block_of[name]: there for name, there in found.items()}, why)

        self._presence.ask(list(block_of), follow, answered)

    def load(self, number: int, blocks: Sequence[bytes], rows: Sequence[int]) -> None:
        """Blocks into rows; `take` says how it ended."""
        names, recipe = self._named(blocks)
        seconds = load_seconds(self._options, len(names) * self._row_bytes)
        self._moves.load(number, names, list(rows), recipe, seconds)

    def store(self, number: int, blocks: Sequence[bytes], rows: Sequence[int]) -> None:
        """Rows into blocks; `take` says how it ended. Rows of a store keep their bytes until then."""
        names, recipe = self._named(blocks)
        self._moves.store(number, names, list(rows), recipe, self._options.save_deadline_s)

    def turn(self) -> None:
        """Everything that can be done without waiting."""
        self._presence.turn()
        self._moves.turn()
        self.faults.sweep()

    def wait(self, seconds: float) -> None:
        """As `turn`, but waits for a move that is with the card, or else for a look-up."""
        if self._moves.busy:
            self._moves.wait(seconds)
        elif self._presence.waiting:
            time.sleep(seconds)
        self.turn()

    def take(self) -> list[Moved]:
        """Moves that ended since the last call."""
        return self._moves.take()

    def drain(self) -> None:
        """Gives up what has not begun, and waits until the card touches no row. A card that stands still is waited for:
        rows that it may write are no one else's."""
        self._moves.cancel()
        said = time.monotonic() + DRAIN_SAY
        while self._moves.busy:
            self._moves.wait(DRAIN_WAIT)
            if time.monotonic() >= said:
                said += DRAIN_SAY
                logger.warning("kvlane: %s: waiting until the card has let go of its rows (host-ctl ping)", self._door)

    def close(self) -> bool:
        """Ends the sessions. False: the card has not let go, and the memory must stay."""
        if (session := self._asking.close()) is not None:
            session.close(1.0)
        return self._moves.close()

    def _naming(self, recipe: str) -> Names:
        """Keys for what a card stores with this recipe."""
        if recipe not in self._names:
            self._names[recipe] = Names(self._door, {**self._words, "recipe": recipe})
        return self._names[recipe]

    def _named(self, blocks: Sequence[bytes]) -> tuple[list[bytes], str]:
        session = self._blocks.session
        if session is None:
            # No session has this recipe: the move ends when it would be posted.
            return [b""] * len(blocks), ""
        names = self._naming(session.recipe)
        return [names.name(block) for block in blocks], session.recipe


def _link(options: Options, name: str, rows: Rows | None) -> Link:
    def attached() -> Session:
        return attach(
            rows.memory if rows else None,
            socket=options.socket,
            comch_name=options.comch_name,
            device=options.device,
            recipe=options.recipe,
            client=f"kvlane {name}",
            namespace=options.namespace,
            timeout=options.attach_timeout_s,
        )

    return Link(name, attached, retry=options.retry_s, retry_max=options.retry_max_s)
