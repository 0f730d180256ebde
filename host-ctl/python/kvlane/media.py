"""Pictures, sounds and films of a prompt, as vLLM names them in its own block hashes: by the hash of their content and
by where they begin in the block. A chunk's key has those that any of its tokens stand for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any


def named(feature: Any) -> bool:
    """Whether there is a name for it, and a place."""
    place = getattr(feature, "mm_position", None)
    numbers = (getattr(place, "offset", None), getattr(place, "length", None))
    identifier = getattr(feature, "identifier", None)
    return isinstance(identifier, str) and bool(identifier) and all(isinstance(number, int) for number in numbers)


def extras_of(features: Sequence[Any] | None, chunk: int) -> list[bytes]:
    """Of each chunk up to the last that has any of these."""
    extras: list[bytes] = []
    for feature in sorted(features or (), key=lambda feature: (feature.mm_position.offset, feature.identifier)):
        offset, length = feature.mm_position.offset, feature.mm_position.length
        name = feature.identifier.encode("utf-8", "surrogatepass")
        last = (offset + max(length, 1) - 1) // chunk
        extras += [b""] * (last + 1 - len(extras))
        for index in range(offset // chunk, last + 1):
            extras[index] += struct.pack("<Iq", len(name), offset - index * chunk) + name
    return extras
