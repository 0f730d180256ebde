"""Where a Python object's memory lies: by the buffer protocol, or by DLPack (torch tensors, bfloat16 ones too).

The address, the length and the object that keeps both true come out together, as a `Span`; whoever holds the span's owner
holds the memory. By ctypes, because the C interface of the buffer protocol is not in the stable interface of Python 3.10.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """A stretch of this process's memory. `owner` keeps it alive."""

    address: int
    bytes: int
    owner: Any
    writable: bool = True
    watch: Callable[[], tuple[int, int]] | None = None
    """Says where the memory lies now, and its bytes: of an owner that can resize or replace it."""
    dmabuf: tuple[int, int] | None = None
    """Of a GPU's memory: a descriptor, which goes to whoever registers the span, and the offset in it (cuda.py)."""


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    # dlpack.h, struct DLTensor; the first member of a DLManagedTensor.
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _PyBuffer(ctypes.Structure):
    # object.h, Py_buffer.
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_CPU, _CUDA, _CUDA_HOST = 1, 2, 3
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]


class _Held:
    """A buffer that is exported until this object goes."""

    def __init__(self, source: object) -> None:
        self.view = _PyBuffer()
        _get_buffer(source, ctypes.byref(self.view), 0)  # PyBUF_SIMPLE: contiguous, read-only allowed; raises otherwise

    @property
    def place(self) -> tuple[int, int]:
        return self.view.buf or 0, self.view.len

    def __del__(self) -> None:
        _release_buffer(ctypes.byref(self.view))


def span(source: object) -> Span:
    """The memory of `source`. Raises TypeError for what has none, BufferError for what is not contiguous."""
    if hasattr(source, "__dlpack__"):
        try:
            return _by_dlpack(source)
        except (BufferError, TypeError):
            # numpy exports no read-only array this way; its buffer still can be.
            if not _has_buffer(source):
                raise
    held = _Held(source)
    watch = None if isinstance(source, _FIXED) else lambda: _Held(source).place
    return Span(*held.place, (held, _kept_in_place(source)), not held.view.readonly, watch)


def storage_watch(tensor: Any, storage: Any) -> Callable[[], tuple[int, int]]:
    """Of the whole storage that a torch tensor lay in: a tensor that was given another one is seen too."""
    offset = tensor.data_ptr() - storage.data_ptr()
    return lambda: (tensor.data_ptr() - offset if storage.nbytes() else 0, storage.nbytes())


_FIXED = (bytes, bytearray, array.array, mmap.mmap)
"""These refuse to move while a buffer of theirs is exported."""


def _kept_in_place(source: Any) -> list[weakref.ref[Any]]:
    """Weak references to an array and to what it is a view of: numpy resizes none that has one, not even when told not to
    look at reference counts."""
    references = []
    while source is not None:
        try:
            references.append(weakref.ref(source))
        except TypeError:
            break
        source = getattr(source, "base", None)
    return references


def _has_buffer(source: object) -> bool:
    try:
        memoryview(source)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _by_dlpack(source: Any) -> Span:
    capsule = source.__dlpack__()
    tensor = ctypes.cast(_get_pointer(capsule, b"dltensor"), ctypes.POINTER(_DLTensor)).contents
    if tensor.device.type not in (_CPU, _CUDA, _CUDA_HOST):
        raise TypeError(f"DLPack device {tensor.device.type}: the card reaches host memory and CUDA memory")
    shape = [tensor.shape[i] for i in range(tensor.ndim)]
    if tensor.strides:
        expected = 1
        for size, stride in zip(reversed(shape), reversed([tensor.strides[i] for i in range(tensor.ndim)])):
            if size != 1 and stride != expected:
                raise BufferError("this tensor is not contiguous: register its storage, and say strides in the form")
            expected *= size
    count = 1
    for size in shape:
        count *= size
    # The capsule was not consumed: it deletes the tensor's export when it goes.
    bytes = count * (tensor.dtype.bits * tensor.dtype.lanes // 8)
    address = (tensor.data or 0) + tensor.byte_offset
    return Span(address, bytes, (capsule, source, _kept_in_place(source)), watch=_watch(source, address))


def _watch(source: Any, address: int) -> Callable[[], tuple[int, int]]:
    if not hasattr(source, "untyped_storage"):
        return lambda: _place(source)
    whole = storage_watch(source, storage := source.untyped_storage())
    offset = address - storage.data_ptr()

    def look() -> tuple[int, int]:
        start, bytes = whole()
        return start + offset, max(0, bytes - offset)

    return look


def _place(source: Any) -> tuple[int, int]:
    found = _by_dlpack(source)
    return found.address, found.bytes
