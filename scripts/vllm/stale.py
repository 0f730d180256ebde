"""The part `stale` of prove.py: what was computed by other weights, or from more than token ids, is never loaded.

Each case saves a prompt with one engine, or one state of it, and asks with another. `loaded` is what came from the store: 0
where the KV would be another's, the whole prefix where it is the same model. Answers are compared where weights changed.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK, BLOCK = 256, 32
PROMPT = 4 * CHUNK + 40
"""Tokens: four chunks, and a tail."""
WHOLE = 4 * CHUNK
OUTPUT = 16
SETTLE = 60.0
"""Seconds that saves may take."""
CALM = 3
"""Looks in a row that find nothing saved anew: it is over."""
HITS, SAVED = "vllm:kvlane_hit_tokens", "vllm:kvlane_saved_chunks"


def count(llm: Any, name: str) -> int:
    """One of the connector's counters."""
    from vllm import SamplingParams

    # The counters of a step come with the next one.
    llm.generate([{"prompt_token_ids": [10]}], SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == name)


def settled(llm: Any, seconds: float, least: int = 0) -> int:
    """Waits until nothing more is saved, and says how many chunks were; `least` are expected."""
    until, before, calm = time.monotonic() + seconds, -1, 0
    while time.monotonic() < until and calm < CALM:
        now = count(llm, SAVED)
        calm = calm + 1 if now == before and now >= least else 0
        before = now
        time.sleep(0.2)
    return before


def serve() -> None:
    """Does what each line of its input says with the vLLM that is open, and answers with a line."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # In this process: a new one would import everything again.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.lora.request import LoRARequest

    llm: Any = None

    def open_(model: str, socket: str, **order: Any) -> None:
        """One that comes later knows nothing of it: its connector, its adapters and its caches go with it."""
        nonlocal llm
        llm = LLM(
            model,
            skip_tokenizer_init=True,
            block_size=BLOCK,
            enforce_eager=True,
            max_num_seqs=4,
            max_num_batched_tokens=CHUNK,
            disable_log_stats=False,
            seed=0,
            kv_transfer_config=KVTransferConfig(
                kv_connector="KvlaneConnector",
                kv_connector_module_path="kvlane.vllm_connector",
                kv_role="kv_both",
                kv_load_failure_policy="recompute",
                kv_connector_extra_config={"socket": socket, "chunk_tokens": CHUNK, "lookup_deadline_ms": 5000},
            ),
            **{"max_model_len": 2048} | order,
        )

    def close() -> None:
        nonlocal llm
        llm.llm_engine.engine_core.shutdown()
        llm = None
        gc.collect()

    sampling = SamplingParams(temperature=0, max_tokens=OUTPUT, detokenize=False, ignore_eos=True)

    def ask(tokens: list[int], lora: list[Any] | None = None, embeds: int | None = None, mixed: bool = False) -> Any:
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if embeds is not None:
            dice = torch.Generator().manual_seed(embeds)
            # One width for the whole prompt; where it is mixed, only the second half is looked at.
            prompt["prompt_embeds"] = torch.randn(len(tokens), 256, generator=dice).to(torch.bfloat16)
            if mixed:
                prompt["prompt_is_token_ids"] = [at < len(tokens) // 8 for at in range(len(tokens))]
            else:
                del prompt["prompt_token_ids"]
        adapter = LoRARequest(*lora[:3], load_inplace=lora[3]) if lora else None
        before = count(llm, HITS)
        (answer,) = llm.generate([prompt], sampling, use_tqdm=False, lora_request=adapter)
        return {"answer": list(answer.outputs[0].token_ids), "loaded": count(llm, HITS) - before}

    def settle(least: int = 0) -> int:
        return settled(llm, SETTLE, least)

    def reset(**which: bool) -> Any:
        try:
            return llm.reset_prefix_cache(**which)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def call(method: str) -> None:
        llm.collective_rpc(method)

    doors = {"open": open_, "close": close, "ask": ask, "settle": settle, "reset": reset, "call": call}
    for line in sys.stdin:
        words = json.loads(line)
        say(doors[words.pop("do")](**words))


def say(what: Any) -> None:
    print("@" + json.dumps(what), flush=True)


class Driver:
    """The process that opens one vLLM after the other: importing it takes longer than all the rest."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("w")
        self._child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def do(self, what: str, **words: Any) -> Any:
        assert self._child.stdin and self._child.stdout
        print(json.dumps({"do": what, **words}), file=self._child.stdin, flush=True)
        for line in self._child.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
            self._log.write(line)
            self._log.flush()
        sys.exit(f"vLLM ended: look at {self._log.name}")

    def end(self) -> None:
        assert self._child.stdin
        self._child.stdin.close()
        self._child.wait(60)
        self._log.close()


