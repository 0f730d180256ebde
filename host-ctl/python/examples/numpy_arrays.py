"""Stores the KV cache of a prompt from numpy arrays, and fetches it into other pages.

Each `>>>` line runs as a test against a card (tests/test_examples.py). `socket` is that of dpu-app:

    dpu-app run --store dir:/tmp/kvlane-store --socket /tmp/kvlane.sock

>>> import numpy, kvlane

A small model: 4 layers with 2 KV heads of 64 elements, fp16, in chunks of 64 tokens. Each layer is one array of pages
of 16 tokens: all pages of K, then all pages of V.

>>> geometry = kvlane.Geometry(4, 2, 64, "f16", 64)
>>> layers = [numpy.zeros((2, 32, 16, 2, 64), numpy.float16) for _ in range(4)]
>>> page, token, head = layers[0].strides[1:4]
>>> strides = {"page_stride": page, "token_stride": token, "head_stride": head}
>>> form = kvlane.Form("token-major", page_tokens=16, page_count=32, **strides)

The card reads from and writes to these arrays; nothing is copied.

>>> session = kvlane.attach(kvlane.register(geometry, layers, form), socket=socket)

The model has read a prompt of 128 tokens and left their KV in pages 0 to 7.

>>> prompt = list(range(128))
>>> for number, layer in enumerate(layers):
...     layer[:, 0:8] = numpy.random.default_rng(number).standard_normal(layer[:, 0:8].shape)

Keys name the tokens and what computed their KV: one for each chunk of 64 tokens.

>>> keys = kvlane.chunk_keys(prompt, model="a small model", geometry=geometry, recipe=session.recipe)
>>> number = session.store(keys, pages=list(range(0, 8)))
>>> session.wait(10.0).chunks_done
2

Later, another request with the same prompt: look it up, and fetch it into pages 20 to 27.

>>> number = session.lookup(keys)
>>> session.wait(10.0).chunks_done
2
>>> number = session.fetch(keys, pages=list(range(20, 28)))
>>> completion = session.wait(10.0)
>>> completion.ok, completion.chunks_done
(True, 2)
>>> all(numpy.array_equal(layer[:, 20:28], layer[:, 0:8]) for layer in layers)
True
>>> session.close()
True
"""
