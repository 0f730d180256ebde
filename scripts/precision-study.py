#!/usr/bin/env python3
"""Does precision by importance pay? Loss of a small decoder whose prefix has chunks of different precision, at equal bytes.

    pip install numpy
    scripts/precision-study.py --decoder DIR --text FILE [--chunk 64] [--quick]

DIR and FILE are those of loss-study.py, whose forward pass this uses. For each of --texts places: prefill of --prefix
bytes, the attention mass that each chunk receives, a level of precision for each chunk so that the whole takes no more bytes than the
same prefix uniformly at one level, and then the next --continued bytes: loss, and Kullback-Leibler divergence of the
predictions from those with the unquantized prefix, which is what loss is too noisy to show.

Importance is mass per token of a chunk, in one of these ways:
    window    from the last 64 tokens of the prefix: a host knows it when it stores
    all       from all tokens of the prefix that come behind (mean over those)
    oracle    from the continuation itself: nobody knows it, so it is a bound on what importance can give
Controls, with the same mixture of levels: `shuffled` (the window's importances in random order), `reversed` (the least
important chunk has the most important one's importance). `position` needs no attention: 1/(chunks from the end).

Levels go to chunks by marginal gain, as in host-ctl/src/precision.rs: the noise of a chunk is importance^POWER / peak^2,
and the step down that costs least noise for each byte saved is taken until the budget is met.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import platform
import sys
import zlib

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("precision-study.py: no numpy here: pip install numpy, or run it with a Python that has it") from None

HERE = pathlib.Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("loss_study", HERE / "loss-study.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)

WINDOW = 64
# Peaks of q8, q6, q5, q4, then 4, q3, 2 and 1: levels are 2 peak + 1.
PEAKS = [127, 31, 15, 7, 4, 3, 2, 1]
# As many bytes as a uniform prefix has whose chunks take turns at these peaks.
BUDGETS = [(7,), (3,), (2,), (2, 1)]


class Prefix:
    """One text: its prefix at every level, bytes and importances by chunk, and what comes behind."""

    def __init__(self, weights, text, start, options):
        self.weights, self.length, self.chunk = weights, options.prefix - 1, options.chunk
        self.chunks = self.length // self.chunk
        tokens = text[start : start + self.length].astype(int)
        # The byte before it is the first query.
        after = start + self.length
        self.continued = text[after : after + options.continued + 1].astype(int)
        shown = []
        _, self.kv = study.forward(weights, tokens, None, 0, lambda scores: shown.append(prefill_mass(scores)))
        masses = np.mean(shown, 0)
        seen = []
        self.reference = self.predict(self.kv, lambda scores: seen.append(scores[..., : self.length].mean((0, 1))))
        self.importance = {
            "window": self.by_chunk(masses[0]),
            "all": self.by_chunk(masses[1]),
            "oracle": self.by_chunk(np.mean(seen, 0)),
            "position": 1.0 / np.arange(self.chunks, 0, -1),
        }
        self.levels = [[self.quantized(peak, kind) for kind in (0, 1)] for peak in PEAKS]
        # [chunk, level]
        self.bytes = np.array([level[0][1] + level[1][1] for level in self.levels]).T

    def by_chunk(self, mass):
        return mass[: self.chunks * self.chunk].reshape(self.chunks, self.chunk).mean(1)

    def quantized(self, peak, kind):
        """K or V of the whole chunks [layer, token, head, channel], and bytes by chunk."""
        end = self.chunks * self.chunk
        layers = [study.quantize(layer[kind][:end], "token", peak) for layer in self.kv]
        bytes_by_chunk = [len(zlib.compress(b"".join(codes), 6)) for codes in zip(*(layer[1] for layer in layers))]
        scales = sum(layer[2] for layer in layers) / self.chunks
        return np.stack([layer[0] for layer in layers]), np.array(bytes_by_chunk) + scales

    def predict(self, past, watch=None):
        """Log-probabilities of the continuation."""
        logits, _ = study.forward(self.weights, self.continued[:-1], past, self.length, watch)
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def judge(self, choice):
        """Loss and divergence, nats per byte, with a level for each chunk. What fills no chunk stays as it is."""
        past = []
        for layer, (k, v) in enumerate(self.kv):
            restored = []
            for kind, whole in enumerate((k, v)):
                mixed = whole.copy()
                for chunk, level in enumerate(choice):
                    part = slice(chunk * self.chunk, (chunk + 1) * self.chunk)
                    mixed[part] = self.levels[level][kind][0][layer][part]
                restored.append(mixed)
            past.append(tuple(restored))
        found = self.predict(past)
        loss = -found[np.arange(len(found)), self.continued[1:]].mean()
        divergence = (np.exp(self.reference) * (self.reference - found)).sum(-1).mean()
        return float(loss), float(divergence)


def prefill_mass(scores):
    """By key: mean mass from the last queries, and from all queries behind it."""
    mean = scores.mean(0)
    behind = np.arange(len(mean), 0, -1)
    return np.stack([mean[-WINDOW:].mean(0), mean.sum(0) / behind])


def assign(importance, sizes, budget, power):
    """A level for each chunk: from the best level of all down, by least noise for each byte saved."""
    noise = np.asarray(importance)[:, None] ** power / np.square(np.array(PEAKS, float))[None]
    choice = np.zeros(len(noise), int)
    rows = np.arange(len(noise))
    while sizes[rows, choice].sum() > budget:
        best = None
        for row, level in enumerate(choice):
            for lower in range(level + 1, len(PEAKS)):
                saved = sizes[row, level] - sizes[row, lower]
                if saved > 0:
                    price = (noise[row, lower] - noise[row, level]) / saved
                    if best is None or price < best[0]:
                        best = (price, row, lower)
        if best is None:
            break
        choice[best[1]] = best[2]
    return choice


def quarter(importance, sizes, budget, _power):
    """The issue's example: the top quarter at the best level that the rest, all at one level, leaves bytes for."""
    top = np.argsort(-importance)[: max(1, len(importance) // 4)]
    best = None
    for high in range(len(PEAKS)):
        for low in range(high, len(PEAKS)):
            choice = np.full(len(importance), low)
            choice[top] = high
            noise = (importance / np.square(np.array(PEAKS, float))[choice]).sum()
            if sizes[np.arange(len(choice)), choice].sum() <= budget and (best is None or noise < best[0]):
                best = (noise, choice)
    return best[1]


def reverse(importance):
    order = np.argsort(importance)
    turned = np.empty_like(importance)
    turned[order] = importance[order[::-1]]
    return turned


def ways(prefix, random):
    window = prefix.importance["window"]
    yield "window", assign, window, 1.0
    yield "window, power 2", assign, window, 2.0
    yield "window, top quarter", quarter, window, 1.0
    yield "all", assign, prefix.importance["all"], 1.0
    yield "position", assign, prefix.importance["position"], 1.0
    yield "oracle", assign, prefix.importance["oracle"], 1.0
    yield "flat", assign, np.ones_like(window), 1.0
    yield "shuffled", assign, random.permutation(window), 1.0
    yield "reversed", assign, reverse(window), 1.0


def measure(prefix, random):
    """{budget: {way: (loss, divergence, bytes)}} of one text."""
    rows = np.arange(prefix.chunks)
    found = {}
    for peaks in BUDGETS:
        uniform = np.array([PEAKS.index(peaks[row % len(peaks)]) for row in rows])
        budget = prefix.bytes[rows, uniform].sum()
        found[peaks] = {"uniform": (*prefix.judge(uniform), budget)}
        for name, how, importance, power in ways(prefix, random):
            choice = how(importance, prefix.bytes, budget, power)
            found[peaks][name] = (*prefix.judge(choice), prefix.bytes[rows, choice].sum())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--prefix", type=int, default=1537, help="bytes, the first query among them")
    parser.add_argument("--continued", type=int, default=256)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=64, help="tokens")
    parser.add_argument("--quick", action="store_true", help="two texts: to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.texts = 2
    study.CHUNK = options.chunk
    weights = study.load(f"{options.decoder}/model.safetensors")
    text = np.frombuffer(open(options.text, "rb").read(), np.uint8)
    random = np.random.default_rng(1)
    results, reference, spread = [], [], []
    for index in range(options.texts):
        prefix = Prefix(weights, text, index * ((len(text) - 2048) // options.texts), options)
        chosen = prefix.reference[np.arange(options.continued), prefix.continued[1:]]
        reference.append(-float(chosen.mean()))
        window, oracle = prefix.importance["window"], prefix.importance["oracle"]
        spread.append((window.max() / window.min(), np.corrcoef(np.argsort(np.argsort(window)), np.argsort(np.argsort(oracle)))[0, 1]))
        results.append(measure(prefix, random))
        print(f"text {index + 1} of {options.texts}", file=sys.stderr, flush=True)
    publish(options, prefix, results, reference, spread)


def publish(options, prefix, results, reference, spread):
    """Prints Markdown, and leaves the report that tools/bench/src/report.rs defines in $KVLANE_BENCH_OUT."""
    largest, rank = np.median([row[0] for row in spread]), np.mean([row[1] for row in spread])
    elements = prefix.chunks * prefix.chunk * 2 * study.LAYERS * study.KV_HEADS * study.HEAD_SIZE
    note = (
        f"{options.texts} texts, prefix of {prefix.chunks} chunks of {options.chunk} tokens, {options.continued} bytes behind it; loss with "
        f"the unquantized prefix {np.mean(reference):.4f} nats/byte. The most important chunk has {largest:.1f} times the "
        f"mass of the least (median); rank correlation of the window's importance with the continuation's {rank:.2f}. "
        "± is the standard error of the difference to uniform over texts."
    )
    tables, series = [], {}
    for peaks in BUDGETS:
        bits = np.mean([result[peaks]["uniform"][2] for result in results]) * 8 / elements
        table = {"title": f"As many bytes as peak {' and '.join(map(str, peaks))} everywhere: {bits:.2f} bits an element", "rows": [], "note": ""}
        table["columns"] = ["precision by", "bytes", "loss - unquantized", "divergence", "divergence / uniform", "texts better"]
        base = np.array([result[peaks]["uniform"][:2] for result in results])
        for way in results[0][peaks]:
            found = np.array([result[peaks][way] for result in results])
            bytes_share = np.mean([result[peaks][way][2] / result[peaks]["uniform"][2] for result in results])
            delta = found[:, 0] - base[:, 0]
            error = delta.std(ddof=1) / np.sqrt(len(delta))
            divergence = found[:, 1].mean()
            series.setdefault(way, []).append([float(bits), float(divergence)])
            loss = f"{found[:, 0].mean() - np.mean(reference):+.4f}"
            better = f"{int((found[:, 1] < base[:, 1]).sum())} of {len(results)}"
            table["rows"].append([
                way, f"{bytes_share:.3f}", loss if way == "uniform" else f"{loss} ± {error:.4f}", f"{divergence:.5f}",
                f"{divergence / base[:, 1].mean():.2f}", "" if way == "uniform" else better,
            ])
        tables.append(table)
    drawn = ["uniform", "window", "oracle", "shuffled", "reversed"]
    report = {
        "name": "precision", "title": "Precision by importance",
        "command": f"scripts/precision-study.py --decoder DIR --text FILE --chunk {options.chunk} --texts {options.texts}",
        "machine": machine(), "versions": [f"numpy {np.__version__}"], "notes": [note], "tables": tables,
        "plots": [{
            "name": "precision", "title": "Divergence from the unquantized prefix, by bytes", "x": "bits an element",
            "y": "nats a byte", "log_x": False, "log_y": True, "kind": "lines",
            "series": [{"name": name, "points": series[name], "labels": []} for name in drawn],
        }],
    }
    print(f"{note}\n")
    for table in tables:
        lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        print(f"**{table['title']}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    if directory := os.environ.get("KVLANE_BENCH_OUT"):
        pathlib.Path(directory, "precision.json").write_text(json.dumps(report, indent=2) + "\n")


def machine():
    facts = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cpus": os.cpu_count(), "arch": platform.machine(), "memory_gib": round(memory, 1), "kernel": platform.release()}


if __name__ == "__main__":
    main()
