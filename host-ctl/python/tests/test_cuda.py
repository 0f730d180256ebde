"""GPU memory as a dma-buf, with a library of our own in libcuda's place: it answers with a memfd and writes down what it was
asked. What the real one does is not proved here."""

from __future__ import annotations

import os
import subprocess

import pytest
from kvlane import cuda

SOURCE = """
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
int cuMemGetHandleForAddressRange(void *handle, uint64_t address, size_t bytes, int type, uint64_t flags)
{
    if (getenv("FAKE_CUDA_CODE"))
        return atoi(getenv("FAKE_CUDA_CODE"));
    int fd = memfd_create("fake", 0);
    dprintf(fd, "%llu %zu %d %llu", (unsigned long long)address, bytes, type, (unsigned long long)flags);
    *(int *)handle = fd;
    return 0;
}
"""
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cuda")
    (directory / "cuda.c").write_text(SOURCE)
    made = directory / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, directory / "cuda.c"], check=True)
    return str(made)


def asked(fd: int) -> list[int]:
    return [int(word) for word in os.pread(fd, 200, 0).split()]


def test_the_range_is_widened_to_pages_and_the_offset_says_by_how_much(library):
    found = cuda.export(16 * PAGE + 512, 3 * PAGE, library)
    assert asked(found.fd) == [16 * PAGE, 4 * PAGE, 1, 0]
    assert found.offset == 512
    os.close(found.fd)


def test_a_range_of_whole_pages_is_asked_for_as_it_is(library):
    found = cuda.export(16 * PAGE, 2 * PAGE, library)
    assert asked(found.fd) == [16 * PAGE, 2 * PAGE, 1, 0]
    assert found.offset == 0
    os.close(found.fd)


def test_a_driver_that_refuses_is_named_with_its_code(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_CODE", "801")
    with pytest.raises(cuda.NoDmaBuf, match="801.*open kernel modules"):
        cuda.export(PAGE, PAGE, library)


@pytest.mark.parametrize("name", ["libcuda-that-is-not-there.so.1", "libc.so.6"], ids=["no CUDA", "too old"])
def test_without_the_function_it_says_which_cuda_is_needed(name):
    with pytest.raises(cuda.NoDmaBuf, match="CUDA 11.7"):
        cuda.export(PAGE, PAGE, name)
