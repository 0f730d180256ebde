"""A real dpu-app on the emulator with a store of its own, for tests and for scripts/vllm/prove.py."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

START_TIMEOUT = 20.0


class Card:
    """One dpu-app and its store, which outlives it: a directory beside the socket, or what `store` names."""

    def __init__(self, program: str, directory: Path, recipe: str, store: str | None = None) -> None:
        self.socket, self.recipe, self.log = str(directory / "socket"), recipe, directory / "log"
        self._program, self._store = program, store or f"dir:{directory / 'store'}"
        (directory / "store").mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._program, "run", "--attach", "socket", "--socket", self.socket, "--recipe", self.recipe]
        with self.log.open("ab") as log:
            began = log.tell()
            self._process = subprocess.Popen([*command, "--store", self._store], stdout=log, stderr=log)
        until = time.monotonic() + START_TIMEOUT
        while f"hosts attach to {self.socket}" not in self.log.read_text()[began:]:
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"dpu-app did not start:\n{self.log.read_text()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As a crash does: nothing is said, nothing is finished."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
