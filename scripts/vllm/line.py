"""A Redis behind a line of any speed: a proxy that lets through so many bytes a second, in each direction."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path

PIECE = 16 << 10
"""Bytes that the line takes at once."""


class Line:
    """Forwards what comes to `port` to Redis's, both ways. `mbit` may change at any time; None: as fast as it goes."""

    def __init__(self, directory: Path) -> None:
        self.mbit: float | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._redis = free.getsockname()[1]
        command = ["redis-server", "--port", str(self._redis), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._free_at = [0.0, 0.0]
        """When the line is free again, each direction."""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *why: object) -> None:
        self._listener.close()
        self._server.kill()
        self._server.wait()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            for direction, (one, other) in enumerate(((client, server), (server, client))):
                other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * PIECE)
                threading.Thread(target=self._carry, args=(direction, one, other), daemon=True).start()

    def _connect(self) -> socket.socket:
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self._redis))
            except ConnectionRefusedError:
                time.sleep(0.05)

    def _carry(self, direction: int, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(PIECE):
                self._wait_for_room(direction, len(data))
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()

    def _wait_for_room(self, direction: int, count: int) -> None:
        """All connections share the line, one piece after the other."""
        if self.mbit is None:
            return
        with self._lock:
            begins = max(time.monotonic(), self._free_at[direction])
            self._free_at[direction] = begins + count * 8 / (1e6 * self.mbit)
        while self.mbit is not None and (left := self._free_at_of(begins, count)) > 0:
            time.sleep(min(left, 0.05))

    def _free_at_of(self, begins: float, count: int) -> float:
        return begins + count * 8 / (1e6 * (self.mbit or 1e9)) - time.monotonic()
