#!/usr/bin/env python3
"""Proves kvlane.vllm_tier in vLLM's real TieringOffloadingManager: its own primary tier in shared memory, its own
evictions and job tracking, and a real dpu-app. What a GPU would copy is written and compared by this script, a pattern
for each key.

    random   random prompts of two groups in a primary tier that holds a part of them, while dpu-app is killed, stopped
             for a while and started again, stored chunks are damaged, and the store is full: bytes that are served are
             right, every job ends in time, failures are told key by key, no call waits
    restart  what one engine stored is loaded by another
    tests    vLLM's own tests of the manager (--tests FOLDER: tests/v1/kv_offload of its sources), with this tier in the
             place of its example tier

Run it where vLLM and kvlane are installed; --sources FOLDER takes vLLM's Python from a source tree instead (its C++ is
not needed). On a machine with a GPU, docs/doors.md has the command that serves with the tier.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "host-ctl/python/tests"))

from card import Card  # noqa: E402

BLOCK_BYTES, ROWS = 40_000, 64
"""Bytes of a block before vLLM rounds up to pages, and rows of the primary tier."""
PROMPTS, CHUNKS_MAX, ACTIVE, GROUPS = 60, 12, 5, 2
LOOKUP_S, LOAD_S, SAVE_S, GRACE_S, SLACK_S = 0.5, 3.0, 5.0, 0.5, 1.5
"""The tier's deadlines here, and what this script's own steps may add."""
STOPPED_S = 1.0
CALLS = ("lookup", "on_schedule_end", "prepare_store", "complete_store", "prepare_load", "complete_load")
WAIT_MAX_S = 0.25
"""The longest that a call of the manager may take: two cores are shared with dpu-app."""
REDIS_MAX, REDIS_FULL = 64 << 20, 1 << 20


def config(name: str, tier: dict[str, Any]) -> Any:
    from vllm.v1.kv_offload import config as c

    extra = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": ROWS * 40_960, "secondary_tiers": [tier]}
    return c.OffloadingConfig(
        groups=tuple(c.OffloadingGroupConfig(16, (f"layer{at}",), at) for at in range(GROUPS)),
        worker_kv_bytes_per_block=BLOCK_BYTES,
        enable_kv_cache_events=True,
        extra_config=extra,
        engine_id=f"kvlane-{os.getpid()}-{name}",
        model=c.OffloadingModelConfig(name=str(ROOT / "testdata/decoder"), dtype="bfloat16"),
        cache=c.OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=c.OffloadingParallelConfig(
            rank=0, world_size=1, tp_size=1, pp_size=1, pcp_size=1, dcp_size=1,
            data_parallel_index=0, data_parallel_size=1,
            data_parallel_rank_local=None, is_parallelism_agnostic=False,
        ),
    )  # fmt: skip


def content(key: bytes) -> bytes:
    """What a block of this key holds: its own bytes, a quarter of them random."""
    whole = bytearray(BLOCK_BYTES)
    random_ = random.Random(key).randbytes(BLOCK_BYTES // 4)
    whole[1::4] = random_
    whole[:32] = hashlib.sha256(key).digest()
    return bytes(whole)


@dataclass
class Request:
    context: Any
    keys: list[list[bytes]]
    began: float
    state: str = "new"
    left: int = 0
    held: list[Any] = field(default_factory=list)


class Drive:
    """Calls the manager as vLLM's scheduler does, a step at a time."""

    def __init__(self, name: str, socket: str, dice: random.Random) -> None:
        from vllm.v1.kv_offload import base
        from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

        tier = {
            "type": "KvlaneTier", "module_path": "kvlane.vllm_tier", "socket": socket, "enable_kv_events": True,
            "lookup_deadline_ms": 1e3 * LOOKUP_S, "load_deadline_s": LOAD_S, "save_deadline_s": SAVE_S,
            "load_grace_s": GRACE_S,
            "retry_s": 0.1, "retry_max_s": 0.5, "save_retry_s": 0.2, "save_retry_max_s": 1.0, "attach_timeout_s": 2.0,
        }  # fmt: skip
        self.base, self.dice = base, dice
        self.manager: Any = TieringOffloadingSpec(config(name, tier)).get_manager()
        (self.tier,) = self.manager.secondary_tiers
        self.view = self.manager.primary_tier.get_kv_memoryview()
        self.counts: Counter[str] = Counter()
        self.longest: dict[str, float] = {}
        self.requests: list[Request] = []
        self.numbers = 0
        self.stopped_at = 0.0
        """When dpu-app last stood still: it may be late for as long."""
        finished = self.tier.get_finished_jobs
        self.tier.get_finished_jobs = lambda: [self.heard(result) for result in finished()]

    def heard(self, result: Any) -> Any:
        job = self.manager._jobs[result.job_id].transfer_job
        kind = "loads" if job.is_promotion else "stores"
        self.counts[kind] += 1
        self.counts[f"{kind} failed"] += not result.success
        self.counts["loads failed in part"] += bool(not result.success and result.successful_keys)
        if job.is_promotion:
            self.counts["blocks loaded"] += len(job.keys if result.success else result.successful_keys or ())
        self.note("job", time.monotonic() - job.submit_time)
        return result

    def note(self, what: str, seconds: float) -> None:
        self.longest[what] = max(seconds, self.longest.get(what, 0.0))

    def call(self, name: str, *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return getattr(self.manager, name)(*arguments)
        finally:
            self.note(name, time.monotonic() - began)

    def arrive(self, prompt: int) -> None:
        self.numbers += 1
        context = self.base.ReqContext(req_id=f"r{self.numbers}")
        chunks = random.Random(prompt).randrange(1, CHUNKS_MAX)
        hashes = [hashlib.sha256(f"{prompt}/{at}".encode()).digest() for at in range(chunks)]
        keys = [[self.base.make_offload_key(each, group) for each in hashes] for group in range(GROUPS)]
        self.requests.append(Request(context, keys, time.monotonic()))
        self.call("on_new_request", context)

    def step(self) -> None:
        with getattr(self.manager, "lock", contextlib.nullcontext()):
            new = []
            for request in list(self.requests):
                if request.state == "new":
                    new += self.look(request)
                elif request.left > 0:
                    request.left -= 1
                else:
                    self.advance(request)
            self.call("on_schedule_end", self.base.ScheduleEndContext(new, []))
            for event in self.manager.take_events():
                what = "removed" if event.removed else "stored"
                self.counts[f"events {what} {event.medium.value}"] += len(event.keys)
            now = time.monotonic()
            for job in self.manager._jobs.values():
                late = now - max(job.transfer_job.submit_time, self.stopped_at)
                limit = (LOAD_S if job.transfer_job.is_promotion else SAVE_S) + GRACE_S + SLACK_S
                assert late < limit, f"a job is in flight for {late:.1f} s, long after its deadline"
            if (stats := self.tier.get_stats()) is not None:
                for (_, *kind), count in stats.data["data"].get("vllm:kvlane_tier_errors", {}).items():
                    self.counts[f"errors {kind[0]}"] += count

    def look(self, request: Request) -> list[str]:
        """Its prefix in both groups; nothing while an answer is out."""
        results, hits, deferred = self.base.LookupResult, [], False
        for keys in request.keys:
            hit = 0
            for key in keys:
                found = self.call("lookup", key, request.context)
                deferred |= found in (results.RETRY, results.HIT_PENDING)
                if found is results.MISS:
                    break
                hit += 1
            hits.append(hit)
        if deferred:
            waited = time.monotonic() - max(request.began, self.stopped_at)
            # One look-up, then a load in a turn of `loads_max`, and once more for what the load did not bring.
            assert waited < 2 * (LOOKUP_S + LOAD_S + GRACE_S) + SLACK_S, f"a request waits for {waited:.1f} s"
            return []
        self.note("wait for a prefix", time.monotonic() - request.began)
        use = min(hits)
        self.counts["prefix blocks"] += use * GROUPS
        self.counts["requests with a prefix"] += use > 0
        request.state, request.left = "loading", self.dice.randrange(3)
        keys = [key for group in request.keys for key in group[:use]]
        request.held = [keys, [key for group in request.keys for key in group[use:]]]
        if keys:
            self.check(keys, self.call("prepare_load", keys, request.context).chunk_ids)
        return [request.context.req_id]

    def check(self, keys: list[bytes], rows: Any) -> None:
        for key, row in zip(keys, rows):
            at = int(row) * self.view.strides[0]
            with self.view.cast("B") as bytes_:
                assert bytes_[at : at + BLOCK_BYTES] == content(key), "wrong bytes"
            self.counts["blocks compared"] += 1

    def advance(self, request: Request) -> None:
        loaded, missing = request.held[:2]
        if request.state == "loading":
            if loaded:
                self.call("complete_load", loaded, request.context)
            request.state, request.left = "storing", self.dice.randrange(3)
            prepared = self.call("prepare_store", missing, request.context) if missing else None
            request.held.append(list(prepared.keys_to_store) if prepared else [])
            if prepared:
                for key, row in zip(prepared.keys_to_store, prepared.store_spec.chunk_ids):
                    at = int(row) * self.view.strides[0]
                    with self.view.cast("B") as bytes_:
                        bytes_[at : at + BLOCK_BYTES] = content(key)
            return
        if request.held[2]:
            self.call("complete_store", request.held[2], request.context, self.dice.random() > 0.02)
        self.call("on_request_finished", request.context)
        self.requests.remove(request)
        self.counts["requests"] += 1

    def finish(self) -> None:
        until = time.monotonic() + 30
        while self.requests or self.manager.has_pending_work():
            left = f"{len(self.requests)} requests and {len(self.manager._jobs)} jobs"
            assert time.monotonic() < until, f"{left} do not end"
            self.step()
            time.sleep(0.002)
        with getattr(self.manager, "lock", contextlib.nullcontext()):
            self.manager.reset_cache()
        assert not self.manager._jobs and not self.tier._jobs and not self.tier._verdicts, "something is left"
        self.view = None
        self.manager.shutdown()
        left = list(Path("/dev/shm").glob(f"vllm_offload_kvlane-{os.getpid()}*"))
        assert not left, "the primary tier's memory is left"


class Faults:
    """What goes wrong with the card and its store, one thing after the other."""

    def __init__(self, card: Card, drive: Drive, dice: random.Random, redis: int | None) -> None:
        self.card, self.drive, self.dice, self.redis = card, drive, dice, redis
        self.next = time.monotonic() + 1.0
        self.undo: Any = None

    def turn(self) -> None:
        if time.monotonic() < self.next:
            return
        if self.undo is not None:
            self.undo()
            self.undo, self.next = None, time.monotonic() + self.dice.uniform(1.0, 3.0)
            return
        kinds = ["kill", "stop", "full"] if self.redis else ["kill", "stop", "damage"]
        kind = self.dice.choice(kinds)
        self.drive.counts[f"fault {kind}"] += 1
        self.next = time.monotonic() + STOPPED_S
        if kind == "kill":
            self.card.kill()
            self.undo = self.card.start
        elif kind == "stop":
            self.card.freeze()
            self.undo = self.wake
        elif kind == "full":
            memory(self.redis, REDIS_FULL)
            self.undo = lambda: memory(self.redis, REDIS_MAX)
        else:
            files = [
                path
                for path in Path(self.card.socket).parent.joinpath("store").rglob("*")
                if path.stat().st_size > 20_000 // 4
            ]
            for path in self.dice.sample(files, min(5, len(files))):
                with path.open("r+b") as file:
                    file.seek(path.stat().st_size // 2)
                    file.write(self.dice.randbytes(16))
            self.undo = lambda: None

    def wake(self) -> None:
        self.card.thaw()
        self.drive.stopped_at = time.monotonic()


def memory(port: int | None, bytes: int) -> None:
    subprocess.run(
        ["redis-cli", "-p", str(port), "config", "set", "maxmemory", str(bytes)], check=True, stdout=subprocess.DEVNULL
    )


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[int]:
    port = random.randrange(20_000, 30_000)
    command = [
        "redis-server",
        "--port",
        str(port),
        "--save",
        "",
        "--maxmemory",
        str(REDIS_MAX),
        "--maxmemory-policy",
        "noeviction",
    ]
    with (directory / "redis.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    try:
        while subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True).returncode:
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def tell(name: str, drive: Drive) -> None:
    print(f"{name}: " + ", ".join(f"{what} {count}" for what, count in sorted(drive.counts.items())))
    print(
        f"{name}: longest, ms: " + ", ".join(f"{what} {1e3 * seconds:.1f}" for what, seconds in drive.longest.items()),
        flush=True,
    )


def prove_random(given: argparse.Namespace, directory: Path, port: int | None) -> None:
    dice, name = random.Random(given.seed), "random on Redis" if port else "random on a directory"
    home = directory / ("redis" if port else "dir")
    home.mkdir()
    card = Card(given.dpu_app, home, "lossless", f"redis://127.0.0.1:{port}" if port else None)
    card.start()
    drive = Drive(home.name, card.socket, dice)
    faults = Faults(card, drive, dice, port)
    until = time.monotonic() + given.seconds
    try:
        while time.monotonic() < until:
            faults.turn()
            if len(drive.requests) < ACTIVE and dice.random() < 0.5:
                drive.arrive(dice.randrange(PROMPTS))
            drive.step()
            time.sleep(0.002)
        if faults.undo:
            faults.undo()
        drive.finish()
    finally:
        card.kill()
        tell(name, drive)
    failed = "stores failed" if port else "loads failed in part"
    wanted = ["blocks loaded", "blocks compared", "events stored STORAGE", failed]
    for what in wanted:
        assert drive.counts[what], f"{what}: never seen, run longer"
    waited = {name: seconds for name, seconds in drive.longest.items() if name in CALLS and seconds >= WAIT_MAX_S}
    assert not waited, f"calls of the manager waited: {waited}"


def prove_restart(given: argparse.Namespace, directory: Path) -> None:
    home = directory / "restart"
    home.mkdir()
    card = Card(given.dpu_app, home, "lossless")
    card.start()
    stored = 0
    for name in ("first", "second"):
        drive = Drive(name, card.socket, random.Random(given.seed))
        began = time.monotonic()
        for prompt in range(20):
            drive.arrive(prompt)
            while drive.requests or drive.manager.has_pending_work():
                drive.step()
                time.sleep(0.0005)
        seconds = time.monotonic() - began
        drive.finish()
        tell(f"restart, {name} engine ({seconds:.1f} s)", drive)
        loaded, compared = drive.counts["blocks loaded"], drive.counts["blocks compared"]
        assert loaded == compared == stored, "not all that was stored came back"
        stored = drive.counts["events stored STORAGE"]
    assert stored == 0, "what the store had was stored again"
    card.kill()


def prove_tests(given: argparse.Namespace, directory: Path) -> None:
    """In a process of its own: vLLM's tests are collected from its own tree."""
    card = Card(given.dpu_app, directory, "lossless")
    card.start()
    tests = Path(given.tests)
    environment = os.environ | {
        "KVLANE_SOCKET": card.socket,
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tier_tests",
        "--rootdir",
        str(tests.parents[2]),
    ]
    ended = subprocess.run(
        [*command, "--noconftest", str(tests / "tiering/test_tiering_offloading.py")],
        env=environment,
        cwd=tests.parents[2],
    )
    card.kill()
    if ended.returncode:
        sys.exit("vLLM's own tests failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="random, restart, tests; by default the first two")
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each random run")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--sources", help="a source tree of vLLM")
    parser.add_argument("--tests", help="tests/v1/kv_offload of vLLM's sources")
    given = parser.parse_args()
    if given.sources and os.environ.get("PYTHONPATH", "").split(":")[0] != given.sources:
        os.environ["PYTHONPATH"] = ":".join([given.sources, os.environ.get("PYTHONPATH", "")])
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import vllm

    print(f"vLLM {vllm.__version__} from {Path(vllm.__file__).parent}, seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        for part in given.parts or ["random", "restart"]:
            if part == "random":
                prove_random(given, directory, None)
                if shutil.which("redis-server"):
                    with redis(directory) as port:
                        prove_random(given, directory, port)
            elif part == "restart":
                prove_restart(given, directory)
            else:
                prove_tests(given, directory)
    print(json.dumps({"passed": given.parts or ["random", "restart"]}))


if __name__ == "__main__":
    main()
