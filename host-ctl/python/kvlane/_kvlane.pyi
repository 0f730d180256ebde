from collections.abc import Callable
from typing import Any

from .form import Section

__version__: str

class KvlaneError(Exception): ...
class InputError(KvlaneError): ...
class DeviceError(KvlaneError): ...
class CardError(KvlaneError): ...
class CardGone(CardError): ...
class RunError(KvlaneError): ...

class Geometry:
    def __init__(
        self, layers: int, heads: int, head_size: int, element: str, chunk_tokens: int = 256, planes: str = "kv"
    ) -> None: ...
    @staticmethod
    def opaque(layers: int, page_bytes: int, width: int) -> Geometry: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def planes(self) -> str: ...
    @property
    def chunk_tokens(self) -> int: ...
    @property
    def chunk_bytes(self) -> int: ...

def chunk_keys(
    tokens: list[int],
    *,
    model: str,
    geometry: Geometry,
    recipe: str,
    salt: bytes | None = None,
    rank: int = 0,
    ranks: int = 1,
    chunk_tokens: int | None = None,
    extras: list[bytes] | None = None,
) -> bytes: ...

class Memory:
    def __init__(
        self,
        sections: list[Section],
        regions: list[tuple[int, int, Any, Callable[[], tuple[int, int]] | None, tuple[int, int] | None]],
        *,
        writable: bool,
    ) -> None: ...
    @property
    def pages_per_chunk(self) -> int: ...
    @property
    def page_count(self) -> int: ...
    @property
    def sections(self) -> int: ...

class Completion:
    id: int
    operation: str
    status: str
    chunks_done: int
    chunks_asked: int
    wire_bytes: int
    restored_bytes: int
    card_seconds: float
    elapsed_seconds: float
    answer: str
    @property
    def ok(self) -> bool: ...

class Session:
    recipe: str
    card: str
    _descriptor: int | None
    @staticmethod
    def attach(
        memory: Memory | None,
        *,
        socket: str | None,
        comch_name: str | None,
        device: str | None,
        recipe: str | None,
        client: str,
        namespace: str | None,
        timeout: float,
    ) -> Session: ...
    def lookup(self, keys: bytes, *, section: int = 0, trailing: int = 0) -> int: ...
    def fetch(
        self,
        keys: bytes,
        pages: list[int],
        *,
        tokens: tuple[int, int] | None = None,
        deadline: float | None = None,
        section: int = 0,
    ) -> int: ...
    def store(
        self,
        keys: bytes,
        pages: list[int],
        *,
        importance: list[float] | None = None,
        deadline: float | None = None,
        section: int = 0,
    ) -> int: ...
    def rate(self, keys: bytes, importance: list[float]) -> int: ...
    def status(self) -> int: ...
    def cancel(self, id: int) -> None: ...
    def poll(self) -> Completion | None: ...
    def wait(self, timeout: float) -> Completion | None: ...
    @property
    def outstanding(self) -> int: ...
    def close(self, timeout: float = 10.0) -> bool: ...
