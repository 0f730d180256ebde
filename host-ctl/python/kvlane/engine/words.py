"""What the scheduler and the workers tell each other, once a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .. import KEY_BYTES


def split(keys: tuple[bytes, ...]) -> list[bytes]:
    """Names of chunks: of the first rank's keys, one for each."""
    return [keys[0][at : at + KEY_BYTES] for at in range(0, len(keys[0]), KEY_BYTES)] if keys else []


@dataclass(frozen=True)
class Part:
    """Chunks of one section into pages. `keys` has one entry for each rank that has bytes of its own; `tokens` count
    from the first that the first chunk holds."""

    job: int
    keys: tuple[bytes, ...]
    pages: tuple[int, ...]
    tokens: tuple[int, int]
    first_chunk: int
    section: int = 0

    def wanted(self, page_rows: int) -> tuple[int, ...]:
        """Pages that the card writes, without those that the tokens leave out."""
        return self.pages[self.tokens[0] // page_rows : self.tokens[1] // page_rows]


@dataclass(frozen=True)
class Load:
    """What a request waits for: a part for each section, and all of them or nothing. Without any it cannot be done."""

    job: int
    request: str
    recipe: str
    deadline: float
    tokens: int
    """Of the prompt, that it brings."""
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Save:
    """Pages of one section into chunks."""

    job: int
    request: str
    recipe: str
    keys: tuple[bytes, ...]
    pages: tuple[int, ...]
    deadline: float
    first_chunk: int
    section: int = 0


@dataclass
class Orders:
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    wait: float = 0.0
    """Seconds that a worker may wait for the card, because nothing is computed."""
    step: int = 0
    """Number of a step whose end is to be reported; 0: of no interest."""


@dataclass
class Report:
    """What one worker, or after `add` all of them, saw in a step. Counts are workers."""

    saved: Counter[int] = field(default_factory=Counter)
    """Saves whose pages the card has read, or will never read."""
    given_up: Counter[int] = field(default_factory=Counter)
    """Loads that the card did not answer: it may still write their pages."""
    let_go: Counter[int] = field(default_factory=Counter)
    """Loads given up before, whose pages nobody writes any more."""
    short: dict[int, int] = field(default_factory=dict)
    """Parts of loads that ended early: leading chunks in place."""
    unsaved: dict[int, int] = field(default_factory=dict)
    """Saves that ended early: leading chunks stored."""
    restored: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Loads that the card ended, or should have: tokens in place, and the seconds that it worked on nothing older."""
    failed: dict[int, str] = field(default_factory=dict)
    """Loads and saves that went wrong, and how."""
    step: int = 0
    """The step that this ends."""

    def __bool__(self) -> bool:
        counts = self.saved or self.given_up or self.let_go
        return bool(counts or self.short or self.unsaved or self.restored or self.failed or self.step)

    def add(self, other: Report) -> None:
        self.saved += other.saved
        self.given_up += other.given_up
        self.let_go += other.let_go
        for mine, theirs in ((self.short, other.short), (self.unsaved, other.unsaved)):
            for job, done in theirs.items():
                mine[job] = min(done, mine.get(job, done))
        for job, (tokens, seconds) in other.restored.items():
            mine_tokens, mine_seconds = self.restored.get(job, (tokens, seconds))
            self.restored[job] = (min(tokens, mine_tokens), max(seconds, mine_seconds))
        for job, why in other.failed.items():
            self.failed.setdefault(job, why)
        self.step = max(self.step, other.step)
