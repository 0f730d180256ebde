"""What is known of one request: its keys in every section, what the store has of it, and what of it a load brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import KEY_BYTES
from .._kvlane import chunk_keys
from .sections import Section, Stretch
from .words import Part


@dataclass
class Prompt:
    """What is known of one request."""

    tokens: list[int]
    salt: bytes
    extras: list[bytes] = field(default_factory=list)
    """What the tokens of each chunk leave open; fewer than chunks where the rest leave nothing open."""
    known: Sequence[int] = ()
    """All tokens of prompt and answer, to which the engine adds; empty where answers are not saved."""
    recipe: str = ""
    keys: tuple[tuple[bytes, ...], ...] = ()
    """Of each section, one for each rank that has bytes of its own."""
    chunks: int = 0
    found: int | None = None
    """Chunks of the longest hit that all sections of all ranks have; None: not known yet."""
    stored: list[int] = field(default_factory=list)
    """Chunks of the longest hit that each section alone has: what lies before its end needs no save."""
    answered: bool = False
    """The store said so; else it was given up."""
    preemptions: int = 0
    loaded: bool = False
    """A load was tried or found not worth it since the last preemption: no second one."""
    job: int | None = None
    tables: list[list[int]] = field(default_factory=list)
    """Pages of each of the engine's groups; empty before a step computed any of it."""
    saved: list[int] = field(default_factory=list)
    """Chunks of each section that are saved, or were let pass."""

    def __post_init__(self) -> None:
        self._length = len(self.tokens)

    def whole(self, computed: int, chunk: int) -> int:
        """Chunks whose tokens are known and have their KV when `computed` tokens are computed. The last token of an
        answer does not count: a guess that was rejected may lie in its place, and a drafter's KV of it needs the next
        one."""
        return min(computed, max(self._length, len(self.known) - 1)) // chunk

    def reach(self, chunks: int, model: str, sections: Sequence[Section], ranks: int) -> None:
        """Makes the keys of so many chunks, where the answer has completed one."""
        if chunks > self.chunks:
            self.tokens = list(self.known[: chunks * sections[0].chunk])
            self.name(model, sections, ranks)

    def slice(self, section: int, first: int, last: int) -> tuple[bytes, ...]:
        return tuple(keys[first * KEY_BYTES : last * KEY_BYTES] for keys in self.keys[section])

    def name(self, model: str, sections: Sequence[Section], ranks: int) -> None:
        """Makes its keys, with `recipe`."""
        self.keys = tuple(
            tuple(
                chunk_keys(
                    self.tokens,
                    model=model + section.name,
                    geometry=section.geometry,
                    recipe=self.recipe,
                    salt=self.salt,
                    rank=rank,
                    ranks=ranks,
                    chunk_tokens=section.chunk,
                    extras=self.extras or None,
                )
                for rank in range(ranks)
            )
            for section in sections
        )
        self.chunks = len(self.keys[0][0]) // KEY_BYTES


def parts(
    job: int, prompt: Prompt, sections: Sequence[Section], tables: Sequence[Sequence[int]], computed: int, end: int
) -> tuple[Part, ...]:
    """What a load that ends at `end` brings of each section, with numbers from `job` on; nothing where a page that it
    would write is missing, or is there twice: vLLM has given one page to two groups before."""
    found: list[Part] = []
    written: dict[int, set[int]] = {}
    for index, section in enumerate(sections):
        stretch = Stretch.of(section, tables[section.group], computed, end)
        if stretch is None:
            return ()
        keys = prompt.slice(index, stretch.first, stretch.last)
        part = Part(job + index, keys, stretch.pages, stretch.tokens, stretch.first, index)
        found.append(part)
        written.setdefault(section.group, set()).update(part.wanted(section.page_rows))
    apart = sum(len(pages) for pages in written.values()) == len(set().union(*written.values()))
    return tuple(found) if apart else ()
