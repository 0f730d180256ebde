"""What a model's cache consists of, without tensors: sections of layers of equal shape, and what of each a prefix
needs.

    full     every token of the prefix
    window   its last `need` tokens
    state    one page, which holds all that is known of the tokens before a boundary

A chunk is named by all of its tokens and those before it, and a section's chunk holds what a hit that ends with it
needs: all tokens of the chunk, its last ones (a window shorter than a chunk), or the state at its end. Pages are found
by their place in the page table of the engine's group; 0 there is the page of what the engine has given up, or never
had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._kvlane import Geometry

FULL, WINDOW, STATE = "full", "window", "state"
NO_PAGE = 0
"""vLLM's null block: of all positions of a table that have no page."""


@dataclass(frozen=True)
class Section:
    """Layers of equal shape whose pages one table of the engine names."""

    geometry: Geometry
    """Of what the card moves for one chunk. Rows of an opaque page are its tokens."""
    page_tokens: int
    """Tokens that one page of the engine stands for."""
    chunk: int
    """Tokens that one key names."""
    covers: int
    """Tokens at the end of a chunk that are kept: all, a window, or those of the page with the state."""
    kind: str = FULL
    need: int = 0
    """Tokens before the end of a hit that must be there, of a window."""
    group: int = 0
    """Which page table."""
    name: str = ""
    """What separates its keys from those of another section of equal geometry."""

    @property
    def trailing(self) -> int:
        """Chunks before the end of a hit that must be there; 0: all."""
        return 0 if self.kind == FULL else max(1, -(-self.need // self.chunk))

    @property
    def pages_per_chunk(self) -> int:
        return self.covers // self.page_tokens

    @property
    def page_rows(self) -> int:
        """Tokens of one page as the card counts them."""
        return self.geometry.chunk_tokens // self.pages_per_chunk

    def places(self, first: int, last: int) -> list[int]:
        """Positions in the page table of the pages of chunks `first` up to `last`."""
        ends = ((chunk + 1) * self.chunk // self.page_tokens for chunk in range(first, last))
        return [place for end in ends for place in range(end - self.pages_per_chunk, end)]

    def kept(self, table: Sequence[int], first: int, last: int) -> int:
        """The chunk from which on all up to `last` have their pages; not below `first`."""
        if self.kind == FULL:
            return first
        for chunk in range(last - 1, first - 1, -1):
            if any(place >= len(table) or table[place] == NO_PAGE for place in self.places(chunk, chunk + 1)):
                return chunk + 1
        return first


def one_section(geometry: Geometry, page_tokens: int) -> tuple[Section, ...]:
    """Of a model whose layers are all alike and see every token."""
    chunk = geometry.chunk_tokens
    return (Section(geometry, page_tokens, chunk, chunk),)


@dataclass(frozen=True)
class Stretch:
    """What of one section a load brings: chunks, their pages, and which of the tokens that they hold."""

    first: int
    last: int
    pages: tuple[int, ...]
    tokens: tuple[int, int]

    @staticmethod
    def of(section: Section, table: Sequence[int], computed: int, end: int) -> Stretch | None:
        """For a hit that ends at `end`, of which the engine has `computed` tokens. None: a page that is to be written
        is not there, or twice."""
        begin = computed
        if section.kind == WINDOW:
            begin = max(computed, end - section.need)
        elif section.kind == STATE:
            begin = end - section.page_tokens
        first, last = begin // section.chunk, -(-end // section.chunk)
        origin = (first + 1) * section.chunk - section.covers
        wanted = range(begin // section.page_tokens, end // section.page_tokens)
        written = [table[place] for place in wanted if place < len(table)]
        gone = section.kind != FULL and NO_PAGE in written
        if gone or len(set(written)) < len(wanted):
            return None
        # Under tokens that are left out any page will do: the card does not look at them.
        filler = written[0]
        pages = [table[place] if place < len(table) else filler for place in section.places(first, last)]
        rows = section.page_rows
        tokens = tuple((at - origin) // section.page_tokens * rows for at in (begin, end))
        return Stretch(first, last, tuple(page or filler for page in pages), (tokens[0], tokens[1]))
