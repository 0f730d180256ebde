#!/usr/bin/env python3
"""Proves the connector on models that are not plain attention: answers with prefixes from the store equal those of
recomputation.

    gpt-oss     windows and full attention, one window shorter than a chunk
    gemma3      windows and full attention, in three groups, windows longer than a chunk
    deepseek2   latents (MLA). vLLM prefills these on CPUs without what earlier steps computed, and has its own
                prefix cache off: loads are proved where one token is left, which is computed as the answer's are.
                All of its layers are dense: which experts a token is given hangs on the last bit of a sum, and so
                on the batch
    qwen3-next  states (gated delta net) and full attention
    fp8         full attention of one byte an element (needs a CPU with AVX-512)

Of each a small model with random weights: what is computed is nonsense, and depends on every token before it. Three
vLLMs, one after the other, each in a process of its own: the first recomputes, the second saves and has a prefix cache
of its own, the third loads what the second left. Chunked prefill, 16 prompts at a time. Run it in the environment of
scripts/demo-vllm.sh.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "host-ctl/python/tests"))

from card import Card  # noqa: E402
from child import run  # noqa: E402

WORDS, LONGEST, OUTPUT, BATCH, STEP = 320, 2048, 16, 16, 512
"""Tokens of the vocabulary, of a prompt with its answer, of an answer; prompts at once; tokens of a step."""
TIE = 0.0625
"""Nats. Nearer than this two tokens are equally likely to a bf16 step, and the order of a sum decides: see prove.py."""
SETTLE = 20.0
"""Seconds that saves have at the end."""
SCALE = 150.0
"""By which vLLM's dummy weights, which are near zero, are made larger: else every token is as likely as any other."""
HITS, SAVED, ERRORS = "vllm:kvlane_hit_tokens", "vllm:kvlane_saved_chunks", "vllm:kvlane_errors"

BASE: dict[str, Any] = dict(
    vocab_size=WORDS, hidden_size=128, torch_dtype="bfloat16", max_position_embeddings=4096, bos_token_id=1,
    eos_token_id=2, tie_word_embeddings=False, hidden_act="silu", num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, rms_norm_eps=1e-6,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt-oss": {
        "config": dict(
            architectures=["GptOssForCausalLM"], model_type="gpt_oss", num_hidden_layers=4, intermediate_size=128,
            sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 2, num_local_experts=4,
            num_experts_per_tok=2, rope_theta=150000, swiglu_limit=7.0,
        ),
        "engine": {"block_size": 32},
        "chunk": 256,
    },
    "gemma3": {
        "config": dict(
            architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", num_hidden_layers=6, intermediate_size=256,
            sliding_window=96, layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2,
            query_pre_attn_scalar=64,
            hidden_activation="gelu_pytorch_tanh", rope_theta=1e6, rope_local_base_freq=1e4, tie_word_embeddings=True,
        ),
        "engine": {"block_size": 32},
        "chunk": 64,
    },
    "deepseek2": {
        "config": dict(
            architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", num_hidden_layers=3,
            num_key_value_heads=4, intermediate_size=256, moe_intermediate_size=64, n_routed_experts=4,
            n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=3, moe_layer_freq=1, kv_lora_rank=512,
            q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_group=1, topk_group=1,
            topk_method="greedy", scoring_func="softmax", norm_topk_prob=False,
            routed_scaling_factor=1.0, rope_theta=1e4,
        ),
        "engine": {},
        "chunk": 64,
        "one_left": True,
    },
    "qwen3-next": {
        "config": dict(
            architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next", num_hidden_layers=4, intermediate_size=256,
            moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts=4, num_experts_per_tok=2,
            decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[], linear_conv_kernel_dim=4,
            linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=2, linear_num_value_heads=4,
            layer_types=["linear_attention"] * 3 + ["full_attention"], full_attention_interval=4,
            partial_rotary_factor=0.25, rope_theta=1e7,
        ),
        "engine": {},
        "chunk": None,
    },
    "fp8": {
        "config": dict(
            architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=3, intermediate_size=256
        ),
        "engine": {"block_size": 32, "kv_cache_dtype": "fp8"},
        "chunk": 64,
    },
}  # fmt: skip


