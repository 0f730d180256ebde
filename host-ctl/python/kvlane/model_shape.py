"""The shapes of one rank's cache. Models whose KV cannot be passed around are refused at start, with a message that
says why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from . import InputError
from .engine.layout import ELEMENTS, Shape
from .engine.sections import FULL, STATE, WINDOW

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

KINDS = {
    "FullAttentionSpec": FULL,
    "MLAAttentionSpec": FULL,
    "SlidingWindowSpec": WINDOW,
    "SlidingWindowMLASpec": WINDOW,
    "MambaSpec": STATE,
}
"""By the name of vLLM's class for a group of layers; what is not here is refused."""
SECTIONS_MAX = 16
"""Of a session with the card."""
FP8 = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
"""By vLLM's kv_cache_dtype: one byte an element, with scales outside of the pages."""


def follows_sleep() -> bool:
    """vLLM says when the KV cache's memory goes and comes back (0.33); earlier releases do not."""
    return hasattr(KVConnectorBase_V1, "unregister_kv_caches")


def refusal(what: str) -> Exception:
    return InputError(f"kvlane: {what}")


def model_shapes(config: VllmConfig, caches: KVCacheConfig) -> tuple[Shape, ...]:
    """What one rank's cache looks like, a shape for each of vLLM's groups."""
    _causal(config, caches)
    parallel = config.parallel_config
    for name, value in (
        ("pipeline_parallel_size", parallel.pipeline_parallel_size),
        ("decode_context_parallel_size", getattr(parallel, "decode_context_parallel_size", 1)),
        ("prefill_context_parallel_size", getattr(parallel, "prefill_context_parallel_size", 1)),
    ):
        if value != 1:
            raise refusal(f"{name} {value} is not supported: only tensor parallelism is")
    if getattr(config.model_config, "enable_sleep_mode", False) and not follows_sleep():
        raise refusal(
            f"enable_sleep_mode: vLLM {vllm.__version__} does not say when the KV cache's memory goes and comes back, and the "
            "card would go on using it (0.33 does): leave sleep mode off"
        )
    if len(caches.kv_cache_groups) > SECTIONS_MAX:
        raise refusal(f"{len(caches.kv_cache_groups)} KV cache groups: a card takes up to {SECTIONS_MAX}")
    eagle = _eagle(config, caches.kv_cache_groups)
    placed = list(getattr(caches, "kv_cache_tensors", ()))
    return tuple(
        _shape(config, group, index, placed, eagle[index]) for index, group in enumerate(caches.kv_cache_groups)
    )


def hit_unit(caches: KVCacheConfig, shapes: tuple[Shape, ...]) -> int:
    """Tokens of which every hit is a multiple."""
    pages = [shape.page_tokens for shape in shapes]
    if len(shapes) > 1:
        pages.append(getattr(caches, "cache_hit_alignment_tokens", None) or 1)
    return math.lcm(*pages)


def _eagle(config: VllmConfig, groups: Any) -> list[bool]:
    """Of which groups a drafter takes one more page before the end of a hit."""
    flagged = [bool(getattr(group, "is_eagle_group", False)) for group in groups]
    drafter = config.speculative_config
    uses = getattr(drafter, "use_eagle", None)
    return flagged if any(flagged) or uses is None or not uses() else [True] * len(flagged)


def _shape(config: VllmConfig, group: Any, index: int, placed: list[Any], eagle: bool) -> Shape:
    spec = group.kv_cache_spec
    if (kind := KINDS.get(type(spec).__name__)) is None:
        raise refusal(
            f"{type(spec).__name__} is not supported: full attention, latents (MLA), sliding windows and states (Mamba, "
            "gated delta nets) are"
        )
    for wrong, what in (
        (not getattr(group, "enable_kv_transfer", True), "a group of layers that vLLM does not let be transferred"),
        (getattr(group, "host_resident", False), "a group of layers in host memory (HiSparse)"),
        (not getattr(spec, "prefix_cacheable", True), "a window that is replayed (bounded_replay)"),
        (getattr(spec, "tokens_per_state", 1) not in (1, -1), "latents of several tokens each (tokens_per_state)"),
    ):
        if wrong:
            raise refusal(f"{what} is not supported")
    # Layers that use the pages of others are named in their group, and have none of their own.
    mine = [tensor for tensor in placed if set(tensor.layers) & set(group.layer_names)]
    own = {name for tensor in mine for name in tensor.layers}
    names = tuple(sorted((name for name in group.layer_names if not mine or name in own), key=_layer))
    if len({min(tensor.layer_stride, tensor.block_stride) for tensor in mine}) > 1:
        raise refusal("layers of unequal shape in one group of vLLM's are not supported")
    if kind == STATE:
        return _state(spec, names, index)
    page = spec.block_size
    need = 0
    if kind == WINDOW:
        need = -(-(spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)) // page) * page
        need = max(page, need) + (page if eagle else 0)
    heads, head_size, element, planes = _rows(config, spec)
    latent = type(spec).__name__.endswith("MLAAttentionSpec") or getattr(spec, "head_size_v", None) == 0
    return Shape(names, page, heads, head_size, element, str(spec.dtype), planes, kind, need, index, latent)


def _rows(config: VllmConfig, spec: Any) -> tuple[int, int, str, int]:
    """Heads, elements of each in one plane, their type, and planes: K and V, or one."""
    dtype, content = str(spec.dtype), getattr(spec, "state_content_size_bytes", None)
    v = getattr(spec, "head_size_v", spec.head_size)
    heads = getattr(spec, "num_head_slots", None) or spec.num_kv_heads
    plain = getattr(spec, "state_content_bytes", None) is None and heads == spec.num_kv_heads
    element = ELEMENTS.get(dtype)
    if element is None and plain and _quantized(spec) == "FP8_PER_TENSOR":
        element = FP8.get(str(config.cache_config.cache_dtype))
    if element and plain and v == spec.head_size:
        return heads, spec.head_size, element, 2
    if element and plain and v == 0:
        return heads, spec.head_size, element, 1
    if content is None:
        raise refusal(f"KV of {dtype} is not supported by this release of vLLM")
    # Scales in the page, packed elements, K and V of different sizes: bytes that only the kernels understand.
    return (heads, content // 2, "u16", 1) if content % 2 == 0 else (heads, content, "u8", 1)


def _quantized(spec: Any) -> str:
    mode = getattr(spec, "kv_quant_mode", None)
    return str(getattr(mode, "name", mode))


def _state(spec: Any, names: tuple[str, ...], index: int) -> Shape:
    mode = getattr(spec, "mamba_cache_mode", "none")
    if mode != "align":
        raise refusal(
            f"states with mamba_cache_mode {mode!r}: only 'align' keeps those of earlier tokens "
            "(--enable-prefix-caching --mamba-cache-mode align)"
        )
    widths = {_width(str(dtype)) for dtype in spec.dtypes}
    element = {1: "u8", 2: "u16"}.get(min(widths), "u32")
    words = "+".join(str(dtype) for dtype in spec.dtypes)
    return Shape(names, spec.block_size, 1, spec.state_content_size_bytes, element, words, 1, STATE, 0, index)


def _width(dtype: str) -> int:
    return {"torch.bfloat16": 2, "torch.float16": 2, "torch.float32": 4}.get(dtype, 1)


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


def _layer(name: str) -> int:
    """The number of a layer, by its name."""
    return next((int(word) for word in name.split(".") if word.isdigit()), 0)
