"""A real dpu-app on the emulator for each test that asks: its program is KVLANE_DPU_APP, by default the debug build's."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from card import Card

PROGRAM = os.environ.get("KVLANE_DPU_APP", str(Path(__file__).parents[3] / "target/debug/dpu-app"))


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    card = Card(PROGRAM, tmp_path, "lossless")
    card.start()
    yield card
    card.kill()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that stands still unless a test moves it."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said so far, from warnings up."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
