"""A path between a card and a server that flips one bit in each large read, as a bad switch or memory bank does."""

from __future__ import annotations

import random
import socket
import threading

LARGE_BYTES = 4096
"""Reads of fewer bytes pass unharmed: what is flipped are blocks, not the words of the protocol."""


class Proxy:
    """Listens on loopback, passes everything on to `port`, and counts what it flipped."""

    def __init__(self, port: int, seed: int, share: float = 1.0) -> None:
        self.flips = 0
        self.share = share
        """Of the large reads that are harmed."""
        self._port, self._dice = port, random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port), 5.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, harm: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if harm and len(data) >= LARGE_BYTES and self._dice.random() < self.share:
                    flipped = bytearray(data)
                    flipped[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)
                    data = bytes(flipped)
                    self.flips += 1
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
