"""A card that does what a test says, for the connector's state machines. The real card is in test_client.py and in
scripts/vllm/prove.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import kvlane
from kvlane.engine.link import Link


@dataclass
class Done:
    id: int
    chunks_done: int
    chunks_asked: int
    status: str = "ok"
    wire_bytes: int = 10
    restored_bytes: int = 100
    elapsed_seconds: float = 0.01
    card_seconds: float = 0.01

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class FakeSession:
    def __init__(self, recipe: str = "lossless") -> None:
        self.recipe, self.card = recipe, "fake"
        self.posted: dict[int, tuple[str, bytes, list[int], Any]] = {}
        self.sections: dict[int, int] = {}
        self.trailing: dict[int, int] = {}
        self.completed: list[Done] = []
        self.cancelled: list[int] = []
        self.gone = False
        self.full_at = 256
        self.lets_go = True
        self._number = self._taken = 0

    def _post(self, what: str, keys: bytes, pages: list[int], more: Any = None, section: int = 0) -> int:
        if self.gone:
            raise kvlane.CardGone("gone")
        if self.outstanding >= self.full_at:
            raise kvlane.RunError("full")
        self._number += 1
        self.posted[self._number] = (what, keys, pages, more)
        self.sections[self._number] = section
        return self._number

    def lookup(self, keys: bytes, *, section: int = 0, trailing: int = 0) -> int:
        number = self._post("lookup", keys, [], None, section)
        self.trailing[number] = trailing
        return number

    def fetch(self, keys: bytes, pages: list[int], *, tokens: Any, deadline: float, section: int = 0) -> int:
        return self._post("fetch", keys, pages, tokens, section)

    def store(self, keys: bytes, pages: list[int], *, importance: Any, deadline: float, section: int = 0) -> int:
        return self._post("store", keys, pages, importance, section)

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)

    @property
    def outstanding(self) -> int:
        """Posted and not taken."""
        return len(self.posted) - self._taken

    def complete(self, number: int, chunks: int | None = None, status: str = "ok", seconds: float = 0.01) -> None:
        asked = len(self.posted[number][1]) // kvlane.KEY_BYTES
        self.completed.append(Done(number, asked if chunks is None else chunks, asked, status, card_seconds=seconds,
                                   elapsed_seconds=seconds))  # fmt: skip

    def poll(self) -> Done | None:
        if self.completed:
            self._taken += 1
            return self.completed.pop(0)
        if self.gone:
            raise kvlane.CardGone("gone")
        return None

    def wait(self, timeout: float) -> Done | None:
        return self.poll()

    def close(self, timeout: float = 0.0) -> bool:
        return self.lets_go


def linked(session: FakeSession) -> Link:
    link = Link("test", lambda: session, retry=3600.0, retry_max=3600.0)
    link.connect()
    return link


class Pool:
    """Reference counts of pages, as vLLM's block pool keeps them."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def hold(self, pages: Any) -> None:
        for page in pages:
            self.counts[page] = self.counts.get(page, 0) + 1

    def let_go(self, pages: Any) -> None:
        for page in pages:
            self.counts[page] -= 1
            assert self.counts[page] >= 0

    @property
    def held(self) -> list[int]:
        return sorted(page for page, count in self.counts.items() if count)
