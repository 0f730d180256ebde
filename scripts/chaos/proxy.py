"""A path between a card and a server that flips bits of what is large, as a bad switch or memory bank does: one in each read,
anywhere, or the same one of each value, each time that it passes."""

from __future__ import annotations

import random
import socket
import threading

LARGE_BYTES = 4096
"""Reads of fewer bytes pass unharmed: what is flipped are blocks, not the words of the protocol."""


class Proxy:
    """Listens on loopback, passes everything on to `port`, and counts what it flipped."""

    def __init__(self, port: int, seed: int, share: float = 1.0, same: bool = False) -> None:
        self.flips = 0
        self.share = share
        """Of the large reads that are harmed."""
        self.same = same
        """The same bit of every large value: `share` says nothing then."""
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
        values = Values()
        try:
            while data := source.recv(1 << 16):
                if harm and self.same:
                    data, flips = values.flip(data)
                    self.flips += flips
                elif harm and len(data) >= LARGE_BYTES and self._dice.random() < self.share:
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


class Values:
    """Follows the replies of a server, however they are cut, and flips a bit in the middle of each large value."""

    def __init__(self) -> None:
        self._line = b""
        self._bytes = self._left = 0
        """Of the value that passes; what of it is still to come."""

    def flip(self, data: bytes) -> tuple[bytes, int]:
        out, at, flips = bytearray(data), 0, 0
        while at < len(data):
            if self._left:
                middle = at + self._left - self._bytes // 2
                passed = min(self._left, len(data) - at)
                if self._bytes >= LARGE_BYTES and at <= middle < at + passed:
                    out[middle] ^= 1 << 4
                    flips += 1
                self._left -= passed
                at += passed
                continue
            end = data.find(b"\n", at) + 1
            self._line += data[at : end or len(data)]
            at = end or len(data)
            if end:
                length = self._line.strip().removeprefix(b"$")
                self._bytes = int(length) if self._line.startswith(b"$") and length.isdigit() else 0
                self._left, self._line = self._bytes, b""
        return bytes(out), flips
