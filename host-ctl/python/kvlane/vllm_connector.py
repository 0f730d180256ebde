"""vLLM's KV connector: prefixes saved and loaded through the card. Use and options: docs/vllm.md.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvlaneConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "kvlane.vllm_connector", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": "/run/kvlane.sock"}}'

An adapter and nothing else: it turns vLLM's objects into plain words for engine/, and back. The interface changes
between releases; what was tested is `TESTED`, and what may be missing is looked for, not assumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from . import Session, attach
from .engine.adapters import Adapter, Adapters
from .engine.idle import Alarm
from .engine.layout import Shape, memory, sections_of
from .engine.link import Link
from .engine.options import Options
from .engine.scheduler import Scheduler
from .engine.sections import STATE
from .engine.settings import canonical
from .engine.stats import SECONDS, Prom, Stats
from .engine.words import Orders, Report, Save
from .engine.worker import Worker
from .model_name import model_name as _model
from .model_name import snapshot
from .media import extras_of, named
from .model_shape import follows_sleep, hit_unit, refusal
from .model_shape import model_shapes as _shapes
from .vllm_core import Core

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from .vllm_events import Describe

TESTED = ("0.32.0",)

logger = logging.getLogger("vllm.kvlane")


@dataclass
class Metadata(KVConnectorMetadata):
    orders: Orders = field(default_factory=Orders)


@dataclass
class WorkerMetadata(KVConnectorWorkerMetadata):
    report: Report

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerMetadata:
        assert isinstance(other, WorkerMetadata)
        self.report.add(other.report)
        return self


class KvlaneConnector(KVConnectorBase_V1, SupportsHMA):
    """Scheduler's and worker's half in one class, as vLLM wants it; each process has one of them."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if vllm.__version__.split("+")[0] not in TESTED:
            logger.warning("kvlane: tested with vLLM %s, this is %s", ", ".join(TESTED), vllm.__version__)
        transfer = vllm_config.kv_transfer_config
        self._options = Options.parse(dict(transfer.kv_connector_extra_config or {}))
        self._shapes = _shapes(vllm_config, kv_cache_config)
        self._sections = sections_of(self._shapes, self._chunk(hit_unit(kv_cache_config, self._shapes)))
        self._cpu = vllm_config.device_config.device_type == "cpu"
        self._ranks = vllm_config.parallel_config.tensor_parallel_size
        self._replicas = getattr(kv_cache_config, "kv_tp_replicas", 1)
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        self._fenced: list[tuple[Any, list[Save]]] = []
        self._caches: dict[str, torch.Tensor] = {}
        self._adapters = Adapters(_adapting(vllm_config), snapshot)
        self._adapted: dict[str, Adapter] = {}
        self._told: Describe | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = self._make_scheduler()
            self._core = Core()
            self._alarm = Alarm(self._core.wake)

    def _chunk(self, unit: int) -> int:
        """Tokens of a chunk: what was asked for, or of a hybrid model the next multiple of what its hits are multiples
        of."""
        chunk, given = self._options.chunk_tokens, self._vllm_config.kv_transfer_config.kv_connector_extra_config or {}
        if chunk % unit and len(self._shapes) > 1 and "chunk_tokens" not in given:
            return -(-chunk // unit) * unit
        if chunk % unit:
            what = "the block size" if len(self._shapes) == 1 else "this model's hits"
            raise ValueError(
                f"kvlane: chunk_tokens {chunk} is not a multiple of {what} {unit}: change chunk_tokens or --block-size"
            )
        return chunk

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: a save that is dropped is a miss of tomorrow, and no request waits for it."""
        return False

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: Any = None) -> bool:
        """vLLM asks at start; one that does not ask is refused with sleep mode (`model_shape`)."""
        return follows_sleep()

    # Scheduler

    def _make_scheduler(self) -> Scheduler:
        model = _model(self._vllm_config, self._options, _main(self._shapes), self._cpu)
        logger.info("kvlane: keys name the model: %s", model)
        link = self._link("scheduler", None)
        link.connect()
        scheduler = Scheduler(
            self._options,
            link,
            model=model,
            sections=self._sections,
            page_count=self._kv_cache_config.num_blocks,
            ranks=self._ranks,
            replicas=self._replicas,
            # vLLM's attention on CPUs prefills latents without those of earlier steps.
            whole_only=self._cpu and any(shape.latent for shape in self._shapes),
        )
        scheduler.unchanged = self._unchanged
        self._told = scheduler.events.describe = self._describe()
        return scheduler

    def _describe(self) -> Describe | None:
        """None where vLLM publishes no events."""
        events = getattr(self._vllm_config, "kv_events_config", None)
        if events is None or not events.enable_kv_cache_events:
            return None
        from .vllm_events import Describe

        hashed = getattr(self._kv_cache_config, "hash_block_size", None)
        return Describe(self._sections, hashed or min(section.page_tokens for section in self._sections))

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        scheduler = self._scheduler
        assert scheduler is not None
        blocks, reset = gpu_block_pool.blocks, gpu_block_pool.reset_prefix_cache

        def hold(pages: Sequence[int]) -> None:
            gpu_block_pool.touch([blocks[page] for page in pages])

        def let_go(pages: Sequence[int]) -> None:
            gpu_block_pool.free_blocks([blocks[page] for page in reversed(pages)])

        def reset_prefix_cache() -> bool:
            """vLLM forgets its prefixes only while no page is in use, and those that saves hold are. They are out of
            use for this one moment, in which nobody can take them."""
            held = scheduler.holds.pages
            let_go(held)
            try:
                return reset()
            finally:
                hold(held)

        scheduler.holds.hold, scheduler.holds.let_go = hold, let_go
        gpu_block_pool.reset_prefix_cache = reset_prefix_cache  # type: ignore[method-assign]

    def reset_cache(self) -> bool | None:
        """Called when weights were updated, and before sleep: from now on keys are this engine's own, until it
        restarts."""
        if self._scheduler is None:
            return None
        done = self._scheduler.reset()
        logger.info("kvlane: reset: nothing that was stored before is served, and nothing is shared, until vLLM restarts")
        if not done:
            logger.warning("kvlane: the reset is not complete, because loads are on their way: reset again when they have ended")
        return done

    def on_new_request(self, request: Request) -> None:
        self._arrived(request)

    def _arrived(self, request: Request) -> None:
        assert self._scheduler is not None
        if not _named_by_tokens(request):
            return
        salt = (getattr(request, "cache_salt", None) or "").encode("utf-8", "surrogatepass")
        if (lora := getattr(request, "lora_request", None)) is not None:
            adapter = (getattr(self, "_adapters", None) or Adapters()).find(lora)
            if adapter is None:
                return
            getattr(self, "_adapted", {}).setdefault(request.request_id, adapter)
            # No text has this byte, so no salt of a request's is taken for an adapter.
            salt = b"\xff" + adapter.name.encode() + salt
        features = getattr(request, "mm_features", None)
        extras = extras_of(features, self._scheduler.chunk) if features else []
        # A session that is given more prompt later takes tokens back, and its pictures come later, too.
        grows = not getattr(request, "resumable", False)
        known = getattr(request, "all_token_ids", ()) if grows else ()
        if (told := getattr(self, "_told", None)) is not None:
            told.requests[request.request_id] = request
        self._scheduler.arrived(request.request_id, request.prompt_token_ids, salt, extras, known)

    def _unchanged(self, request: str) -> bool:
        adapter = self._adapted.get(request)
        return adapter is None or adapter.unchanged

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        self._arrived(request)
        if getattr(request, "skip_reading_prefix_cache", False) or not self._unchanged(request.request_id):
            return 0, False
        total, preemptions = request.num_tokens, request.num_preemptions
        count = self._scheduler.matched(request.request_id, num_computed_tokens, total, preemptions)
        return count, bool(count)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        assert self._scheduler is not None
        if num_external_tokens <= 0:
            return
        # The engine's own tokens are whole pages, and what is to be loaded ends with a page.
        ends = self._scheduler.matched_end(request.request_id, request.num_tokens)
        computed = ends - num_external_tokens
        self._scheduler.allocated(request.request_id, blocks.get_block_ids(), computed, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Metadata:
        assert self._scheduler is not None
        scheduled = scheduler_output.num_scheduled_tokens
        # What a window has left behind is gone from its table, and pages of states move in theirs: of several groups
        # the tables are asked for, not kept.
        state = scheduler_output.kv_connector_block_state if len(self._shapes) > 1 else None
        for new in scheduler_output.scheduled_new_reqs:
            self._scheduled(new.req_id, state, new.block_ids, True, new.num_computed_tokens + scheduled[new.req_id])
        cached = scheduler_output.scheduled_cached_reqs
        for request, blocks, before in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens):
            replaced = request in cached.resumed_req_ids
            self._scheduled(request, state, blocks or ((),), replaced, before + scheduled[request])
        for request, ends in (state.boundary_state_offloads if state is not None else {}).items():
            for group, page, tokens in ends:
                self._scheduler.bounded(request, group, page, tokens)
        return Metadata(self._scheduler.orders(scheduler_output.total_num_scheduled_tokens))

    def _scheduled(
        self, request: str, state: Any, blocks: Sequence[Sequence[int]], replaced: bool, computed: int
    ) -> None:
        assert self._scheduler is not None
        if state is None:
            self._scheduler.scheduled(request, blocks, replaced, computed)
        elif self._scheduler.saving(request, computed) and (tables := state.get_block_ids(request)) is not None:
            self._scheduler.scheduled(request, tables, True, computed)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        assert self._scheduler is not None
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, WorkerMetadata):
            self._scheduler.heard(meta.report)
        self._scheduler.received(connector_output.finished_recving or ())

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Never delays: pages of saves are held by the pool's own reference count, which outlives the request."""
        assert self._scheduler is not None
        self._scheduler.finished(request.request_id, block_ids, request.num_computed_tokens)
        self._adapted.pop(request.request_id, None)
        if self._told is not None:
            self._told.requests.pop(request.request_id, None)
        return False, None

    def take_events(self) -> list[KVCacheEvent]:
        """For vLLM's publisher, once a step: what the store has and what it has lost."""
        return self._scheduler.events.take() if self._scheduler is not None else []

    def has_pending_push_work(self) -> bool:
        """Asked when nothing is left to compute: also before an engine that was told to stop ends."""
        if self._scheduler is None:
            return False
        if self._core.stopping:
            self.shutdown()
            return False
        if not self._scheduler.pending:
            return False
        left = self._scheduler.idle.left(time.monotonic())
        if left > 0 and self._core.found:
            # No step, which would not be free: it sleeps until a request comes, or until it is time to look.
            self._alarm.set(left)
            return False
        return True

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        from vllm.distributed import get_tensor_model_parallel_rank

        self._caches = kv_caches
        rank = get_tensor_model_parallel_rank()
        link = self._registered(rank)
        self._worker = Worker(
            self._options, link, rank=rank, sections=self._sections, replicas=self._replicas, splits=self._splits
        )

    def _registered(self, rank: int) -> Link:
        """A link whose sessions read and write the KV cache where it lies now."""
        laid = memory(self._caches, self._shapes, self._sections, self._cpu)
        self._splits = laid.splits
        link = self._link(f"worker {rank}", laid.memory)
        link.connect()
        return link

    def unregister_kv_caches(self) -> None:
        """Before the KV cache's memory goes (sleep): nothing touches it from here on."""
        if self._worker is None:
            return
        for _, saves in self._fenced:
            for save in saves:
                self._worker.drop(save)
        self._fenced.clear()
        if not self._worker.let_go():
            raise RuntimeError(
                "kvlane: the card has not let go of the KV cache, so its memory must stay: see that dpu-app runs "
                "(host-ctl ping), then sleep again"
            )

    def restore_kv_caches(self) -> None:
        """After the KV cache's memory has come back."""
        if self._worker is not None and self._worker.link.closed:
            self._worker.link = self._registered(self._worker.rank)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        # Before the forward, so that loads run beside it. On a GPU an earlier step may still read the pages: after it.
        if self._cpu:
            self._load()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if not self._cpu:
            self._load()

    def _load(self) -> None:
        if self._worker is not None:
            for load in self._orders().loads:
                self._worker.load(load)

    def wait_for_save(self) -> None:
        """After the forward: what it computed is posted for saving."""
        if self._worker is None:
            return
        if saves := self._orders().saves:
            self._fenced.append((self._fence(), saves))
        # In order, and without waiting: pages are held, so a save may be posted a step later.
        while self._fenced and (self._fenced[0][0] is None or self._fenced[0][0].query()):
            for save in self._fenced.pop(0)[1]:
                self._worker.save(save)

    def _fence(self) -> Any:
        """What says that a GPU has computed this step; None where the forward is over when it returns."""
        if self._cpu:
            return None
        import torch

        event = torch.cuda.Event()
        event.record()
        return event

    def _orders(self) -> Orders:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Metadata)
        return metadata.orders

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        assert self._worker is not None
        orders = self._orders()
        self._results = self._worker.take(orders.wait)
        self._results.report.step = orders.step
        results = base.KVConnectorTransferResults(finished_recving=self._results.received)
        results.failed_recving = self._results.failed
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._results.bad_pages

    def build_connector_worker_meta(self) -> WorkerMetadata | None:
        return WorkerMetadata(self._results.report) if self._results.report else None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: none is waited for in a layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Chunks are saved whole, after the forward."""

    # Both

    def _link(self, name: str, memory_: Any) -> Link:
        options, lossless_only = self._options, any(shape.lossless_only for shape in self._shapes)

        def attached() -> Session:
            session = attach(
                memory_,
                socket=options.socket,
                comch_name=options.comch_name,
                device=options.device,
                recipe=options.recipe,
                client=f"vllm {name}",
                namespace=options.namespace,
                timeout=options.attach_timeout_s,
            )
            if lossless_only and not session.recipe.startswith("lossless"):
                session.close(1.0)
                raise refusal(
                    "latents, states and KV of one byte are passed through losslessly only, the card stores "
                    f"{session.recipe}: run dpu-app with --recipe lossless"
                )
            return session

        return Link(name, attached, retry=options.retry_s, retry_max=options.retry_max_s)

    def get_kv_connector_stats(self) -> Stats | None:
        half = self._scheduler or self._worker
        data: dict[str, Any] = dict(half.stats) if half else {}
        if half:
            half.stats.clear()
        if self._worker is not None and self._worker.fetch_seconds:
            data[SECONDS], self._worker.fetch_seconds = self._worker.fetch_seconds, []
        return Stats(data) if data else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> Prom:
        return Prom(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.shutdown()
        elif self._scheduler is not None:
            self._alarm.off()
            if (session := self._scheduler.link.close()) is not None:
                session.close(1.0)


def _named_by_tokens(request: Request) -> bool:
    """Whether token ids, with what goes into salt and extras, say all that a prompt's KV comes from. Embeddings
    (alone or between token ids) and what a pooling request adds to its tokens are in none of them."""
    mask = getattr(request, "prompt_is_token_ids", None)
    return (
        request.prompt_token_ids is not None
        and all(named(feature) for feature in getattr(request, "mm_features", None) or ())
        and getattr(request, "prompt_embeds", None) is None
        and (mask is None or all(mask))
        and not getattr(getattr(request, "pooling_params", None), "extra_kwargs", None)
    )


def _adapting(config: VllmConfig) -> str:
    """What vLLM makes of every adapter."""
    lora = config.lora_config
    return canonical([getattr(lora, name, None) for name in ("lora_dtype", "target_modules")]) if lora else ""


def _main(shapes: Sequence[Shape]) -> Shape:
    """The first that is attention: model_name asks how its pages are ordered."""
    return next((shape for shape in shapes if shape.kind != STATE), shapes[0])
