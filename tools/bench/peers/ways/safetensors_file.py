"""One safetensors file a chunk, loaded from disk: out of the page cache, or cold."""

import os

from safetensors.numpy import load_file, save_file

from prefix import CHUNK_BYTES
from ways.way import Way


class SafetensorsFile(Way):
    def __init__(self, place, cold):
        super().__init__(place)
        self.cold = cold

    def path(self, index):
        return f"{self.place.directory}/chunk-{index}.safetensors"

    def store(self):
        source = self.source()
        for index in range(source.chunks):
            save_file({"kv": source.chunk(index)}, self.path(index))
        return source.chunks * CHUNK_BYTES

    def fetch(self):
        for index in range(self.place.chunks):
            self.pages.place(index, load_file(self.path(index))["kv"])

    def before(self):
        if self.cold:
            os.sync()
            with open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("3")
