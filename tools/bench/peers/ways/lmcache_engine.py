"""LMCache's engine as its vLLM connector drives it: chunks of 256 tokens in Redis, CPU tensors, no local tier.
The engine is never destroyed: closing its remote backend waits without end here (0.5.6), so processes that used it end by os._exit.

Its own connectors to a serving engine's memory need a GPU; `Connector` does on this machine's pages what they do on a GPU's.
"""

import os
import time
from dataclasses import replace

import numpy as np

from prefix import CHUNK_SHAPE, CHUNK_TOKENS, HEADS, HEAD_SIZE, LAYERS, PAGES_PER_CHUNK, PAGE_TOKENS, to_float
from ways.way import Way

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_DISABLE_BANNER", "1")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")

import torch  # noqa: E402
from lmcache.v1.cache_engine import LMCacheEngineBuilder  # noqa: E402
from lmcache.v1.config import LMCacheEngineConfig  # noqa: E402
from lmcache.v1.gpu_connector.gpu_connectors import GPUConnectorInterface  # noqa: E402
from lmcache.v1.metadata import LMCacheMetadata  # noqa: E402

# CacheGen's levels are given by model name; this one has the geometry of the prefix.
MODEL = "mistralai/Mistral-7B-Instruct-v0.2"


class Connector(GPUConnectorInterface):
    """Chunks are [2, layers, tokens, hidden] here."""

    def __init__(self, way):
        self.way = way

    def chunk(self, memory):
        bits = memory.tensor.view(torch.int16).numpy().view(np.uint16)
        return bits.reshape(2, LAYERS, PAGES_PER_CHUNK, PAGE_TOKENS, HEADS, HEAD_SIZE).swapaxes(0, 1)

    def to_gpu(self, memory_obj, start, end, **_):
        pages = self.way.pages
        pages.memory[:, :, pages.of_chunk(start // CHUNK_TOKENS)] = self.chunk(memory_obj)

    def from_gpu(self, memory_obj, start, end, **_):
        self.chunk(memory_obj)[:] = self.way.source().chunk(start // CHUNK_TOKENS).reshape(
            LAYERS, 2, PAGES_PER_CHUNK, PAGE_TOKENS, HEADS, HEAD_SIZE)

    def batched_to_gpu(self, memory_objs, starts, ends, **kwargs):
        for each in zip(memory_objs, starts, ends):
            self.to_gpu(*each)

    def batched_from_gpu(self, memory_objs, starts, ends, **kwargs):
        for each in zip(memory_objs, starts, ends):
            self.from_gpu(*each)

    def get_shape(self, num_tokens):
        return torch.Size([2, LAYERS, num_tokens, HEADS * HEAD_SIZE])


class LMCache(Way):
    def __init__(self, place, serde, scheme="redis"):
        # CacheGen's decoder is torch on a CPU, some MB/s: one chunk of the prefix stands for all.
        self.share = 1 / place.chunks if serde == "cachegen" else 1
        place = replace(place, chunks=round(place.chunks * self.share))
        super().__init__(place)
        self.serde, self.tokens = serde, list(range(place.chunks * CHUNK_TOKENS))
        # What it may hold: several prefixes, for it frees late.
        config = LMCacheEngineConfig.from_defaults(chunk_size=CHUNK_TOKENS, local_cpu=False, remote_serde=serde, save_unfull_chunk=False,
                                                   max_local_cpu_size=(4 * place.chunks * 32 + 256) / 1024, blocking_timeout_secs=60,
                                                   remote_url=f"{scheme}://{place.host}:{place.port}")
        metadata = LMCacheMetadata(model_name=f"{MODEL}", world_size=1, local_world_size=1, worker_id=0, local_worker_id=0,
                                   kv_dtype=torch.bfloat16, kv_shape=(LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE), chunk_size=CHUNK_TOKENS)
        self.engine = LMCacheEngineBuilder.get_or_create(f"{serde}-{scheme}", config, metadata, Connector(self), lambda *_: None, lambda *_: None)
        self.engine.post_init()
        # Keys carry nothing of the serde: each has a token of its own in front.
        self.tokens[0] = {"naive": 1, "cachegen": 2}[serde] * 1000 + len(scheme)

    def store(self):
        import redis
        client = redis.Redis(host=self.place.host, port=self.place.port)
        before, wanted = client.info("memory")["used_memory_dataset"], self.place.chunks
        self.engine.store(torch.tensor(self.tokens), kvcaches=None)
        end = time.monotonic() + 120
        while self.engine.lookup(self.tokens) < wanted * CHUNK_TOKENS:
            if time.monotonic() > end:
                raise TimeoutError(f"LMCache's look-up finds {self.engine.lookup(self.tokens)} of {wanted * CHUNK_TOKENS} tokens after 120 s")
            time.sleep(0.2)
        return (client.info("memory")["used_memory_dataset"] - before) / self.share

    def fetch(self):
        start = time.perf_counter()
        mask = self.engine.retrieve(torch.tensor(self.tokens), kvcaches=None)
        if int(mask.sum()) != len(self.tokens):
            raise RuntimeError(f"LMCache restored {int(mask.sum())} of {len(self.tokens)} tokens")
        return (time.perf_counter() - start) / self.share, self.share

    def compare(self, index, expected, restored):
        if self.serde == "naive":
            return super().compare(index, expected, restored)
        expected, restored = to_float(expected).reshape(CHUNK_SHAPE), to_float(restored)
        error = float(np.sqrt(np.mean((expected - restored) ** 2) / np.mean(expected ** 2)))
        self.promise = f"lossy: RMS error {error:.1%}"
        if not error < 0.3:
            raise ValueError(f"chunk {index}: RMS error {error:.1%}")
