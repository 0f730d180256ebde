"""kvlane as a secondary tier of vLLM's own KV offloading (docs/doors.md).

    kv_connector_extra_config = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": ..., "secondary_tiers": [
        {"type": "KvlaneTier", "module_path": "kvlane.vllm_tier", "socket": "/run/kvlane/dpu-app.sock"}]}

vLLM copies blocks between the GPU and its primary tier, a region of host memory whose rows are its chunks, whatever the
model's layers are; the card reads and writes those rows. Everything here runs in vLLM's scheduler, and nothing waits
but `drain_jobs` and `shutdown`. What is decided is decided in doors/.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingHistogramMetadata,
    OffloadingMetricMetadata,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from . import span
from .doors.door import Door
from .doors.options import parse
from .doors.rows import rows
from .engine import fingerprint
from .engine.options import Options
from .model_name import snapshot

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector

logger = logging.getLogger("vllm.kvlane")

TESTED = ("0.32.0", "0.33.0")
WIDTHS = {"bfloat16": 2, "float16": 2, "half": 2, "auto": 2, "float32": 4, "float": 4}
"""Bytes of an element by the name of vLLM's KV data type; all others (fp8, int8, 4 bits with scales) are bytes."""
COUNTERS = {
    "fetched_bytes": ("vllm:kvlane_tier_fetched_bytes", "Bytes that the card wrote into rows of the primary tier."),
    "fetched_wire_bytes": ("vllm:kvlane_tier_fetch_wire_bytes", "Compressed bytes that these came from."),
    "saved_bytes": ("vllm:kvlane_tier_saved_bytes", "Bytes that the card read; none of a block that the store had."),
    "saved_wire_bytes": ("vllm:kvlane_tier_save_wire_bytes", "Compressed bytes stored."),
    "save_refused_blocks": (
        "vllm:kvlane_tier_save_refused_blocks",
        "Blocks not stored: no room with the card or its store.",
    ),
}
ERRORS = ("vllm:kvlane_tier_errors", "Look-ups, loads and stores that went wrong, by kind.")
SECONDS = ("vllm:kvlane_tier_load_seconds", "From vLLM's order of a load to its end.")
STALE_S = 1.0
"""Age from which a new request does not take over that a block is missing, but asks."""
BUCKETS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(eq=False)
class Verdict:
    """Whether the store has a block, for the requests that ask."""

    requests: set[str]
    asked: bool = False
    stored: bool | None = None
    since: float = 0.0

    def judge(self, stored: bool | None) -> None:
        self.stored, self.since = stored, time.monotonic()

    def stale(self, request: str) -> bool:
        return self.stored is False and request not in self.requests and time.monotonic() - self.since > STALE_S


