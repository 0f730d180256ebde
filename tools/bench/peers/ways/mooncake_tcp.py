"""Mooncake's transfer engine over TCP: one batch of reads a chunk, straight into the pages."""

from mooncake.engine import TransferEngine

from ways.transfer import Transfer


class MooncakeTcp(Transfer):
    kind = "mooncake"

    def open(self):
        super().open()
        self.engine = TransferEngine()
        memory = self.pages.memory
        if self.engine.initialize(self.place.near(), "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("TransferEngine.initialize failed")
        if self.engine.register_memory(memory.ctypes.data, memory.nbytes) != 0:
            raise RuntimeError("TransferEngine.register_memory failed")
        self.batches = [list(self.pages.pieces(index)) for index in range(self.place.chunks)]

    def fetch(self):
        for index, pieces in enumerate(self.batches):
            local = [address for _, address, _ in pieces]
            remote = [self.remote(index, offset) for offset, _, _ in pieces]
            sizes = [size for _, _, size in pieces]
            status = self.engine.batch_transfer_sync_read(self.told["name"], local, remote, sizes)
            if status != 0:
                raise RuntimeError(f"batch_transfer_sync_read returned {status}")
