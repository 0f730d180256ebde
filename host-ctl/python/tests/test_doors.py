"""What doors share, against a real dpu-app: blocks in rows of host memory, judged one by one."""

from __future__ import annotations

import hashlib
import mmap
import random
import time
from pathlib import Path

import kvlane
import pytest
from kvlane.doors.door import Door
from kvlane.doors.names import Names
from kvlane.doors.options import parse
from kvlane.doors.rows import Rows, rows, shape, stretches

COUNT, STRIDE, USED = 48, 12288, 9600
PATIENCE = 20.0


class Region:
    """Rows in shared memory, as an engine's primary tier has them."""

    def __init__(self, seed: int | None = None) -> None:
        self.map = mmap.mmap(-1, COUNT * STRIDE)
        if seed is not None:
            self.map[:] = random.Random(seed).randbytes(COUNT * STRIDE)

    def rows(self) -> Rows:
        return rows(kvlane.span(self.map), count=COUNT, stride=STRIDE, used=USED, width=2)

    def row(self, at: int) -> bytes:
        return self.map[at * STRIDE : at * STRIDE + USED]


def opened(card, region, **options):
    options = parse({"socket": card.socket, "retry_s": 0.05, "retry_max_s": 0.2, **options})
    door = Door(options, region.rows(), door="test", words={"weights": "w"})
    door.connect()
    return door


def blocks(first: int, count: int) -> list[bytes]:
    return [hashlib.sha256(str(at).encode()).digest() for at in range(first, first + count)]


def until(door, ready):
    end = time.monotonic() + PATIENCE
    while not (found := ready()):
        assert time.monotonic() < end, "nothing came"
        door.wait(0.005)
    return found


def moved(door, number):
    (found,) = until(door, door.take)
    assert found.number == number
    return found


def stored(door, names, at=0):
    door.store(1, names, list(range(at, at + len(names))))
    return moved(door, 1)


def asked(door, names, follow=0):
    answers = []
    door.ask(names, follow, lambda found, why: answers.append((found, why)))
    return until(door, lambda: answers)[0]


