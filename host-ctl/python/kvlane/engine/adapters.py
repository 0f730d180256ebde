"""Adapters by what is in their files: a path or a name says which adapter is meant, not which weights were trained last.

An engine loads an adapter's files when it first needs them and keeps them under its id; replaced files count from the next
load on. Nobody tells a connector when that was, so an adapter is named by its files only while they are the ones that were
there when its id was first seen, or each request loads them anew (`load_inplace`). Otherwise its prompts are left alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .fingerprint import DIGITS, READ

logger = logging.getLogger("vllm.kvlane")

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
"""The first that is there is what an engine loads."""
OTHERS = ("adapter_config.json", "new_embeddings.safetensors", "new_embeddings.bin")
KNOWN_MAX = 1 << 16
"""Ids of adapters that are remembered."""

Signature = tuple[tuple[str | int, ...], ...]
"""Path, size, both times, inode and device of each file: a write changes one of them, whoever sets dates."""


@dataclass(frozen=True)
class Adapter:
    """One adapter as it was when a request came."""

    name: str
    folder: str
    signature: Signature

    @property
    def unchanged(self) -> bool:
        return _signature(self.folder) == self.signature


class Adapters:
    def __init__(self, settings: str = "", resolve: Callable[[str], str | None] = lambda path: path) -> None:
        """`settings`: what an engine makes of all adapters. `resolve`: from a name on a hub to the folder it was loaded to."""
        self._settings, self._resolve = settings, resolve
        self._first: OrderedDict[Any, Adapter] = OrderedDict()
        self._warned: set[Any] = set()

    def find(self, lora: Any) -> Adapter | None:
        """The adapter of a request; None where nobody can say which weights are loaded."""
        number, folder = getattr(lora, "lora_int_id", lora.lora_path), self._folder(lora.lora_path)
        signature, known = _signature(folder), self._first.get(number)
        if known is not None and (known.folder, known.signature) == (folder, signature):
            return known
        try:
            if not signature:
                raise OSError("its files are not found")
            found = Adapter(self._name(lora, signature), folder, signature)
            if known is not None and known.name != found.name and not getattr(lora, "load_inplace", False):
                raise OSError("its files are not those that were loaded: load it in place, or by another name")
        except OSError as error:
            self._warn(number, f"prompts of the adapter {lora.lora_name} are served without the store: {error}")
            return None
        self._first[number] = found
        self._first.move_to_end(number)
        while len(self._first) > KNOWN_MAX:
            self._first.popitem(last=False)
        return found

    def _folder(self, path: str) -> str:
        here = os.path.expanduser(path)
        return os.path.realpath(here if os.path.exists(here) else self._resolve(path) or here)

    def _name(self, lora: Any, signature: Signature) -> str:
        name = hashlib.sha256(f"{self._settings} {getattr(lora, 'is_3d_lora_weight', False)}".encode())
        for path, size, *_ in signature:
            name.update(f"{os.path.basename(str(path))}\0{size}\0".encode())
            with open(path, "rb", buffering=0) as source:
                while block := source.read(READ):
                    name.update(block)
        return name.hexdigest()[:DIGITS]

    def _warn(self, number: Any, what: str) -> None:
        if number not in self._warned and len(self._warned) < KNOWN_MAX:
            self._warned.add(number)
            logger.warning("kvlane: %s", what)


def _signature(folder: str) -> Signature:
    """Of the files that an engine loads; empty where there are none."""
    weights = next((name for name in WEIGHTS if os.path.exists(os.path.join(folder, name))), None)
    if weights is None:
        return ()
    found: list[tuple[str | int, ...]] = []
    for name in (weights, *OTHERS):
        path = os.path.join(folder, name)
        try:
            stat = os.stat(path)
        except OSError:
            continue
        found.append((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev))
    return tuple(found)
