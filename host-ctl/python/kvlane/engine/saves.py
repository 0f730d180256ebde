"""Which computed chunks are saved: what the store lacks and nobody else has just saved, as long as the card keeps up and the
store takes something. One that is full, read-only or down is left alone but for one save now and then."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable

from .backoff import Backoff
from .faults import Faults
from .options import Options
from .words import Save, split

RECENT_MAX = 1 << 16
"""Names of chunks that were saved lately and need no second save."""
NO_FAULT = ("cancelled", "card_gone", "draining")
"""Ends of saves and loads that say nothing of the store, and that the link says already."""
UNSAVED = "saves"
"""What a store that takes nothing is called in the log."""


class Saves:
    def __init__(self, options: Options, stats: Counter[str], faults: Faults) -> None:
        self._options, self._stats, self._faults = options, stats, faults
        self._flying: dict[int, Save] = {}
        self._failed: set[int] = set()
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._backoff = Backoff(options.save_retry_s, options.save_retry_max_s)

    def reset(self) -> None:
        """Chunks have other names from now on."""
        self._recent.clear()

    def missing(self, names: list[bytes]) -> list[bytes]:
        """Without the leading ones that somebody has just saved."""
        first = next((at for at, name in enumerate(names) if name not in self._recent), len(names))
        return names[first:]

    def may(self, chunks: int, held: int, held_max: int) -> bool:
        """Whether that many chunks may be saved now, with `held` pages then held; counted where not."""
        if not self._backoff.due(time.monotonic()):
            self._stats["save_refused_chunks"] += chunks
            self._faults.more(UNSAVED)
            return False
        if len(self._flying) >= self._options.saves_max or held > held_max:
            self._stats["save_dropped_chunks"] += chunks
            return False
        return True

    def begin(self, save: Save, names: Iterable[bytes]) -> None:
        self._backoff.begin()
        self._flying[save.job] = save
        for name in names:
            self._recent[name] = None
        while len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    def unsaved(self, job: int, done: int) -> None:
        """What was not stored may be tried by the next request that has it."""
        if save := self._flying.get(job):
            self._failed.add(job)
            for name in split(save.keys)[done:]:
                self._recent.pop(name, None)

    def failed(self, job: int, why: str) -> bool:
        """False: no save of ours."""
        if job not in self._flying:
            return False
        self._failed.add(job)
        if why not in NO_FAULT or self._backoff.failing:
            self._backoff.failed(time.monotonic())
            self._faults.seen(UNSAVED, f"{why}: nothing new is saved, and from time to time one save tries", lasting=True)
        return True

    def over(self, job: int) -> None:
        """Every worker has ended it."""
        if self._flying.pop(job, None) is not None and job not in self._failed:
            self._backoff.worked()
            self._faults.over(UNSAVED)
        self._failed.discard(job)

    def forget(self, names: Iterable[bytes]) -> None:
        """The store has lost these, if they are not on the way."""
        names = [name for name in names if name in self._recent]
        if names:
            on_the_way = {name for save in self._flying.values() for name in split(save.keys)}
            for name in set(names) - on_the_way:
                del self._recent[name]
