#!/usr/bin/env python3
"""Proves the connector against the real vLLM: answers with prefixes from the store equal those of recomputation.

    identity  prompts of many lengths (shared, partial, disjoint, exact multiples of a chunk, shorter than a chunk), saved by one
              vLLM and loaded by another, whole prefills and chunked ones, 16 at a time
    kill      requests while dpu-app is killed at random and started again
    freeze    requests while dpu-app stands still: each is answered within its deadline, and again after it wakes
    corrupt   every stored chunk is damaged on disk before it is loaded: recomputed with one policy, refused with the other
    quality   a table for lossy recipes: greedy tokens that stay equal, and the loss on text that continues a fetched prefix

Run it in the environment of scripts/demo-vllm.sh. Each vLLM is a process of its own (this file with --engine).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHUNK, BLOCK, LONGEST = 256, 32, 2048
OUTPUT = 32


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


class Card:
    def __init__(self, program: str, directory: Path, recipe: str) -> None:
        directory.mkdir()
        self.socket = str(directory / "socket")
        self._command = [program, "run", "--attach", "socket", "--socket", self.socket, "--recipe", recipe]
        self._command += ["--store", f"dir:{directory / 'store'}"]
        (directory / "store").mkdir()
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            began = log.tell()
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        while f"hosts attach to {self.socket}" not in self._log.read_text()[began:]:
            if self._process.poll() is not None:
                sys.exit(f"dpu-app did not start:\n{self._log.read_text()}")
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)


def engine(order: dict[str, Any]) -> None:
    """One vLLM: answers the prompts in batches and says so on its output, a JSON line for each."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

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
        max_num_seqs=16,
        max_num_batched_tokens=order["batched_tokens"],
        tensor_parallel_size=order.get("ranks", 1),
        num_gpu_blocks_override=order.get("blocks"),
        enable_prefix_caching=order["prefix_caching"],
        max_logprobs=256,
        disable_log_stats=False,
        seed=0,
        kv_transfer_config=transfer,
    )
    sampling = SamplingParams(temperature=0, max_tokens=OUTPUT, detokenize=False, ignore_eos=True, logprobs=2)
    for at, batch in enumerate(order["batches"]):
        say({"begin": at})
        if order.get("forget") and at:
            llm.reset_prefix_cache()
        began = time.monotonic()
        answers = llm.generate([{"prompt_token_ids": each} for each in batch], sampling, use_tqdm=False)
        say(
            {
                "answers": [list(answer.outputs[0].token_ids) for answer in answers],
                "gaps": [[gap(place) for place in answer.outputs[0].logprobs] for answer in answers],
                "reasons": [answer.outputs[0].finish_reason for answer in answers],
                "seconds": time.monotonic() - began,
            }
        )
    if "forced" in order:
        say({"losses": forced(llm, order["forced"])})
    # The counters of the last step come with the next one.
    llm.generate([{"prompt_token_ids": [10]}], SamplingParams(max_tokens=8, detokenize=False), use_tqdm=False)
    found = {metric.name: metric for metric in llm.get_metrics() if "kvlane" in metric.name}
    say({"metrics": {name: getattr(each, "value", None) or getattr(each, "count", 0) for name, each in found.items()}})


def gap(place: dict[int, Any]) -> float:
    """How much likelier the first token was than the second, nats."""
    first, second = sorted((each.logprob for each in place.values()), reverse=True)[:2]
    return first - second


def forced(llm: Any, texts: list[dict[str, Any]]) -> list[float]:
    """Nats of each byte that continues a prefix, one request a byte: what vLLM computes is the last token, the rest comes
    from its cache, and so from the store."""
    from vllm import SamplingParams

    one = SamplingParams(temperature=0, max_tokens=1, logprobs=256, detokenize=False)
    losses = []
    for text in texts:
        prefix, rest = text["prefix"], text["rest"]
        for at, byte in enumerate(rest):
            (answer,) = llm.generate([{"prompt_token_ids": prefix + rest[:at]}], one, use_tqdm=False)
            losses.append(-answer.outputs[0].logprobs[0][byte].logprob)
    return losses


def say(what: dict[str, Any]) -> None:
    print("@" + json.dumps(what), flush=True)


