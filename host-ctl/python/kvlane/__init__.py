"""KV-cache prefixes through kvlane's dpu-app.

    memory = kvlane.register(geometry, [tensor, ...], form)      what the card may write to and read from
    session = kvlane.attach(memory, socket="/run/kvlane.sock")
    keys = kvlane.chunk_keys(tokens, model="m", geometry=geometry, recipe=session.recipe)
    session.fetch(keys, pages); completion = session.wait(5.0)

Every call either posts (and gives a number) or polls; nothing but `attach`, `wait` and `close` waits, and none of them
holds the interpreter meanwhile. Errors are exceptions that name who is to blame. docs/vllm.md has the connector.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._kvlane import (
    CardError,
    CardGone,
    Completion,
    DeviceError,
    Geometry,
    InputError,
    KvlaneError,
    Memory,
    RunError,
    Session,
    __version__,
    chunk_keys,
)
from .buffers import Span, span
from .form import Form

__all__ = [
    "CardError", "CardGone", "Completion", "DeviceError", "Form", "Geometry", "InputError", "KvlaneError", "Memory",
    "RunError", "Session", "Span", "__version__", "attach", "chunk_keys", "register", "span",
]  # fmt: skip

KEY_BYTES = 32


def register(
    geometry: Geometry,
    buffers: Sequence[object],
    form: Form,
    *,
    bases: Sequence[tuple[int, int]] | None = None,
    writable: bool = True,
) -> Memory:
    """Describes a KV cache that lies in `buffers` (buffer protocol, DLPack, or a `Span`): nothing is copied, and the
    buffers live as long as the memory or a session of it does.

    `bases` are (buffer, byte offset) of K, then V, of layer 0, then of layer 1, ...; by default there is one buffer for
    each layer, which holds all pages of K and then all pages of V.
    """
    spans = [buffer if isinstance(buffer, Span) else span(buffer) for buffer in buffers]
    if writable and (read_only := next((i for i, found in enumerate(spans) if not found.writable), None)) is not None:
        raise InputError(f"buffer {read_only} is read-only: register it with writable=False, to store from only")
    if bases is None:
        bases = [(index, half * (found.bytes // 2)) for index, found in enumerate(spans) for half in (0, 1)]
    return Memory(
        geometry,
        [(found.address, found.bytes, found.owner, found.dmabuf) for found in spans],
        list(bases),
        order=form.order,
        page_tokens=form.page_tokens,
        page_count=form.page_count,
        page_stride=form.page_stride,
        token_stride=form.token_stride,
        head_stride=form.head_stride,
        writable=writable,
    )


def attach(
    memory: Memory | None = None,
    *,
    socket: str | None = None,
    comch_name: str | None = None,
    device: str | None = None,
    recipe: str | None = None,
    client: str = "kvlane-python",
    namespace: str | None = None,
    timeout: float = 10.0,
) -> Session:
    """A session with the card: with `memory` it fetches and stores, without it only asks. By default the card of this
    machine is met by Comch; `socket` names dpu-app's Unix socket instead. `namespace`: whose quota of the card's tiers
    it uses (`dpu-app --tier-quota`)."""
    return Session.attach(
        memory,
        socket=socket,
        comch_name=comch_name,
        device=device,
        recipe=recipe,
        client=client,
        namespace=namespace,
        timeout=timeout,
    )
