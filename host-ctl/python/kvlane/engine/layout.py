"""From an engine's KV tensors to registered memory: addresses, strides, and a word for what the bytes mean.

vLLM gives one view for each layer, logically [page, head, token, content]; content is K then V of one head
(`KVCacheLayout`), or one latent, or what only the attention's kernels understand, and the strides say how it lies. A
state has one head and one token: a page. The CPU backend lays a page out for itself: [head][K rows, V rows], with K
transposed or packed for the instruction set. Those bytes are kept as they are, and the word goes into the keys, so that
another backend never takes them for its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import Form, InputError, Memory, Span, cuda, register_sections
from .. import Section as Registered
from .._kvlane import Geometry
from ..buffers import storage_watch
from .sections import FULL, STATE, WINDOW, Section
from .settings import digest

logger = logging.getLogger("vllm.kvlane")

ELEMENTS = {"torch.bfloat16": "bf16", "torch.float16": "f16", "torch.float32": "f32"}
"""Of what a lossy recipe may be used with."""


@dataclass(frozen=True)
class Shape:
    """Layers of equal shape in one rank's cache, as both sides of the connector derive them from vLLM's own
    description."""

    names: tuple[str, ...]
    page_tokens: int
    heads: int
    head_size: int
    """Elements of one head of one token in one plane; of a state, its bytes."""
    element: str
    dtype: str
    """vLLM's word for it, which is in the keys."""
    planes: int = 2
    kind: str = FULL
    need: int = 0
    """Of a window: tokens before the end of a hit, whole pages."""
    group: int = 0
    latent: bool = False
    """MLA."""

    @property
    def lossless_only(self) -> bool:
        return self.planes != 2 or self.element not in ELEMENTS.values()

    def section(self, chunk: int, alone: bool) -> Section:
        """`alone`: of a model that has no other, whose keys need no name for it."""
        covers = chunk
        if self.kind == STATE:
            covers = self.page_tokens
        elif self.kind == WINDOW:
            covers = min(chunk, self.need)
        name = ""
        if not alone or self.kind != FULL:
            name = f" section={self.kind}:{self.need}:{self.page_tokens}:{self.dtype}:{digest(self.names)}"
        return Section(
            self._geometry(covers), self.page_tokens, chunk, covers, self.kind, self.need, self.group, name
        )

    def _geometry(self, tokens: int) -> Geometry:
        layers = len(self.names)
        if self.kind == STATE:
            return Geometry.opaque(layers, self.head_size, {"u8": 1, "u16": 2, "u32": 4}[self.element])
        return Geometry(layers, self.heads, self.head_size, self.element, tokens, "kv" if self.planes == 2 else "one")


def sections_of(shapes: Sequence[Shape], chunk: int) -> tuple[Section, ...]:
    return tuple(shape.section(chunk, len(shapes) == 1) for shape in shapes)


@dataclass(frozen=True)
class Strides:
    """Of one layer's view, bytes."""

    pages: int
    page: int
    head: int
    token: int
    v: int
    """From K to V of the same page, token and head."""
    page_tokens: int
    """Of the pages that the kernels see; the engine's are one or more of them."""


def strides(tensor: Any, shape: Shape, cpu: bool) -> Strides:
    """How one layer lies. Refuses what the card could not describe."""
    size = tensor.element_size()
    bytes = tuple(stride * size for stride in tensor.stride())
    if shape.kind == STATE:
        one_page = tensor.dim() == 4 and tuple(tensor.shape[1:3]) == (1, 1) and bytes[3] == size
        if not one_page or tensor.shape[3] * size != shape.head_size:
            raise _unexpected(tensor, (1, 1, f"{shape.head_size} bytes"))
        return Strides(tensor.shape[0], bytes[0], 0, 0, 0, shape.page_tokens)
    content = shape.planes * shape.head_size * _bytes(shape.element)
    tokens = tensor.shape[2] if tensor.dim() == 4 else 0
    if not tokens or tensor.shape[1] != shape.heads or shape.page_tokens % tokens or tensor.shape[3] * size != content:
        raise _unexpected(tensor, (shape.heads, shape.page_tokens, f"{content} bytes"))
    page, head, token, element = bytes
    if element != size:
        raise InputError("kvlane: K and V of one token are not contiguous: choose another attention backend")
    row = shape.head_size * _bytes(shape.element)
    if cpu and shape.planes == 2:
        # [head][page_tokens rows of K, page_tokens rows of V]: the backend's own view of a contiguous page.
        if token != 2 * row or head != 2 * row * tokens:
            raise InputError("kvlane: pages of the CPU backend are expected to be contiguous")
        return Strides(tensor.shape[0], page, head, row, row * tokens, tokens)
    return Strides(tensor.shape[0], page, head, token, row, tokens)


def _unexpected(tensor: Any, expected: tuple[object, ...]) -> InputError:
    return InputError(
        f"kvlane: KV cache of shape {tuple(tensor.shape)}, expected [pages, {', '.join(map(str, expected))}] "
        "(this vLLM's layout is not supported: docs/vllm.md has the tested releases)"
    )


def _bytes(element: str) -> int:
    return {"f32": 4, "u32": 4, "bf16": 2, "f16": 2, "u16": 2}.get(element, 1)


@dataclass(frozen=True)
class Laid:
    """Registered memory, and how many pages of the kernels one of the engine's pages is, by section."""

    memory: Memory
    splits: tuple[int, ...]


def memory(caches: Mapping[str, Any], shapes: Sequence[Shape], sections: Sequence[Section], cpu: bool) -> Laid:
    """Registers the caches of all layers: no copy, the engine's own tensors."""
    spans: dict[int, tuple[int, Span]] = {}
    laid, splits = [], []
    for shape, section in zip(shapes, sections):
        if missing := [name for name in shape.names if name not in caches]:
            raise InputError(f"kvlane: no KV cache of layer {missing[0]} was registered")
        tensors = [caches[name] for name in shape.names]
        found = {strides(tensor, shape, cpu) for tensor in tensors}
        if len(found) != 1:
            raise InputError("kvlane: layers of one shape with different strides are not supported")
        (each,) = found
        bases: list[tuple[int, int]] = []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            start = storage.data_ptr()
            if start not in spans:
                dmabuf = _dmabuf(start, storage.nbytes()) if tensor.device.type == "cuda" else None
                owner, watch = (tensor, storage), storage_watch(tensor, storage)
                spans[start] = (len(spans), Span(start, storage.nbytes(), owner, watch=watch, dmabuf=dmabuf))
            region, k = spans[start][0], tensor.data_ptr() - start
            bases += [(region, k), (region, k + each.v)] if shape.planes == 2 else [(region, k)]
        laid.append(Registered(section.geometry, _form(shape, section, each), bases))
        splits.append(shape.page_tokens // each.page_tokens)
    return Laid(register_sections(laid, [span for _, span in spans.values()]), tuple(splits))


def _form(shape: Shape, section: Section, found: Strides) -> Form:
    if shape.kind == STATE:
        rows = section.page_rows
        row = shape.head_size // rows
        return Form("token-major", rows, found.pages, found.page, row, row)
    return Form(
        order="head-major" if found.head > found.token else "token-major",
        page_tokens=found.page_tokens,
        page_count=found.pages,
        page_stride=found.page,
        token_stride=found.token,
        head_stride=found.head,
    )


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
