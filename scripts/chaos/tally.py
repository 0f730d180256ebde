"""What is counted: the columns that must be zero, and the faults that were injected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ZEROS = {
    "wrong": "wrong bytes loaded",
    "lost": "acknowledged chunks lost",
    "deleted": "good chunks deleted",
    "late": "requests past their deadline",
    "hangs": "hangs",
}
"""Column: what a reader sees."""


@dataclass
class Tally:
    """Of a scenario, or of all."""

    zeros: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    chunks: int = 0
    """Chunks loaded and compared."""
    lateness: float = 0.0
    """Seconds by which the latest answer was behind its deadline."""
    notes: list[str] = field(default_factory=list)

    def wrong(self, column: str, count: int, note: str) -> None:
        """Counts what must not be, and says what it was."""
        assert column in ZEROS
        if count:
            self.zeros[column] += count
            self.notes.append(f"{ZEROS[column]}: {count}: {note}")

    def fault(self, kind: str, count: int = 1) -> None:
        self.faults[kind] += count

    def add(self, other: Tally) -> None:
        self.zeros += other.zeros
        self.faults += other.faults
        self.requests += other.requests
        self.chunks += other.chunks
        self.lateness = max(self.lateness, other.lateness)
        self.notes += other.notes

    @property
    def clean(self) -> bool:
        return not any(self.zeros.values())

    def as_json(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            "chunks_compared": self.chunks,
            "faults": dict(sorted(self.faults.items())),
            **{column: self.zeros[column] for column in ZEROS},
            "worst_lateness_ms": round(self.lateness * 1e3, 1),
            "notes": self.notes,
        }
