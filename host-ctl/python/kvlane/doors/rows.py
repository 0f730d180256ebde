"""Blocks in host memory, one in each row of a region, as the card is told of them: bytes without a meaning.

A row is one page of one chunk, and its geometry says nothing of the model. The width of the engine's elements is kept,
because the bytes of one place in an element compress together.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from .. import Form, InputError, Memory, Span, register
from .._kvlane import Geometry

ELEMENTS = {1: "u8", 2: "u16", 4: "u32"}
"""Opaque elements by their width, bytes."""


@dataclass(frozen=True)
class Rows:
    """A region, and bytes of each of its blocks. What a row has behind them is padding: neither read nor written."""

    geometry: Geometry
    memory: Memory
    bytes: int


def rows(span: Span, *, count: int, stride: int, used: int, width: int) -> Rows:
    """Registers a region of rows: `used` bytes of each `stride` hold something, in elements of `width` bytes."""
    geometry = shape(used, stride, width)
    form = Form("token-major", geometry.chunk_tokens, count, stride, geometry.row_bytes, geometry.row_bytes)
    return Rows(geometry, register(geometry, [span], form, bases=[(0, 0)]), geometry.chunk_bytes)


def stretches(span: Span, *, unit: int, pages: int, width: int) -> Rows:
    """Registers a region whose blocks are `pages` units of `unit` bytes in a row, wherever they begin: a move names
    each of them as a row."""
    geometry = Geometry(1, 1, unit // width, ELEMENTS[width], pages, "one")
    form = Form("token-major", 1, span.bytes // unit, unit, unit, unit)
    return Rows(geometry, register(geometry, [span], form, bases=[(0, 0)]), geometry.chunk_bytes)


def shape(used: int, stride: int, width: int) -> Geometry:
    """The geometry of the shortest row that holds `used` bytes and has one."""
    if not 0 < used <= stride:
        raise InputError(f"kvlane: rows of {stride} bytes of which {used} are used")
    if width not in ELEMENTS:
        raise InputError(f"kvlane: elements of {width} bytes: 1, 2 or 4 are supported")
    for bytes in range(-(-used // width) * width, stride + 1, width):
        with suppress(InputError):
            return Geometry.opaque(1, bytes, width)
    raise InputError(f"kvlane: rows of {used} bytes have no factors that a geometry takes: choose another block size")
