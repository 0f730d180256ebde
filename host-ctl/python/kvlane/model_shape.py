"""The shape of one rank's cache. Models whose KV cannot be passed around are refused at start, with a message that says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from . import InputError
from .engine.layout import Shape

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def follows_sleep() -> bool:
    """vLLM says when the KV cache's memory goes and comes back (0.33); earlier releases do not."""
    return hasattr(KVConnectorBase_V1, "unregister_kv_caches")


def refusal(what: str) -> Exception:
    return InputError(f"kvlane: {what}")


def model_shape(config: VllmConfig, caches: KVCacheConfig) -> Shape:
    """What one rank's cache looks like. Refuses what is not plain attention in one group, and says so."""
    _causal(config, caches)
    parallel = config.parallel_config
    for name, value in (
        ("pipeline_parallel_size", parallel.pipeline_parallel_size),
        ("decode_context_parallel_size", getattr(parallel, "decode_context_parallel_size", 1)),
        ("prefill_context_parallel_size", getattr(parallel, "prefill_context_parallel_size", 1)),
    ):
        if value != 1:
            raise refusal(f"{name} {value} is not supported: only tensor parallelism is")
    groups = caches.kv_cache_groups
    if len(groups) != 1:
        raise refusal(f"{len(groups)} KV cache groups: hybrid models (sliding window, Mamba) are not supported")
    spec = groups[0].kv_cache_spec
    kind = type(spec).__name__
    window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    if kind != "FullAttentionSpec" or window or getattr(spec, "head_size_v", spec.head_size) != spec.head_size:
        raise refusal(f"{kind} is not supported (MLA, sliding window and the like): only full attention with equal K and V")
    if getattr(config.model_config, "enable_sleep_mode", False) and not follows_sleep():
        raise refusal(
            f"enable_sleep_mode: vLLM {vllm.__version__} does not say when the KV cache's memory goes and comes back, and the "
            "card would go on using it (0.33 does): leave sleep mode off"
        )
    layers = len(groups[0].layer_names)
    return Shape(layers, spec.num_kv_heads, spec.head_size, str(spec.dtype), spec.block_size)


def _causal(config: VllmConfig, caches: KVCacheConfig) -> None:
    """Refuses attention in which the KV of a prefix depends on what follows it."""
    model = config.model_config
    kind, specs = getattr(model, "attn_type", "decoder"), [group.kv_cache_spec for group in caches.kv_cache_groups]
    configs = [getattr(model, name, None) for name in ("hf_config", "hf_text_config")]
    for wrong, what in (
        (any(getattr(spec, "non_causal", False) is True for spec in specs), "attention is not causal"),
        (kind in ("encoder_only", "encoder_decoder"), f"attention is {kind}"),
        (any(getattr(each, "is_causal", True) is False for each in configs), "is_causal is false"),
        (any(getattr(each, "use_bidirectional_attention", False) is True for each in configs), "attention is bidirectional"),
        (getattr(getattr(config, "attention_config", None), "use_non_causal", False) is True, "use_non_causal is set"),
    ):
        if wrong:
            raise refusal(f"{what}: the KV of a prefix depends on what follows it, so no prompt can use another's")
