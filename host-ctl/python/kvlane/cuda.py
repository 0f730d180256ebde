"""A GPU's memory as a dma-buf, by the CUDA driver's own library: what the card's driver needs to reach it.

    cuMemGetHandleForAddressRange(fd, address, bytes, DMA_BUF_FD, 0)     CUDA 11.7 and later, open kernel modules

By ctypes, at run time: nothing here is linked with CUDA, and a machine without it never gets here. Where no dma-buf is to be
had the memory is registered by address instead, which the kernel module nvidia_peermem makes possible.
UNTRIED: no GPU stood beside a card where this was written. tests/test_cuda.py has another library in libcuda's place.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_DMA_BUF_FD = 1
"""cuda.h, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD."""


class NoDmaBuf(Exception):
    """Why there is none, and what to do."""


@dataclass(frozen=True)
class DmaBuf:
    """`fd` belongs to whoever has this object; the memory begins `offset` bytes into what it names."""

    fd: int
    offset: int


def export(address: int, bytes: int, library: str = LIBRARY) -> DmaBuf:
    """Opens GPU memory of this process. The driver takes whole pages of the host, so the range is widened to them: an
    allocation is made of larger ones."""
    try:
        cuda = ctypes.CDLL(library)
        get = cuda.cuMemGetHandleForAddressRange
    except (OSError, AttributeError) as error:
        raise NoDmaBuf(f"{error}: CUDA 11.7 or later is needed for it") from error
    get.restype = ctypes.c_int
    get.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64]
    page = os.sysconf("SC_PAGE_SIZE")
    start = address // page * page
    end = -(-(address + bytes) // page) * page
    fd = ctypes.c_int(-1)
    code = get(ctypes.byref(fd), start, end - start, _DMA_BUF_FD, 0)
    if code != 0 or fd.value < 0:
        raise NoDmaBuf(
            f"cuMemGetHandleForAddressRange of {bytes} bytes answered {code}: it needs NVIDIA's open kernel modules, and "
            "memory of one allocation (PYTORCH_CUDA_ALLOC_CONF without expandable_segments)"
        )
    return DmaBuf(fd.value, address - start)
