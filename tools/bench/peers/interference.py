"""How much a decode loop slows down while a prefix is restored beside it: the report `interference`.

The loop is pinned to core 0. Ways restore in a thread of the same Python process, as connectors do, pinned to core 0 or to core 1;
kvlane's dpu-app and every redis-server are pinned to core 1.
"""

import os

# One thread of matrix products, on the loop's core.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from decoder import Decoder
from place import ROOT, Bench, say
from prefix import CHUNK_BYTES
from report import Report, Table, command, median, quantile, spread
from ways import WAYS

BATCH, CONTEXT = 16, 512
# What runs beside the loop: (name, way, core of its thread).
BESIDE = [
    ("idle", None, 0),
    ("dpu-app on core 1, q5", "kvlane q5", 0),
    ("dpu-app on core 1, lossless", "kvlane lossless", 0),
    ("core 0: redis-py, bf16", "redis-py + hiredis", 0),
    ("core 0: redis-py, zlib of q5 codes", "redis-py, zlib of q5 codes", 0),
    ("core 0: LMCache, naive", "LMCache, naive", 0),
    ("core 1: redis-py, bf16", "redis-py + hiredis", 1),
    ("core 1: redis-py, zlib of q5 codes", "redis-py, zlib of q5 codes", 1),
]

# Longest time for one run of a way; longer is an error of its row.
PATIENCE_S = 60


class Loop:
    """Decodes for as long as something else runs."""

    def __init__(self, directory, text):
        self.decoder = Decoder(directory, BATCH, CONTEXT)
        self.loss = self.decoder.loss(text[:CONTEXT])
        self.tokens = np.frombuffer(text[:BATCH], dtype=np.uint8).astype(np.int64)

    def step(self):
        # Contexts between half full and full: the work of a step varies by little.
        if self.decoder.position in (0, CONTEXT):
            self.decoder.position = CONTEXT // 2
        self.tokens = self.decoder.step(self.tokens).argmax(axis=1)

    def until(self, done):
        """End of each step, from the clock's now until `done`, and the CPU that they took."""
        ends, cpu = [time.perf_counter()], time.thread_time()
        while not done():
            self.step()
            ends.append(time.perf_counter())
        return Window(np.array(ends), time.thread_time() - cpu)


class Window:
    """Decoding while something else ran."""

    def __init__(self, ends, cpu):
        self.ends, self.steps, self.seconds = ends, len(ends) - 1, ends[-1] - ends[0]
        self.rate = BATCH * self.steps / self.seconds
        self.share, self.cpu_ms = cpu / self.seconds, cpu / self.steps * 1e3


class Beside(threading.Thread):
    """Restores a prefix `times` times from a thread on one core."""

    def __init__(self, way, core, times):
        super().__init__(daemon=True)
        self.way, self.core, self.times, self.error = way, core, times, None

    def run(self):
        try:
            os.sched_setaffinity(0, {self.core})
            for _ in range(self.times):
                self.way.fetch()
        except Exception as error:  # the table says so
            self.error = f"{type(error).__name__}: {error}"[:300]


def idle(loop, seconds):
    end = time.perf_counter() + seconds
    return loop.until(lambda: time.perf_counter() >= end)


def beside(loop, way, core, times):
    """The loop while the way restores, from its start to its end."""
    thread = Beside(way, core, times)
    thread.start()
    late = time.perf_counter() + PATIENCE_S
    window = loop.until(lambda: not thread.is_alive() or time.perf_counter() > late)
    if thread.is_alive():
        raise TimeoutError(f"not restored in {PATIENCE_S} s")
    if thread.error:
        raise RuntimeError(thread.error)
    return window


def measured(loop, ways, options):
    """{name: a window for each run}, and the errors."""
    runs, errors = {name: [] for name, _, _ in BESIDE}, {}
    for turn in range(options.runs):
        for name, key, core in BESIDE:
            say(f"turn {turn + 1} of {options.runs}: {name}")
            idle(loop, 0.3)
            try:
                way = ways.get(key)
                if isinstance(way, str):
                    raise RuntimeError(way)
                runs[name].append(beside(loop, way, core, way.times) if way else idle(loop, options.idle_s))
            except Exception as error:
                errors[name] = str(error)
                ways[key] = errors[name]  # not tried again: its thread may live
    return runs, errors


def opened(place, options):
    """Every way, its prefix stored and its memory taken; or the error."""
    ways = {}
    for key in dict.fromkeys(key for _, key, _ in BESIDE if key):
        say(f"storing for {key}")
        try:
            # A process of its own stores, so that this one starts clean.
            client = subprocess.run([sys.executable, Path(__file__).with_name("client.py"), key, place.text()], input="store\nend\n",
                                    capture_output=True, text=True, timeout=180)
            if '"error"' in client.stdout or not client.stdout:
                raise RuntimeError(client.stdout or client.stderr[-300:])
            way = WAYS[key](place)
            way.open()
            way.fetch()
            # kvlane's host-ctl repeats by itself.
            way.times = options.gb * (1 << 30) // (place.chunks * CHUNK_BYTES) if options.gb else 1
            if hasattr(way, "repeat"):
                way.repeat, way.times = way.times, 1
            ways[key] = way
        except Exception as error:
            ways[key] = f"{type(error).__name__}: {error}"[:300]
            say(f"  {ways[key]}")
    return ways


