"""Parts of prove.py that are about load: many requests at once, a slow store, a vLLM that has nothing to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from line import Line

FLOOD_CHUNK, FLOOD_BATCH, FLOOD_OUTPUT = 128, 40, 4
SLOW_PREFIX, SLOW_PROMPTS = 5 * 256, 12
SLOW_TRIES_MAX = 4
"""Prompts of a slow turn that may wait for their load in vain: the one that finds out, and one after each pause, which doubles."""
IDLE_SECONDS, TAKEN_SECONDS, IDLE_CPU_MAX = 10.0, 20.0, 0.35
HITS, ERRORS, NOT_LOADED = "vllm:kvlane_hit_tokens", "vllm:kvlane_errors", "vllm:kvlane_not_loaded"


def idle(llm: Any, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """What an idle vLLM does while a save is out, and whether it hears of its end by itself. `tell` hears when the save may end,
    and when all is over but the stop."""
    time.sleep(1.0)
    before = cpu()
    time.sleep(seconds)
    used = (cpu() - before) / seconds
    held = in_flight(llm)
    tell("free")
    time.sleep(TAKEN_SECONDS)
    left = in_flight(llm)
    tell("stop")
    return {"cpu": used, "held": held, "left": left}


def in_flight(llm: Any) -> int:
    """Saves of whose end the worker has not heard: it listens in steps only."""
    return sum(llm.collective_rpc(_in_flight))


def _in_flight(worker: Any) -> int:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return len(get_kv_transfer_group()._worker._flights)


def cpu() -> float:
    """Seconds that this process and all below it have used."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[entry.name], ticks[entry.name] = fields[1], int(fields[11]) + int(fields[12])

    def is_ours(process: str | None) -> bool:
        return process == str(os.getpid()) or (process in parents and is_ours(parents[process]))

    return sum(ticks[process] for process in ticks if is_ours(process)) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(values: list[float]) -> str:
    return f"p50 {percentile(values, 0.5):.2f} s, p99 {percentile(values, 0.99):.2f} s"


class Pressure:
    """Mixed into prove.py's Proof."""

    given: Any
    directory: Path
    text: bytes
    order: Callable[..., dict[str, Any]]
    engine: Callable[..., dict[str, Any]]
    must: Callable[[bool, str], None]

    def new_card(self, part: str, store: str | None = None) -> Any:
        raise NotImplementedError

    @contextmanager
    def card(self, part: str, store: str | None = None) -> Iterator[Any]:
        card = self.new_card(part, store)
        try:
            yield card
        finally:
            card.kill()

    def flood(self) -> None:
        """Saves in small batches, forgets, and then gets all of them at once."""
        count = self.given.flood
        made = [[index % 256, index // 256, *self.text[16 * index : 16 * index + FLOOD_CHUNK + 6]] for index in range(count)]
        batches = [made[at : at + FLOOD_BATCH] for at in range(0, count, FLOOD_BATCH)]
        options = {"output": FLOOD_OUTPUT, "prefix_caching": True, "forget": True, "settle": 60.0}
        truth = self.engine("flood-recompute", self.order([[[1] * 300], made], **options))
        extra = {"saves_max": 256, "hold_share": 1.0, "chunk_tokens": FLOOD_CHUNK} | self.given.extra
        with self.card("flood") as card:
            result = self.engine("flood-load", self.order([*batches, made], socket=card.socket, extra=extra, **options))
        loaded, errors = result["metrics"][HITS] // FLOOD_CHUNK, result["metrics"][ERRORS]
        equal = sum(one == other for one, other in zip(result["answers"][count:], truth["answers"][1:]))
        mine, exact = result["ttft"][count:], truth["ttft"][1:]
        print(f"flood: {loaded} of {count} loaded, {errors} errors, {equal} answers equal; TTFT {spread(mine)}", flush=True)
        print(f"       recomputed: TTFT {spread(exact)}", flush=True)
        self.must(loaded == count, f"{count - loaded} prefixes were not loaded")
        self.must(errors == 0, f"{errors} errors")
        self.must(percentile(mine, 0.99) <= percentile(exact, 0.99), "p99 is worse than recomputation's")

    def slow(self) -> None:
        """One request after the other: fast, slow, and fast again."""
        prompts = [list(self.text[1500 * index : 1500 * index + SLOW_PREFIX + 20]) for index in range(SLOW_PROMPTS)]
        turns = ["recomputed and saved", "fast", "slow", "fast again"]

        def begins(batch: int) -> None:
            line.mbit = self.given.line if turns[batch // SLOW_PROMPTS] == "slow" else None

        with Line(self.directory) as line, self.card("slow", line.url) as card:
            order = self.order([[prompt] for _ in turns for prompt in prompts], socket=card.socket, extra=self.given.extra)
            order |= {"forget": True, "prefix_caching": True, "settle": 20.0, "pause": 0.02, "output": 2}
            result = self.engine("slow", order, begins)
        found = {turn: result["ttft"][at * SLOW_PROMPTS : (at + 1) * SLOW_PROMPTS] for at, turn in enumerate(turns)}
        for turn, seconds in found.items():
            print(f"slow: {turn}: TTFT {spread(seconds)}: {' '.join(f'{each:.2f}' for each in seconds)}", flush=True)
        metrics = result["metrics"]
        print(f"      {metrics[HITS]} tokens loaded, {metrics.get(NOT_LOADED, 0)} not loaded, {metrics[ERRORS]} errors", flush=True)
        exact, again = found[turns[0]], found["fast again"][SLOW_PROMPTS // 2 :]
        self.must(metrics[ERRORS] <= SLOW_TRIES_MAX, f"{metrics[ERRORS]} prompts waited for a slow store in vain")
        self.must(percentile(found["slow"], 0.5) < 1.5 * percentile(exact, 0.5), "prompts wait for a slow store")
        self.must(percentile(again, 0.5) < percentile(exact, 0.5), "a store that is fast again is not used")

    def idle(self) -> None:
        """A line that takes a save for ever, and then at once."""
        prompts = [list(self.text[: SLOW_PREFIX + 20]), list(self.text[5000 : 5000 + SLOW_PREFIX])]

        before = 0

        def begins(batch: int | str) -> None:
            nonlocal before
            line.mbit = 1.0 if batch == 1 else None
            if batch == "stop":
                before = len(card.log.read_text().splitlines())

        with Line(self.directory) as line, self.card("idle", line.url) as card:
            order = self.order([[prompt] for prompt in prompts], socket=card.socket, prefix_caching=True, forget=True)
            order |= {"settle": 20.0, "pause": 0.2, "idle": {1: IDLE_SECONDS}}
            result = self.engine("idle", order, begins)
            time.sleep(1.0)
            # What it said before is of the slow line, and right.
            said = card.log.read_text().splitlines()[before:]
        warnings = [each for each in said if "WARN" in each and "EMULATOR" not in each or "ERROR" in each]
        print(f"idle: {result['cpu']:.1%} of a CPU while a save is out; {len(warnings)} warnings of the card at the stop", flush=True)
        for warning in warnings:
            print(f"      {warning}", flush=True)
        self.must(result["held"] > 0, "the save did not last: nothing was tried")
        self.must(result["cpu"] < IDLE_CPU_MAX, "an idle vLLM spins")
        self.must(result["left"] == 0, "the save's end was not heard of")
        self.must(not warnings, "a clean stop is no warning")
