"""What a folder of weights holds, as a short name: equal copies have equal names wherever they lie, whatever their dates are.

A fingerprint covers the settings that decide what is computed (config.json without its volatile fields, the index of shards,
quantization, code of the model's own), and of each weight file its name, its size, the whole header of a safetensors file,
and samples of its content: BLOCK bytes in the middle of each tensor, at both ends of the file, and every STRIDE bytes. New
weights under an old name, size and header are noticed by the samples, because training moves values in every tensor that it
trains; an edit of a few values between two samples is not. `strict` reads everything; of a model of WHOLE_MAX or less it is read anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .settings import canonical

BLOCK = 4096
"""Bytes of one sample."""
STRIDE = 8 << 20
"""Bytes from one sample of a file to the next."""
WHOLE_MAX = 256 << 20
"""Bytes of a model that is read whole, sampled or not: that takes no longer than the samples of a large one."""
HEADER_MAX = 128 << 20
"""Bytes; a longer one is no safetensors header."""
READ = 4 << 20
"""Bytes of one read where everything is read."""
READERS = 4
"""Files that are read at once where everything is read."""
DIGITS = 32

TENSORS = (".safetensors",)
OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".tensors")
TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
"""Beside the weights, and no part of the model."""
SETTINGS = ("config.json", "params.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")


def folder(path: str, *, strict: bool = False, tensors_only: bool = True) -> str | None:
    """The fingerprint of the model in `path`; None where no weights are found. `tensors_only`: of a folder that has
    safetensors files, the others are not what an engine loads."""
    weights, settings = _weights(Path(path), tensors_only), _settings(Path(path))
    return files(weights, settings, strict=strict) if weights else None


def files(weights: list[Path], settings: list[Path], *, strict: bool) -> str:
    """The fingerprint of these files, under their names without folders."""
    whole = strict or sum(file.stat().st_size for file in weights) <= WHOLE_MAX
    name = hashlib.sha256(b"whole" if whole else b"sampled")
    for file in settings:
        _add(name, file.name, _setting(file))
    if whole and len(weights) > 1:
        with ThreadPoolExecutor(READERS) as readers:
            contents = list(readers.map(_whole, weights))
    else:
        contents = [_whole(file) if whole else _sampled(file) for file in weights]
    for file, content in zip(weights, contents):
        _add(name, file.name, content)
    return name.hexdigest()[:DIGITS]


def _add(name: Any, file: str, content: bytes) -> None:
    for part in (file.encode(), content):
        name.update(len(part).to_bytes(8, "little") + part)


def _weights(path: Path, tensors_only: bool) -> list[Path]:
    if path.is_file():
        return [path]
    entries = sorted(path.iterdir()) if path.is_dir() else []
    entries = [entry for entry in entries if entry.name not in TRAINING and entry.is_file()]
    found = [entry for entry in entries if entry.suffix in TENSORS]
    if not found or not tensors_only:
        found = [entry for entry in entries if entry.suffix in (*TENSORS, *OTHERS)]
    return found


def _settings(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    entries = sorted(entry for entry in path.iterdir() if entry.is_file())
    return [each for each in entries if each.name in SETTINGS or each.name.endswith(".index.json") or each.suffix == ".py"]


def _setting(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".json":
        try:
            return canonical(json.loads(content)).encode()
        except ValueError:
            pass
    return content


def _whole(file: Path) -> bytes:
    name = hashlib.sha256()
    with file.open("rb", buffering=0) as source:
        while block := source.read(READ):
            name.update(block)
    return name.digest()


def _sampled(file: Path) -> bytes:
    source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(source).st_size
        name = hashlib.sha256(size.to_bytes(8, "little"))
        # Read ahead, each sample would cost thirty times its bytes.
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_RANDOM)
        header, middles = _header(source, size)
        name.update(header)
        ends = (0, max(0, size - BLOCK))
        for at in sorted({*ends, *middles, *range(STRIDE, size, STRIDE)}):
            name.update(os.pread(source, BLOCK, at))
        return name.digest()
    finally:
        os.close(source)


def _header(source: int, size: int) -> tuple[bytes, list[int]]:
    """A safetensors header, and where the middle samples of its tensors begin; nothing for any other file."""
    length = int.from_bytes(os.pread(source, 8, 0), "little")
    if size < 8 or not 2 <= length <= min(size - 8, HEADER_MAX):
        return b"", []
    header = os.pread(source, length, 8)
    try:
        return header, list(_middles(json.loads(header), 8 + length, size))
    except (ValueError, TypeError, KeyError, AttributeError):
        return b"", []


def _middles(header: dict[str, Any], start: int, size: int) -> Iterator[int]:
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            yield min(max(start, start + (begin + end - BLOCK) // 2), size)
