"""kvlane's q5 by hand: 31 levels with a scale for each token of each K and V, packed by zlib, dequantized by numpy."""

import zlib

import numpy as np

from prefix import CHUNK_SHAPE, CHUNK_TOKENS, LAYERS, to_bits, to_float
from ways.redis_get import RedisGet

PEAK = 15
SCALES = LAYERS * 2 * CHUNK_TOKENS


class RedisCodes(RedisGet):
    form = "codes"
    promise = "within half a level"

    def encode(self, chunk):
        values = to_float(chunk)
        scales = np.abs(values).max(axis=(3, 4), keepdims=True) / PEAK
        codes = np.rint(values / np.maximum(scales, 1e-30)).astype(np.int8)
        return scales.astype(np.float32).tobytes() + zlib.compress(codes.tobytes(), 4)

    def decode(self, value):
        scales = np.frombuffer(value, dtype=np.float32, count=SCALES).reshape(LAYERS, 2, CHUNK_TOKENS, 1, 1)
        codes = np.frombuffer(zlib.decompress(memoryview(value)[4 * SCALES:]), dtype=np.int8).reshape(CHUNK_SHAPE)
        return to_bits(codes * scales)

    def compare(self, index, expected, restored):
        expected, restored = to_float(expected), to_float(restored)
        # Half a level, and half a unit in the last place of bf16 (8 bits of mantissa).
        level = np.abs(expected).max(axis=(3, 4), keepdims=True) / PEAK
        if not np.all(np.abs(expected - restored) <= level * 0.501 + np.abs(restored) / 256):
            raise ValueError(f"chunk {index} is further off than half a level")
