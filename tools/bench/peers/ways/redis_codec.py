"""The same, with values that the serving process decompresses: what a user would do by hand."""

import zlib

import lz4.frame
import zstandard

from ways.redis_get import RedisGet

CODECS = {
    "zlib": (lambda data: zlib.compress(data, 1), zlib.decompress),
    "lz4": (lz4.frame.compress, lz4.frame.decompress),
    "zstd": (zstandard.ZstdCompressor(level=3).compress, zstandard.ZstdDecompressor().decompress),
}


class RedisCodec(RedisGet):
    def __init__(self, place, codec):
        super().__init__(place)
        self.form = codec
        self.pack, self.unpack = CODECS[codec]

    def encode(self, chunk):
        return self.pack(super().encode(chunk))

    def decode(self, value):
        return super().decode(self.unpack(value))
