#!/usr/bin/env python3
"""Proves the connector against the real vLLM: answers with prefixes from the store equal those of recomputation.

    identity  prompts of many lengths (shared, partial, disjoint, exact multiples of a chunk, shorter than a chunk), saved by one
              vLLM and loaded by another, whole prefills and chunked ones, 16 at a time
    preempt   identity with so few pages that vLLM preempts, and a failure if it did not
    kill      requests while dpu-app is killed at random and started again
    freeze    requests while dpu-app stands still: each is answered within its deadline, and again after it wakes
    corrupt   every stored chunk is damaged on disk before it is loaded: recomputed with one policy, refused with the other
    stale     weights, adapters and rope that changed under an old name, embeddings, an engine that is told to forget: nothing
              that others computed is loaded, and what is the same is (stale.py)
    flood     2,000 requests at once whose prefixes are all stored: all are loaded, without an error, no later than by recomputation
    slow      a store behind a slow line: no prompt waits for it twice, and it is used again when the line is fast again
    idle      a save that is not answered: an idle vLLM sleeps, hears of its end without a request, and stops without a warning
    quality   a table for lossy recipes: greedy tokens that stay equal, and the loss on text that continues a fetched prefix

Run it in the environment of scripts/demo-vllm.sh. Each vLLM is a process of its own (this file with --engine).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "host-ctl/python/tests"))

import pressure  # noqa: E402
from card import Card  # noqa: E402
from stale import Stale, settled  # noqa: E402

CHUNK, BLOCK, LONGEST = 256, 32, 2048
PREFIX = 4 * CHUNK
KILL_PROMPTS = 50
PREFILL = {"whole": 4096, "chunked": 256}
"""Tokens of a step."""
SETTLE, PAUSE = 60.0, 1.0
"""Seconds: the longest that saves may take, and what this process has for its part between two batches."""
OUTPUT = 32
PREEMPTIONS, ERRORS = "vllm:num_preemptions", "vllm:kvlane_errors"
HITS, SAVED = "vllm:kvlane_hit_tokens", "vllm:kvlane_saved_chunks"


def prompts(text: bytes, count: int) -> list[list[int]]:
    """A fixed mix: every fifth one is of each kind."""
    dice, made = random.Random(6), []
    shared, other = text[:1300], text[20000:21300]
    for index in range(count):
        own = 30000 + 500 * index
        match index % 5:
            case 0:  # the whole of a long prefix, and a tail
                made.append(shared + text[own : own + dice.randrange(1, 400)])
            case 1:  # a part of it
                made.append(shared[: dice.randrange(200, 1200)] + text[own : own + dice.randrange(1, 300)])
            case 2:  # nothing of it
                made.append(text[own % 50000 : own % 50000 + dice.randrange(2, 1500)])
            case 3:  # exact multiples of a chunk
                made.append(other[: CHUNK * dice.randrange(1, 6)])
            case _:  # shorter than a chunk
                made.append(other[: dice.randrange(1, CHUNK)])
    return [list(each) for each in made]


def new_card(program: str, directory: Path, recipe: str, store: str | None = None) -> Card:
    """One that runs, with its files in a new directory."""
    directory.mkdir()
    card = Card(program, directory, recipe, store)
    card.start()
    return card


def engine(order: dict[str, Any]) -> None:
    """One vLLM: answers the prompts in batches and says so on its output, a JSON line for each."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if "idle" in order:
        # Its worker is asked by a function.
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.v1.metrics.reader import Histogram

    transfer = None
    if order["socket"]:
        extra = {"socket": order["socket"], "chunk_tokens": CHUNK, "retry_s": 0.1, "retry_max_s": 0.5, **order["extra"]}
        transfer = KVTransferConfig(
            kv_connector="KvlaneConnector",
            kv_connector_module_path="kvlane.vllm_connector",
            kv_role="kv_both",
            kv_load_failure_policy=order.get("policy", "recompute"),
            kv_connector_extra_config=extra,
        )
    llm = LLM(
        order["model"],
        skip_tokenizer_init=True,
        max_model_len=LONGEST,
        block_size=BLOCK,
        enforce_eager=True,
        max_num_seqs=order.get("seqs", 16),
        max_num_batched_tokens=order["batched_tokens"],
        tensor_parallel_size=order.get("ranks", 1),
        num_gpu_blocks_override=order.get("blocks"),
        enable_prefix_caching=order["prefix_caching"],
        max_logprobs=256,
        disable_log_stats=False,
        seed=0,
        kv_transfer_config=transfer,
    )
    sampling = SamplingParams(temperature=0, max_tokens=order.get("output", OUTPUT), detokenize=False, ignore_eos=True, logprobs=2)
    for at, batch in enumerate(order["batches"]):
        forget = order.get("forget") and at
        if forget and "settle" in order:
            settled(llm, order["settle"], 1)
        say({"begin": at})
        time.sleep(order.get("pause", 0))
        if forget:
            llm.reset_prefix_cache()
        began = time.monotonic()
        answers = llm.generate([{"prompt_token_ids": each} for each in batch], sampling, use_tqdm=False)
        say(
            {
                "answers": [list(answer.outputs[0].token_ids) for answer in answers],
                "gaps": [[gap(place) for place in answer.outputs[0].logprobs] for answer in answers],
                "reasons": [answer.outputs[0].finish_reason for answer in answers],
                "ttft": [answer.metrics.first_token_latency for answer in answers],
                "seconds": time.monotonic() - began,
            }
        )
        if str(at) in order.get("idle", {}):
            say(pressure.idle(llm, order["idle"][str(at)], lambda what: say({"begin": what})))
    if "forced" in order:
        say({"losses": forced(llm, order["forced"])})
    # The counters of the last step come with the next one.
    llm.generate([{"prompt_token_ids": [10]}], SamplingParams(max_tokens=8, detokenize=False), use_tqdm=False)
    counts: Counter[str] = Counter({PREEMPTIONS: 0, ERRORS: 0})
    for metric in llm.get_metrics():
        if "kvlane" in metric.name or metric.name == PREEMPTIONS:
            # One for each kind of error: they add up.
            counts[metric.name] += int(metric.count if isinstance(metric, Histogram) else metric.value)
    say({"metrics": counts})


