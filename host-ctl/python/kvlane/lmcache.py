"""kvlane as an L2 adapter of LMCache's cache server (docs/doors.md).

    --l2-adapter '{"type": "plugin", "module_path": "kvlane.lmcache", "class_name": "KvlaneL2Adapter",
                   "adapter_params": {"socket": "/run/kvlane/dpu-app.sock"}}'

LMCache's objects lie in one arena of host memory, which the card reads and writes. Objects of one size share a door,
and one that is too long for a chunk is cut into pieces of equal length with keys of their own; it is there when all of
them are. A thread has the sessions; whoever submits a task only queues it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.platform import create_event_notifier

from . import InputError, Span
from .doors.door import Door
from .doors.options import parse
from .doors.rows import stretches

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.internal_api import L1MemoryDesc
    from lmcache.v1.memory_management import MemoryObj

logger = logging.getLogger("vllm.kvlane")

PAGES_MAX = 128
"""Pages of one chunk: a plane of it fits a block of the card's."""
UNIT_MAX = 4096
WIDTH = 2
"""Bytes of an element: what most models have. LMCache does not say it where it asks what is stored."""
SIZES_MAX = 8
"""Sizes of objects, each with two sessions."""
FOLLOW = 64
"""Missing objects of a look-up behind which it is asked on."""
WAIT_S, IDLE_S = 0.0005, 0.5
STORE, LOOKUP, LOAD = "store", "lookup", "load"


@dataclass(eq=False)
class Task:
    number: int
    kind: str
    keys: list[ObjectKey]
    objects: list[Any]
    bits: list[bool] = field(default_factory=list)
    bytes: int = 0
    parts: int = 0
    """Doors that have not answered."""


@dataclass(frozen=True)
class Size:
    """Objects of one size: how many pieces each has, and pages each piece."""

    door: Door
    length: int
    pieces: int
    unit: int

    def blocks(self, key: ObjectKey) -> list[bytes]:
        words = (key.model_name, f"{key.kv_rank:x}", f"{key.object_group_id:x}", key.cache_salt, key.chunk_hash.hex())
        name = "@".join(words).encode() + self.length.to_bytes(8, "little")
        return [name + piece.to_bytes(4, "little") for piece in range(self.pieces)]


