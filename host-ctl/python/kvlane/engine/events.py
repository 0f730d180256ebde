"""What routers are told of the store: which chunks it has since this engine saved them, and which of them it has lost.
Knows no vLLM class: what is said is made elsewhere, and nothing is kept where nobody listens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from .words import Save, split

SAID_MAX = 1 << 14
"""Chunks that are remembered as said to be stored. Of those beyond it the oldest are said to be removed, because their
end would not be heard of any more."""


class Events:
    def __init__(self) -> None:
        self.describe: Callable[[Save, int], tuple[Any, Any] | None] | None = None
        """What is said when the chunk in that place of a save is stored, and when it is gone; None for a chunk that
        has no name outside. Without it nobody listens."""
        self._saving: dict[int, list[tuple[bytes, tuple[Any, Any] | None]]] = {}
        self._said: OrderedDict[bytes, Any] = OrderedDict()
        """What is to be said when a chunk is gone, by its name."""
        self._due: list[Any] = []

    def begun(self, save: Save) -> None:
        """Now, because the request may be gone when the card has it."""
        if self.describe is not None:
            self._saving[save.job] = [(name, self.describe(save, at)) for at, name in enumerate(split(save.keys))]

    def unsaved(self, job: int, done: int) -> None:
        """So many leading chunks of it are stored at most."""
        if job in self._saving:
            del self._saving[job][done:]

    def over(self, job: int) -> None:
        """The card of every worker has said that it is stored, but for what `unsaved` says."""
        for name, words in self._saving.pop(job, ()):
            if words is None:
                continue
            if name not in self._said:
                self._due.append(words[0])
            self._said[name] = words[1]
            self._said.move_to_end(name)
        while len(self._said) > SAID_MAX:
            self._due.append(self._said.popitem(last=False)[1])

    def lost(self, names: Iterable[bytes]) -> None:
        """The store does not have these."""
        self._due += [self._said.pop(name) for name in names if name in self._said]

    def reset(self) -> None:
        """Chunks have other names from now on: what is stored under the old ones is of no use to this engine."""
        self._due += self._said.values()
        self._said.clear()
        self._saving.clear()

    def take(self) -> list[Any]:
        """What is to be said since the last call."""
        due, self._due = self._due, []
        return due
