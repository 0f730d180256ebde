"""Settings in one spelling: equal ones give equal text in every process and on every machine, and different ones do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

VOLATILE = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
        "_experts_implementation", "_experts_implementation_internal", "_name_or_path", "_output_attentions",
        "attn_implementation", "dtype", "max_model_len", "name_or_path", "output_attentions", "output_hidden_states",
        "return_dict", "torch_dtype", "transformers_version", "transformers_weights", "use_cache",
    }
)  # fmt: skip
"""Fields of a model's configuration that say nothing of what it computes, or that keys have a word of their own for."""
LONG_ROPE = ("longrope", "su")
PLAIN = (str, bytes, int, float, tuple, type(None))
ADDRESS = " at 0x"
"""In the text of an object that has none of its own."""
DIGITS = 16


def canonical(value: Any) -> str:
    """One line of JSON: keys sorted, without volatile fields."""
    return json.dumps(_plain(value, VOLATILE), sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:DIGITS]


def _plain(value: Any, volatile: frozenset[str]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        # A quantization's own dtype decides what weights are worth.
        return {
            str(key): _plain(each, frozenset() if str(key).startswith("quant") else volatile)
            for key, each in value.items()
            if key not in volatile
        }
    if isinstance(value, (list, tuple)):
        return [_plain(each, volatile) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(canonical(each) for each in value)
    if isinstance(value, type):
        return value.__qualname__
    if callable(getattr(value, "to_dict", None)):
        return _plain(value.to_dict(), volatile)
    if (code := getattr(value, "__code__", None)) is not None:
        # What a function does; its text would be an address.
        constants = repr([constant for constant in code.co_consts if isinstance(constant, PLAIN)])
        return [value.__module__, value.__qualname__, code.co_code.hex(), constants]
    if fields := getattr(value, "__dict__", None):
        return {type(value).__qualname__: _plain(fields, volatile)}
    text = str(value)
    return type(value).__qualname__ if ADDRESS in text else text


def long_rope(config: Mapping[str, Any], max_model_len: Any) -> str:
    """Which of LongRoPE's two tables is in use, `long` or `short`: an engine chooses by the longest prompt that it accepts.
    Empty without LongRoPE; the length itself where a configuration does not say where the choice turns."""
    for rope in _ropes(config):
        turn = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        if not isinstance(turn, (int, float)) or not isinstance(max_model_len, int):
            return str(max_model_len)
        return "long" if max_model_len > turn else "short"
    return ""


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(config, Mapping):
        if config.get("rope_type", config.get("type")) in LONG_ROPE or "long_factor" in config:
            yield config
        for value in config.values():
            yield from _ropes(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _ropes(value)