def prompts(count: int, chunk: int, one_left: bool) -> list[list[int]]:
    """A fixed mix: every fifth one is of each kind. `one_left`: loads that leave one token, and prompts that load
    nothing."""
    dice = random.Random(17)

    def words(length: int) -> list[int]:
        return [dice.randrange(3, WORDS) for _ in range(length)]

    shared, other, made = words(1300), words(1300), []
    for index in range(count):
        match index % 5:
            case 0 | 1 | 3 if one_left:  # pages of a long prefix, and one token
                made.append(shared[: 16 * dice.randrange(4, 80)] + words(1))
            case 0:  # the whole of a long prefix, and a tail
                made.append(shared + words(dice.randrange(1, 200)))
            case 1:  # a part of it, which ends anywhere in a window
                made.append(shared[: dice.randrange(100, 1200)] + words(dice.randrange(1, 200)))
            case 2:  # nothing of it
                made.append(words(dice.randrange(2, 700)))
            case 3:  # exact multiples of a chunk
                made.append(other[: chunk * dice.randrange(1, 1300 // chunk + 1)])
            case _:  # shorter than a chunk
                made.append(other[: dice.randrange(1, chunk)])
    return made


def engine(order: dict[str, Any]) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    transfer = None
    if order["socket"]:
        extra = {"socket": order["socket"], "retry_s": 0.1, "lookup_deadline_ms": 20000, "load_margin": 1e-6}
        extra |= {"saves_max": 1000, "hold_share": 1.0} | ({"chunk_tokens": order["chunk"]} if order["chunk"] else {})
        transfer = KVTransferConfig(
            kv_connector="KvlaneConnector",
            kv_connector_module_path="kvlane.vllm_connector",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config=extra,
        )
    llm = LLM(
        order["model"],
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_seqs=BATCH,
        max_num_batched_tokens=STEP,
        num_gpu_blocks_override=order["pages"],
        enable_prefix_caching=order["prefix_caching"],
        disable_log_stats=False,
        seed=0,
        kv_transfer_config=transfer,
        **order["engine"],
    )
    llm.apply_model(enlarge)
    sampling = SamplingParams(temperature=0, max_tokens=OUTPUT, detokenize=False, ignore_eos=True, logprobs=2)
    answers, logs = [], []
    for at in range(0, len(order["prompts"]), BATCH):
        batch = [{"prompt_token_ids": each} for each in order["prompts"][at : at + BATCH]]
        for answer in llm.generate(batch, sampling, use_tqdm=False):
            tokens = list(answer.outputs[0].token_ids)
            answers.append(tokens)
            places = answer.outputs[0].logprobs
            logs.append([[place[token].logprob, gap(place)] for token, place in zip(tokens, places)])
    # Saves end, and the counters of a step come with the next one.
    until, before = time.monotonic() + (SETTLE if order["socket"] else 0), -1
    while time.monotonic() < until and (now := counts(llm)[SAVED]) != before:
        before = now
        time.sleep(1.0)
        llm.generate([{"prompt_token_ids": [10]}], SamplingParams(max_tokens=4, detokenize=False), use_tqdm=False)
    print("@" + json.dumps({"answers": answers, "logs": logs, "metrics": counts(llm)}), flush=True)


def counts(llm: Any) -> Counter[str]:
    found: Counter[str] = Counter({HITS: 0, SAVED: 0, ERRORS: 0})
    for metric in llm.get_metrics():
        if "kvlane" in metric.name and hasattr(metric, "value"):
            found[metric.name] += int(metric.value)
    return found


def gap(place: dict[int, Any]) -> float:
    first, second = sorted((each.logprob for each in place.values()), reverse=True)[:2]
    return first - second


def enlarge(model: Any) -> None:
    """Random weights of a size that lets every token matter: norms near one, the rest as a trained model's."""
    for _, weights in model.named_parameters():
        if weights.is_floating_point():
            weights.data = weights.data.add(1.0) if weights.dim() == 1 else weights.data.mul(SCALE)


def compare(result: dict[str, Any], truth: dict[str, Any]) -> tuple[int, list[int], list[int], float]:
    """Answers that are equal, differ from a tie on, differ; and the farthest that a log-probability is off, up to
    there."""
    equal, ties, differ, far = 0, [], [], 0.0
    for index, (mine, exact) in enumerate(zip(result["answers"], truth["answers"])):
        at = next((at for at, (one, other) in enumerate(zip(mine, exact)) if one != other), len(exact))
        for (one, _), (other, _) in zip(result["logs"][index][:at], truth["logs"][index][:at]):
            far = max(far, abs(one - other))
        if at == len(exact):
            equal += 1
        else:
            (ties if truth["logs"][index][at][1] <= TIE else differ).append(index)
    return equal, ties, differ, far


def prove(name: str, given: argparse.Namespace, directory: Path) -> bool:
    family = FAMILIES[name]
    model = directory / name
    model.mkdir()
    (model / "config.json").write_text(json.dumps(BASE | family["config"]))
    made = prompts(given.prompts, family["chunk"] or given.state_chunk, family.get("one_left", False))
    order = {"model": str(model), "prompts": made, "pages": given.pages}
    order |= {name: family[name] for name in ("engine", "chunk")}
    truth = run(__file__, order | {"socket": None, "prefix_caching": False}, directory / f"{name}-recompute.log")
    sure = sum(gap > TIE for answer in truth["logs"] for _, gap in answer) / (OUTPUT * len(made))
    different = len({tuple(answer) for answer in truth["answers"]})
    print(f"     {name}: {different} different answers, {sure:.0%} of the tokens no tie", flush=True)
    (model / "card").mkdir()
    card = Card(given.dpu_app, model / "card", "lossless")
    card.start()
    good = True
    for turn, cache in (("save", True), ("load", False if name != "qwen3-next" else True)):
        log = directory / f"{name}-{turn}.log"
        result = run(__file__, order | {"socket": card.socket, "prefix_caching": cache}, log)
        equal, ties, differ, far = compare(result, truth)
        metrics = result["metrics"]
        right = not differ and (turn == "save" or metrics[HITS] > 0)
        good &= right
        print(
            f"{'ok  ' if right else 'FAIL'} {name}, {turn}: {equal} of {len(made)} answers equal, {len(ties)} differ "
            f"from a tie on, {len(differ)} differ {differ}; log-probabilities at most {far:.4f} apart; "
            f"{metrics[HITS]} tokens loaded, {metrics[SAVED]} chunks saved, {metrics[ERRORS]} errors",
            flush=True,
        )
    card.kill()
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=["gpt-oss", "gemma3", "deepseek2", "qwen3-next"])
    parser.add_argument("--dpu-app", default=str(ROOT / "target/release/dpu-app"))
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--pages", type=int, default=1200, help="of vLLM's KV cache")
    parser.add_argument("--state-chunk", type=int, default=384, help="tokens of a chunk where states are kept")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and stores, kept")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine:
        return engine(json.load(sys.stdin))
    with tempfile.TemporaryDirectory(prefix="kvlane-families-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        good = [prove(name, given, directory) for name in given.families]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
