#!/usr/bin/env python3
"""Proves what the connector tells routers, with vLLM's own publisher over ZMQ and a subscriber here: whatever it says
is stored vLLM itself names alike (hashes, parents, token ids), what is found gone is said to be removed, and so is all
of it at a reset.

    stored    prompts are computed and answered: as many blocks as the card has stored
    gone      the store loses everything, and the same prompts come again: what they ask for is removed, and stored once
              more. Nobody asks for the answers yet
    reset     the engine is told to forget: all that was stored is removed

Run it in the environment of scripts/demo-vllm.sh.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "host-ctl/python/tests"))

from prove import LONGEST, SAVED, new_card, say  # noqa: E402
from stale import count, settled  # noqa: E402

CHUNK, BLOCK, PROMPTS, ANSWER, SETTLE = 64, 32, 8, 80, 60.0
QUIET = 2.0
"""Seconds without an event, after which no more are waited for."""
WARM = 40
"""Tokens of prompts that are asked until the subscriber is there: no whole chunk."""
MEDIUM, OWN = "kvlane", ("GPU", None)


def engine(order: dict[str, Any]) -> None:
    """One vLLM: says when a part is over, and how many chunks were saved by then, and goes on when it is told to."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.config.kv_events import KVEventsConfig

    llm = LLM(
        order["model"],
        skip_tokenizer_init=True,
        max_model_len=LONGEST,
        block_size=BLOCK,
        enforce_eager=True,
        max_num_seqs=8,
        enable_prefix_caching=True,
        disable_log_stats=False,
        seed=0,
        kv_events_config=KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=order["endpoint"], topic="kv"
        ),
        kv_transfer_config=KVTransferConfig(
            kv_connector="KvlaneConnector",
            kv_connector_module_path="kvlane.vllm_connector",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"socket": order["socket"], "chunk_tokens": CHUNK},
        ),
    )
    sampling = SamplingParams(temperature=0, max_tokens=ANSWER, detokenize=False, ignore_eos=True)

    def over(name: str) -> bool:
        say({"part": name, "saved": count(llm, SAVED)})
        return sys.stdin.readline().strip() == "on"

    def part(name: str) -> None:
        llm.generate([{"prompt_token_ids": each} for each in order["prompts"]], sampling, use_tqdm=False)
        settled(llm, SETTLE, 1)
        over(name)

    short = SamplingParams(max_tokens=2, detokenize=False)
    for word in range(100):
        llm.generate([{"prompt_token_ids": [100 + word] * WARM}], short, use_tqdm=False)
        if over("warm"):
            break
    part("stored")
    for file in Path(order["store"]).rglob("*"):
        if file.is_file() and file.stat().st_size > 1024:
            file.unlink()
    llm.reset_prefix_cache()
    part("gone")
    llm.reset_prefix_cache(reset_connector=True)
    over("reset")


