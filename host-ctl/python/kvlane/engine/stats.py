"""Counters in vLLM's own stats hook, and their Prometheus names (docs/vllm.md, "Metrics")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

SECONDS = "fetch_seconds"
BUCKETS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
COUNTERS = {
    "hit_tokens": ("vllm:kvlane_hit_tokens", "Prompt tokens loaded from the store (each worker counts its own)."),
    "fetched_bytes": ("vllm:kvlane_fetched_bytes", "KV bytes written into pages."),
    "wire_bytes": ("vllm:kvlane_fetch_wire_bytes", "Compressed bytes that these came from."),
    "saved_chunks": ("vllm:kvlane_saved_chunks", "Chunks stored."),
    "saved_wire_bytes": ("vllm:kvlane_save_wire_bytes", "Compressed bytes stored."),
    "save_dropped_chunks": ("vllm:kvlane_save_dropped_chunks", "Chunks not saved because the card was behind."),
    "save_refused_chunks": ("vllm:kvlane_save_refused_chunks", "Chunks not saved because the store took none lately."),
}
NOT_LOADED = "not_loaded_"
"""What reasons begin with. The rest are errors, by kind."""


@dataclass
class Stats(KVConnectorStats):
    """Sums, and the times of the fetches of an interval."""

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> Stats:
        for name, value in other.data.items():
            # Lists and numbers both add; a copy, because the other's list is its own.
            self.data[name] = self.data[name] + value if name in self.data else value
        return self

    def reduce(self) -> dict[str, int | float]:
        seconds = sorted(self.data.get(SECONDS, ()))
        shown = {name: value for name, value in sorted(self.data.items()) if name != SECONDS}
        if seconds:
            shown["fetch ms p50"] = round(1e3 * seconds[len(seconds) // 2], 2)
            shown["fetch ms max"] = round(1e3 * seconds[-1], 2)
        return shown


class Prom(KVConnectorPromMetrics):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        engines = self.per_engine_labelvalues
        self._counters: dict[str, dict[int, Any]] = {}
        for key, (name, text) in COUNTERS.items():
            counter = self._counter_cls(name=name, documentation=text, labelnames=self._labelnames)
            self._counters[key] = {engine: counter.labels(*values) for engine, values in engines.items()}
        self._errors = self._counter_cls(
            name="vllm:kvlane_errors",
            documentation="Loads, saves and look-ups that went wrong, by kind.",
            labelnames=[*self._labelnames, "kind"],
        )
        self._not_loaded = self._counter_cls(
            name="vllm:kvlane_not_loaded",
            documentation="Requests that were computed without asking for what the store may have, by reason.",
            labelnames=[*self._labelnames, "reason"],
        )
        seconds = self._histogram_cls(
            name="vllm:kvlane_fetch_seconds",
            documentation="From posting a load to its completion.",
            buckets=BUCKETS,
            labelnames=self._labelnames,
        )
        self._seconds = {engine: seconds.labels(*values) for engine, values in engines.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name == SECONDS:
                for seconds in value:
                    self._seconds[engine_idx].observe(seconds)
            elif name in self._counters:
                self._counters[name][engine_idx].inc(value)
            elif name.startswith(NOT_LOADED):
                self._not_loaded.labels(*self.per_engine_labelvalues[engine_idx], name.removeprefix(NOT_LOADED)).inc(value)
            else:
                self._errors.labels(*self.per_engine_labelvalues[engine_idx], name).inc(value)
