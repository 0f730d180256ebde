"""Blocks in host memory, one in each row of a region, as the card is told of them: bytes without a meaning.

A row is one page of one chunk, and its geometry says nothing of the model: tokens, heads and head size are factors of its
elements. The width of the engine's elements is kept, because the bytes of one place in an element compress together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import Form, InputError, Memory, Span, register
from .._kvlane import Geometry

TOKENS_MAX, HEADS_MAX, HEAD_SIZE_MAX = 1024, 256, 1024
"""Limits of a geometry (docs/formats.md)."""
ELEMENTS_LEAST = 64
"""Elements of a token, where a row has enough: shorter ones make copies of few bytes."""
PLANES = 2
"""Halves of a row, which the card takes for K and V."""
ELEMENTS = {1: "f16", 2: "f16", 4: "f32"}
"""Element of the geometry by the width of the engine's, bytes. Those of one byte travel in pairs."""
BYTES = {"f16": 2, "f32": 4}


@dataclass(frozen=True)
class Rows:
    """A region, and how many rows it has. Bytes of a row behind the first `bytes` are padding, and are neither read nor
    written."""

    geometry: Geometry
    memory: Memory
    bytes: int


def rows(span: Span, *, count: int, stride: int, used: int, width: int) -> Rows:
    """Registers the region: `used` bytes of each `stride` hold something, in elements of `width` bytes."""
    tokens, heads, size, element = shape(used, stride, width)
    geometry = Geometry(1, heads, size, element, tokens)
    head = size * BYTES[element]
    form = Form("token-major", tokens, count, stride, heads * head, head)
    memory = register(geometry, [span], form, bases=[(0, half * geometry.chunk_bytes // PLANES) for half in range(PLANES)])
    return Rows(geometry, memory, geometry.chunk_bytes)


def stretches(span: Span, *, unit: int, pages: int) -> Rows:
    """Registers a region whose blocks are `pages` units of `unit` bytes in a row, wherever they begin: a move names each of
    them as a row. A unit is a power of two."""
    tokens, heads, size, element = 1, *_halved(unit // (PLANES * BYTES["f16"])), "f16"
    geometry = Geometry(1, heads, size, element, pages * tokens)
    form = Form("token-major", tokens, span.bytes // unit, unit, unit // PLANES, size * BYTES[element])
    memory = register(geometry, [span], form, bases=[(0, half * unit // PLANES) for half in range(PLANES)])
    return Rows(geometry, memory, geometry.chunk_bytes)


def _halved(elements: int) -> tuple[int, int]:
    """Heads and head size."""
    size = min(elements, HEAD_SIZE_MAX)
    return elements // size, size


def shape(used: int, stride: int, width: int) -> tuple[int, int, int, str]:
    """Tokens, heads, head size and element of the shortest row that holds `used` bytes and can be described."""
    if not 0 < used <= stride:
        raise InputError(f"kvlane: rows of {stride} bytes of which {used} are used")
    element = ELEMENTS.get(width)
    if element is None:
        raise InputError(f"kvlane: elements of {width} bytes: 1, 2 or 4 are supported")
    unit = PLANES * BYTES[element]
    for elements in range(-(-used // unit), stride // unit + 1):
        if (found := next(_factors(elements), None)) is not None:
            return *found, element
    raise InputError(f"kvlane: rows of {used} bytes have no factors that a geometry takes: choose another block size")


def _factors(elements: int) -> Iterator[tuple[int, int, int]]:
    """Tokens, heads and head size whose product this is. As many tokens as halving allows: the card cuts there."""
    tokens = 1
    while elements % (2 * tokens) == 0 and 2 * tokens <= TOKENS_MAX and elements // (2 * tokens) >= ELEMENTS_LEAST:
        tokens *= 2
    row = elements // tokens
    for size in range(min(row, HEAD_SIZE_MAX), 0, -1):
        if row % size == 0 and row // size <= HEADS_MAX:
            yield tokens, row // size, size