class Stale:
    def __init__(self, proof: Any, card: Any) -> None:
        self.proof, self.card = proof, card
        self.driver = Driver(proof.directory / "stale.log")
        self.directory: Path = proof.directory.resolve()
        self.tokens = list(proof.text[5000 : 5000 + PROMPT])

    @contextmanager
    def engine(self, model: Path | str, **order: Any) -> Iterator[Driver]:
        """A new vLLM."""
        self.driver.do("open", model=str(model), socket=self.card.socket, **order)
        yield self.driver
        self.driver.do("close")

    def expect(self, what: str, loaded: int, right: int, note: str = "") -> None:
        word = "ok  " if loaded == right else "FAIL"
        self.proof.failed |= loaded != right
        print(f"{word} stale, {what}: {loaded} tokens loaded, {right} are right{note}", flush=True)

    def weights(self) -> None:
        """One path: weights replaced in the running engine, and before a new one starts; dummies; then the first ones again,
        as a copy under another path."""
        first, model = Path(self.proof.given.model), self.directory / "model"
        shutil.copytree(first, model)
        with self.engine(model) as engine:
            old = engine.do("ask", tokens=self.tokens)
            self.expect("nothing is stored", old["loaded"], 0)
            engine.do("settle", least=4)
            retrain(model / "model.safetensors", 1)
            engine.do("call", method="reload_weights")
            done = engine.do("reset", reset_connector=True)
            reloaded = engine.do("ask", tokens=self.tokens)
            self.expect("reload_weights and reset_prefix_cache(reset_connector=True)", reloaded["loaded"], 0, f"; it said {done}")
            engine.do("settle", least=8)
        with self.engine(model) as engine:
            new = engine.do("ask", tokens=self.tokens)
            self.expect("weights replaced at one path, same names, sizes and headers", new["loaded"], 0)
            self.proof.must(reloaded["answer"] == new["answer"], "the reloaded engine answered as by other weights")
            self.proof.must(old["answer"] != new["answer"], "the new weights answer as the old ones do: choose others")
        with self.engine(model, load_format="dummy") as engine:
            self.expect("load_format=dummy beside real weights", engine.do("ask", tokens=self.tokens)["loaded"], 0)
        copy, link = self.directory / "elsewhere", self.directory / "link"
        shutil.copytree(first, copy)
        link.symlink_to(copy)
        with self.engine(f"{link}/") as engine:
            again = engine.do("ask", tokens=self.tokens)
            self.expect("an equal copy, by a symbolic link and a trailing slash", again["loaded"], WHOLE)
            self.proof.must(again["answer"] == old["answer"], "what was loaded answers differently")

    def rope(self) -> None:
        """LongRoPE's table is chosen by the longest prompt that an engine accepts."""
        model = self.directory / "longrope"
        shutil.copytree(self.proof.given.model, model)
        config = json.loads((model / "config.json").read_text())
        half = config["head_dim"] // 2
        config["rope_parameters"] |= {"rope_type": "longrope", "original_max_position_embeddings": 2048}
        config["rope_parameters"] |= {"short_factor": [1.0] * half, "long_factor": [4.0] * half}
        (model / "config.json").write_text(json.dumps(config))
        for longest, right in ((2048, 0), (4096, 0), (3072, WHOLE)):
            with self.engine(model, max_model_len=longest) as engine:
                loaded = engine.do("ask", tokens=self.tokens)["loaded"]
                self.expect(f"LongRoPE, max_model_len {longest}", loaded, right)
                engine.do("settle")

    def adapters(self) -> None:
        """One adapter, trained again at its path."""
        path = self.directory / "adapter"
        train(path, 1)
        with self.engine(self.proof.given.model, enable_lora=True, max_lora_rank=8, max_loras=2) as engine:

            def ask(what: str, number: int, in_place: bool, right: int) -> Any:
                engine.do("reset")
                found = engine.do("ask", tokens=self.tokens, lora=["adapter", number, str(path), in_place])
                self.expect(f"LoRA, {what}", found["loaded"], right)
                engine.do("settle")
                return found["answer"]

            old = ask("first", 1, False, 0)
            self.proof.must(ask("again", 1, False, WHOLE) == old, "what was loaded answers differently")
            train(path, 2)
            new = ask("trained again at its path, loaded by another id", 2, False, 0)
            self.proof.must(new != old, "the new adapter answers as the old one does: choose another")
            ask("trained again, and the engine has the old one", 1, False, 0)
            self.proof.must(ask("loaded in place", 1, True, WHOLE) == new, "what was loaded answers differently")
            train(path, 3)
            ask("trained once more, loaded in place", 1, True, 0)

    def embeddings(self) -> None:
        """The same token ids, other embeddings behind them."""
        with self.engine(self.proof.given.model, enable_prompt_embeds=True) as engine:
            for what, mixed in (("alone", False), ("between token ids", True)):
                answers = []
                for seed in (1, 2):
                    engine.do("reset")
                    found = engine.do("ask", tokens=self.tokens, embeds=seed, mixed=mixed)
                    answers.append(found["answer"])
                    self.expect(f"embeddings {what}, number {seed}", found["loaded"], 0)
                    engine.do("settle")
                self.proof.must(answers[0] != answers[1], "other embeddings answer the same: choose others")

    def held(self) -> None:
        """A card that stands still holds pages of saves while the engine is told to forget all."""
        tokens, store = self.tokens[::-1], Path(self.card.socket).parent / "store"
        with self.engine(self.proof.given.model) as engine:
            began, frozen = stored(store), threading.Event()

            def freeze() -> None:
                until = time.monotonic() + SETTLE
                while time.monotonic() < until and stored(store) == began:
                    time.sleep(0.0005)
                self.card.freeze()
                frozen.set()

            freezer = threading.Thread(target=freeze)
            freezer.start()
            engine.do("ask", tokens=tokens)
            frozen.wait(SETTLE)
            said = engine.do("reset", reset_running_requests=True)
            self.card.thaw()
            freezer.join()
            what = f"stale, reset_prefix_cache(reset_running_requests=True) while saves hold pages: {said}"
            self.proof.must(said is True, what)
            if said is True:
                print(f"ok   {what}", flush=True)
            engine.do("settle", least=4)
            self.expect("after that reset, what was being saved", engine.do("ask", tokens=tokens)["loaded"], WHOLE)


def stored(store: Path) -> int:
    return sum(1 for file in store.rglob("*") if file.is_file() and file.stat().st_size > 4096)


def retrain(file: Path, seed: int) -> None:
    """Other values in every tensor; the same names, shapes, types, order and metadata, so the same header."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    dice = torch.Generator().manual_seed(seed)
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
        new = {name: tensors.get_tensor(name) for name in tensors.keys()}
    new = {name: (one.float() * (1 + 0.3 * torch.randn(one.shape, generator=dice))).to(one.dtype) for name, one in new.items()}
    save_file(new, file, metadata)


def train(path: Path, seed: int) -> None:
    """An adapter of the test's decoder, with values that change its answers."""
    import torch
    from safetensors.torch import save_file

    path.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    dice, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(6):
        for name, width in (("q_proj", 256), ("k_proj", 128), ("v_proj", 128)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for half, shape in (("lora_A", (8, 256)), ("lora_B", (width, 8))):
                tensors[f"{base}.{half}.weight"] = (0.3 * torch.randn(shape, generator=dice)).to(torch.bfloat16)
    save_file(tensors, path / "adapter_model.safetensors")


if __name__ == "__main__":
    serve()