def run(order: dict[str, Any], log: Path, begins: Any = None) -> dict[str, Any]:
    """Starts an engine, and puts its lines together."""
    answers: list[list[int]] = []
    rest: dict[str, Any] = {"gaps": [], "seconds": [], "reasons": []}
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
                rest["seconds"].append(said["seconds"])
            elif "losses" in said:
                rest["losses"] = said["losses"]
            elif "metrics" in said:
                rest["metrics"] = said["metrics"]
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


class Proof:
    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self.given, self.directory = given, directory
        self.text = Path(given.text).read_bytes()
        self.failed = False

    def order(self, batches: list[Any], **more: Any) -> dict[str, Any]:
        base = {"model": str(self.given.model), "socket": None, "extra": {}, "batched_tokens": 4096}
        return base | {"prefix_caching": False, "batches": batches} | more

    def engine(self, name: str, order: dict[str, Any], begins: Any = None) -> dict[str, Any]:
        return run(order, self.directory / f"{name}.log", begins)

    def check(self, what: str, found: tuple[list[int], list[int]], all: int, note: str) -> None:
        differ, ties = found
        self.failed |= bool(differ)
        equal = all - len(differ) - len(ties)
        print(f"{'ok  ' if not differ else 'FAIL'} {what}: {equal} of {all} answers equal, {len(ties)} differ from a tie on; {note}", flush=True)
        if differ or ties:
            print(f"     differing: {differ}; ties: {ties}", flush=True)

    def identity(self) -> None:
        """Recompute, save, load, in whole and in chunked prefill."""
        made = prompts(self.text, self.given.prompts)
        for batched, name in ((4096, "whole"), (256, "chunked")):
            card = Card(self.given.dpu_app, self.directory / f"card-{name}", self.given.recipe)
            card.start()
            order = {"batched_tokens": batched, "ranks": self.given.ranks, "blocks": self.given.blocks}
            batches = in_batches(made, 16)
            truth = self.engine(f"{name}-recompute", self.order(batches, **order))
            with_card = order | {"socket": card.socket, "prefix_caching": True}
            for turn in ("save", "load"):
                result = self.engine(f"{name}-{turn}", self.order(batches, **with_card))
                metrics = result["metrics"]
                note = f"{metrics['vllm:kvlane_hit_tokens']:.0f} tokens loaded, {metrics['vllm:kvlane_saved_chunks']:.0f} chunks saved"
                note += f", errors {metrics.get('vllm:kvlane_errors', 0):.0f}"
                self.check(f"identity, {name} prefill, {turn}", differing(result, truth), len(made), note)
                if turn == "load" and not metrics["vllm:kvlane_hit_tokens"]:
                    self.failed = True
                    print("FAIL nothing was loaded")
            card.kill()

    def kill(self) -> None:
        """Kills dpu-app at a random moment of each batch."""
        made = prompts(self.text, 50) * 4
        batches = in_batches(made, len(made) // self.given.kills)
        truth = self.engine("kill-recompute", self.order(batches))
        card = Card(self.given.dpu_app, self.directory / "card-kill", "lossless")
        card.start()
        dice, length = random.Random(20), sum(truth["seconds"]) / len(batches)
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
        note = f"{len(batches)} kills, {metrics['vllm:kvlane_hit_tokens']:.0f} tokens loaded, {metrics['vllm:kvlane_saved_chunks']:.0f} chunks saved"
        self.check("kill", differing(result, truth), len(made), note)

    def freeze(self) -> None:
        """Stops dpu-app before the second of three rounds and wakes it after."""
        made = prompts(self.text, 16)
        truth = self.engine("freeze-recompute", self.order([made] * 3))
        card = Card(self.given.dpu_app, self.directory / "card-freeze", "lossless")
        card.start()
        waker: list[threading.Timer] = []

        def begins(batch: int) -> None:
            if batch == 1:
                # In the middle of the batch's look-ups and loads.
                waker.append(threading.Timer(0.02, card.signal, [signal.SIGSTOP]))
                waker[-1].start()
            if batch == 2:
                card.signal(signal.SIGCONT)

        extra = {"load_deadline_s": 1.0, "load_grace_s": 0.5}
        order = self.order([made] * 3, socket=card.socket, prefix_caching=True, forget=True, extra=extra)
        result = self.engine("freeze", order, begins)
        card.kill()
        seconds = ", ".join(f"{each:.1f}" for each in result["seconds"])
        self.check("freeze", differing(result, truth), 3 * len(made), f"rounds took {seconds} s")


    def corrupt(self) -> None:
        """Damages the store between saving and loading."""
        made = prompts(self.text, 16)
        truth = self.engine("corrupt-recompute", self.order([made] * 2))
        for policy in ("recompute", "fail"):
            card = Card(self.given.dpu_app, self.directory / f"card-corrupt-{policy}", "lossless")
            card.start()

            def begins(batch: int, store: Path = Path(card.socket).parent / "store") -> None:
                if batch == 0:
                    return
                for file in store.rglob("*"):
                    if file.is_file() and file.stat().st_size > 4096:
                        data = bytearray(file.read_bytes())
                        data[len(data) // 2] ^= 0x10
                        file.write_bytes(data)

            order = self.order([made] * 2, socket=card.socket, prefix_caching=True, forget=True, policy=policy)
            result = self.engine(f"corrupt-{policy}", order, begins)
            card.kill()
            half, errors = len(made), result["metrics"].get("vllm:kvlane_errors", 0)
            reasons = result["reasons"][half:]
            refused = {index for index, reason in enumerate(reasons) if reason == "error"}
            # The first half saved, and was compared by `identity`.
            differ = differing(result, truth, set(range(half)) | {half + index for index in refused})
            note = f"{errors:.0f} errors counted, {len(refused)} requests refused"
            self.check(f"corrupt, policy {policy}", differ, half - len(refused), note)
            if not errors or bool(refused) != (policy == "fail"):
                self.failed = True
                print("FAIL the damage was not noticed, or the policy not kept")

    def quality(self) -> None:
        """Each recipe saves exact KV, forgets it, loads it back, and goes on from there."""
        texts = [self.text[2500 * index :][:1100] for index in range(self.given.texts)]
        prefixes = [list(text[: 4 * CHUNK + 1]) for text in texts]
        rest = [{"prefix": list(text[:1024]), "rest": list(text[1024:1088])} for text in texts]
        truth = self.engine("quality-exact", self.order([prefixes] * 2, prefix_caching=True, forced=rest))
        exact = sum(truth["losses"]) / len(truth["losses"])
        print(f"\n{len(texts)} prefixes of 1024 tokens, {OUTPUT} greedy tokens and {len(truth['losses'])} bytes of loss")
        print("| recipe | tokens loaded | wire bytes, of KV | equal greedy tokens | nats per byte | change |\n|---|---|---|---|---|---|")
        print(f"| recomputed | 0 | | | {exact:.4f} | |", flush=True)
        for recipe in self.given.recipes.split(","):
            card = Card(self.given.dpu_app, self.directory / f"card-{recipe}", recipe)
            card.start()
            order = self.order([prefixes] * 2, socket=card.socket, prefix_caching=True, forget=True, forced=rest)
            result = self.engine(f"quality-{recipe}", order)
            card.kill()
            metrics, half = result["metrics"], len(prefixes)
            pairs = [pair for one, other in zip(result["answers"][half:], truth["answers"]) for pair in zip(one, other)]
            equal = sum(one == other for one, other in pairs) / len(pairs)
            loss = sum(result["losses"]) / len(result["losses"])
            wire = metrics["vllm:kvlane_fetch_wire_bytes"] / max(1, metrics["vllm:kvlane_fetched_bytes"])
            hits = metrics["vllm:kvlane_hit_tokens"]
            print(f"| {recipe} | {hits:.0f} | {wire:.3f} | {equal:.1%} | {loss:.4f} | {loss - exact:+.4f} |", flush=True)
            if not hits:
                self.failed = True
                print("FAIL nothing was loaded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["identity", "kill", "freeze", "corrupt"], help="identity, kill, freeze, corrupt (these by default), quality")
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--model", type=Path, default=ROOT / "testdata/decoder")
    parser.add_argument("--text", default=str(ROOT / "testdata/heldout.txt"))
    parser.add_argument("--recipe", default="lossless")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--recipes", default="lossless,q8,q5,q4,q3,cachegen", help="of quality")
    parser.add_argument("--texts", type=int, default=16, help="of quality")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1, help="tensor parallel size")
    parser.add_argument("--blocks", type=int, help="pages of the KV cache: few of them make vLLM preempt")
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
