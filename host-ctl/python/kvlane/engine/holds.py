"""Pages that the card may still touch, held by a reference count of the engine's own pool: whatever the engine does with their
request (finish, abort, preempt), they come back when every worker has said so, and not before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Hold:
    pages: Sequence[int]
    workers: int
    """Of whom nothing has been heard yet."""


class Holds:
    def __init__(self) -> None:
        self.hold: Callable[[Sequence[int]], None] | None = None
        """The engine's; None until it has told us of its pool, and nothing is saved before."""
        self.let_go: Callable[[Sequence[int]], None] = lambda pages: None
        self._jobs: dict[int, Hold] = {}
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    @property
    def pages(self) -> list[int]:
        """Once for each time that they are held."""
        return [page for hold in self._jobs.values() for page in hold.pages]

    def __contains__(self, job: int) -> bool:
        return job in self._jobs

    def add(self, job: int, pages: Sequence[int], workers: int) -> None:
        if job in self._jobs:
            self._jobs[job].workers += workers
        elif self.hold is not None:
            self.hold(pages)
            self._jobs[job] = Hold(pages, workers)
            self.count += len(pages)

    def release(self, job: int, workers: int) -> bool:
        """So many workers are done with it. True: that was the last."""
        hold = self._jobs.get(job)
        if hold is None:
            return False
        hold.workers -= workers
        if hold.workers > 0:
            return False
        del self._jobs[job]
        self.count -= len(hold.pages)
        self.let_go(hold.pages)
        return True