def table(runs, errors, restored):
    idle_rate = median([window.rate for window in runs["idle"]])
    told = Table(f"A decode loop on core 0 while {restored / 1e9:.2f} GB are restored",
                 ["beside the loop", "restoring takes s", "restored MB/s", "tokens/s", "spread", "ms/step p50", "ms/step p99", "slowdown", "loop's share of core 0",
                  "its CPU ms/step", "tokens lost / GB restored"],
                 note=f"Medians of the runs, in turn. {BATCH} sequences a step. Slowdown: idle tokens/s over tokens/s; it is made of a smaller share of core 0 (something "
                      "else runs there, or the interpreter's lock is held) and of more CPU time a step (cache and memory are shared). "
                      "Tokens lost: what the idle loop would have decoded more in the time of restoring.")
    bars, tails = [], []
    for name, key, _ in BESIDE:
        if name in errors or not runs[name]:
            told.row(name, "cannot run here", *["-"] * 8, errors.get(name, "no run"))
            continue
        windows = runs[name]
        seconds, rate = median([window.seconds for window in windows]), median([window.rate for window in windows])
        steps = np.concatenate([np.diff(window.ends) for window in windows]) * 1e3
        p99 = quantile(steps, 0.99)
        lost = (idle_rate - rate) * seconds / (restored / 1e9)
        told.row(name, f"{seconds:.2f}" if key else "-", f"{restored / seconds / 1e6:.0f}" if key else "-", f"{rate:.0f}",
                 spread([window.rate for window in windows]), f"{quantile(steps, 0.5):.2f}", f"{p99:.2f}", f"{idle_rate / rate:.2f}x",
                 f"{median([window.share for window in windows]):.0%}", f"{median([window.cpu_ms for window in windows]):.2f}", f"{lost:.0f}" if key else "-")
        bars.append((name, idle_rate / rate, lost if key else 0))
        tails.append((name, p99))
    return told, bars, tails


def timeline(runs):
    """Tokens/s in tenths of a second of each way's last run."""
    series = []
    for name, windows in runs.items():
        if windows:
            ends = windows[-1].ends - windows[-1].ends[0]
            counts, edges = np.histogram(ends[1:], bins=np.arange(0, ends[-1] + 0.1, 0.1))
            series.append((name, [(round(float(edge), 1), float(count) * BATCH * 10) for edge, count in zip(edges, counts[:-1])][:60]))
    return series


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decoder", default=str(ROOT / "testdata/decoder"), help="directory with config.json and model.safetensors [%(default)s]")
    parser.add_argument("--text", default=str(ROOT / "testdata/heldout.txt"), help="what it reads first [%(default)s]")
    parser.add_argument("--gb", type=int, default=1, help="GiB restored by each way in each run [%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--only", default="", help="what runs beside it, by parts of names, comma-separated")
    parser.add_argument("--quick", action="store_true", help="32 MiB, one run: does everything work?")
    options = parser.parse_args()
    options.idle_s, options.mib = (1, 32) if options.quick else (4, 256)
    if options.quick:
        options.gb, options.runs = 0, 1
    if options.only:
        BESIDE[1:] = [each for each in BESIDE[1:] if any(part in each[0] for part in options.only.split(","))]
    return options


def main():
    options = arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # LMCache's keys depend on it, and another process stores.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the loop, one for the card")
    report = Report("interference", "What restoring costs a decode loop", command("interference"))
    report.versions = [f"{package} {version(package)}" for package in ("numpy", "redis", "hiredis", "lmcache")]
    with Bench(options.mib) as bench:
        place = bench.place(over_link=False, cpus="1", server_cpus="1")
        os.sched_setaffinity(0, {0})
        loop = Loop(options.decoder, Path(options.text).read_bytes())
        ways = opened(place, options)
        idle(loop, 1)
        try:
            runs, errors = measured(loop, ways, options)
        finally:
            for way in ways.values():
                if not isinstance(way, str):
                    way.close()
        restored = options.gb << 30 or bench.chunks * CHUNK_BYTES
    told, bars, tails = table(runs, errors, restored)
    report.tables.append(told)
    names = [name for name, *_ in bars]
    report.plot("interference-slowdown", "Slowdown of the decode loop while restoring", "", "idle tokens/s over tokens/s",
                [("slowdown", [(index, round(bar[1], 3)) for index, bar in enumerate(bars)], names)], kind="bars")
    report.plot("interference-lost", "Tokens lost for each GB restored", "", "tokens",
                [("tokens", [(index, round(bar[2], 1)) for index, bar in enumerate(bars)], names)], kind="bars")
    report.plot("interference-tail", "Decode steps while restoring, p99", "", "ms",
                [("p99", [(index, round(tail[1], 3)) for index, tail in enumerate(tails)], names)], kind="bars")
    report.plot("interference-timeline", "Decoding from the start of restoring to its end", "s", "tokens/s", timeline(runs))
    report.notes = [
        f"The small decoder ({loop.loss:.2f} nats per byte on this text) decodes {BATCH} sequences with 256 to 512 tokens of context, in numpy, one thread, on core 0. "
        f"Meanwhile {restored / 1e9:.2f} GB of bf16 of an 8B-class geometry are restored from Redis into pages of the same machine.",
        "kvlane: dpu-app with its emulated engines on core 1, host-ctl on core 0 (its whole life, with start, attach and memory, is in the time). "
        "The others: a thread of the decode loop's own process, on core 0 as it shares a serving engine's core, or on core 1, where it still shares the interpreter's lock. "
        "Every redis-server is on core 1.",
        "**What is emulated**: a card has cores, engines and memory of its own. Here dpu-app shares the last-level cache and memory bandwidth with the loop, "
        "so a card would disturb it less than this; and its engines are faster than core 1, so a prefix would be there sooner.",
    ]
    report.publish()
    sys.stdout.flush()
    os._exit(0)  # LMCache's threads do not end


if __name__ == "__main__":
    main()