def gap(place: dict[int, Any]) -> float:
    """How much likelier the first token was than the second, nats."""
    first, second = sorted((each.logprob for each in place.values()), reverse=True)[:2]
    return first - second


def forced(llm: Any, texts: list[dict[str, Any]]) -> list[float]:
    """Nats of a byte that continues a prefix, the mean of each text. One request a byte and text: the prefix is in vLLM's
    cache by then, and so from the store; what is computed is what follows it."""
    from vllm import SamplingParams

    one = SamplingParams(temperature=0, max_tokens=1, logprobs=256, detokenize=False)
    sums = [0.0] * len(texts)
    for at in range(len(texts[0]["rest"])):
        batch = [{"prompt_token_ids": text["prefix"] + text["rest"][:at]} for text in texts]
        for index, answer in enumerate(llm.generate(batch, one, use_tqdm=False)):
            sums[index] -= answer.outputs[0].logprobs[0][texts[index]["rest"][at]].logprob
    return [sum / len(texts[0]["rest"]) for sum in sums]


def say(what: dict[str, Any]) -> None:
    print("@" + json.dumps(what), flush=True)


def run(order: dict[str, Any], log: Path, begins: Any = None) -> dict[str, Any]:
    """Starts an engine, and puts its lines together."""
    answers: list[list[int]] = []
    rest: dict[str, Any] = {"gaps": [], "seconds": [], "reasons": [], "ttft": []}
    with log.open("w") as errors:
        child = subprocess.Popen(
            [sys.executable, __file__, "--engine"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert child.stdin and child.stdout
        child.stdin.write(json.dumps(order))
        child.stdin.close()
        for line in child.stdout:
            if not line.startswith("@"):
                errors.write(line)
                continue
            said = json.loads(line[1:])
            if "begin" in said and begins:
                begins(said["begin"])
            elif "answers" in said:
                answers += said["answers"]
                rest["gaps"] += said["gaps"]
                rest["reasons"] += said["reasons"]
                rest["ttft"] += said["ttft"]
                rest["seconds"].append(said["seconds"])
            else:
                rest |= said
        if child.wait() != 0:
            sys.exit(f"vLLM ended with {child.returncode}: look at {log}")
    return {"answers": answers, **rest}


TIE = 0.0625
"""Nats. One step of a bf16 logit between 8 and 16: nearer than this, the order in which a batch is added up decides which of
two tokens comes first, with and without a connector (vLLM's CPU kernels are not batch-invariant)."""


def differing(result: dict[str, Any], truth: dict[str, Any], skip: set[int] | None = None) -> tuple[list[int], list[int]]:
    """Answers that differ, and those of them that differ first where recomputation itself had a tie."""
    differ, ties = [], []
    assert len(result["answers"]) == len(truth["answers"])
    for index, (mine, exact) in enumerate(zip(result["answers"], truth["answers"])):
        if mine != exact and index not in (skip or ()):
            at = next((i for i, (one, other) in enumerate(zip(mine, exact)) if one != other), None)
            tie = at is not None and truth["gaps"][index][at] <= TIE
            (ties if tie else differ).append(index)
    return differ, ties


def in_batches(all: list[Any], size: int) -> list[list[Any]]:
    return [all[at : at + size] for at in range(0, len(all), size)]


class Proof(pressure.Pressure):
    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self.given, self.directory = given, directory
        self.text = Path(given.text).read_bytes()
        self.failed = False
        self._truths: dict[int, dict[str, Any]] = {}

    def new_card(self, part: str, store: str | None = None) -> Card:
        return new_card(self.given.dpu_app, self.directory / f"card-{part}", "lossless", store)

    def order(self, batches: list[Any], **more: Any) -> dict[str, Any]:
        base = {"model": str(self.given.model), "socket": None, "extra": {}, "batched_tokens": 4096}
        return base | {"prefix_caching": False, "batches": batches} | more

    def engine(self, name: str, order: dict[str, Any], begins: Any = None) -> dict[str, Any]:
        return run(order, self.directory / f"{name}.log", begins)

    def truth(self, indexes: list[int], batched: int = 4096) -> dict[str, Any]:
        """What recomputation answers to those of the prompts, each computed once for all parts; with pages enough, and
        without vLLM's own prefix cache."""
        made = prompts(self.text, max(self.given.prompts, KILL_PROMPTS))
        if batched not in self._truths:
            order = self.order(in_batches(made, 16), batched_tokens=batched, ranks=self.given.ranks)
            self._truths[batched] = self.engine(f"recompute-{batched}", order)
        truth = self._truths[batched]
        return {name: [truth[name][index] for index in indexes] for name in ("answers", "gaps")} | {"seconds": truth["seconds"]}

    def check(self, what: str, found: tuple[list[int], list[int]], all: int, note: str) -> None:
        differ, ties = found
        self.failed |= bool(differ)
        equal = all - len(differ) - len(ties)
        word = "FAIL" if differ else "ok  "
        print(f"{word} {what}: {equal} of {all} answers equal, {len(ties)} differ from a tie on; {note}", flush=True)
        if differ:
            print(f"     differing: {differ}", flush=True)

    def must(self, true: bool, else_: str) -> None:
        if not true:
            self.failed = True
            print(f"FAIL {else_}", flush=True)

    def identity(self) -> None:
        """Recompute, save, load, in whole and in chunked prefill."""
        for prefill in self.given.prefill.split(","):
            self._identity("identity", prefill, None)

    def preempt(self) -> None:
        """The same with so few pages that vLLM has to preempt, which is counted."""
        self._identity("preempt", "whole", self.given.blocks)

    def _identity(self, part: str, prefill: str, blocks: int | None) -> None:
        made, batched = prompts(self.text, self.given.prompts), PREFILL[prefill]
        truth = self.truth(list(range(len(made))), batched)
        card = new_card(self.given.dpu_app, self.directory / f"card-{part}-{prefill}", self.given.recipe)
        order = {"socket": card.socket, "prefix_caching": True, "batched_tokens": batched}
        order |= {"ranks": self.given.ranks, "blocks": blocks}
        for turn in ("save", "load"):
            result = self.engine(f"{part}-{prefill}-{turn}", self.order(in_batches(made, 16), **order))
            metrics = result["metrics"]
            note = f"{metrics[HITS]} tokens loaded, {metrics[SAVED]} chunks saved, errors {metrics[ERRORS]}"
            note += f", {metrics[PREEMPTIONS]} preemptions"
            self.check(f"{part}, {prefill} prefill, {turn}", differing(result, truth), len(made), note)
            self.must(turn == "save" or metrics[HITS] > 0, "nothing was loaded")
            self.must(not blocks or metrics[PREEMPTIONS] > 0, f"{blocks} pages did not make vLLM preempt: use fewer")
        card.kill()

    def kill(self) -> None:
        """Kills dpu-app at a random moment of each batch."""
        made = prompts(self.text, KILL_PROMPTS) * 4
        batches = in_batches(made, len(made) // self.given.kills)
        truth = self.truth(list(range(KILL_PROMPTS)) * 4)
        card = new_card(self.given.dpu_app, self.directory / "card-kill", "lossless")
        dice, length = random.Random(20), statistics.median(truth["seconds"]) * len(batches[0]) / 16
        killers: list[threading.Thread] = []

        def murder(delay: float, pause: float) -> None:
            time.sleep(delay)
            card.kill()
            time.sleep(pause)
            card.start()

        def begins(batch: int) -> None:
            for killer in killers:
                killer.join()
            killers[:] = [threading.Thread(target=murder, args=(dice.uniform(0, length), dice.uniform(0, 0.2)))]
            killers[0].start()

        order = self.order(batches, socket=card.socket, prefix_caching=True, forget=True)
        result = self.engine("kill", order, begins)
        for killer in killers:
            killer.join()
        card.kill()
        metrics = result["metrics"]
        note = f"{len(batches)} kills, {metrics[HITS]} tokens loaded, {metrics[SAVED]} chunks saved, errors {metrics[ERRORS]}"
        self.check("kill", differing(result, truth), len(made), note)

    def freeze(self) -> None:
        """Stops dpu-app before the second of three rounds and wakes it after."""
        made = prompts(self.text, 16)
        truth = self.truth(list(range(len(made))) * 3)
        card = new_card(self.given.dpu_app, self.directory / "card-freeze", "lossless")
        waker: list[threading.Timer] = []

        def begins(batch: int) -> None:
            if batch == 1:
                # In the middle of the batch's look-ups and loads.
                waker.append(threading.Timer(PAUSE + 0.02, card.freeze))
                waker[-1].start()
            if batch == 2:
                card.thaw()

        extra = {"load_deadline_s": 1.0, "load_grace_s": 0.5}
        order = self.order([made] * 3, socket=card.socket, prefix_caching=True, forget=True, extra=extra, pause=PAUSE)
        result = self.engine("freeze", order, begins)
        card.kill()
        seconds = ", ".join(f"{each:.1f}" for each in result["seconds"])
        self.check("freeze", differing(result, truth), 3 * len(made), f"rounds took {seconds} s")


    def corrupt(self) -> None:
        """Damages the store between saving and loading."""
        made = prompts(self.text, 16)
        truth = self.truth(list(range(len(made))) * 2)
        for policy in ("recompute", "fail"):
            card = new_card(self.given.dpu_app, self.directory / f"card-corrupt-{policy}", "lossless")

            def begins(batch: int, store: Path = Path(card.socket).parent / "store") -> None:
                if batch == 0:
                    return
                for file in store.rglob("*"):
                    if file.is_file() and file.stat().st_size > 4096:
                        data = bytearray(file.read_bytes())
                        data[len(data) // 2] ^= 0x10
                        file.write_bytes(data)

            order = self.order([made] * 2, socket=card.socket, prefix_caching=True, forget=True, policy=policy)
            order |= {"settle": SETTLE, "pause": PAUSE}
            result = self.engine(f"corrupt-{policy}", order, begins)
            card.kill()
            half, errors = len(made), result["metrics"][ERRORS]
            reasons = result["reasons"][half:]
            refused = {index for index, reason in enumerate(reasons) if reason == "error"}
            # The first half saved, and was compared by `identity`.
            differ = differing(result, truth, set(range(half)) | {half + index for index in refused})
            note = f"{errors} errors counted, {len(refused)} requests refused"
            self.check(f"corrupt, policy {policy}", differ, half - len(refused), note)
            self.must(errors > 0, "the damage was not noticed")
            self.must(bool(refused) == (policy == "fail"), "the policy was not kept")

    def stale(self) -> None:
        """What keys must tell apart, and what they must not."""
        card = new_card(self.given.dpu_app, self.directory / "card-stale", "lossless")
        stale = Stale(self, card)
        for case in self.given.cases.split(","):
            getattr(stale, case)()
        stale.driver.end()
        card.kill()

    def quality(self) -> None:
        """Each recipe saves exact KV, forgets it, loads it back, and goes on from there."""
        apart = len(self.text) // self.given.texts
        texts = [self.text[apart * index :] for index in range(self.given.texts)]
        prefixes = [list(text[: PREFIX + 1]) for text in texts]
        rest = [{"prefix": list(text[:PREFIX]), "rest": list(text[PREFIX : PREFIX + self.given.continued])} for text in texts]
        truth = self.engine("quality-exact", self.order([prefixes] * 2, prefix_caching=True, forced=rest))
        exact = statistics.mean(truth["losses"])
        print(f"\n{len(texts)} prefixes of {PREFIX} tokens; behind each {OUTPUT} greedy tokens, {self.given.continued} bytes of loss\n")
        print("| recipe | tokens loaded | KV by wire bytes | equal greedy tokens | answers equal throughout | nats per byte | change |")
        print(f"|---|---|---|---|---|---|---|\n| recomputed | 0 | | | | {exact:.4f} | |", flush=True)
        for recipe in self.given.recipes.split(","):
            card = new_card(self.given.dpu_app, self.directory / f"card-{recipe}", recipe)
            order = self.order([prefixes] * 2, socket=card.socket, prefix_caching=True, forget=True, forced=rest, settle=SETTLE)
            result = self.engine(f"quality-{recipe}", order)
            card.kill()
            metrics, answers = result["metrics"], list(zip(result["answers"][len(prefixes) :], truth["answers"]))
            pairs = [pair for one, other in answers for pair in zip(one, other)]
            equal, whole = (sum(one == other for one, other in each) for each in (pairs, answers))
            changes = [one - other for one, other in zip(result["losses"], truth["losses"])]
            change, error = statistics.mean(changes), statistics.stdev(changes) / math.sqrt(len(changes))
            ratio = metrics["vllm:kvlane_fetched_bytes"] / max(1, metrics["vllm:kvlane_fetch_wire_bytes"])
            row = f"| {recipe} | {metrics[HITS]} | {ratio:.2f} | {equal / len(pairs):.1%} | {whole} of {len(answers)} "
            print(f"{row}| {exact + change:.4f} | {change:+.4f} +- {error:.4f} |", flush=True)
            self.must(metrics[HITS] == len(prefixes) * PREFIX, "not every prefix was loaded whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["identity", "preempt", "kill", "freeze", "corrupt", "stale"]
    parser.add_argument("parts", nargs="*", default=parts, help=f"{', '.join(parts)} (these by default), flood, slow, idle, quality")
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--model", type=Path, default=ROOT / "testdata/decoder")
    parser.add_argument("--text", default=str(ROOT / "testdata/heldout.txt"))
    parser.add_argument("--recipe", default="lossless")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--recipes", default="lossless,q8,q5,q4,q3,cachegen", help="of quality")
    parser.add_argument("--texts", type=int, default=16, help="of quality")
    parser.add_argument("--continued", type=int, default=128, help="bytes of each text whose loss quality measures")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1, help="tensor parallel size")
    parser.add_argument("--blocks", type=int, default=80, help="pages of preempt's KV cache")
    parser.add_argument("--cases", default="weights,rope,adapters,embeddings,held", help="of stale")
    parser.add_argument("--prefill", default=",".join(PREFILL), help="of identity")
    parser.add_argument("--flood", type=int, default=2000, help="requests of flood")
    parser.add_argument("--line", type=float, default=50.0, help="Mbit/s of slow")
    parser.add_argument("--extra", type=json.loads, default={}, help="more options of the connector's for slow, as JSON")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and stores, kept")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        return engine(json.load(sys.stdin))
    with tempfile.TemporaryDirectory(prefix="kvlane-prove-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        proof = Proof(given, directory)
        for part in given.parts:
            getattr(proof, part)()
    sys.exit(1 if proof.failed else 0)


if __name__ == "__main__":
    main()
