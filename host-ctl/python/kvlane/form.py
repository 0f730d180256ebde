"""Which way a page's tokens and heads are nested, and how far apart things are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Strides in bytes. `order` is "token-major" ([token][head][element]) or "head-major" ([head][token][element])."""

    order: str
    page_tokens: int
    page_count: int
    page_stride: int
    token_stride: int
    head_stride: int
