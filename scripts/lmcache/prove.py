#!/usr/bin/env python3
"""kvlane.lmcache beside LMCache's own adapters for a directory and for Redis, made by LMCache's own factory, in one
run: the same objects are stored, looked up and loaded, then a few are damaged where they are kept, and all are loaded
again.

Run it where lmcache and kvlane are installed; redis-server is used if it is there. The cache server with this adapter:
docs/doors.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "host-ctl/python/tests"))

import torch  # noqa: E402
from card import Card  # noqa: E402
from lmcache.cli.commands.bench.l2_adapter_bench import data  # noqa: E402
from lmcache.v1.distributed.api import MemoryLayoutDesc  # noqa: E402
from lmcache.v1.distributed.l2_adapters import create_l2_adapter  # noqa: E402
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config  # noqa: E402

BATCH, DAMAGED, PATIENCE = 16, 6, 120.0


def cpu(processes: list[int]) -> float:
    """Seconds that these processes have used, all threads."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Run:
    def __init__(self, given: argparse.Namespace, config: dict[str, Any], others: list[int]) -> None:
        self.size, self.count = given.kilobytes << 10, given.objects
        self.arena = data.make_aligned_tensor(2 * self.size * self.count, 4096)
        desc = data.create_l1_memory_desc(self.arena, 4096)
        (parsed,) = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(config)])).adapters
        self.adapter: Any = create_l2_adapter(parsed, l1_memory_desc=desc)
        self.keys = data.make_object_keys(self.count, key_offset=1 << 20)
        whole = self.size * self.count
        self.sources = data.make_memory_objects(self.arena, self.count, self.size, 0)
        self.targets = data.make_memory_objects(self.arena, self.count, self.size, whole)
        numbers = torch.randn(whole // 2, generator=torch.Generator().manual_seed(18)).to(torch.bfloat16)
        self.arena[:whole] = numbers.view(torch.uint8)
        self.processes = [os.getpid(), *others]

    def timed(
        self, submit: Callable[[int, int], int], done: Callable[[int], Any], event: int
    ) -> tuple[float, float, list[Any]]:
        """Seconds, processor seconds and results of all batches, submitted at once."""
        began, used = time.monotonic(), cpu(self.processes)
        left = {submit(at, min(at + BATCH, self.count)): at for at in range(0, self.count, BATCH)}
        results: dict[int, Any] = {}
        while left:
            assert data.wait_eventfd(event, PATIENCE), "a task does not end"
            for number in list(left):
                if (result := done(number)) is not None:
                    results[left.pop(number)] = result
        return time.monotonic() - began, cpu(self.processes) - used, [results[at] for at in sorted(results)]

    def store(self) -> tuple[float, float, bool]:
        ended: dict[int, Any] = {}

        def done(number: int) -> Any:
            ended.update(self.adapter.pop_completed_store_tasks())
            return ended.pop(number, None)

        adapter = self.adapter

        def submit(first, last):
            return adapter.submit_store_task(self.keys[first:last], self.sources[first:last])

        seconds, used, results = self.timed(submit, done, adapter.get_store_event_fd())
        return seconds, used, all(result.is_successful() for result in results)

    def lookup(self) -> int:
        adapter, layout = self.adapter, {0: MemoryLayoutDesc([torch.Size([self.size // 2])], [torch.bfloat16])}
        submit = lambda first, last: adapter.submit_lookup_and_lock_task(self.keys[first:last], layout)  # noqa: E731
        _, _, results = self.timed(submit, adapter.query_lookup_and_lock_result, adapter.get_lookup_and_lock_event_fd())
        return sum(result.popcount() for result in results)

    def load(self) -> tuple[float, float, int, int]:
        """Seconds, processor seconds, objects that were served, and how many of them are wrong."""
        self.arena[self.size * self.count :] = 0
        adapter = self.adapter

        def submit(first, last):
            return adapter.submit_load_task(self.keys[first:last], self.targets[first:last])

        seconds, used, results = self.timed(submit, adapter.query_load_result, adapter.get_load_event_fd())
        served = [batch * BATCH + at for batch, result in enumerate(results) for at in result.get_indices_list()]
        wrong = sum(not torch.equal(self.sources[at].raw_data, self.targets[at].raw_data) for at in served)
        return seconds, used, len(served), wrong


def flip(files: list[Path]) -> None:
    dice = random.Random(18)
    for path in dice.sample(sorted(files), DAMAGED):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(dice.randbytes(8))


def flip_redis(port: int) -> None:
    command = ["redis-cli", "-p", str(port)]
    names = subprocess.run([*command, "keys", "*"], check=True, capture_output=True).stdout.split()
    for name in random.Random(18).sample(sorted(names), DAMAGED):
        subprocess.run(
            [*command, "-x", "setrange", name.decode(), "100000"],
            check=True, input=b"damaged!", stdout=subprocess.DEVNULL,
        )


def measure(name: str, run: Run, damage: Callable[[], None]) -> None:
    megabytes = run.size * run.count / 1e6
    store, store_cpu, all_stored = run.store()
    assert all_stored, f"{name}: not all was stored"
    found = run.lookup()
    load, load_cpu, served, wrong = run.load()
    assert (found, served, wrong) == (run.count, run.count, 0), f"{name}: found {found}, served {served}, wrong {wrong}"
    again = [run.load()[:2] for _ in range(2)]
    load, load_cpu = min([(load, load_cpu), *again])
    damage()
    *_, served, wrong = run.load()
    run.adapter.close()
    print(
        f"| {name} | {megabytes / store:.0f} | {store_cpu:.2f} | {megabytes / load:.0f} | {load_cpu:.2f} "
        f"| {served - wrong} right, {wrong} wrong, {run.count - served} missed |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--kilobytes", type=int, default=2048)
    given = parser.parse_args()
    size = f"{given.objects} objects of {given.kilobytes} KiB, bf16 of a normal distribution"
    print(f"{size}; damaged: {DAMAGED} files or values\n")
    print("| adapter | store MB/s | CPU s | load MB/s | CPU s | loaded after damage |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        (directory / "card").mkdir()
        card = Card(given.dpu_app, directory / "card", "lossless")
        card.start()
        plugin = {"type": "plugin", "module_path": "kvlane.lmcache", "class_name": "KvlaneL2Adapter"}
        run = Run(given, {**plugin, "adapter_params": {"socket": card.socket}}, [card._process.pid])
        store = directory / "card/store"
        measure(
            "kvlane (dir)",
            run,
            lambda: flip([path for path in store.rglob("*") if path.is_file() and path.stat().st_size > 65536]),
        )
        card.kill()
        run = Run(given, {"type": "fs", "base_path": str(directory / "fs")}, [])
        measure("LMCache fs", run, lambda: flip(list((directory / "fs").rglob("*.data"))))
        if shutil.which("redis-server"):
            port = random.randrange(20_000, 30_000)
            with (directory / "redis.log").open("wb") as log:
                command = ["redis-server", "--port", str(port), "--save", ""]
                server = subprocess.Popen(command, stdout=log, cwd=directory)
            while subprocess.run(["redis-cli", "-p", str(port), "ping"], check=False, capture_output=True).returncode:
                time.sleep(0.05)
            try:
                run = Run(given, {"type": "resp", "host": "127.0.0.1", "port": port}, [server.pid])
                measure("LMCache resp (Redis)", run, lambda: flip_redis(port))
            finally:
                server.kill()


if __name__ == "__main__":
    main()
