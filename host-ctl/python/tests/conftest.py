"""A real dpu-app on the emulator for each test that asks: its program is KVLANE_DPU_APP, by default the debug build's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = os.environ.get("KVLANE_DPU_APP", str(Path(__file__).parents[3] / "target/debug/dpu-app"))


class Card:
    """One dpu-app and its store, which outlives it."""

    def __init__(self, directory: Path, recipe: str) -> None:
        self.socket, self.recipe = str(directory / "socket"), recipe
        self._store, self._log = directory / "store", directory / "log"
        self._store.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [PROGRAM, "run", "--attach", "socket", "--socket", self.socket, "--recipe", self.recipe]
        with self._log.open("ab") as log:
            began = log.tell()
            self._process = subprocess.Popen([*command, "--store", f"dir:{self._store}"], stdout=log, stderr=log)
        until = time.monotonic() + 20
        while f"hosts attach to {self.socket}" not in self._log.read_text()[began:]:
            assert time.monotonic() < until and self._process.poll() is None, self._log.read_text()
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


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    card = Card(tmp_path, "lossless")
    card.start()
    yield card
    card.kill()
