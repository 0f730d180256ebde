"""NIXL's POSIX backend: one file a chunk, read by a list of descriptors straight into the pages."""

import os

from nixl._api import nixl_agent, nixl_agent_config

from prefix import CHUNK_BYTES
from ways.way import Way


class NixlPosix(Way):
    def path(self, index):
        return f"{self.place.directory}/nixl-{index}.bin"

    def store(self):
        source = self.source()
        for index in range(source.chunks):
            source.chunk(index).tofile(self.path(index))
        return source.chunks * CHUNK_BYTES

    def open(self):
        super().open()
        self.agent = nixl_agent("near", nixl_agent_config(backends=["POSIX"]))
        memory = self.pages.memory
        self.agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "pages")], mem_type="DRAM")
        files = [os.open(self.path(index), os.O_RDONLY) for index in range(self.place.chunks)]
        self.agent.register_memory([(0, CHUNK_BYTES, file, "") for file in files], mem_type="FILE")
        self.handles = [self.handle(index, file) for index, file in enumerate(files)]

    def handle(self, index, file):
        pieces = list(self.pages.pieces(index))
        local = self.agent.get_xfer_descs([(address, size, 0) for _, address, size in pieces], mem_type="DRAM")
        stored = self.agent.get_xfer_descs([(offset, size, file) for offset, _, size in pieces], mem_type="FILE")
        return self.agent.initialize_xfer("READ", local, stored, "near")

    def fetch(self):
        for handle in self.handles:
            state = self.agent.transfer(handle)
            while state not in ("DONE", "ERR"):
                state = self.agent.check_xfer_state(handle)
            if state == "ERR":
                raise RuntimeError("NIXL reports ERR for a POSIX read")
