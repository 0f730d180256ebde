"""Sections of a cache against a real dpu-app on the emulator: other shapes in the same buffers, windows and states."""

from __future__ import annotations

import random

import kvlane
import pytest

CHUNK, PAGE, PAGES, STRIDE = 64, 16, 24, 4096
KV = kvlane.Geometry(3, 2, 16, "bf16", CHUNK)
LATENT = kvlane.Geometry(2, 1, 96, "bf16", CHUNK, planes="one")
WINDOW = kvlane.Geometry(2, 2, 16, "bf16", PAGE)
"""Its chunk holds the last 16 of the 64 tokens that name it."""
STATE = kvlane.Geometry(2, 1, 96, "u32", 8, planes="one")
"""8 rows of 384 bytes: a page of a state, whatever it means."""


def section(geometry: kvlane.Geometry, row: int, page_tokens: int, layers: int, planes: int) -> kvlane.Section:
    form = kvlane.Form("token-major", page_tokens, PAGES, STRIDE, row, row // (2 if planes == 2 else 1))
    bases = [(layer, plane * page_tokens * row) for layer in range(layers) for plane in range(planes)]
    return kvlane.Section(geometry, form, bases)


SECTIONS = [
    section(KV, 64, PAGE, 3, 2),
    section(LATENT, 192, PAGE, 2, 1),
    section(WINDOW, 64, PAGE, 2, 2),
    section(STATE, 384, 8, 2, 1),
]
SIZES = [2 * PAGE * 64, PAGE * 192, 2 * PAGE * 64, 8 * 384]
"""Bytes of a page that a section uses."""
EACH = [4, 4, 1, 1]
"""Pages of a chunk."""


def buffers(seed: int) -> list[bytearray]:
    return [bytearray(random.Random(seed + layer).randbytes(PAGES * STRIDE)) for layer in range(3)]


def keys(number: int, tokens: int, recipe: str) -> bytes:
    model, geometry = f"m section {number}", SECTIONS[number].geometry
    return kvlane.chunk_keys(list(range(tokens)), model=model, geometry=geometry, recipe=recipe, chunk_tokens=CHUNK)


def attached(card, data, sections=SECTIONS):
    return kvlane.attach(kvlane.register_sections(sections, data), socket=card.socket, client="test")


def done(session, number):
    completion = session.wait(20.0)
    assert completion is not None and completion.id == number
    return completion


def test_every_section_comes_back_to_its_own_pages_and_nothing_else_is_touched(card):
    source, target = buffers(1), buffers(100)
    session = attached(card, source)
    used = [list(range(first, first + each)) for first, each in zip((0, 4, 8, 9), EACH)]
    for number, pages in enumerate(used):
        stored = done(session, session.store(keys(number, CHUNK, session.recipe), pages, section=number))
        assert stored.ok and stored.chunks_done == 1
    assert session.close()
    expected = [bytearray(buffer) for buffer in target]
    session = attached(card, target)
    for number, pages in enumerate(used):
        there = [PAGES - 1 - page for page in pages]
        fetched = done(session, session.fetch(keys(number, CHUNK, session.recipe), there, section=number))
        assert fetched.ok and fetched.chunks_done == 1
        layers = len({region for region, _ in SECTIONS[number].bases})
        for layer in range(layers):
            for old, new in zip(pages, there):
                size = SIZES[number]
                expected[layer][new * STRIDE : new * STRIDE + size] = source[layer][old * STRIDE : old * STRIDE + size]
    assert target == expected
    assert session.close()


def test_a_window_is_found_by_its_last_chunks_and_a_state_by_its_own(card):
    session = attached(card, buffers(2))
    names = [keys(number, 8 * CHUNK, session.recipe) for number in range(4)]

    def part(number: int, first: int, last: int) -> bytes:
        return names[number][32 * first : 32 * last]

    # Of the window chunks 4, 5 and 6 are there, of the states the one behind chunk 3.
    assert done(session, session.store(part(2, 4, 7), [0, 1, 2], section=2)).ok
    assert done(session, session.store(part(3, 3, 4), [3], section=3)).ok

    def end(number: int, trailing: int) -> int:
        return done(session, session.lookup(names[number], section=number, trailing=trailing)).chunks_done

    assert [end(2, trailing) for trailing in (0, 1, 2, 3, 4)] == [0, 7, 7, 7, 0]
    assert [end(3, trailing) for trailing in (0, 1, 2)] == [0, 4, 0]
    assert done(session, session.fetch(part(2, 5, 7), [4, 5], section=2)).chunks_done == 2
    # A session that only asks names sections as the others do.
    asking = kvlane.attach(socket=card.socket, client="scheduler")
    assert done(asking, asking.lookup(names[2], section=2, trailing=2)).chunks_done == 7
    assert asking.close() and session.close()


def test_sections_that_cannot_be_are_refused_and_named(card):
    with pytest.raises(kvlane.InputError, match="no sections"):
        kvlane.register_sections([], buffers(3))
    short = [bytearray(PAGES * STRIDE)] * 2
    with pytest.raises(kvlane.InputError, match="section 0: layout: base 4 is in region 2, 2 are registered"):
        kvlane.register_sections(SECTIONS, short)
    over = kvlane.Section(LATENT, SECTIONS[1].form, [(0, 0), (0, 64)])
    with pytest.raises(kvlane.InputError, match="section 1: layout: .* share bytes of memory"):
        kvlane.register_sections([SECTIONS[0], over], buffers(3))
    with pytest.raises(kvlane.InputError, match="17 sections"):
        kvlane.register_sections(SECTIONS[:1] * 17, buffers(3))
    with pytest.raises(kvlane.InputError, match="planes"):
        kvlane.Geometry(2, 1, 96, "bf16", CHUNK, planes="two")
    session = attached(card, buffers(3))
    one = keys(0, CHUNK, session.recipe)
    for call in (lambda: session.fetch(one, [0] * 4, section=4), lambda: session.lookup(one, section=4)):
        with pytest.raises(kvlane.InputError, match="section 4 of 4"):
            call()
    # Pages a chunk are the section's.
    with pytest.raises(kvlane.InputError, match="4 page numbers for 1 chunks, expected 1"):
        session.store(one, [0] * 4, section=2)
    assert session.close()


def test_a_geometry_says_its_planes(card):
    assert (KV.planes, LATENT.planes, STATE.chunk_bytes) == ("kv", "one", 2 * 8 * 384)
    assert LATENT != kvlane.Geometry(2, 1, 96, "bf16", CHUNK) and "planes='one'" in repr(LATENT)
    # One plane a buffer, without a word on bases.
    form = kvlane.Form("token-major", PAGE, PAGES, PAGE * 192, 192, 192)
    memory = kvlane.register(LATENT, [bytearray(PAGES * PAGE * 192) for _ in range(2)], form)
    assert (memory.sections, memory.pages_per_chunk, memory.page_count) == (1, 4, PAGES)
