"""The processes that are tormented: a card (dpu-app) and a Redis server. Each can be killed, frozen and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

START_TIMEOUT = 20.0
"""Seconds that a process has to answer."""


class Process:
    """One child, and the log of all its lives."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    def spawn(self, command: list[str], **environment: str) -> None:
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._child.poll() if self._child is not None else None

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            assert self._child is not None
            self._child.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends it and waits for that; what does not go by SIGTERM goes by SIGKILL."""
        if self._child is None:
            return
        self.thaw()
        self.send(number)
        try:
            self._child.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def until(self, ready, what: str) -> None:
        """Waits until `ready()`; an error with the log's tail where that does not come."""
        give_up = time.monotonic() + START_TIMEOUT
        while not ready():
            if not self.alive or time.monotonic() > give_up:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{what} did not start (exit {self.exit_code}):\n{tail}")
            time.sleep(0.01)


class Card(Process):
    """A dpu-app on the emulator, met by its Unix socket. `program`: another version of it."""

    def __init__(self, directory: Path, name: str, *flags: str, program: str = "dpu-app", **environment: str) -> None:
        super().__init__(directory / f"{name}.log")
        self.socket = str(directory / f"{name}.sock")
        self._program, self._flags, self._environment = program, list(flags), environment

    def start(self, store: str, *flags: str, emulator: str = "", wait: bool = True) -> None:
        command = [self._program, "run", "--attach", "socket", "--socket", self.socket, "--recipe", "lossless"]
        began = self.log.stat().st_size if self.log.exists() else 0
        self.spawn([*command, "--store", store, *self._flags, *flags], DOCA_EMULATOR=emulator, **self._environment)
        if wait:
            said = f"hosts attach to {self.socket}"
            self.until(lambda: said in self.log.read_text(errors="replace")[began:], "dpu-app")


class Server(Process):
    """A redis-server on loopback. Nothing of it lies on a disk, so its death is the end of what it held."""

    def __init__(self, directory: Path, name: str = "redis") -> None:
        super().__init__(directory / f"{name}.log")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = directory

    def start(self, *flags: str) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.spawn([*command, "--dir", str(self._directory), *flags])
        self.until(lambda: self.ask("PING") == "+PONG", "redis-server")

    def ask(self, *words: str) -> str | None:
        """One command, by a connection of its own; the first line of the reply, None where there is none."""
        try:
            with self._door(words) as reply:
                return reply.readline().decode().rstrip("\r\n")
        except OSError:
            return None

    def chunks(self) -> set[str]:
        """The keys of whole chunks."""
        with self._door(("KEYS", "kvlane:*")) as reply:
            count = int(reply.readline()[1:])
            names = []
            for _ in range(count):
                length = int(reply.readline()[1:])
                names.append(reply.read(length + 2)[:-2].decode())
        return {name for name in names if ":put:" not in name}

    def _door(self, words):
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as door:
            door.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            return door.makefile("rb")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
