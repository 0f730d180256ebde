"""One Redis value a chunk, as bf16: GET, and a copy into the pages."""

import numpy as np
import redis
from redis._parsers import _HiredisParser, _RESP2Parser

from ways.way import Way
from prefix import CHUNK_SHAPE

PARSERS = {"python": _RESP2Parser, "hiredis": _HiredisParser}


class RedisGet(Way):
    form = "bf16"

    def __init__(self, place, parser="hiredis"):
        super().__init__(place)
        pool = redis.ConnectionPool(host=place.host, port=place.port, parser_class=PARSERS[parser], protocol=2)
        self.client = redis.Redis(connection_pool=pool)

    def key(self, index):
        return f"peers:{self.form}:{index}"

    def encode(self, chunk):
        return chunk.tobytes()

    def decode(self, value):
        return np.frombuffer(value, dtype=np.uint16).reshape(CHUNK_SHAPE)

    def store(self):
        source, wire = self.source(), 0
        for index in range(source.chunks):
            value = self.encode(source.chunk(index))
            self.client.set(self.key(index), value)
            wire += len(value)
        return wire

    def fetch(self):
        for index in range(self.place.chunks):
            self.pages.place(index, self.decode(self.client.get(self.key(index))))