def drop(card, names, door):
    """Damages these blocks on disk: as what is there no more, they cannot be had."""
    session = door._blocks.session
    for name in names:
        key = door._naming(session.recipe).name(name)
        (found,) = [path for path in Path(card.socket).parent.rglob("*") if key.hex() in path.name.replace("/", "")]
        data = bytearray(found.read_bytes())
        data[len(data) // 2] ^= 0xFF
        found.write_bytes(data)


@pytest.mark.parametrize(
    ("used", "stride", "width"),
    [
        (4096, 4096, 2),
        (2 << 20, 2 << 20, 2),
        (61 * 1152 * 64, 4501504, 1),
        (3 * 5 * 7 * 656, 69632, 1),
        (4096 * 1223 - 999, 4096 * 1223, 2),
    ],
)
def test_rows_of_any_engine_have_a_shape(used, stride, width):
    assert used <= shape(used, stride, width).chunk_bytes <= stride
    with pytest.raises(kvlane.InputError, match="elements of 3 bytes"):
        shape(used, stride, 3)


def test_keys_say_what_the_engine_s_name_leaves_open():
    block, words = b"b" * 32, {"weights": "w", "groups": [0]}
    others = [{**words, "weights": "v"}, {**words, "groups": [1]}]
    names = [Names("a", words), Names("b", words), *(Names("a", other) for other in others)]
    assert len({each.name(block) for each in names}) == 4
    assert Names("a", dict(reversed(words.items()))).name(block) == names[0].name(block)
    assert names[0].name(block) != names[0].name(block + b"\0") and len(names[0].name(block)) == kvlane.KEY_BYTES


def test_blocks_come_back_into_other_rows_and_nothing_else_is_written(card):
    source, target = Region(1), Region()
    door = opened(card, source)
    names = blocks(0, 20)
    assert stored(door, names).done == [True] * 20
    assert door.close()
    door = opened(card, target)
    rows_ = random.Random(2).sample(range(COUNT), 20)
    door.load(7, names, rows_)
    assert moved(door, 7).done == [True] * 20
    for at, row in enumerate(rows_):
        assert target.row(row) == source.row(at)
        assert not any(target.map[row * STRIDE + door._row_bytes : (row + 1) * STRIDE]), "padding is not written"
    for row in set(range(COUNT)) - set(rows_):
        assert not any(target.row(row))
    assert door.close()


def test_presence_is_asked_behind_the_missing_as_far_as_wanted(card):
    door = opened(card, Region(3))
    names = blocks(0, 12)
    there = [True, True, False, True, False, False, True, True, True, True, False, True]
    assert stored(door, [name for name, is_there in zip(names, there) if is_there]).why == ""
    assert asked(door, names) == ({name: at < 2 for at, name in enumerate(names[:3])}, "")
    assert asked(door, names, 12) == (dict(zip(names, there)), "")
    found, why = asked(door, names, 2)
    assert found == dict(zip(names[:6], there)) and not why
    assert door.close()


def test_a_load_fails_block_by_block(card):
    source, target = Region(4), Region()
    door = opened(card, source)
    names = blocks(0, 16)
    assert stored(door, [name for at, name in enumerate(names) if at not in (3, 9)]).why == ""
    drop(card, [names[5], names[15]], door)
    assert door.close()
    door = opened(card, target)
    door.load(2, names, list(range(16)))
    end = moved(door, 2)
    assert [at for at, done in enumerate(end.done) if not done] == [3, 5, 9, 15]
    assert door.stats["load_missing"] == 2 and door.stats["load_corrupt"] == 2
    kept = [at for at in range(16) if at not in (3, 9)]
    for at in set(range(16)) - {3, 5, 9, 15}:
        assert target.row(at) == source.row(kept.index(at))
    assert door.close()


def test_a_load_of_what_is_not_there_ends_soon(card):
    door = opened(card, Region())
    door.load(3, blocks(100, 40), list(range(40)))
    end = moved(door, 3)
    assert not any(end.done) and end.why == "missing" and door.stats["load_missing"] <= 10
    assert door.close()


def test_a_killed_card_ends_what_it_had_and_is_found_again(card):
    source = Region(5)
    door = opened(card, source)
    names = blocks(0, 30)
    assert stored(door, names).why == ""
    for at in range(6):
        door.load(10 + at, names, list(range(30)))
    card.kill()
    ended = []
    until(door, lambda: ended.extend(door.take()) or len(ended) == 6)
    assert not door.busy and {end.number for end in ended} == set(range(10, 16))
    assert asked(door, names)[1] in ("away", "lookup_errors") and not door.answers
    card.start()
    until(door, lambda: door.answers)
    assert all(asked(door, names)[0].values())
    door.load(20, names, list(range(30)))
    assert all(moved(door, 20).done)
    assert door.close()


def test_a_card_that_stands_still_keeps_its_rows_and_nobody_else_waits(card):
    door = opened(card, Region(6), lookup_deadline_ms=100, load_deadline_s=0.2, load_grace_s=0.1, loads_max=1)
    names = blocks(0, 8)
    assert stored(door, names).why == ""
    card.freeze()
    began = time.monotonic()
    door.load(1, names, list(range(8)))
    door.load(2, names, list(range(8, 16)))
    assert asked(door, names) == ({}, "lookup_timeouts")
    assert moved(door, 2).why == "deadline_exceeded"
    until(door, lambda: not door.answers and door.stats["load_given_up"])
    assert time.monotonic() - began < 2.0
    door.store(3, names, list(range(8)))
    assert moved(door, 3).why == "refused"
    assert asked(door, names)[1] == "silent"
    assert door.busy and not door.take(), "rows that may still be written are not given back"
    card.thaw()
    assert moved(door, 1).why in ("deadline_exceeded", "cancelled")
    until(door, lambda: door.answers)
    assert all(asked(door, names)[0].values())
    assert door.close()


def test_a_drain_ends_when_nothing_is_in_flight(card):
    door = opened(card, Region(7), loads_max=1)
    names = blocks(0, 40)
    assert stored(door, names).why == ""
    for at in range(8):
        door.load(at, names, list(range(40)))
    door.store(9, blocks(50, 4), [40, 41, 42, 43])
    door.drain()
    assert not door.busy and sorted(end.number for end in door.take()) == [*range(8), 9]
    assert door.close()


def test_stores_beyond_the_limit_are_refused_and_options_are_checked(card):
    door = opened(card, Region(8), saves_max=2)
    card.freeze()
    for at in range(4):
        door.store(at, blocks(4 * at, 4), [0, 1, 2, 3])
    assert [(end.number, end.why) for end in door.take()] == [(2, "refused"), (3, "refused")]
    assert door.stats["save_refused_blocks"] == 8
    card.thaw()
    door.drain()
    assert door.close()
    with pytest.raises(ValueError, match="unknown option 'hold_share'"):
        parse({"hold_share": 0.5})


def test_a_card_with_a_lossy_recipe_keeps_every_bit(card, tmp_path_factory):
    from card import Card

    lossy = Card(card._program, tmp_path_factory.mktemp("lossy"), "q5")
    lossy.start()
    source, target = Region(9), Region()
    door, names = opened(lossy, source), blocks(0, 4)
    assert stored(door, names).why == "" and door.close()
    door = opened(lossy, target)
    door.load(1, names, [3, 2, 1, 0])
    assert moved(door, 1).why == ""
    assert [target.row(at) for at in range(4)] == [source.row(3 - at) for at in range(4)]
    assert door.close()
    lossy.kill()


def test_a_block_may_begin_at_any_unit_of_its_region(card):
    source, target = Region(10), Region()
    names = blocks(0, 3)
    for region in (source, target):
        described = stretches(kvlane.span(region.map), unit=4096, pages=5, width=2)
        door = Door(parse({"socket": card.socket}), described, door="stretches", words={})
        door.connect()
        starts = [[0, 7, 31], [50, 11, 90]][region is target]
        move = door.store if region is source else door.load
        move(1, names, [page for start in starts for page in range(start, start + 5)])
        assert moved(door, 1).done == [True] * 3
        assert door.close()
    for here, there in zip([0, 7, 31], [50, 11, 90]):
        assert target.map[there * 4096 : (there + 5) * 4096] == source.map[here * 4096 : (here + 5) * 4096]