class KvlaneL2Adapter(L2AdapterInterface):  # type: ignore[misc, unused-ignore]
    def __init__(self, config: dict[str, Any], l1_memory_desc: L1MemoryDesc | None = None) -> None:
        super().__init__()
        if l1_memory_desc is None:
            raise ValueError("kvlane: LMCache has no arena of host memory to register (l1_memory_desc)")
        arena = l1_memory_desc
        self._start, self._bytes = arena.ptr, arena.stable_registration_size or arena.size
        self._unit = min(UNIT_MAX, arena.align_bytes & -arena.align_bytes) if arena.align_bytes > 1 else UNIT_MAX
        self._options = parse(config)
        self._sizes: dict[int, Size] = {}
        self._known: dict[tuple[str, int], int] = {}
        """Bytes of the objects of a model's group, as they came: what a look-up says of them is a hint."""
        self._events = {kind: create_event_notifier() for kind in (STORE, LOOKUP, LOAD)}
        self._done: dict[str, dict[int, Any]] = {STORE: {}, LOOKUP: {}, LOAD: {}}
        self._queue: deque[Task] = deque()
        self._changed = threading.Condition()
        self._numbers = self._moves = 0
        self._moving: dict[int, tuple[Task, list[int], Size]] = {}
        self._asking: set[Task] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kvlane-lmcache", daemon=True)
        self._thread.start()

    def get_store_event_fd(self) -> int:
        return int(self._events[STORE].fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        return int(self._events[LOOKUP].fileno())

    def get_load_event_fd(self) -> int:
        return int(self._events[LOAD].fileno())

    # Tasks, from LMCache's threads

    def _submit(self, kind: str, keys: list[ObjectKey], objects: list[Any]) -> int:
        with self._changed:
            self._numbers += 1
            self._queue.append(Task(self._numbers, kind, keys, objects, [False] * len(keys)))
            self._changed.notify()
            return self._numbers

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        return self._submit(STORE, keys, objects)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        with self._changed:
            done, self._done[STORE] = self._done[STORE], {}
        return done

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        """Nothing is locked: a block that the card evicts before its load makes that load a miss."""
        sizes = {group: _layout_bytes(layout) for group, layout in (group_layout_descs or {}).items()}
        return self._submit(LOOKUP, keys, [sizes.get(key.object_group_id) for key in keys])

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        with self._changed:
            return self._done[LOOKUP].pop(task_id, None)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        pass

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        return self._submit(LOAD, keys, objects)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        with self._changed:
            return self._done[LOAD].pop(task_id, None)

    def close(self) -> None:
        """Ends when the card touches no object any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for notifier in self._events.values():
            notifier.close()

    def report_status(self) -> dict[str, Any]:
        sizes = list(self._sizes.values())
        counts = {f"{size.length}": dict(size.door.stats) for size in sizes}
        return {"is_healthy": all(size.door.answers for size in sizes), "type": "KvlaneL2Adapter", "counts": counts}

    # The thread that has the sessions

    def _run(self) -> None:
        while True:
            with self._changed:
                if not (self._queue or self._moving or self._asking or self._closed):
                    self._changed.wait(IDLE_S)
                tasks, closed = list(self._queue), self._closed
                self._queue.clear()
            for task in tasks:
                self._begin(task)
            for size in list(self._sizes.values()):
                size.door.drain() if closed else size.door.wait(WAIT_S)
                self._take(size)
            if closed:
                break
        for size in self._sizes.values():
            if not size.door.close():
                logger.error("kvlane: the card has not let go of LMCache's arena: its memory must not be freed")

    def _begin(self, task: Task) -> None:
        by_size: dict[Size, list[int]] = {}
        task.parts = 1
        for at in range(len(task.keys)):
            if (size := self._size(task, at)) is not None:
                by_size.setdefault(size, []).append(at)
        for size, places in by_size.items():
            if task.kind == LOOKUP:
                self._look(task, size, places)
            else:
                self._move(task, size, places)
        self._part(task)

    def _size(self, task: Task, at: int) -> Size | None:
        """The door of a task's object; None where it has none."""
        key, object = task.keys[at], task.objects[at]
        if task.kind == LOOKUP:
            known = (key.model_name, key.object_group_id)
            length = object if object in self._sizes else self._known.get(known, object or 0)
        else:
            length, place = object.get_size(), object.data_ptr - self._start
            if place % self._unit or not 0 <= place <= self._bytes - length:
                logger.error(
                    "kvlane: an object at byte %d of the arena, in units of %d: set --l1-align-bytes", place, self._unit
                )
                return None
            self._known[key.model_name, key.object_group_id] = length
        if length not in self._sizes and 0 < length <= self._bytes and len(self._sizes) < SIZES_MAX:
            self._open(length)
        return self._sizes.get(length)

    def _open(self, length: int) -> None:
        pages = length // self._unit
        if length % self._unit or not pages:
            return logger.error("kvlane: objects of %d bytes are no multiple of %d", length, self._unit)
        pieces = next(pieces for pieces in range(1, pages + 1) if pages % pieces == 0 and pages // pieces <= PAGES_MAX)
        try:
            arena = stretches(Span(self._start, self._bytes, self), unit=self._unit, pages=pages // pieces, width=WIDTH)
        except InputError as error:
            return logger.error("kvlane: objects of %d bytes: %s", length, error)
        door = Door(self._options, arena, door="lmcache", words={})
        door.connect()
        self._sizes[length] = Size(door, length, pieces, self._unit)

    def _look(self, task: Task, size: Size, places: list[int]) -> None:
        runs: dict[tuple[int, int], dict[bytes, int]] = {}
        for at in places:
            key = task.keys[at]
            # Pieces are stored in order: what has the last one was stored whole.
            runs.setdefault((key.object_group_id, key.kv_rank), {})[size.blocks(key)[-1]] = at
        for run in runs.values():
            task.parts += 1
            self._asking.add(task)
            size.door.ask(list(run), FOLLOW, self._answer(task, run))

    def _answer(self, task: Task, run: dict[bytes, int]) -> Callable[[dict[bytes, bool], str], None]:
        def answered(found: dict[bytes, bool], why: str) -> None:
            for block, there in found.items():
                task.bits[run[block]] = there
            self._part(task)

        return answered

    def _move(self, task: Task, size: Size, places: list[int]) -> None:
        blocks = [block for at in places for block in size.blocks(task.keys[at])]
        first = [(task.objects[at].data_ptr - self._start) // self._unit for at in places]
        pages = [page for start in first for page in range(start, start + size.length // self._unit)]
        task.parts += 1
        self._moves += 1
        self._moving[self._moves] = (task, places, size)
        (size.door.store if task.kind == STORE else size.door.load)(self._moves, blocks, pages)

    def _take(self, size: Size) -> None:
        for moved in size.door.take():
            task, places, _ = self._moving.pop(moved.number)
            for index, at in enumerate(places):
                task.bits[at] = all(moved.done[index * size.pieces : (index + 1) * size.pieces])
                task.bytes += size.length * task.bits[at]
            self._part(task)

    def _part(self, task: Task) -> None:
        """One door less to wait for; with the last, the task is done."""
        task.parts -= 1
        if task.parts:
            return
        self._asking.discard(task)
        there = [key for key, bit in zip(task.keys, task.bits) if bit]
        result: Any
        if task.kind == STORE:
            if there:
                self._notify_keys_stored(there, [obj.get_size() for obj, bit in zip(task.objects, task.bits) if bit])
            result = L2StoreResult(all(task.bits), task.bytes)
        else:
            if task.kind == LOAD and there:
                self._notify_keys_accessed(there)
            result = Bitmap(len(task.keys))
            for at in (at for at, bit in enumerate(task.bits) if bit):
                result.set(at)
        with self._changed:
            self._done[task.kind][task.number] = result
        self._events[task.kind].notify()


def _layout_bytes(layout: MemoryLayoutDesc) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(layout.shapes, layout.dtypes))
