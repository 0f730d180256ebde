"""The client against a real dpu-app on the emulator: what it moves is checked byte by byte."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import kvlane
import pytest

LAYERS, HEADS, HEAD, PAGE, CHUNK, PAGES = 3, 2, 16, 16, 64, 16
ROW = HEADS * HEAD * 2
GEOMETRY = kvlane.Geometry(LAYERS, HEADS, HEAD, "bf16", CHUNK)
TOKEN_MAJOR = kvlane.Form("token-major", PAGE, PAGES, PAGE * ROW, ROW, HEAD * 2)
HEAD_MAJOR = kvlane.Form("head-major", PAGE, PAGES, PAGE * ROW, HEAD * 2, PAGE * HEAD * 2)
PLANE = PAGES * PAGE * ROW


def buffers(seed: int | None = None) -> list[bytearray]:
    make = random.Random(seed).randbytes if seed is not None else bytes
    return [bytearray(make(2 * PLANE)) for _ in range(LAYERS)]


def keys(tokens: int, recipe: str, **more: object) -> bytes:
    return kvlane.chunk_keys(list(range(tokens)), model="m", geometry=GEOMETRY, recipe=recipe, **more)


def page_of(buffer: bytearray, half: int, page: int) -> bytes:
    start = half * PLANE + page * PAGE * ROW
    return bytes(buffer[start : start + PAGE * ROW])


def attached(card, data, form=TOKEN_MAJOR):
    return kvlane.attach(kvlane.register(GEOMETRY, data, form), socket=card.socket, client="test")


def done(session, number):
    completion = session.wait(20.0)
    assert completion is not None and completion.id == number
    return completion


def test_a_dmabuf_that_doca_refuses_is_registered_by_address(card):
    source = buffers(7)
    held = [kvlane.span(buffer) for buffer in source]
    spans = [replace(each, dmabuf=(os.open("/dev/null", os.O_RDWR), 0)) for each in held]
    session = attached(card, spans)
    stored = done(session, session.store(keys(CHUNK, session.recipe), list(range(4))))
    assert stored.ok and stored.chunks_done == 1
    assert session.close()


def test_layers_over_each_other_are_refused_and_named():
    one = bytearray(4 * PLANE)
    both = r"K of layer 0 \(region 0 from byte 0\) and K of layer 1 \(region 1 from byte 0\) share bytes of memory: give each"
    with pytest.raises(kvlane.InputError, match=both):
        kvlane.register(GEOMETRY, [one] * LAYERS, TOKEN_MAJOR)
    view = memoryview(one)
    over = [view[: 2 * PLANE], view[2 * PLANE - 2 :][: 2 * PLANE], bytearray(2 * PLANE)]
    with pytest.raises(kvlane.InputError, match=r"V of layer 0 \(region 0 .* and K of layer 1 \(region 1 from byte 0\)"):
        kvlane.register(GEOMETRY, over, TOKEN_MAJOR)
    with pytest.raises(kvlane.InputError, match="stride"):
        kvlane.register(GEOMETRY, buffers(), replace(TOKEN_MAJOR, page_stride=PAGE * ROW - 2))


def test_layers_that_are_views_of_one_allocation_are_taken():
    # [page, layer, K and V, token, head, element], as cross-layer caches lie: the views' ranges are over each other.
    whole, step = bytearray(PAGES * LAYERS * 2 * PAGE * ROW), PAGE * ROW
    views = [memoryview(whole)[2 * layer * step :] for layer in range(LAYERS)]
    form = replace(TOKEN_MAJOR, page_stride=LAYERS * 2 * step, page_count=PAGES)
    bases = [(layer, half * step) for layer in range(LAYERS) for half in (0, 1)]
    assert kvlane.register(GEOMETRY, views, form, bases=bases).page_count == PAGES


@pytest.mark.parametrize("form", [TOKEN_MAJOR, HEAD_MAJOR], ids=lambda form: form.order)
def test_what_was_stored_comes_back_into_other_pages(card, form):
    source, target = buffers(1), buffers()
    session = attached(card, source, form)
    names = keys(3 * CHUNK, session.recipe)
    stored = done(session, session.store(names, list(range(12))))
    assert stored.ok and stored.chunks_done == 3 and stored.operation == "store"
    assert session.close()

    session = attached(card, target, form)
    pages = [15, 3, 7, 1, 0, 2, 4, 6, 8, 10, 12, 14]
    fetched = done(session, session.fetch(names, pages))
    assert fetched.ok and fetched.chunks_done == 3
    assert fetched.restored_bytes == 3 * GEOMETRY.chunk_bytes
    for layer in range(LAYERS):
        for half in (0, 1):
            for index, page in enumerate(pages):
                assert page_of(target[layer], half, page) == page_of(source[layer], half, index)
            for page in set(range(PAGES)) - set(pages):
                assert not any(page_of(target[layer], half, page))


def test_tokens_left_out_leave_their_pages_alone(card):
    session = attached(card, buffers(2))
    names = keys(2 * CHUNK, session.recipe)
    assert done(session, session.store(names, list(range(8)))).ok
    session.close()
    target = buffers()
    session = attached(card, target)
    assert done(session, session.fetch(names, list(range(8)), tokens=(2 * PAGE, 2 * CHUNK - PAGE))).ok
    written = [any(page_of(target[0], 0, page)) for page in range(8)]
    assert written == [False, False, True, True, True, True, True, False]


def test_lookup_counts_leading_chunks_and_a_miss_is_an_answer(card):
    session = attached(card, buffers(3))
    names = keys(4 * CHUNK, session.recipe)
    assert done(session, session.store(names[:64], list(range(8)))).ok
    found = done(session, session.lookup(names))
    assert found.ok and (found.chunks_done, found.chunks_asked) == (2, 4)
    other = keys(4 * CHUNK, session.recipe, salt=b"tenant")
    assert done(session, session.lookup(other)).chunks_done == 0
    short = done(session, session.fetch(names, list(range(16))))
    assert short.chunks_done == 2


def test_importance_is_taken_with_a_store_and_later_and_checked_before(card):
    session = attached(card, buffers(4))
    names = keys(2 * CHUNK, session.recipe)
    assert done(session, session.store(names, list(range(8)), importance=[4.0, 0.5])).ok
    rated = done(session, session.rate(names, [1.0, 2.0]))
    assert (rated.ok, rated.operation, rated.chunks_done) == (True, "rate", 2)
    assert done(session, session.fetch(names, list(range(8)))).chunks_done == 2
    with pytest.raises(kvlane.InputError, match="factor from"):
        session.rate(names, [1.0, 0.0])
    with pytest.raises(kvlane.InputError, match="1 importances for 2 chunks"):
        session.store(names, list(range(8)), importance=[1.0])


def test_names_separate_ranks_salts_models_and_shapes():
    def name(model="m", geometry=GEOMETRY, **more):
        return kvlane.chunk_keys(list(range(CHUNK)), model=model, geometry=geometry, recipe="lossless", **more)

    other_shape = kvlane.Geometry(LAYERS, HEADS, HEAD, "f16", CHUNK)
    names = {
        name(), name(model="n"), name(salt=b"s"), name(ranks=2), name(rank=1, ranks=2), name(geometry=other_shape)
    }  # fmt: skip
    assert len(names) == 6 and all(len(each) == 32 for each in names)
    for empty in ("", " "):
        with pytest.raises(kvlane.InputError, match="an empty model name"):
            name(model=empty)


def test_status_is_json_and_waiting_lets_other_threads_run(card):
    session = kvlane.attach(socket=card.socket)
    assert json.loads(done(session, session.status()).answer)
    ticks, stop = [0], threading.Event()

    def tick():
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    card.freeze()
    number = session.lookup(keys(CHUNK, session.recipe))
    thread.start()
    assert session.wait(0.3) is None
    stop.set()
    thread.join()
    card.thaw()
    assert ticks[0] > 20, "the interpreter was held while a call waited"
    assert done(session, number).ok


def test_numpy_and_dlpack_are_buffers_too(card):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.zeros(PLANE, dtype=numpy.uint16) for _ in range(LAYERS)]
    found = kvlane.span(arrays[0])
    assert (found.address, found.bytes) == (arrays[0].ctypes.data, 2 * PLANE)
    arrays[1][:] = 7
    session = attached(card, arrays)
    names = keys(CHUNK, session.recipe)
    assert done(session, session.store(names, [0, 1, 2, 3])).ok
    assert done(session, session.fetch(names, [4, 5, 6, 7])).ok
    assert (arrays[1][4 * PAGE * ROW // 2 : 8 * PAGE * ROW // 2] == 7).all()


def test_errors_name_the_blame(card, tmp_path):
    with pytest.raises(kvlane.CardError, match="none"):
        kvlane.attach(socket=str(tmp_path / "none"))
    with pytest.raises(kvlane.InputError, match="element"):
        kvlane.Geometry(1, 1, 16, "int4")
    with pytest.raises(kvlane.InputError, match="read-only"):
        kvlane.register(GEOMETRY, [bytes(2 * PLANE)] * LAYERS, TOKEN_MAJOR)
    with pytest.raises(kvlane.InputError, match="layout"):
        kvlane.register(GEOMETRY, buffers()[:1], TOKEN_MAJOR)
    with pytest.raises(kvlane.InputError, match="recipe"):
        kvlane.attach(socket=card.socket, recipe="q99")
    session = attached(card, buffers())
    names = keys(CHUNK, session.recipe)
    with pytest.raises(kvlane.InputError, match="page 16"):
        session.fetch(names, [0, 1, 2, 16])
    with pytest.raises(kvlane.InputError, match="multiple of 32"):
        session.lookup(names[:-1])
    with pytest.raises(kvlane.RunError, match="unknown"):
        session.cancel(99)
    assert issubclass(kvlane.CardGone, kvlane.CardError)


def test_a_read_only_cache_can_be_stored_from(card):
    data = [bytes(buffer) for buffer in buffers(5)]
    memory = kvlane.register(GEOMETRY, data, TOKEN_MAJOR, writable=False)
    session = kvlane.attach(memory, socket=card.socket)
    assert done(session, session.store(keys(CHUNK, session.recipe), [0, 1, 2, 3])).ok


def test_a_killed_card_is_gone_and_has_let_go(card):
    session = attached(card, buffers(4))
    card.freeze()
    session.store(keys(3 * CHUNK, session.recipe), list(range(12)))
    assert session.outstanding == 1
    card.kill()
    with pytest.raises(kvlane.CardGone):
        for _ in range(1000):
            session.wait(0.01)
    assert session.close(5.0), "a dead process writes nothing"
    with pytest.raises(kvlane.CardGone, match="closed"):
        session.poll()
    card.start()
    assert attached(card, buffers()).card.startswith("dpu-app")


def test_a_frozen_card_has_not_let_go(card):
    """Its process lives and may write when it wakes: `close` must not say otherwise."""
    session = attached(card, buffers(4))
    card.freeze()
    session.fetch(keys(CHUNK, session.recipe), [0, 1, 2, 3])
    assert not session.close(0.2)
    card.thaw()


def test_buffers_live_as_long_as_the_session(card):
    data = buffers(6)
    session = attached(card, data)
    held = data[0]
    with pytest.raises(BufferError):
        held.extend(b"x")  # an exported buffer cannot move
    session.close()
    del session
    held.extend(b"x")


def test_numpy_refuses_to_resize_an_array_that_the_card_may_write():
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.zeros(2 * PLANE, dtype=numpy.uint8) for _ in range(LAYERS)]
    memory = kvlane.register(GEOMETRY, [arrays[0], arrays[1][:], arrays[2].view(numpy.uint16)], TOKEN_MAJOR)
    for array in arrays:
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(4 * PLANE, refcheck=False)
    del memory
    arrays[0].resize(4 * PLANE, refcheck=False)


def movable() -> list[ctypes.Array]:
    """ctypes moves memory that is exported, as torch does."""
    return [(ctypes.c_char * (2 * PLANE))() for _ in range(LAYERS)]


def test_memory_that_moved_ends_the_session_before_the_card_hears_of_it(card):
    data = movable()
    memory = kvlane.register(GEOMETRY, data, TOKEN_MAJOR)
    session = kvlane.attach(memory, socket=card.socket)
    names = keys(CHUNK, session.recipe)
    assert done(session, session.store(names, [0, 1, 2, 3])).ok
    ctypes.resize(data[1], 64 * PLANE)
    with pytest.raises(kvlane.InputError, match="buffer 1 was resized or replaced after it was registered"):
        session.fetch(names, [0, 1, 2, 3])
    with pytest.raises(kvlane.CardGone, match="closed"):
        session.lookup(names)
    assert session.close() and session.close(), "nothing was in flight"
    with pytest.raises(kvlane.InputError, match="buffer 1"):
        kvlane.attach(memory, socket=card.socket)
    again = attached(card, data)
    assert done(again, again.fetch(names, [0, 1, 2, 3])).ok, "registered again it is good"


def test_a_completion_for_memory_that_moved_is_not_given_out(card):
    data = movable()
    session = attached(card, data)
    done(session, session.store(keys(CHUNK, session.recipe), [0, 1, 2, 3]))
    session.store(keys(CHUNK, session.recipe), [4, 5, 6, 7])
    ctypes.resize(data[0], 64 * PLANE)
    with pytest.raises(kvlane.InputError, match="buffer 0"):
        session.wait(20.0)
    with pytest.raises(kvlane.CardGone):
        session.poll()


@pytest.mark.parametrize("how", ["resize", "shrink", "set"])
def test_a_torch_storage_that_changed_ends_the_session(card, how):
    torch = pytest.importorskip("torch")
    data = [torch.zeros(PLANE, dtype=torch.bfloat16) for _ in range(LAYERS)]
    session = attached(card, data)
    names = keys(CHUNK, session.recipe)
    assert done(session, session.store(names, [0, 1, 2, 3])).ok
    if how == "resize":
        data[2].untyped_storage().resize_(64 * PLANE)
    elif how == "shrink":
        data[2].untyped_storage().resize_(0)
    else:
        data[2].set_(torch.zeros(PLANE, dtype=torch.bfloat16))
    with pytest.raises(kvlane.InputError, match="buffer 2"):
        session.store(names, [0, 1, 2, 3])
    assert session.close()


def test_a_session_that_did_not_let_go_never_says_that_it_did(card):
    session = attached(card, buffers(4))
    card.freeze()
    session.fetch(keys(CHUNK, session.recipe), [0, 1, 2, 3])
    assert not session.close(0.2)
    assert not session.close(0.2), "the second call knows no better"
    card.thaw()


def in_child(call) -> str:
    """What `call` gives in a forked child, which then ends as an interpreter does: with its sessions dropped."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = call()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, str(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def test_a_forked_child_has_no_session_and_takes_none_along(card):
    held = [attached(card, buffers(8))]
    names = keys(CHUNK, held[0].recipe)
    assert done(held[0], held[0].store(names, [0, 1, 2, 3])).ok
    calls = {
        "lookup": lambda: held[0].lookup(names),
        "fetch": lambda: held[0].fetch(names, [0, 1, 2, 3]),
        "poll": lambda: held[0].poll(),
        "wait": lambda: held[0].wait(1.0),
        "status": lambda: held[0].status(),
        "cancel": lambda: held[0].cancel(1),
    }
    for name, call in calls.items():
        assert "CardGone: this session is process" in (said := in_child(call)), f"{name}: {said}"
    assert in_child(lambda: (held[0].close(1.0), held[0].outstanding)) == "(False, 0)"
    assert in_child(lambda: held.clear()) == "None"

    def attaches_itself() -> int:
        own = kvlane.attach(socket=card.socket)
        return done(own, own.lookup(names)).chunks_done

    assert in_child(attaches_itself) == "1"
    assert done(held[0], held[0].fetch(names, [4, 5, 6, 7])).ok, "the parent's session goes on"
    assert held[0].close()


def test_the_card_sees_a_parent_die_whose_child_lives_on(card):
    parent = """
import kvlane, os, sys, time
session = kvlane.attach(socket=sys.argv[1])
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    watcher = kvlane.attach(socket=card.socket)

    def sessions() -> int:
        return len(json.loads(done(watcher, watcher.status()).answer)["sessions"])

    with subprocess.Popen([sys.executable, "-c", parent, card.socket], stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        try:
            assert sessions() == 2
            process.kill()
            until = time.monotonic() + 10
            while sessions() != 1:
                assert time.monotonic() < until, "the child keeps its parent's session open"
                time.sleep(0.05)
        finally:
            os.kill(child, signal.SIGKILL)
