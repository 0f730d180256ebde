"""Keys name what computed the KV: everything that decides it changes the name, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from types import SimpleNamespace

import kvlane
import pytest
from kvlane.engine import fingerprint, settings
from kvlane.engine.adapters import Adapters
from kvlane.engine.options import Options
from standins import config, connector_module, request

connector = connector_module()
LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [4.0], "original_max_position_embeddings": 4096}


def safetensors(path, seed=0, size=40000, tensors=3):
    """A file of the format, without the library."""
    header = {f"t{i}": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]} for i in range(tensors)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes((seed + i * i) % 251 for i in range(size * tensors)))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "transformers_version": "5", "torch_dtype": "bfloat16"}')
    (path / "tokenizer.json").write_text("{}")
    for shard in (1, 2):
        safetensors(path / f"model-{shard}.safetensors", shard)
    return path


def name(path, options=None, **changes):
    shape = SimpleNamespace(dtype="torch.bfloat16", page_tokens=16, head_size=64)
    return connector._model(config(path, **changes), options or Options(), shape, False)


def test_an_equal_copy_has_the_same_name_by_any_path(model, tmp_path, monkeypatch):
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copytree(model, copy)
    link.symlink_to(copy)
    os.utime(copy / "model-1.safetensors", (1, 1))
    monkeypatch.chdir(tmp_path)
    assert {name(path) for path in (copy, link, f"{link}/", "copy", f"{model}//")} == {name(model)}


@pytest.mark.parametrize("strict", [False, True])
def test_new_weights_of_the_same_size_and_header_have_another_name(model, strict, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_MAX", 0)
    options = Options(weights="strict" if strict else "sampled")
    before = name(model, options)
    safetensors(model / "model-2.safetensors", seed=99)
    assert name(model, options) != before


def test_samples_see_each_tensor_and_strict_sees_each_byte(model, monkeypatch):
    assert fingerprint.folder(str(model)) == fingerprint.folder(str(model), strict=True), "a small model is read whole"
    monkeypatch.setattr(fingerprint, "WHOLE_MAX", 0)
    file = model / "model-1.safetensors"
    length = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    sampled, strict = fingerprint.folder(str(model)), fingerprint.folder(str(model), strict=True)
    for tensor, noticed in ((0, True), (1, True), (2, True), (None, False)):
        before = bytearray(file.read_bytes())
        changed = bytearray(before)
        changed[length + (20000 + 40000 * tensor if tensor is not None else 8000)] ^= 1
        file.write_bytes(changed)
        assert (fingerprint.folder(str(model)) != sampled) == noticed, tensor
        assert fingerprint.folder(str(model), strict=True) != strict
        file.write_bytes(before)


def test_a_large_tensor_is_sampled_along_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_MAX", 0)
    file = tmp_path / "model.safetensors"
    safetensors(file, size=1000, tensors=1)
    with file.open("r+b") as out:
        out.truncate(3 * fingerprint.STRIDE)
    before = fingerprint.folder(str(tmp_path))
    with file.open("r+b") as out:
        out.seek(2 * fingerprint.STRIDE + 7)
        out.write(b"x")
    assert fingerprint.folder(str(tmp_path)) != before


HEADERS = [b"", b"\xff" * 8] + [bytes([len(text), *bytes(7)]) + text for text in (b"[1,]", b'{"a": 0}', b"[]")]


@pytest.mark.parametrize("header", HEADERS)
def test_what_is_no_safetensors_file_is_still_named_by_its_bytes(tmp_path, monkeypatch, header):
    monkeypatch.setattr(fingerprint, "WHOLE_MAX", 0)
    for content in (b"a", b"b"):
        (tmp_path / f"{content.decode()}").mkdir()
        (tmp_path / content.decode() / "model.safetensors").write_bytes(header + 9000 * content)
    assert fingerprint.folder(str(tmp_path / "a")) != fingerprint.folder(str(tmp_path / "b"))


def test_shards_settings_and_code_are_in_the_fingerprint_and_other_files_are_not(model):
    names = [fingerprint.folder(str(model))]
    (model / "tokenizer.json").write_text("{1}")
    (model / "training_args.bin").write_bytes(b"x")
    (model / "README.md").write_text("changed")
    (model / "config.json").write_text('{"torch_dtype":"float16","transformers_version":"6",\n "model_type":"llama"}')
    assert fingerprint.folder(str(model)) == names[0], "nothing of this computes"
    for file, text in (("config.json", '{"model_type": "llama", "rope_scaling": {"factor": 4}}'), ("modeling.py", "1")):
        (model / file).write_text(text)
        names.append(fingerprint.folder(str(model)))
    (model / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    names.append(fingerprint.folder(str(model)))
    (model / "model-2.safetensors").rename(model / "model-3.safetensors")
    names.append(fingerprint.folder(str(model)))
    (model / "model-3.safetensors").unlink()
    names.append(fingerprint.folder(str(model)))
    assert len(set(names)) == len(names)
    assert fingerprint.folder(str(model.parent)) is None


def test_whatever_decides_the_kv_changes_the_name(model):
    changes = [
        dict(dtype="torch.float16"), dict(quantization="fp8"), dict(quantization_config={"linear": "fp8"}),
        dict(hf_overrides={"rope_theta": 1}), dict(hf_overrides=lambda config: config), dict(hf={"rope_theta": 1}),
        dict(hf={"rope_parameters": {"rope_type": "yarn"}}), dict(hf={"quantization_config": {"dtype": "int8"}}),
        dict(hf={"quantization_config": {"dtype": "int4"}}), dict(hf={"rope_parameters": LONG}),
        dict(hf={"rope_parameters": LONG}, max_model_len=8192), dict(cache__cache_dtype="fp8"),
        dict(cache__kv_cache_dtype_skip_layers=["0"]), dict(load__load_format="dummy"), dict(load__load_format="dummy", seed=1),
        dict(load__load_format="pt"), dict(load__model_loader_extra_config={"a": 1}), dict(model_class_overrides={"A": "B"}),
        dict(speculative_config=SimpleNamespace(method="eagle", model="x")),
        dict(speculative_config=SimpleNamespace(method="eagle", model="y")),
    ]  # fmt: skip
    names = Counter([name(model), name(model, Options(model="other"))] + [name(model, **change) for change in changes])
    assert len(names) == len(changes) + 2, [each for each, times in names.items() if times > 1]
    assert [name(model, **change) for change in changes] == [each for each in names][2:], "and is the same each time"


def test_what_decides_nothing_does_not_change_the_name(model):
    for change in (
        dict(max_model_len=2048), dict(seed=7), dict(load__load_format="safetensors"), dict(revision="main"),
        dict(hf={"torch_dtype": "float16", "transformers_version": "9", "_name_or_path": "/x", "use_cache": False}),
    ):  # fmt: skip
        assert name(model, **change) == name(model), change
    longer = [name(model, hf={"rope_parameters": LONG}, max_model_len=longest) for longest in (4097, 100000)]
    assert longer[0] == longer[1]


def test_what_nobody_can_name_is_shared_with_nobody(model):
    for change in (
        dict(config__weight_transfer_config=1), dict(cache__calculate_kv_scales=True),
        dict(load__load_format="dummy", quantization="gptq_marlin"),
        dict(load__load_format="dummy", parallel__worker_extension_cls="trainer.Extension"),
    ):  # fmt: skip
        changed = config(model, **change)
        if "config__weight_transfer_config" in change:
            changed.weight_transfer_config = 1
        shape = SimpleNamespace(dtype="torch.bfloat16", page_tokens=16, head_size=64)
        assert len({connector._model(changed, Options(), shape, False) for _ in range(2)}) == 2, change


def test_without_weight_files_the_name_and_revision_stand_in_and_are_said(tmp_path, caplog):
    assert name("/models/x/") == name("/models/x") != name("/models/y")
    assert name("org/model", revision="1") != name("org/model", revision="2")
    assert "model org/model: no weight files are found on this machine. Keys name it org/model@1" in caplog.text
    mine = Options(model="mine")
    assert name("/models/x", mine) == name("/models/y", mine), "an operator's name stands for them where it is given"


def test_weight_files_that_cannot_be_read_are_said_and_do_not_end_the_engine(model, caplog, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("model-1.safetensors")

    monkeypatch.setattr(fingerprint, "folder", refused)
    assert str(model) in name(model) and "cannot be read: model-1.safetensors" in caplog.text


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_name_is_refused(empty):
    with pytest.raises(ValueError, match="names nothing"):
        Options.parse({"model": empty})
    with pytest.raises(ValueError, match="weights"):
        Options.parse({"weights": "full"})


def test_no_address_is_part_of_a_name():
    class Plain:
        __slots__ = ()

    def functions():
        return [lambda config: config, lambda config: None]

    assert settings.digest(Plain()) == settings.digest(Plain()), "an object without content is its type"
    assert [settings.digest(f) for f in functions()] == [settings.digest(f) for f in functions()]
    assert settings.digest(functions()[0]) != settings.digest(functions()[1])
    assert settings.digest({"a", "b", "c"}) == settings.digest({"c", "b", "a"})


# Requests


def handed_over(asked, adapters=None):
    seen = []
    scheduler = SimpleNamespace(arrived=lambda name, tokens, salt=b"", *_: seen.append((list(tokens), salt)))
    half = SimpleNamespace(_scheduler=scheduler, _adapters=adapters or Adapters(), _adapted={})
    connector.KvlaneConnector._arrived(half, asked)
    return seen[0] if seen else None


def test_what_is_not_in_the_token_ids_is_left_alone():
    plain = handed_over(request())
    assert plain == (list(range(300)), b"")
    assert handed_over(request(prompt_is_token_ids=[True] * 300)) == plain
    for words in (
        dict(prompt_embeds="tensor"), dict(prompt_token_ids=None, prompt_embeds="tensor"), dict(mm_features=["picture"]),
        dict(prompt_embeds="tensor", prompt_is_token_ids=[True] * 20 + [False] * 280),
        dict(prompt_is_token_ids=[False] + [True] * 299),
        dict(pooling_params=SimpleNamespace(extra_kwargs={"compressed_token_type_ids": 3})),
    ):  # fmt: skip
        assert handed_over(request(**words)) is None, words
    assert handed_over(request(cache_salt="a")) not in (plain, handed_over(request(cache_salt="b")))


def adapter(path, content, number=1, **words):
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text('{"r": 8}')
    (path / "adapter_model.safetensors").write_bytes(content)
    return SimpleNamespace(lora_name="a", lora_int_id=number, lora_path=str(path), **words)


def salt(asked, adapters):
    found = handed_over(request(lora_request=asked), adapters)
    return found and found[1]


def test_an_adapter_is_named_by_its_files(tmp_path):
    one = salt(adapter(tmp_path / "one", b"1"), Adapters())
    assert one != b"" and one == salt(adapter(tmp_path / "two", b"1", 2), Adapters()), "path, name and id say nothing"
    assert one != salt(adapter(tmp_path / "two", b"2"), Adapters())
    assert one != salt(adapter(tmp_path / "one", b"1"), Adapters("another type")), "nor is what the engine makes of it left out"
    lora = adapter(tmp_path / "one", b"1")
    assert one != handed_over(request(lora_request=lora, cache_salt="s"))[1]
    assert handed_over(request(cache_salt=one.decode("latin-1")))[1] != one, "a salt is never taken for an adapter"
    assert handed_over(request(cache_salt="\ud800")) is not None
    (tmp_path / "one/adapter_config.json").write_text('{"r": 16}')
    assert one != salt(lora, Adapters())


def test_an_adapter_that_changed_on_disk_is_left_alone_until_it_is_loaded_again(tmp_path, caplog):
    adapters, path = Adapters(), tmp_path / "one"
    first = salt(adapter(path, b"1"), adapters)
    os.utime(path / "adapter_model.safetensors", (1, 1))
    assert salt(adapter(path, b"1"), adapters) == first, "dates are no change"
    lora = adapter(path, b"22")
    assert salt(lora, adapters) is None, "the engine has the old one, or has not"
    assert "not those that were loaded" in caplog.text
    other = salt(adapter(path, b"22", 2), adapters)
    assert other not in (None, first)
    assert salt(adapter(path, b"22", load_inplace=True), adapters) == other == salt(lora, adapters)
    assert salt(adapter(path, b"333", load_inplace=True), adapters) not in (None, first, other)


def test_an_adapter_replaced_in_place_is_noticed_by_requests_that_run(tmp_path):
    adapters, path = Adapters(), tmp_path / "one"
    found = adapters.find(adapter(path, b"1"))
    assert found.unchanged
    adapter(path, b"2", load_inplace=True)
    assert not found.unchanged


def test_an_adapter_without_files_is_left_alone(tmp_path, caplog):
    lora = SimpleNamespace(lora_name="a", lora_int_id=1, lora_path=str(tmp_path / "none"))
    assert salt(lora, Adapters()) is None and "files are not found" in caplog.text


# What is refused at start


def refusal(spec=None, **changes):
    group = SimpleNamespace(kv_cache_spec=spec or full(), layer_names=["0"])
    try:
        connector._shapes(config("/m", **changes), SimpleNamespace(kv_cache_groups=[group]))
    except kvlane.InputError as error:
        return str(error)
    return None


def full(**words):
    spec = type("FullAttentionSpec", (), {})()
    vars(spec).update(dict(num_kv_heads=2, head_size=64, dtype="torch.bfloat16", block_size=16), **words)
    return spec


def test_attention_that_is_not_causal_is_refused():
    assert refusal() is None
    assert "not causal" in refusal(full(non_causal=True))
    assert "encoder_only" in refusal(attn_type="encoder_only")
    assert "is_causal" in refusal(hf={"is_causal": False})
    assert "bidirectional" in refusal(hf={"use_bidirectional_attention": True})


def test_sleep_is_refused_where_nothing_says_when_the_memory_goes(monkeypatch):
    assert "enable_sleep_mode" in refusal(enable_sleep_mode=True)
    assert not connector.KvlaneConnector.supports_sleep_mode(None)
    monkeypatch.setattr(connector.KVConnectorBase_V1, "unregister_kv_caches", lambda self: None, raising=False)
    assert connector.KvlaneConnector.supports_sleep_mode(None) and refusal(enable_sleep_mode=True) is None
