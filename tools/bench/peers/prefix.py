"""The KV prefix that every way restores, and the paged memory of a serving engine that it is restored into.

The file is `kvlane-plan generate`'s: the sizes of an 8B-class model, made from the real KV in testdata/ (synthetic: shuffled).
Stored chunks are [layers, 2, 256 tokens, heads, head size] bf16; elements are held as uint16, which numpy knows.
"""

import json

import numpy as np

LAYERS, HEADS, HEAD_SIZE = 32, 8, 128
CHUNK_TOKENS, PAGE_TOKENS = 256, 16
PAGES_PER_CHUNK = CHUNK_TOKENS // PAGE_TOKENS
CHUNK_SHAPE = (LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE)
CHUNK_BYTES = 2 * LAYERS * 2 * CHUNK_TOKENS * HEADS * HEAD_SIZE
PAGE_BYTES = 2 * PAGE_TOKENS * HEADS * HEAD_SIZE


class Source:
    """The file, mapped."""

    def __init__(self, path):
        with open(path, "rb") as file:
            head = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(head))["kv"]
        shape = tuple(entry["shape"])
        offset = 8 + head + entry["data_offsets"][0]
        self.kv = np.memmap(path, dtype=np.uint16, mode="r", offset=offset, shape=shape)
        self.chunks = shape[2] // CHUNK_TOKENS

    def chunk(self, index):
        """Chunk `index`, contiguous."""
        tokens = slice(index * CHUNK_TOKENS, (index + 1) * CHUNK_TOKENS)
        return np.ascontiguousarray(self.kv[:, :, tokens])


class Pages:
    """What vLLM's CPU and CUDA backends hold: for each layer K pages and V pages, here in one array. The page table is shuffled."""

    def __init__(self, chunks):
        self.count = chunks * PAGES_PER_CHUNK
        self.memory = np.ones((LAYERS, 2, self.count, PAGE_TOKENS, HEADS, HEAD_SIZE), dtype=np.uint16)
        self.table = np.random.default_rng(1).permutation(self.count)

    def of_chunk(self, index):
        return self.table[index * PAGES_PER_CHUNK:(index + 1) * PAGES_PER_CHUNK]

    def place(self, index, chunk):
        """Copies a chunk into its pages."""
        pages = self.of_chunk(index)
        self.memory[:, :, pages] = chunk.reshape(LAYERS, 2, PAGES_PER_CHUNK, PAGE_TOKENS, HEADS, HEAD_SIZE)

    def pieces(self, index):
        """(offset in the stored chunk, address in memory, bytes) of each page: for ways that place by themselves."""
        base, layer_bytes = self.memory.ctypes.data, self.count * PAGE_BYTES
        for plane in range(2 * LAYERS):
            for rank, page in enumerate(self.of_chunk(index)):
                yield (plane * PAGES_PER_CHUNK + rank) * PAGE_BYTES, base + plane * layer_bytes + int(page) * PAGE_BYTES, PAGE_BYTES

    def chunk(self, index):
        """A chunk, read back out of its pages."""
        return self.memory[:, :, self.of_chunk(index)].reshape(CHUNK_SHAPE)

    def wipe(self):
        self.memory[:] = 1


def to_float(bits):
    """bf16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bits(values):
    """float32 to bf16 bits, to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
