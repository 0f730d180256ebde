"""What fails is left alone for a pause; then one try goes through, and each that fails doubles the pause."""

from __future__ import annotations


class Backoff:
    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._pause, self._until = first, 0.0
        self.failing = False
        self._trying = False

    @property
    def pause(self) -> float:
        """Seconds that the next failed try is followed by."""
        return self._pause

    def due(self, now: float) -> bool:
        """Whether to go on. While something fails: with one try after each pause, which says `begin`."""
        return not self.failing or (not self._trying and now >= self._until)

    def begin(self) -> None:
        self._trying = self.failing

    def soon(self, now: float) -> None:
        """There is a sign of life: no need to wait for the end of the pause."""
        self._until = min(self._until, now)

    def failed(self, now: float) -> None:
        if self.failing and not self._trying:
            # Began before the pause, and says nothing new.
            return
        self.failing, self._trying = True, False
        self._until = now + self._pause
        self._pause = min(2 * self._pause, self._longest)

    def worked(self) -> None:
        self.failing = self._trying = False
        self._pause = self._first