class KvlaneTier(SecondaryTierManager):
    medium: ClassVar[Medium | None] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        enable_kv_events: bool = False,
        locality: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if vllm.__version__.split("+")[0] not in TESTED:
            tested = " and ".join(TESTED)
            logger.warning("kvlane: vLLM %s was not tried: docs/doors.md has %s", vllm.__version__, tested)
        self.locality = Locality(locality) if locality is not None else None
        self._options = parse(options)
        self._events: list[OffloadingEvent] | None = None
        if enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events:
            self._events = []
        elif enable_kv_events:
            logger.warning("kvlane: enable_kv_events of the tier has no effect without vLLM's own kv_events_config")
        self._door: Door | None = _door(offloading_spec, primary_kv_view, self._options)
        self._door.connect()
        self._jobs: dict[int, TransferJob] = {}
        self._verdicts: dict[OffloadKey, Verdict] = {}
        self._requests: dict[str, set[OffloadKey]] = {}
        self._wanted: dict[tuple[str, int], list[OffloadKey]] = {}
        self._load_seconds: list[float] = []

    # Look-ups

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """An answer if there is one; else it is asked for at the end of the step, together with all others of the
        request."""
        door, request = self._live(), req_context.req_id
        verdict = self._verdicts.get(key)
        if verdict is not None and verdict.stale(request):
            verdict.stored = None
        if verdict is None or verdict.stored is None:
            if not self._options.load or not door.answers:
                return LookupResult.MISS
            if verdict is None:
                verdict = self._verdicts[key] = Verdict(set())
            if not verdict.asked:
                verdict.asked = True
                self._wanted.setdefault((request, get_offload_group_idx(key)), []).append(key)
        verdict.requests.add(request)
        self._requests.setdefault(request, set()).add(key)
        if verdict.stored is None:
            return LookupResult.RETRY
        return LookupResult.HIT if verdict.stored else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        door, wanted = self._live(), self._wanted
        self._wanted = {}
        for keys in wanted.values():
            # Behind a missing block nothing is asked before vLLM asks again: for a prefix it does not.
            door.ask(keys, 0, self._answer(keys))
        door.turn()

    def _answer(self, keys: list[OffloadKey]) -> Any:
        verdicts = {key: verdict for key in keys if (verdict := self._verdicts.get(key)) is not None}

        def answered(found: dict[bytes, bool], why: str) -> None:
            for key, verdict in verdicts.items():
                verdict.asked = False
                if verdict.stored is None:
                    # Nobody who asked in vain asks again: the request is computed.
                    verdict.judge(found.get(key, False if why else None))

        return answered

    def on_request_finished(self, req_context: ReqContext) -> None:
        for key in self._requests.pop(req_context.req_id, ()):
            verdict = self._verdicts[key]
            verdict.requests.discard(req_context.req_id)
            if not verdict.requests:
                del self._verdicts[key]

    # Jobs

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._jobs[job_metadata.job_id] = job_metadata
        rows = [int(row) for row in job_metadata.chunk_ids]
        self._live().store(job_metadata.job_id, list(job_metadata.keys), rows)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._jobs[job_metadata.job_id] = job_metadata
        rows = [int(row) for row in job_metadata.chunk_ids]
        self._live().load(job_metadata.job_id, list(job_metadata.keys), rows)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        door = self._live()
        door.turn()
        return self._finished(door)

    def _finished(self, door: Door) -> list[JobResult]:
        results = []
        for moved in door.take():
            job = self._jobs.pop(moved.number)
            there = [key for key, done in zip(job.keys, moved.done) if done]
            failed = [key for key, done in zip(job.keys, moved.done) if not done]
            if job.is_promotion:
                self._load_seconds.append(moved.seconds)
                self._known(failed, False)
                self._tell(failed, removed=True)
            else:
                self._known(there, True)
                self._tell(there, removed=False)
            bytes = len(there) * self.block_size_bytes
            partly = there if job.is_promotion and failed and there else None
            results.append(JobResult(job.job_id, not failed, partly, moved.seconds, bytes))
        return results

    def _known(self, keys: Collection[OffloadKey], stored: bool) -> None:
        for key in keys:
            if (verdict := self._verdicts.get(key)) is not None:
                verdict.judge(stored)

    def drain_jobs(self) -> None:
        """Also while the card stands still: rows that it may write are no one else's."""
        self._live().drain()

    def shutdown(self) -> None:
        door, self._door = self._door, None
        if door is not None and not door.close():
            raise RuntimeError("kvlane: the card has not let go of the primary tier, so its memory must stay")

    def _live(self) -> Door:
        assert self._door is not None, "used after shutdown"
        return self._door

    # What is told

    def _tell(self, keys: list[OffloadKey], *, removed: bool) -> None:
        if self._events is not None and keys:
            self._events.append(OffloadingEvent(keys, Medium.STORAGE, removed, self.locality))

    def take_events(self) -> Iterable[OffloadingEvent]:
        events, self._events = self._events or [], None if self._events is None else []
        return events

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        found: dict[str, OffloadingMetricMetadata] = {
            name: OffloadingCounterMetadata(documentation=what, labelnames=("tier",))
            for name, what in COUNTERS.values()
        }
        found[ERRORS[0]] = OffloadingCounterMetadata(documentation=ERRORS[1], labelnames=("tier", "kind"))
        found[SECONDS[0]] = OffloadingHistogramMetadata(documentation=SECONDS[1], labelnames=("tier",), buckets=BUCKETS)
        return found

    def get_stats(self) -> OffloadingConnectorStats | None:
        if self._door is None or not (self._door.stats or self._load_seconds):
            return None
        stats, counts = OffloadingConnectorStats(), dict(self._door.stats)
        self._door.stats.clear()
        for kind, count in counts.items():
            if kind in COUNTERS:
                stats.increase_counter(COUNTERS[kind][0], count, (self.tier_type,))
            else:
                stats.increase_counter(ERRORS[0], count, (self.tier_type, kind))
        for seconds in self._load_seconds:
            stats.observe_histogram(SECONDS[0], seconds, (self.tier_type,))
        self._load_seconds.clear()
        return stats


def _door(spec: OffloadingSpec, view: memoryview, options: Options) -> Door:
    config = spec.config
    assert view.shape is not None and view.strides is not None
    used = config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk
    if not getattr(spec, "replicated_layout", False):
        used *= config.parallel.world_size
    if not 0 < used <= view.strides[0]:
        used = view.strides[0]
    width = WIDTHS.get(re.sub(r"^torch\.", "", str(config.model.dtype)), 1)
    described = rows(span(view.cast("B")), count=view.shape[0], stride=view.strides[0], used=used, width=width)
    return Door(options, described, door="vllm-tier", words=_words(spec, options))


def _words(spec: OffloadingSpec, options: Options) -> dict[str, object]:
    """All that decides the bytes of a block beside the hash of its tokens: the weights, and how vLLM lays a row out."""
    config, parallel = spec.config, spec.config.parallel
    agnostic = parallel.is_parallelism_agnostic or config.replicated_layout
    sizes = {"tp": parallel.tp_size, "pp": parallel.pp_size, "pcp": parallel.pcp_size, "dcp": parallel.dcp_size}
    return {
        "weights": _weights(config.model.name, options),
        "dtype": str(config.model.dtype),
        "groups": [[group.group_id, group.tokens_per_block, list(group.layer_names)] for group in config.groups],
        "tokens_per_hash": config.cache.tokens_per_hash,
        "blocks_per_chunk": config.cache.blocks_per_chunk,
        "parallel": "any" if agnostic else sizes,
        "replicated": config.replicated_layout,
        "canonical": [config.canonical_layout, config.kv_cache_layout],
    }


def _weights(name: str, options: Options) -> str:
    """A fingerprint of the model's files, or its name where they are not on this machine."""
    folder = snapshot(name)
    try:
        found = folder and fingerprint.folder(folder, strict=options.weights == "strict")
    except OSError as error:
        logger.warning("kvlane: model %s: its files cannot be read: %s", name, error)
        found = None
    if not found:
        logger.warning(
            "kvlane: model %s: no weight files are found on this machine: keys have its name, and weights that change "
            "under it are not noticed: set the option `model` to another name with each change", name,
        )  # fmt: skip
    return found or name
