"""From an engine's KV tensors to registered memory: addresses, strides, and a word for what the bytes mean.

vLLM gives one view for each layer, logically [page, head, token, content]; content is K then V of one head
(`KVCacheLayout`), and the strides say how it lies. Its CPU backend lays a page out for itself: [head][K rows, V rows], with K
transposed or packed for the instruction set. Those bytes are kept as they are, and the word goes into the keys, so that
another backend never takes them for its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import Form, InputError, Memory, Span, cuda, register
from .._kvlane import Geometry
from ..buffers import storage_watch

logger = logging.getLogger("vllm.kvlane")

DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "f16", "torch.float32": "f32"}


@dataclass(frozen=True)
class Shape:
    """One rank's cache, as both sides of the connector derive it from vLLM's own description."""

    layers: int
    heads: int
    head_size: int
    dtype: str
    page_tokens: int

    @property
    def one_byte(self) -> bool:
        return "float8" in self.dtype or self.dtype in ("torch.uint8", "torch.int8")

    def geometry(self, chunk_tokens: int) -> Geometry:
        """Elements of one byte travel in pairs: bytes are all that a lossless recipe looks at."""
        if self.one_byte:
            if self.head_size % 2:
                raise InputError(f"kvlane: one-byte KV with an odd head size ({self.head_size}) is not supported")
            return Geometry(self.layers, self.heads, self.head_size // 2, "bf16", chunk_tokens)
        if self.dtype not in DTYPES:
            raise InputError(f"kvlane: KV of {self.dtype}: only {', '.join(DTYPES)} and one-byte types are supported")
        return Geometry(self.layers, self.heads, self.head_size, DTYPES[self.dtype], chunk_tokens)


@dataclass(frozen=True)
class Plane:
    """Strides of one layer's view, bytes."""

    page: int
    head: int
    token: int
    v: int
    """From K to V of the same page, token and head."""


def plane(tensor: Any, shape: Shape, cpu: bool) -> Plane:
    """How one layer lies. Refuses what the card could not describe."""
    size = tensor.element_size()
    expected = (shape.heads, shape.page_tokens, 2 * shape.head_size)
    if tensor.dim() != 4 or tuple(tensor.shape[1:]) != expected:
        raise InputError(
            f"kvlane: KV cache of shape {tuple(tensor.shape)}, expected [pages, {', '.join(map(str, expected))}] "
            "(this vLLM's layout is not supported: docs/vllm.md has the tested releases)"
        )
    page, head, token, content = (stride * size for stride in tensor.stride())
    if content != size:
        raise InputError("kvlane: K and V of one token are not contiguous: choose another attention backend")
    row = shape.head_size * size
    if cpu:
        # [head][page_tokens rows of K, page_tokens rows of V]: the backend's own view of a contiguous page.
        if token != 2 * row or head != 2 * row * shape.page_tokens:
            raise InputError("kvlane: pages of the CPU backend are expected to be contiguous")
        return Plane(page, head, row, row * shape.page_tokens)
    return Plane(page, head, token, row)


def memory(caches: Mapping[str, Any], shape: Shape, chunk_tokens: int, cpu: bool) -> Memory:
    """Registers the caches of all layers, in the order given: no copy, the engine's own tensors."""
    tensors = list(caches.values())
    if len(tensors) != shape.layers:
        raise InputError(f"kvlane: {len(tensors)} KV caches registered, {shape.layers} expected")
    planes = {plane(tensor, shape, cpu) for tensor in tensors}
    if len(planes) != 1:
        raise InputError("kvlane: layers with different strides are not supported")
    (found,) = planes
    spans: dict[int, tuple[int, Span]] = {}
    bases: list[tuple[int, int]] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        if start not in spans:
            dmabuf = _dmabuf(start, storage.nbytes()) if tensor.device.type == "cuda" else None
            owner, watch = (tensor, storage), storage_watch(tensor, storage)
            spans[start] = (len(spans), Span(start, storage.nbytes(), owner, watch=watch, dmabuf=dmabuf))
        region, k = spans[start][0], tensor.data_ptr() - start
        bases += [(region, k), (region, k + found.v)]
    head_major = found.head > found.token
    form = Form(
        order="head-major" if head_major else "token-major",
        page_tokens=shape.page_tokens,
        page_count=tensors[0].shape[0],
        page_stride=found.page,
        token_stride=found.token,
        head_stride=found.head,
    )
    return register(shape.geometry(chunk_tokens), [span for _, span in spans.values()], form, bases=bases)


def _dmabuf(start: int, bytes: int) -> tuple[int, int] | None:
    try:
        found = cuda.export(start, bytes)
    except cuda.NoDmaBuf as why:
        logger.warning(
            "kvlane: the GPU gives no dma-buf of its KV cache: %s. It is registered by address, which needs the kernel module "
            "nvidia_peermem on this machine (modprobe nvidia-peermem)",
            why,
        )
        return None
    return found.fd, found.offset