class Router:
    """Follows one engine's events, as a router that chooses engines by what they have."""

    def __init__(self, socket: Any, decoder: Any) -> None:
        self._socket, self._decoder = socket, decoder
        self.own: dict[Any, tuple[Any, tuple[int, ...]]] = {}
        """Blocks that vLLM named itself: parent and token ids."""
        self.stored: set[Any] = set()
        self.counts = {"stored": 0, "removed": 0, "cleared": 0}
        self.wrong: list[str] = []
        self._ours: list[Any] = []
        self.next: int | None = None
        """Number of the batch that is expected."""

    def follow(self) -> None:
        """Takes what has been published."""
        while self._socket.poll(QUIET * 1e3):
            _, number, payload = self._socket.recv_multipart()
            batch = int.from_bytes(number, "big")
            if self.next not in (None, batch):
                self.wrong.append(f"batch {batch} and not {self.next}")
            self.next = batch + 1
            for event in self._decoder.decode(payload).events:
                self._take(event)
        # vLLM names a block when it is computed, so what is stored has been named by now.
        for event in self._ours:
            for name, (parent, tokens) in blocks(event).items():
                if self.own.get(name) != (parent, tokens):
                    self.wrong.append(f"{name!r} is not what vLLM calls so")
        self._ours.clear()

    def _take(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "AllBlocksCleared":
            self.counts["cleared"] += 1
        elif event.medium in OWN:
            if kind == "BlockStored":
                self.own |= blocks(event)
        elif event.medium != MEDIUM:
            self.wrong.append(f"medium {event.medium!r}")
        elif kind == "BlockStored":
            self.counts["stored"] += len(event.block_hashes)
            self.stored |= set(event.block_hashes)
            self._ours.append(event)
        else:
            self.counts["removed"] += len(event.block_hashes)
            if not set(event.block_hashes) <= self.stored:
                self.wrong.append("removed and never stored")
            self.stored -= set(event.block_hashes)


def blocks(event: Any) -> dict[Any, tuple[Any, tuple[int, ...]]]:
    """Each block's parent and token ids."""
    parents = [event.parent_block_hash, *event.block_hashes]
    size = event.block_size
    return {
        name: (parents[at], tuple(event.token_ids[at * size : (at + 1) * size]))
        for at, name in enumerate(event.block_hashes)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--model", default=str(ROOT / "testdata/decoder"))
    parser.add_argument("--keep", type=Path, help="a new directory for logs and the store, kept")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        return engine(json.loads(sys.stdin.readline()))
    import msgspec
    import zmq
    from vllm.distributed.kv_events import KVEventBatch

    text, dice = (ROOT / "testdata/heldout.txt").read_bytes(), random.Random(5)
    prompts = [list(text[900 * at : 900 * at + dice.randrange(100, 700)]) for at in range(PROMPTS)]
    socket = zmq.Context().socket(zmq.SUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    socket.setsockopt(zmq.SUBSCRIBE, b"kv")
    router = Router(socket, msgspec.msgpack.Decoder(KVEventBatch))
    asked = sum(len(prompt) // CHUNK for prompt in prompts) * CHUNK // BLOCK
    good, live, last = True, 0, {"saved": 0, "stored": 0, "removed": 0}
    with tempfile.TemporaryDirectory(prefix="kvlane-events-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        card = new_card(given.dpu_app, directory / "card", "lossless")
        order = dict(model=given.model, prompts=prompts, socket=card.socket, endpoint=f"tcp://127.0.0.1:{port}")
        order["store"] = str(directory / "card/store")
        with (directory / "vllm.log").open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, __file__, "--engine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            assert child.stdin and child.stdout
            print(json.dumps(order), file=child.stdin, flush=True)
            for line in child.stdout:
                if not line.startswith("@"):
                    continue
                said = json.loads(line[1:])
                router.follow()
                if said["part"] == "warm":
                    print("on" if router.next is not None else "again", file=child.stdin, flush=True)
                    continue
                now = {"saved": said["saved"], "stored": router.counts["stored"], "removed": router.counts["removed"]}
                more = {name: now[name] - last[name] for name in now}
                right = not router.wrong and more["stored"] == more["saved"] * CHUNK // BLOCK
                right &= more["removed"] == {"stored": 0, "gone": asked, "reset": live}[said["part"]]
                right &= said["part"] == "reset" or more["stored"] > 0
                last, live, good = now, len(router.stored), good and right
                print(
                    f"{'ok  ' if right else 'FAIL'} {said['part']}: {more['saved']} chunks saved, "
                    f"{more['stored']} blocks stored, {more['removed']} removed, {live} there; "
                    f"{len(router.own)} named by vLLM itself, "
                    f"{router.counts['cleared']} times all cleared {router.wrong[:3] or ''}",
                    flush=True,
                )
                print("on", file=child.stdin, flush=True)
            good &= child.wait() == 0 and live == 0 and said["part"] == "reset"
        card.kill()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
