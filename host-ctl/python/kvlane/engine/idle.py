"""When an engine that has nothing to compute looks after the card: soon, and then ever more rarely.

A step of an idle engine is not free: the processes of its workers spin for a second after each. So between two of them it
sleeps, and a timer wakes it; a request that comes meanwhile wakes it as always.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

GROWTH = 4
"""How much longer each pause is: a save that takes a second costs six looks, and its pages come back after four at the latest."""


class Idle:
    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._pause, self._next = first, 0.0

    def active(self, now: float) -> None:
        """Something was computed, or heard."""
        self._pause, self._next = self._first, now + self._first

    def looked(self, now: float) -> None:
        """A step that computed nothing."""
        self._next = now + self._pause
        self._pause = min(GROWTH * self._pause, self._longest)

    def left(self, now: float) -> float:
        """Seconds until the next look; not above 0: now."""
        return self._next - now


class Alarm:
    """Calls `wake` from a thread of its own."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._timer: threading.Timer | None = None
        self._at = 0.0

    def set(self, seconds: float) -> None:
        """Wakes in so many seconds, unless it will before."""
        at = time.monotonic() + seconds
        if self._timer is not None and self._at <= at:
            return
        self.off()
        self._timer, self._at = threading.Timer(seconds, self._ring), at
        self._timer.daemon = True
        self._timer.start()

    def off(self) -> None:
        if (timer := self._timer) is not None:
            timer.cancel()

    def _ring(self) -> None:
        # First, so that whoever is woken can set it again.
        self._timer = None
        self._wake()
