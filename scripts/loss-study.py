#!/usr/bin/env python3
"""Loss of a small decoder on text that continues a prefix whose KV cache was quantized.

    pip install numpy
    scripts/loss-study.py --decoder DIR --text FILE

DIR holds model.safetensors of a Llama-architecture decoder with byte tokens (6 layers, 4 heads, 2 KV heads x 64, bf16);
FILE is text that it has not seen. For each of --texts places: prefill of --prefix bytes, quantize that KV (symmetric
codes, a scale per token, per token and head, per channel of a 256-token chunk, or per pair of channels of a 32-token page
over all heads, which is what a "token" of K is in vLLM's CPU pages: they lie transposed), then the loss on the next --continued
bytes. Prints a markdown table: what K and V were quantized with (scale, peak C; levels are 2C + 1), ratio to the cache as it
is (bf16, or --element fp8_e4m3, fp8_e5m2) with zlib level 6 and scales counted, loss in nats per byte. A plain numpy forward pass, float32; differences below 0.003 are noise.
"""
import argparse
import json
import struct
import zlib

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("loss-study.py: no numpy here: pip install numpy, or run it with a Python that has it") from None

LAYERS, HEADS, KV_HEADS, HEAD_SIZE, CHUNK = 6, 4, 2, 64, 256
ROPE = 1 / 50000.0 ** (np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
PAGE = 32
# Axes of [token, head, channel] that share one scale; of [page, channel pair, head, channel, token] for "page".
SCALES = {"token": (1, 2), "token+head": (2,), "channel": (0,), "page": (2, 3, 4)}


def load(path):
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    weights = {}
    for name, info in header.items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            wide = np.frombuffer(data[start:end], np.uint16).astype(np.uint32) << 16
            weights[name] = wide.view(np.float32).reshape(info["shape"])
    return weights


# Bits of the mantissa, least exponent and largest value of an element; one of them is the cache's.
ELEMENTS = {"bf16": (7, -126, 3.3e38), "fp8_e4m3": (3, -6, 448.0), "fp8_e5m2": (2, -14, 57344.0)}
element = "bf16"


def cached(x):
    """The nearest numbers that the cache's elements have."""
    mantissa, least, most = ELEMENTS[element]
    x = np.clip(np.asarray(x, np.float32), -most, most)
    quantum = np.exp2((np.maximum(np.frexp(x)[1] - 1, least) - mantissa).astype(np.float32))
    return np.rint(x / quantum) * quantum


def element_bytes():
    return 2 if element == "bf16" else 1


def normalize(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def rotate(x, positions):
    angle = positions[:, None] * ROPE
    cosine = np.concatenate([np.cos(angle)] * 2, -1)[:, None].astype(np.float32)
    sine = np.concatenate([np.sin(angle)] * 2, -1)[:, None].astype(np.float32)
    half = HEAD_SIZE // 2
    return x * cosine + np.concatenate([-x[..., half:], x[..., :half]], -1) * sine


def forward(weights, tokens, past, start, watch=None):
    """Logits of `tokens` at positions from `start` on, after `past` [(K, V)] by layer; and their own K and V.
    `watch` is shown each layer's attention [head, query, key]."""
    count = len(tokens)
    positions = np.arange(start, start + count)
    x, own = weights["model.embed_tokens.weight"][tokens], []
    for layer in range(LAYERS):
        weight = lambda name: weights[f"model.layers.{layer}.{name}.weight"]
        h = normalize(x, weight("input_layernorm"))
        q = rotate((h @ weight("self_attn.q_proj").T).reshape(count, HEADS, HEAD_SIZE), positions)
        k = cached(rotate((h @ weight("self_attn.k_proj").T).reshape(count, KV_HEADS, HEAD_SIZE), positions))
        v = cached((h @ weight("self_attn.v_proj").T).reshape(count, KV_HEADS, HEAD_SIZE))
        own.append((k, v))
        if past is not None:
            k, v = np.concatenate([past[layer][0], k]), np.concatenate([past[layer][1], v])
        k, v = np.repeat(k, HEADS // KV_HEADS, 1), np.repeat(v, HEADS // KV_HEADS, 1)
        scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) / np.float32(np.sqrt(HEAD_SIZE))
        scores = np.where(np.arange(k.shape[0])[None, :] > positions[:, None], -1e30, scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        if watch:
            watch(scores)
        x = x + (scores @ v.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(count, -1) @ weight("self_attn.o_proj").T
        h = normalize(x, weight("post_attention_layernorm"))
        gate = h @ weight("mlp.gate_proj").T
        x = x + ((gate / (1 + np.exp(-gate))) * (h @ weight("mlp.up_proj").T)) @ weight("mlp.down_proj").T
    return normalize(x, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T, own


def transposed(part):
    """[token, head, channel] to [page, channel pair, head, channel, token]; the last page is filled up with zeros."""
    full = np.pad(part, ((0, -len(part) % PAGE), (0, 0), (0, 0)))
    return full.reshape(-1, PAGE, KV_HEADS, HEAD_SIZE // 2, 2).transpose(0, 3, 2, 4, 1)


def straight(pages):
    """Back again."""
    return pages.transpose(0, 4, 2, 1, 3).reshape(-1, KV_HEADS, HEAD_SIZE)


def quantize(x, scale, peak):
    """One layer's K or V [token, head, channel]: what is restored, the codes by chunk, and bytes of scales."""
    restored, codes, scale_bytes = [], [], 0
    for first in range(0, len(x), CHUNK):
        part = x[first : first + CHUNK]
        count = len(part)
        if scale == "page":
            part = transposed(part)
        greatest = np.abs(part).max(SCALES[scale], keepdims=True)
        code = np.rint(part * np.where(greatest > 0, peak / np.maximum(greatest, 1e-30), 0))
        value = cached(code * (greatest / peak))
        restored.append(straight(value)[:count] if scale == "page" else value)
        codes.append((code + peak).astype(np.uint8).tobytes())
        scale_bytes += element_bytes() * greatest.size
    return np.concatenate(restored), codes, scale_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--prefix", type=int, default=1536)
    parser.add_argument("--continued", type=int, default=512)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--peaks", default="7,4,3,2,1")
    parser.add_argument("--scales", default=",".join(SCALES), help="which of them, for K and then for V")
    parser.add_argument("--both", action="store_true", help="V per token at the same peak as K, as a recipe has it")
    parser.add_argument("--element", default=element, choices=ELEMENTS, help="what the cache keeps, without scales")
    options = parser.parse_args()
    globals()["element"] = options.element
    weights = load(f"{options.decoder}/model.safetensors")
    text = np.frombuffer(open(options.text, "rb").read(), np.uint8)

    samples = []
    for index in range(options.texts):
        start = index * (len(text) // options.texts)
        prefix = text[start : start + options.prefix - 1].astype(int)
        first = start + options.prefix - 1
        samples.append((forward(weights, prefix, None, 0)[1], text[first : first + options.continued + 1].astype(int)))

    def loss(past, continued):
        logits, _ = forward(weights, continued[:-1], past, options.prefix - 1)
        logits = logits - logits.max(-1, keepdims=True)
        chosen = logits[np.arange(options.continued), continued[1:]]
        return float((np.log(np.exp(logits).sum(-1)) - chosen).mean())

    print(f"reference: {np.mean([loss(past, continued) for past, continued in samples]):.4f} nats/byte\n")
    print("| K | V | ratio | loss |\n|---|---|---|---|")

    def row(k, v):
        losses, stored, raw = [], 0, 0
        for past, continued in samples:
            restored = []
            for kind, (scale, peak) in enumerate((k, v)):
                layers = [quantize(past[layer][kind], scale, peak) for layer in range(LAYERS)]
                restored.append([layer[0] for layer in layers])
                raw += sum(element_bytes() * layer[0].size for layer in layers)
                stored += sum(layer[2] for layer in layers)
                # All layers of one chunk are one block.
                stored += sum(len(zlib.compress(b"".join(chunk), 6)) for chunk in zip(*(layer[1] for layer in layers)))
            losses.append(loss(list(zip(*restored)), continued))
        print(f"| {k[0]} {k[1]} | {v[0]} {v[1]} | {raw / stored:.2f} | {np.mean(losses):.4f} |", flush=True)

    peaks = list(map(int, options.peaks.split(",")))
    for scale in options.scales.split(","):
        for peak in peaks:
            row((scale, peak), ("token", peak if options.both else 127))
    for scale in options.scales.split(",") if not options.both else ():
        for peak in peaks:
            row(("token", 127), (scale, peak))


if __name__ == "__main__":
    main()
