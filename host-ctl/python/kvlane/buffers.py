"""Where a Python object's memory lies: by the buffer protocol, or by DLPack (torch tensors, bfloat16 ones too).

The address, the length and the object that keeps both true come out together, as a `Span`; whoever holds the span's owner
holds the memory. By ctypes, because the C interface of the buffer protocol is not in the stable interface of Python 3.10.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """A stretch of this process's memory. `owner` keeps it alive."""

    address: int
    bytes: int
    owner: Any
    writable: bool = True
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
    return Span(held.view.buf or 0, held.view.len, held, not held.view.readonly)


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
    return Span((tensor.data or 0) + tensor.byte_offset, bytes, (capsule, source))
