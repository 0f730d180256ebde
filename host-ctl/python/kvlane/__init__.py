"""KV-cache prefixes through kvlane's dpu-app.

    memory = kvlane.register(geometry, [tensor, ...], form)      what the card may write to and read from
    session = kvlane.attach(memory, socket="/run/kvlane.sock")
    keys = kvlane.chunk_keys(tokens, model="m", geometry=geometry, recipe=session.recipe)
    session.fetch(keys, pages); completion = session.wait(5.0)

Every call either posts (and gives a number) or polls; nothing but `attach`, `wait` and `close` waits, and none of them
holds the interpreter meanwhile. Errors are exceptions that name who is to blame. The package's examples/ show each step
with numpy arrays and torch tensors; docs/vllm.md has the connector.
"""

from __future__ import annotations

import os
import weakref
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
from .form import Form, Section

__all__ = [
    "CardError", "CardGone", "Completion", "DeviceError", "Form", "Geometry", "InputError", "KvlaneError", "Memory",
    "RunError", "Section", "Session", "Span", "__version__", "attach", "chunk_keys", "register", "register_sections",
    "span",
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

    They stay where they are as long. A buffer that is exported cannot move, and a numpy array that is registered refuses to be
    resized. A torch storage can be: that is seen at the next `attach`, `fetch` or `store` and at the next completion, which
    raise InputError and end the session. Do not resize one while a request on it is in flight: the card may write then.

    `bases` are (buffer, byte offset) of K, then V, of layer 0, then of layer 1, ... (one for each layer where that has
    one plane); by default there is one buffer for each layer, which holds all pages of K and then all pages of V.
    """
    spans = _spans(buffers)
    if bases is None:
        planes = range(1 if geometry.planes == "one" else 2)
        halves = [plane * (found.bytes // len(planes)) for found in spans for plane in planes]
        bases = [(index // len(planes), offset) for index, offset in enumerate(halves)]
    return register_sections([Section(geometry, form, bases)], spans, writable=writable)


def register_sections(sections: Sequence[Section], buffers: Sequence[object], *, writable: bool = True) -> Memory:
    """Describes a KV cache whose layers are not all of one shape, section by section, in `buffers` as for `register`.

    Each section has chunks, keys and page numbers of its own; `fetch`, `store` and `lookup` name it by its place here.
    Sections may lie over each other in one buffer, as where an engine's groups share tensors: no two of them may use a
    page at a time, which is the caller's business.
    """
    spans = _spans(buffers)
    if writable and (read_only := next((i for i, found in enumerate(spans) if not found.writable), None)) is not None:
        raise InputError(f"buffer {read_only} is read-only: register it with writable=False, to store from only")
    regions = [(found.address, found.bytes, found.owner, found.watch, found.dmabuf) for found in spans]
    return Memory(list(sections), regions, writable=writable)


def _spans(buffers: Sequence[object]) -> list[Span]:
    return [buffer if isinstance(buffer, Span) else span(buffer) for buffer in buffers]


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
    session = Session.attach(
        memory,
        socket=socket,
        comch_name=comch_name,
        device=device,
        recipe=recipe,
        client=client,
        namespace=namespace,
        timeout=timeout,
    )
    if session._descriptor is not None:
        _sockets[session] = (session._descriptor, os.fstat(session._descriptor).st_ino)
    return session


_sockets: weakref.WeakKeyDictionary[Session, tuple[int, int]] = weakref.WeakKeyDictionary()
"""Descriptor and inode of each session's socket: the number alone may be another file's by now."""


def _after_fork_in_child() -> None:
    """Closes the child's copies of its parent's sockets, without a word to the card: else it would not see the parent die."""
    for descriptor, inode in list(_sockets.values()):
        try:
            if os.fstat(descriptor).st_ino == inode:
                os.close(descriptor)
        except OSError:
            pass
    _sockets.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
