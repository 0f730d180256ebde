"""A real dpu-app on the emulator for each test that asks: its program is KVLANE_DPU_APP, by default the debug build's."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
