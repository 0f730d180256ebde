#!/usr/bin/env python3
"""Chats of several turns, each of whose prompts is all that was said before: what of it comes from the store, and how
soon the first token of the last turn is there.

    computed  no connector: what the answers are
    prompts   save_answers=false: the chunks of prompts are saved
    answers   those that the answer completes, too

Each vLLM is a process of its own with a store of its own, without vLLM's own prefix cache, as a chat meets it that
comes back to another engine. All are told the same: the next turn has the answer that was computed without a connector.
The turns but the last are asked all at once, the last one by one. Run it in the environment of scripts/demo-vllm.sh.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "host-ctl/python/tests"))

from child import run  # noqa: E402
from prove import ERRORS, HITS, LONGEST, SAVED, differing, gap, new_card  # noqa: E402

PREEMPTIONS = "vllm:num_preemptions"
CHUNK, BLOCK = 64, 32
SAID, ANSWER = (60, 330), (33, 220)
"""Tokens that the user says in a turn, and that the model answers: the least and the most."""
SETTLE = 60.0
"""Seconds that the saves of a turn have."""


def said(text: bytes, chats: int, turns: int) -> list[list[tuple[list[int], int]]]:
    """Of each chat's turns what the user says, and how long the answer is."""
    dice = random.Random(17)
    places = [600 * index for index in range(chats * turns)]
    made = [(list(text[at : at + dice.randrange(*SAID)]), dice.randrange(*ANSWER)) for at in places]
    return [made[at : at + turns] for at in range(0, len(made), turns)]


def engine(order: dict[str, Any]) -> None:
    """One vLLM: answers the turns, each of which is a list of (prompt, length of the answer). An answer follows its
    prompt in the next turn, unless `history` says another."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    transfer = None
    if order["socket"]:
        transfer = KVTransferConfig(
            kv_connector="KvlaneConnector",
            kv_connector_module_path="kvlane.vllm_connector",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"socket": order["socket"], "chunk_tokens": CHUNK, **order["extra"]},
        )
    llm = LLM(
        order["model"],
        dtype=order["dtype"],
        skip_tokenizer_init=True,
        max_model_len=LONGEST,
        block_size=BLOCK,
        enforce_eager=True,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        num_gpu_blocks_override=order["pages"],
        enable_prefix_caching=False,
        disable_log_stats=False,
        seed=0,
        kv_transfer_config=transfer,
    )

    def ask(prompts: list[list[int]], lengths: list[int]) -> list[Any]:
        words: dict[str, Any] = dict(temperature=0, detokenize=False, ignore_eos=True, logprobs=2)
        sampling = [SamplingParams(max_tokens=length, **words) for length in lengths]
        return llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)

    def counts() -> Counter[str]:
        """What was counted, when saves have ended; the counters of a step come with the next one."""
        until, before = time.monotonic() + (SETTLE if transfer else 0), Counter[str]()
        while True:
            ask([[10]], [4])
            found = Counter({name: 0 for name in (HITS, SAVED, ERRORS, PREEMPTIONS)})
            for metric in llm.get_metrics():
                if ("kvlane" in metric.name or metric.name == PREEMPTIONS) and hasattr(metric, "value"):
                    found[metric.name] += int(metric.value)
            if found == before or time.monotonic() > until:
                return found
            before = found
            time.sleep(1.0)

    ask([[10] * 700], [8])
    histories: list[list[int]] = [[] for _ in order["chats"]]
    answers, gaps, turns, before = [], [], [], counts()
    for turn in range(order["turns"]):
        prompts = [history + chat[turn][0] for history, chat in zip(histories, order["chats"])]
        lengths = [chat[turn][1] for chat in order["chats"]]
        if turn < order["turns"] - 1:
            given = ask(prompts, lengths)
        else:
            given = [ask([prompt], [length])[0] for prompt, length in zip(prompts, lengths)]
        tokens = [list(answer.outputs[0].token_ids) for answer in given]
        answers += tokens
        gaps += [[gap(place) for place in answer.outputs[0].logprobs] for answer in given]
        after = counts()
        ttft = [answer.metrics.first_token_latency for answer in given]
        turns.append({"prompt": sum(map(len, prompts)), "ttft": ttft, "metrics": after - before})
        before = after
        told = order["history"][turn * len(tokens) : (turn + 1) * len(tokens)] if order["history"] else tokens
        histories = [prompt + answer for prompt, answer in zip(prompts, told)]
    print("@" + json.dumps({"answers": answers, "gaps": gaps, "turns": turns}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--model", default=str(ROOT / "testdata/decoder"))
    parser.add_argument("--chats", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pages", type=int, help="of vLLM's KV cache; few of them make it preempt")
    parser.add_argument("--dtype", default="auto", help="float32: no two tokens are equally likely")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and stores, kept")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        return engine(json.load(sys.stdin))
    chats = said((ROOT / "testdata/heldout.txt").read_bytes(), given.chats, given.turns)
    order: dict[str, Any] = dict(model=given.model, chats=chats, turns=given.turns, pages=given.pages)
    order |= dict(dtype=given.dtype, socket=None, history=None)
    good = True
    with tempfile.TemporaryDirectory(prefix="kvlane-chats-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        truth = run(__file__, order, directory / "computed.log")
        last = given.turns - 1
        print(f"{given.chats} chats of {given.turns} turns, chunks of {CHUNK} tokens")
        hits = " | ".join(f"hits of turn {turn + 2}" for turn in range(last))
        print(f"| saved | {hits} | TTFT of turn {given.turns}, ms: median, p90 | chunks saved | preemptions "
              "| answers equal | from a tie on |")  # fmt: skip
        print("|---" * (last + 6) + "|")
        for name, extra in (("computed", None), ("prompts", {"save_answers": False}), ("answers", {})):
            result = truth
            if extra is not None:
                card = new_card(given.dpu_app, directory / name, "lossless")
                mine = order | {"socket": card.socket, "extra": extra, "history": truth["answers"]}
                result = run(__file__, mine, directory / f"{name}.log")
                card.kill()
            differ, ties = differing(result, truth)
            good &= not differ
            turns = result["turns"]
            share = [f"{turn['metrics'].get(HITS, 0) / turn['prompt']:.1%}" for turn in turns[1:]]
            ttft = [1e3 * seconds for seconds in turns[last]["ttft"]]
            saved, preempted = (sum(turn["metrics"].get(what, 0) for turn in turns) for what in (SAVED, PREEMPTIONS))
            equal = len(truth["answers"]) - len(differ) - len(ties)
            middle, late = statistics.median(ttft), statistics.quantiles(ttft, n=10)[-1]
            print(f"| {name} | {' | '.join(share)} | {middle:.0f}, {late:.0f} | {saved} | {preempted} "
                  f"| {equal} of {len(truth['answers'])} | {len(ties)} |", flush=True)  # fmt: skip
            if errors := sum(turn["metrics"].get(ERRORS, 0) for turn in turns):
                print(f"FAIL {name}: {errors} errors", flush=True)
                good = False
            if differ:
                print(f"FAIL {name}: differing: {differ}", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
