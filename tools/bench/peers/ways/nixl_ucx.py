"""NIXL's UCX backend, held to TCP as between machines without RDMA: one list of reads a chunk, straight into the pages."""

import os

from place import LINK
from ways.transfer import Transfer


class NixlUcx(Transfer):
    kind = "ucx"

    def environment(self, device):
        return {"UCX_TLS": "tcp", "UCX_NET_DEVICES": device}

    def open(self):
        super().open()
        os.environ.update(self.environment(LINK if self.place.far else "lo"))
        from nixl._api import nixl_agent, nixl_agent_config  # UCX reads its settings when it is loaded
        self.agent = nixl_agent("near", nixl_agent_config(backends=["UCX"]))
        memory = self.pages.memory
        self.agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "pages")], mem_type="DRAM")
        self.peer = self.agent.add_remote_agent(bytes.fromhex(self.told["metadata"]))
        self.handles = [self.handle(index) for index in range(self.place.chunks)]

    def handle(self, index):
        pieces = list(self.pages.pieces(index))
        local = self.agent.get_xfer_descs([(address, size, 0) for _, address, size in pieces], mem_type="DRAM")
        remote = self.agent.get_xfer_descs([(self.remote(index, offset), size, 0) for offset, _, size in pieces], mem_type="DRAM")
        return self.agent.initialize_xfer("READ", local, remote, self.peer)

    def fetch(self):
        for handle in self.handles:
            state = self.agent.transfer(handle)
            while state not in ("DONE", "ERR"):
                state = self.agent.check_xfer_state(handle)
            if state == "ERR":
                raise RuntimeError("NIXL reports ERR for a UCX read")
