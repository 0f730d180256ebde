"""What the scheduler and the workers tell each other, once a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Load:
    """Chunks into pages. `keys` has one entry for each rank; `tokens` count from the first chunk's first."""

    job: int
    request: str
    recipe: str
    keys: tuple[bytes, ...]
    pages: tuple[int, ...]
    tokens: tuple[int, int]
    deadline: float
    first_chunk: int

    def wanted(self, page_tokens: int) -> tuple[int, ...]:
        """Pages that the card writes, without those that the tokens leave out."""
        return self.pages[self.tokens[0] // page_tokens : self.tokens[1] // page_tokens]


@dataclass(frozen=True)
class Save:
    """Pages into chunks."""

    job: int
    request: str
    recipe: str
    keys: tuple[bytes, ...]
    pages: tuple[int, ...]
    deadline: float
    first_chunk: int


@dataclass
class Orders:
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


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
    """Loads that ended early: leading chunks in place."""
    unsaved: dict[int, int] = field(default_factory=dict)
    """Saves that ended early: leading chunks stored."""

    def __bool__(self) -> bool:
        return bool(self.saved or self.given_up or self.let_go or self.short or self.unsaved)

    def add(self, other: Report) -> None:
        self.saved += other.saved
        self.given_up += other.given_up
        self.let_go += other.let_go
        for mine, theirs in ((self.short, other.short), (self.unsaved, other.unsaved)):
            for job, done in theirs.items():
                mine[job] = min(done, mine.get(job, done))
