"""How a page's tokens and heads are nested, and how far apart things are; and sections, each with a form of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._kvlane import Geometry


@dataclass(frozen=True)
class Form:
    """Strides in bytes. `order` is "token-major" ([token][head][element]) or "head-major" ([head][token][element])."""

    order: str
    page_tokens: int
    page_count: int
    page_stride: int
    token_stride: int
    head_stride: int


@dataclass(frozen=True)
class Section:
    """Layers of equal shape. `bases` are (buffer, byte offset) of each plane, in order: K then V of layer 0, then of
    layer 1, ..., or one for each layer of a geometry with planes "one"."""

    geometry: Geometry
    form: Form
    bases: Sequence[tuple[int, int]]
