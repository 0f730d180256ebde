"""A card and a host of one version of the programs. They speak with each other alone, and share with others only a store. The
host is `host-ctl` of that version: two versions of the emulator need not understand each other's exports."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from processes import Card
from tally import Tally

DATA = Path(__file__).parents[2] / "testdata" / "decoder-kv.safetensors"
"""What is stored, under one model's name after the other."""
TOKENS = 2048
TIMEOUT = 60.0
"""Seconds that a host may take for all of it."""


class Pair:
    """`programs`: the directory of this version's dpu-app and host-ctl; the ones of PATH without it."""

    def __init__(self, directory: Path, card: Card, programs: str | None) -> None:
        self.card = card
        self._directory = directory
        self._host = str(Path(programs) / "host-ctl") if programs else "host-ctl"

    def store(self, model: str) -> None:
        self._call("store", str(DATA), "--model", model, "--recipe", "lossless", "--quiet")

    def check(self, model: str, tally: Tally) -> None:
        """Fetches what somebody stored under this name: all of it is there, and right."""
        back = self._directory / "back.safetensors"
        like = ["--like", str(DATA), "--out", str(back)]
        answer = json.loads(self._call("fetch", "--model", model, "--recipe", "lossless", *like, "--json"))
        tally.requests += 1
        tokens = answer["tokens"]
        if tokens < TOKENS:
            tally.wrong("lost", (TOKENS - tokens) // 256, f"{model}: {tokens} of {TOKENS} tokens by {self._host}")
        else:
            tally.chunks += TOKENS // 256
            command = ["host-ctl", "compare", DATA, back, "--recipe", "lossless", "--quiet"]
            same = subprocess.run(command, capture_output=True)
            tally.wrong("wrong", int(same.returncode != 0), f"{model}: {same.stdout.decode()}")

    def _call(self, *words: str) -> str:
        environment = {**os.environ, "KVLANE_SOCKET": self.card.socket}
        done = subprocess.run([self._host, *words], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode:
            raise RuntimeError(f"{self._host} {words[0]}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout
