"""What computes the KV, in one line: the model's name in keys. Equal lines, equal KV for equal tokens; what cannot be named by
its content gets a word that no other process has.

An adapter like vllm_connector.py: it asks vLLM's configuration, and what may be missing in a release is looked for.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from .engine import fingerprint
from .engine.settings import digest, long_rope

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from .engine.layout import Shape
    from .engine.options import Options

logger = logging.getLogger("vllm.kvlane")

SAME_FILES = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "mistral", "runai_streamer")
"""Ways to load the same safetensors files."""
INTEGERS = ("gptq", "awq", "marlin", "bitsandbytes", "compressed", "quark", "mxfp4", "nvfp4", "modelopt", "auto_round", "inc")
"""Parts of names of quantizations whose dummy weights are what was in memory before."""


def model_name(config: VllmConfig, options: Options, shape: Shape, cpu: bool) -> str:
    """Everything of the model that the key's other fields leave open."""
    model, cache = config.model_config, config.cache_config
    words = [f"weights={_weights(config, model, options)}", f"config={_config(model)}"]
    if options.model:
        words.insert(0, options.model)
    words += [f"dtype={model.dtype}", f"kv={cache.cache_dtype}:{shape.dtype}", f"quantization={model.quantization}"]
    for name, value in (
        ("quantization_config", getattr(model, "quantization_config", None)),
        ("overrides", getattr(model, "hf_overrides", None)),
        ("code", getattr(model, "code_revision", None)),
        ("classes", getattr(model, "model_class_overrides", None)),
        ("loader", getattr(getattr(config, "load_config", None), "model_loader_extra_config", None)),
        ("kv_skip", getattr(cache, "kv_cache_dtype_skip_layers", None)),
    ):
        if value:
            words.append(f"{name}={digest(value)}")
    if rope := long_rope(_settings(model), getattr(model, "max_model_len", None)):
        words.append(f"longrope={rope}")
    if config.speculative_config is not None:
        words.append(f"speculative={_drafter(config, options)}")
    if getattr(cache, "calculate_kv_scales", False):
        # From the first batch that a process happens to see.
        words.append(f"scales={_nobody_else()}")
    if cpu:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        isa = _get_attn_isa(model.dtype, shape.page_tokens, shape.head_size)
        # K is transposed or packed over a whole page: another page size is another order.
        words.append(f"pages=cpu:{isa}:{shape.page_tokens}")
    return " ".join(words)


def snapshot(name: str, revision: str | None = None, cache: str | None = None) -> str | None:
    """The folder that `name` was loaded from: itself, or the snapshot of a hub's model on this machine."""
    if os.path.exists(name):
        return os.path.realpath(name)
    try:
        import huggingface_hub

        found: str = huggingface_hub.snapshot_download(name, revision=revision, cache_dir=cache, local_files_only=True)
        return found
    except Exception:
        # A missing package, another hub, a name that is a path of nothing: all mean that the files are not here.
        return None


def _weights(config: Any, model: Any, options: Any) -> str:
    load = getattr(config, "load_config", None)
    form = str(getattr(load, "load_format", "auto"))
    if getattr(config, "weight_transfer_config", None) is not None:
        return _unnamed("a trainer sends them (weight_transfer_config)")
    if form == "dummy":
        return _dummy(config, model)
    name, revision = getattr(model, "model_weights", None) or model.model, getattr(model, "revision", None)
    began = time.monotonic()
    folder = snapshot(name, revision, getattr(load, "download_dir", None))
    strict = getattr(options, "weights", "sampled") == "strict"
    why = "no weight files are found on this machine"
    try:
        found = folder and fingerprint.folder(folder, strict=strict, tensors_only=form in SAME_FILES)
    except OSError as error:
        found, why = None, f"its files cannot be read: {error}"
    if not found:
        name = options.model or (os.path.realpath(name) if os.path.isabs(name) else name.rstrip("/"))
        logger.warning(
            "kvlane: model %s: %s. Keys name it %s@%s, and weights that change under this name are not noticed: set the option "
            "`model` to another name with each change.",
            model.model, why, name, revision or "",
        )  # fmt: skip
        return f"{name}@{revision or ''}:{form}"
    logger.info(
        "kvlane: weights in %s have the fingerprint %s (%s, %.0f ms)",
        folder, found, "all of it read" if strict else "sampled", 1e3 * (time.monotonic() - began),
    )  # fmt: skip
    return found if form in SAME_FILES else f"{found}:{form}"


def _dummy(config: Any, model: Any) -> str:
    if getattr(getattr(config, "parallel_config", None), "worker_extension_cls", None):
        return _unnamed("they are dummies, and worker_extension_cls may load others")
    if any(word in str(model.quantization) for word in INTEGERS):
        return _unnamed("dummies of quantized layers are what was in memory")
    return f"dummy:{getattr(model, 'seed', None)}"


def _drafter(config: Any, options: Any) -> str:
    """A drafter's layers lie in the same cache where it has any of its own."""
    drafter = config.speculative_config
    draft = getattr(drafter, "draft_model_config", None)
    words = [str(getattr(drafter, "method", None)), str(getattr(drafter, "model", None))]
    if draft is not None and getattr(draft, "model", None):
        words = [words[0], _weights(config, draft, options), _config(draft)]
    return ":".join(words)


def _config(model: Any) -> str:
    return digest(_settings(model))


def _settings(model: Any) -> dict[str, Any]:
    """The model's configuration as it is in use: overrides are in it."""
    found: dict[str, Any] = {}
    for config in (getattr(model, "hf_text_config", None), getattr(model, "hf_config", None)):
        if config is not None:
            to_dict = getattr(config, "to_dict", None)
            found |= to_dict() if to_dict else vars(config)
            for name in ("rope_parameters", "rope_scaling", "original_max_position_embeddings"):
                if getattr(config, name, None) is not None:
                    found[name] = getattr(config, name)
    return found


def _unnamed(why: str) -> str:
    logger.warning("kvlane: what the weights are cannot be told: %s. Nothing is shared with another process.", why)
    return _nobody_else()


def _nobody_else() -> str:
    return f"only-{uuid.uuid4().hex}"
