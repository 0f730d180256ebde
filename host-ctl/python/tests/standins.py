"""The connector over stand-ins for vLLM, which CI has not: what it makes of a configuration and of requests. The connector in
the real vLLM is scripts/vllm/prove.py's."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

NAMES = {
    "vllm": {"__version__": "0.32.0"},
    "vllm.distributed": {},
    "vllm.distributed.kv_events": {
        "BlockStored": type("BlockStored", (SimpleNamespace,), {}),
        "BlockRemoved": type("BlockRemoved", (SimpleNamespace,), {}),
    },
    "vllm.distributed.kv_transfer": {},
    "vllm.distributed.kv_transfer.kv_connector": {},
    "vllm.distributed.kv_transfer.kv_connector.v1": {},
    "vllm.distributed.kv_transfer.kv_connector.v1.base": dict.fromkeys(
        ("KVConnectorBase_V1", "KVConnectorMetadata", "KVConnectorRole", "KVConnectorWorkerMetadata", "SupportsHMA")
    ),
    "vllm.v1": {},
    "vllm.v1.core": {},
    "vllm.v1.core.kv_cache_utils": {
        "generate_block_hash_extra_keys": lambda request, start, end, at: (("salt",) if start == 0 else None, 0),
        "maybe_convert_block_hash": lambda name: name,
        "resolve_block_hashes": lambda hashes, made, wanted: hashes[wanted // made - 1 :: wanted // made],
        "to_event_extra_keys": list,
    },
    "vllm.distributed.kv_transfer.kv_connector.v1.metrics": dict.fromkeys(("KVConnectorPromMetrics", "KVConnectorStats")),
}


def connector_module() -> Any:
    """kvlane.vllm_connector, imported over empty classes."""
    for name, words in NAMES.items():
        if name not in sys.modules:
            module = ModuleType(name)
            for word, value in words.items():
                setattr(module, word, value or type(word, (), {}))
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    import kvlane.vllm_connector

    return kvlane.vllm_connector


def config(path: object, **changes: Any) -> Any:
    """vLLM's configuration of a small model in `path`. Changes are of the model's, or of the part named before `__`."""
    hf = {"model_type": "llama", "rope_parameters": {"rope_type": "default"}, "torch_dtype": "bfloat16"} | changes.pop("hf", {})
    model: dict[str, Any] = dict(model=str(path), revision=None, dtype="torch.bfloat16", quantization=None, hf_overrides={})
    model |= dict(max_model_len=4096, seed=0, hf_config=SimpleNamespace(to_dict=lambda: hf, **hf), attn_type="decoder")
    parts: dict[str, dict[str, Any]] = {
        "cache": dict(cache_dtype="auto", calculate_kv_scales=False),
        "load": dict(load_format="auto"),
        "parallel": dict(pipeline_parallel_size=1, tensor_parallel_size=1),
    }
    rest: dict[str, Any] = dict(speculative_config=None, lora_config=None)
    for name, value in changes.items():
        part, _, field = name.partition("__")
        (parts[part] if part in parts else rest if name in rest or part == "config" else model)[field or name] = value
    configs = {f"{name}_config": SimpleNamespace(**part) for name, part in parts.items()}
    return SimpleNamespace(model_config=SimpleNamespace(**model), **configs, **rest)


def request(**words: Any) -> Any:
    base: dict[str, Any] = dict(request_id="r", prompt_token_ids=list(range(300)), mm_features=[], prompt_embeds=None)
    base |= dict(prompt_is_token_ids=None, cache_salt=None, lora_request=None, pooling_params=None)
    return SimpleNamespace(**base | words)
