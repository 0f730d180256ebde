"""What an operator can set of a door: the direct connector's options (engine/options.py), as far as they apply."""

from __future__ import annotations

from typing import Any

from ..engine.options import Options

FIELDS = (
    "socket", "comch_name", "device", "model", "weights", "recipe", "namespace", "load", "save", "lookup_deadline_ms",
    "loads_max", "load_deadline_s", "load_grace_s", "save_deadline_s", "saves_max", "save_retry_s", "save_retry_max_s",
    "attach_timeout_s", "retry_s", "retry_max_s",
)  # fmt: skip
LOAD_BYTES_S = 256 << 20
"""Bytes a second that a load's default deadline counts on."""


def parse(given: dict[str, Any]) -> Options:
    """The options; a name that means nothing here is an error: a misspelt one would be a silence."""
    if unknown := sorted(set(given) - set(FIELDS)):
        raise ValueError(f"kvlane: unknown option {unknown[0]!r}: docs/doors.md has {', '.join(sorted(FIELDS))}")
    return Options.parse(given)


def load_seconds(options: Options, bytes: int) -> float:
    """Seconds that a load of `bytes` may take."""
    return options.load_deadline_s or min(30.0, 2.0 + bytes / LOAD_BYTES_S)
