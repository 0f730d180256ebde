"""Faults are said when they begin and when they are over, once each, with how often and for how long."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

logger = logging.getLogger("vllm.kvlane")

QUIET = 30.0
"""Seconds without another one after which a fault that nobody ends is over."""


@dataclass
class Episode:
    began: float
    last: float
    count: int
    lasting: bool


class Faults:
    def __init__(self) -> None:
        self._open: dict[str, Episode] = {}

    def seen(self, kind: str, what: str, *, lasting: bool = False) -> None:
        """It happened. The first time is said; a `lasting` fault goes on until `over`, any other until it is quiet."""
        if not self.more(kind):
            now = time.monotonic()
            self._open[kind] = Episode(now, now, 1, lasting)
            logger.warning("kvlane: %s: %s", kind, what)

    def more(self, kind: str) -> bool:
        """Counts one more of a fault that was said; False if there is none."""
        if (episode := self._open.get(kind)) is None:
            return False
        episode.last, episode.count = time.monotonic(), episode.count + 1
        return True

    def over(self, kind: str, until: float | None = None) -> None:
        if (episode := self._open.pop(kind, None)) is not None:
            seconds = (time.monotonic() if until is None else until) - episode.began
            times = "once" if episode.count == 1 else f"{episode.count} times"
            logger.warning("kvlane: %s: over: %s in %.1f s", kind, times, seconds)

    def sweep(self) -> None:
        """Ends what has not been seen for a while."""
        for kind, episode in list(self._open.items()):
            if not episode.lasting and time.monotonic() - episode.last > QUIET:
                self.over(kind, episode.last)
