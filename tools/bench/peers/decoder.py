"""The small decoder of testdata/decoder, decoding greedily: a compute-bound loop that stands for a serving engine's.

A Llama in numpy, float32, one thread: RMSNorm, RoPE, grouped heads, SwiGLU. Token ids are bytes.
"""

import json
from pathlib import Path

import numpy as np


def load(path):
    """All tensors of a safetensors file of bf16, as float32 (numpy knows no bf16)."""
    data = Path(path).read_bytes()
    head = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:8 + head]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            bits = np.frombuffer(data[8 + head + first:8 + head + last], dtype=np.uint16).astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return tensors


class Decoder:
    def __init__(self, directory, batch, context):
        config = json.loads(Path(directory, "config.json").read_text())
        self.weights = load(Path(directory, "model.safetensors"))
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.kv_heads, self.eps = config["num_key_value_heads"], config["rms_norm_eps"]
        self.size = config.get("head_dim") or config["hidden_size"] // self.heads
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        angles = np.outer(np.arange(context), theta ** (-np.arange(0, self.size, 2) / self.size))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.keys, self.values = (np.zeros((self.layers, batch, self.kv_heads, context, self.size), np.float32) for _ in "kv")
        self.batch, self.context, self.position = batch, context, 0

    def step(self, tokens):
        """Logits after one more token of each sequence."""
        weights, at = self.weights, self.position
        x = weights["model.embed_tokens.weight"][tokens]
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            h = self.norm(x, weights[name + "input_layernorm.weight"])
            q, k, v = ((h @ weights[f"{name}self_attn.{one}_proj.weight"].T).reshape(self.batch, -1, self.size) for one in "qkv")
            self.keys[layer, :, :, at], self.values[layer, :, :, at] = self.turn(k, at), v
            keys, values = self.keys[layer, :, :, :at + 1], self.values[layer, :, :, :at + 1]
            q = self.turn(q, at).reshape(self.batch, self.kv_heads, -1, self.size)
            scores = q @ keys.swapaxes(2, 3) / np.float32(self.size ** 0.5)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values
            x = x + mixed.reshape(self.batch, -1) @ weights[name + "self_attn.o_proj.weight"].T
            h = self.norm(x, weights[name + "post_attention_layernorm.weight"])
            gate = h @ weights[name + "mlp.gate_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ weights[name + "mlp.up_proj.weight"].T)) @ weights[name + "mlp.down_proj.weight"].T
        self.position += 1
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return self.norm(x, weights["model.norm.weight"]) @ head.T

    def norm(self, x, weight):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * weight

    def turn(self, x, at):
        """RoPE, in halves as Llama has it."""
        half = self.size // 2
        first, second = x[..., :half], x[..., half:]
        return np.concatenate((first * self.cos[at] - second * self.sin[at], second * self.cos[at] + first * self.sin[at]), axis=-1)

    def loss(self, text):
        """Nats per byte on `text`, the second half of it: what shows that this is the trained model."""
        self.position, losses = 0, []
        for byte, following in zip(text, text[1:]):
            logits = self.step(np.full(self.batch, byte))[0]
            top = logits.max()
            losses.append(top + np.log(np.exp(logits - top).sum()) - logits[following])
        self.position = 0
        return float(np.mean(losses[len(losses) // 2:]))
