"""A pytest plugin: vLLM's own tests of its tiering manager with kvlane's tier in the place of its example tier
(prove_tier.py tests). The example answers within the call, and so do its stand-ins here, by waiting for the card: what
the tests ask is what the manager makes of a tier's answers."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import vllm.v1.kv_offload.tiering.example.manager as example
from kvlane.vllm_tier import KvlaneTier
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.tiering.base import TransferJob

PATIENCE = 10.0
STORED_HERE = -1
"""Number of the job that puts what a test says is there: none of the manager's."""
_made: list[StandIn] = []


class Chunks(dict[bytes, bool]):
    """What a test says that the tier has: it is stored, from row 0."""

    def __init__(self, tier: StandIn) -> None:
        super().__init__()
        self._tier = tier

    def __setitem__(self, key: Any, there: bool) -> None:
        super().__setitem__(key, there)
        self._tier.put([key])


class StandIn(KvlaneTier):
    medium = example.ExampleSecondaryTierManager.medium

    def __init__(
        self, offloading_spec: Any, primary_kv_view: memoryview, tier_type: str, custom_param: int = 0, **rest: Any
    ) -> None:
        _made.append(self)
        sizes = dict.fromkeys(("world_size", "tp_size", "pp_size", "pcp_size", "dcp_size"), 1)
        parallel = SimpleNamespace(**sizes, is_parallelism_agnostic=False)
        config = SimpleNamespace(
            worker_kv_bytes_per_block=primary_kv_view.strides[0], parallel=parallel, groups=(), replicated_layout=False,
            cache=SimpleNamespace(blocks_per_chunk=1, tokens_per_hash=16), canonical_layout=False, kv_cache_layout=None,
            model=SimpleNamespace(name=f"test-{os.getpid()}-{len(_made)}", dtype="bfloat16"),
        )  # fmt: skip
        spec = SimpleNamespace(
            config=config, replicated_layout=False, kv_events_config=SimpleNamespace(enable_kv_cache_events=False)
        )
        self._custom_param = custom_param
        self.completed_jobs: list[Any] = []
        super().__init__(spec, primary_kv_view, tier_type, socket=os.environ["KVLANE_SOCKET"])  # type: ignore[arg-type]
        self.chunks = Chunks(self)

    def _wait(self, over: Any) -> None:
        until = time.monotonic() + PATIENCE
        while not over():
            assert time.monotonic() < until, "the card did not answer"
            self._live().wait(0.001)

    def _settle(self) -> None:
        self._wait(lambda: not self._live().busy)
        self.completed_jobs += self._finished(self._live())

    def put(self, keys: list[Any]) -> None:
        self._jobs[STORED_HERE] = TransferJob(STORED_HERE, keys, None, False, None)  # type: ignore[arg-type]
        self._live().store(STORED_HERE, keys, [0] * len(keys))
        self._wait(lambda: not self._live().busy)
        (result,) = self._finished(self._live())
        assert result.success

    def lookup(self, key: Any, req_context: ReqContext) -> LookupResult:
        found = super().lookup(key, req_context)
        if found is LookupResult.RETRY:
            super().on_schedule_end(ScheduleEndContext([], []))
            self._wait(lambda: super(StandIn, self).lookup(key, req_context) is not LookupResult.RETRY)
            found = super().lookup(key, req_context)
        return found

    def submit_store(self, job_metadata: TransferJob) -> None:
        super().submit_store(job_metadata)
        self._settle()
        for key in job_metadata.keys:
            dict.__setitem__(self.chunks, key, True)

    def submit_load(self, job_metadata: TransferJob) -> None:
        super().submit_load(job_metadata)
        self._settle()

    def get_finished_jobs(self) -> list[Any]:
        jobs, self.completed_jobs = self.completed_jobs, []
        return jobs

    def get_num_chunks(self) -> int:
        return len(self.chunks)

    @classmethod
    def config_info_keys(cls, tier_config: Any) -> tuple[str, ...]:
        return ("example_info",)

    def config_info(self) -> dict[str, Any]:
        return {"example_info": self._custom_param}


example.ExampleSecondaryTierManager = StandIn  # type: ignore[misc, assignment]


def pytest_runtest_teardown() -> None:
    """The tests shut nothing down, and a card has so many sessions."""
    for tier in _made:
        tier.shutdown()
