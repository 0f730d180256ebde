"""One vLLM for serving.py: answers prompts once, which saves them, then again with its own prefix cache emptied.

Reads an order as JSON from standard input, writes one line of JSON: what each round took and answered.
"""

import json
import os
import sys
import time

# Longest time that pages of answered requests may be held, by connectors that still save them.
HELD_S = 20

# Tries after which a prefix that was saved has to come back.
TRIES = 3


class Engine:
    def __init__(self, order):
        # Imported late: it reads the environment.
        from vllm import LLM, SamplingParams
        from vllm.config import KVTransferConfig
        self.count = order["answer"]
        transfer = order["transfer"] and KVTransferConfig(kv_role="kv_both", kv_load_failure_policy="recompute", **order["transfer"])
        self.llm = LLM(order["model"], skip_tokenizer_init=True, max_model_len=order["longest"], block_size=order["block"], enforce_eager=True,
                       max_num_seqs=8, load_format=order["load_format"], disable_log_stats=False, seed=0, enable_prefix_caching=True,
                       kv_transfer_config=transfer)
        self.sampling = SamplingParams(temperature=0, max_tokens=self.count, detokenize=False, ignore_eos=True)

    def ask(self, prompts):
        """Answers to prompts that arrive at once: prompt tokens not computed, answer, seconds to the first token and for each further one."""
        outputs = self.llm.generate([{"prompt_token_ids": each} for each in prompts], self.sampling, use_tqdm=False)
        told = [output.metrics for output in outputs]
        return {"loaded": [output.num_cached_tokens or 0 for output in outputs], "tokens": [list(output.outputs[0].token_ids) for output in outputs], "ttft": [each.first_token_latency for each in told],
                "tpot": [(each.last_token_ts - each.first_token_ts) / (self.count - 1) for each in told]}

    def save(self, prompts, prefix):
        """Answers them once, and until their first `prefix` tokens are loaded: connectors save beside the steps that follow."""
        for prompt in prompts:
            self.ask([prompt])
        for _ in range(TRIES):
            time.sleep(1)
            self.ask([[7] * 40])
            self.forget()
            if all(self.ask([prompt])["loaded"][0] >= prefix for prompt in prompts):
                break

    def forget(self):
        """Empties vLLM's own prefix cache."""
        end = time.monotonic() + HELD_S
        while not self.llm.reset_prefix_cache():
            if time.monotonic() > end:
                raise RuntimeError(f"vLLM's own prefix cache cannot be emptied: pages are held for {HELD_S} s")
            time.sleep(0.1)
            self.ask([[7] * 8])

    def round(self, prompts):
        self.forget()
        alone = [self.ask([prompt]) for prompt in prompts]
        self.forget()
        return {"alone": {key: [each[key][0] for each in alone] for key in ("loaded", "tokens", "ttft", "tpot")}, "together": self.ask(prompts)}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output as they like
    order = json.load(sys.stdin)
    engine = Engine(order)
    engine.ask([[7] * 40])
    if order["transfer"]:
        engine.save(order["prompts"], order["prefix"])
    rounds = [engine.round(order["prompts"]) for _ in range(order["runs"])]
    print(json.dumps(rounds), file=answers, flush=True)
    os._exit(0)  # threads of connectors do not all end


if __name__ == "__main__":
    main()
