"""Stores the KV cache of a prompt from torch tensors in bfloat16, and fetches it into other pages.

Each `>>>` line runs as a test against a card (tests/test_examples.py) where torch is installed. `socket` is that of
dpu-app:

    dpu-app run --store dir:/tmp/kvlane-store --socket /tmp/kvlane.sock

>>> import torch, kvlane

A small model: 4 layers with 2 KV heads of 64 elements, in chunks of 64 tokens. Each layer is one tensor of pages of 16
tokens, as [page, head, token, K then V], the view that vLLM gives.

>>> geometry = kvlane.Geometry(4, 2, 64, "bf16", 64)
>>> layers = [torch.zeros(32, 2, 16, 2 * 64, dtype=torch.bfloat16) for _ in range(4)]
>>> page, head, token, element = (stride * 2 for stride in layers[0].stride())
>>> strides = {"page_stride": page, "token_stride": token, "head_stride": head}
>>> form = kvlane.Form("head-major", page_tokens=16, page_count=32, **strides)

V of a token lies right behind its K, 64 elements of 2 bytes away: `bases` has (tensor, byte offset) of K and of V.

>>> bases = [(layer, offset) for layer in range(4) for offset in (0, 64 * element)]
>>> session = kvlane.attach(kvlane.register(geometry, layers, form, bases=bases), socket=socket)

The model has read a prompt of 128 tokens and left their KV in pages 0 to 7.

>>> for layer in layers:
...     _ = layer[0:8].normal_()
>>> keys = kvlane.chunk_keys(list(range(128)), model="a small model", geometry=geometry, recipe=session.recipe)
>>> number = session.store(keys, pages=list(range(0, 8)))
>>> session.wait(10.0).chunks_done
2

Later, another request with the same prompt fetches it into pages 20 to 27. A tensor must not be resized meanwhile.

>>> number = session.fetch(keys, pages=list(range(20, 28)))
>>> session.wait(10.0).ok
True
>>> all(torch.equal(layer[20:28], layer[0:8]) for layer in layers)
True
>>> session.close()
True
"""
