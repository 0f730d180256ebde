"""Models with several sections: hits that all of them have, loads of what each needs, saves while the pages are
there."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import kvlane
import pytest
from fakes import FakeSession, Pool, linked
from kvlane.engine.options import Options
from kvlane.engine.scheduler import Scheduler
from kvlane.engine.sections import FULL, STATE, WINDOW, Section, Stretch
from kvlane.engine.words import Report
from kvlane.engine.worker import Worker
from kvlane.media import extras_of
from standins import config, connector_module, request

CHUNK, PAGE = 64, 16
connector = connector_module()


def section(kind=FULL, need=0, covers=None, group=0, page=PAGE):
    covers = covers or (min(need, CHUNK) if kind == WINDOW else CHUNK)
    geometry = kvlane.Geometry(2, 2, 16, "bf16", covers)
    return Section(geometry, page, CHUNK, covers, kind, need, group, f" {kind}{need}{group}")


FULL_0 = section()
SHORT = section(WINDOW, need=32, group=1)
LONG = section(WINDOW, need=96, group=1)
STATE_1 = Section(kvlane.Geometry(1, 1, 32, "u16", 8, planes="one"), CHUNK, CHUNK, CHUNK, STATE, 0, 1, " state")
"""Pages of 64 tokens, each of which is 8 rows for the card."""


def make(*sections, ranks=1, replicas=1, **options):
    session, pool = FakeSession(), Pool()
    scheduler = Scheduler(
        Options(chunk_tokens=CHUNK, **{"lookup_wait_ms": 0.0, **options}), linked(session), model="m",
        sections=sections, page_count=1000, ranks=ranks, replicas=replicas,
    )  # fmt: skip
    scheduler.holds.hold, scheduler.holds.let_go = pool.hold, pool.let_go
    return scheduler, session, pool


def answer(session, **chunks):
    """Answers what is asked of each section, by number; returns how many were asked."""
    lookups = [number for number, posted in session.posted.items() if posted[0] == "lookup"]
    asked = [number for number in lookups if number not in session.answered]
    for number in asked:
        session.answered.add(number)
        session.complete(number, chunks[f"s{session.sections[number]}"])
    return len(asked)


def arrive(scheduler, session, tokens, rounds, request="a"):
    session.answered = getattr(session, "answered", set())
    scheduler.arrived(request, list(range(tokens)))
    for chunks in rounds:
        answer(session, **chunks)
        scheduler.matched(request, 0, tokens, 0)
    return scheduler.matched(request, 0, tokens, 0)


def tables(pages, lost=0):
    """Of two groups; the second has given up its first pages."""
    return [list(range(100, 100 + pages)), [0] * lost + list(range(200 + lost, 200 + pages))]


def test_what_each_kind_needs():
    assert (FULL_0.trailing, SHORT.trailing, LONG.trailing, STATE_1.trailing) == (0, 1, 2, 1)
    assert (SHORT.places(1, 3), STATE_1.places(2, 3), FULL_0.places(1, 2)) == ([6, 7, 10, 11], [2], [4, 5, 6, 7])


def test_keys_of_two_sections_never_meet():
    scheduler, session, _ = make(FULL_0, SHORT, section(WINDOW, need=32, group=2))
    scheduler.arrived("a", list(range(200)))
    asked = [posted[1] for posted in session.posted.values()]
    assert len(asked) == 3 and len({keys[:32] for keys in asked}) == 3
    assert [session.sections[number] for number in session.posted] == [0, 1, 2]
    assert [session.trailing[number] for number in session.posted] == [0, 1, 1]


def test_a_hit_is_what_all_sections_have_and_windows_are_asked_again_within_it():
    scheduler, session, _ = make(FULL_0, SHORT)
    assert arrive(scheduler, session, 400, [dict(s0=4, s1=6), dict(s1=3)]) == 192
    last = session.posted[3]
    assert len(last[1]) == 4 * 32 and session.sections[3] == 1, "of the four chunks that the other has"


def test_two_windows_agree_by_and_by():
    scheduler, session, _ = make(FULL_0, SHORT, section(WINDOW, need=96, group=2))
    assert arrive(scheduler, session, 400, [dict(s0=6, s1=6, s2=5), dict(s1=4), dict(s2=4)]) == 256


def test_one_that_has_nothing_ends_it_at_once():
    scheduler, session, _ = make(FULL_0, SHORT)
    assert arrive(scheduler, session, 400, [dict(s0=6, s1=0)]) == 0 and len(session.posted) == 2


@pytest.mark.parametrize(
    ("tokens", "asked", "hit"), [(192, 2, 128), (193, 3, 192), (64, 0, 0), (65, 1, 64), (63, 0, 0)]
)
def test_a_prompt_of_whole_chunks_hits_one_less(tokens, asked, hit):
    scheduler, session, _ = make(FULL_0, SHORT)
    assert arrive(scheduler, session, tokens, [dict(s0=asked, s1=asked)]) == hit
    assert all(len(posted[1]) == 32 * asked for posted in session.posted.values())


@pytest.mark.parametrize(
    ("second", "computed", "first", "pages", "tokens", "written"),
    [
        (SHORT, 0, 2, (210, 211), (0, 32), (210, 211)),
        (SHORT, 176, 2, (210, 211), (16, 32), (211,)),
        (LONG, 0, 1, tuple(range(204, 212)), (32, 128), tuple(range(206, 212))),
        (LONG, 144, 2, (208, 209, 210, 211), (16, 64), (209, 210, 211)),
    ],
)
def test_of_a_window_only_its_pages_are_loaded(second, computed, first, pages, tokens, written):
    scheduler, session, _ = make(FULL_0, second)
    arrive(scheduler, session, 200, [dict(s0=3, s1=3)])
    external = scheduler.matched("a", computed, 200, 0)
    assert external == 192 - computed
    scheduler.allocated("a", tables(13), computed, external)
    (load,) = scheduler.orders().loads
    whole, part = load.parts
    assert whole.wanted(PAGE) == tuple(range(100 + computed // PAGE, 112))
    assert (part.section, part.first_chunk, part.pages, part.tokens) == (1, first, pages, tokens)
    assert part.wanted(second.page_rows) == written and len(part.keys[0]) == 32 * (3 - first)


def test_pages_that_a_window_gave_up_are_not_named():
    stretch = Stretch.of(LONG, [0] * 6 + list(range(206, 213)), 0, 192)
    assert stretch.pages == (206, 206, *range(206, 212)), "any page does where the tokens are left out"
    assert Stretch.of(LONG, [0] * 7 + list(range(207, 213)), 0, 192) is None


def test_of_a_state_the_one_page_at_the_end_is_loaded_whole():
    scheduler, session, _ = make(FULL_0, STATE_1)
    arrive(scheduler, session, 200, [dict(s0=3, s1=3)])
    scheduler.allocated("a", [list(range(100, 113)), [0, 0, 7, 8]], 64, scheduler.matched("a", 64, 200, 0))
    part = scheduler.orders().loads[0].parts[1]
    assert (part.pages, part.tokens, part.first_chunk) == ((7,), (0, 8), 2)


def test_a_page_of_two_groups_is_not_loaded_into():
    scheduler, session, _ = make(FULL_0, SHORT)
    worker, moved = Worker(Options(), linked(FakeSession()), rank=0, sections=scheduler.sections), session
    arrive(scheduler, session, 200, [dict(s0=3, s1=3)])
    scheduler.allocated("a", [list(range(100, 113)), list(range(100, 113))], 0, 192)
    (load,) = scheduler.orders().loads
    worker.load(load)
    results = worker.take()
    assert not load.parts and results.received == results.failed == {"a"} and not results.bad_pages


def test_chunks_are_saved_while_their_pages_are_there():
    scheduler, session, pool = make(FULL_0, LONG)
    arrive(scheduler, session, 300, [dict(s0=0, s1=0)])
    scheduler.scheduled("a", tables(8), True, 128)
    saves = scheduler.orders().saves
    assert [(save.section, save.first_chunk, len(save.pages)) for save in saves] == [(0, 0, 8), (1, 0, 8)]
    scheduler.scheduled("a", tables(16, lost=9), True, 256)
    first, second = scheduler.orders().saves
    assert first.pages == tuple(range(108, 116)) and first.first_chunk == 2
    assert second.pages == tuple(range(212, 216)) and second.first_chunk == 3, "of chunk 2 a page is gone"
    assert 0 not in pool.held


def test_of_a_short_window_only_its_pages_are_saved():
    scheduler, session, pool = make(FULL_0, SHORT)
    arrive(scheduler, session, 200, [dict(s0=2, s1=1)])
    scheduler.scheduled("a", tables(13), True, 200)
    first, second = scheduler.orders().saves
    assert first.pages == tuple(range(108, 112)) and second.pages == (206, 207, 210, 211)
    assert len(second.keys[0]) == 2 * 32, "what the one has is not what the other has"


def test_states_are_saved_where_the_engine_says_and_nowhere_else():
    scheduler, session, pool = make(FULL_0, STATE_1)
    arrive(scheduler, session, 300, [dict(s0=1, s1=1)])
    for tokens, page in ((64, 5), (100, 6), (128, 0), (192, 7), (320, 9)):
        scheduler.bounded("a", 1, page, tokens)
    (save,) = scheduler.orders().saves
    assert (save.section, save.first_chunk, save.pages) == (1, 2, (7,)) and pool.held == [7]
    scheduler.bounded("a", 1, 7, 192)
    assert not scheduler.orders().saves, "once"
    scheduler.heard(Report(saved=Counter({save.job: 1})))
    assert not pool.held


def loading(sections=(FULL_0, SHORT), **options):
    scheduler, session, _ = make(*sections)
    arrive(scheduler, session, 200, [dict(s0=3, s1=3)])
    scheduler.allocated("a", tables(13), 0, 192)
    (load,) = scheduler.orders().loads
    moved = FakeSession()
    worker = Worker(Options(**options), linked(moved), rank=0, sections=sections)
    worker.load(load)
    return scheduler, worker, moved, load


def test_a_load_ends_with_its_last_part():
    _, worker, moved, load = loading()
    assert [moved.sections[number] for number in moved.posted] == [0, 1]
    moved.complete(1, seconds=0.1)
    assert not worker.take().received
    moved.complete(2, seconds=0.2)
    results = worker.take()
    assert results.received == {"a"} and not results.failed and not results.bad_pages
    assert results.report.restored == {load.job: (192, pytest.approx(0.2))}
    assert worker.stats["hit_tokens"] == 192 and len(worker.fetch_seconds) == 1


@pytest.mark.parametrize("short", [1, 2])
def test_a_part_that_is_short_fails_all_of_it(short):
    scheduler, worker, moved, load = loading()
    moved.complete(short, 0, "corrupt")
    results = worker.take()
    assert not results.received, "the other part may still write"
    scheduler.heard(results.report)
    moved.complete(3 - short)
    results = worker.take()
    assert results.received == results.failed == {"a"} and not results.bad_pages and worker.stats["hit_tokens"] == 0
    assert results.report.failed == {load.job: "corrupt"} and worker.stats["load_corrupt"] == 1
    scheduler.heard(results.report)
    scheduler.received(results.received)
    scheduler.scheduled("a", tables(13), True, 200)
    assert [save.section for save in scheduler.orders().saves] == [short - 1], "what was lost is saved again"


def test_a_load_that_was_given_up_holds_the_pages_of_all_its_parts_until_the_last_has_ended():
    scheduler, worker, moved, load = loading(load_grace_s=0.0, load_deadline_s=0.0)
    worker._flights[next(iter(worker._flights))].of.until = 0.0
    results = worker.take()
    assert results.failed == {"a"} and results.report.given_up == {load.job: 1}
    pool = Pool()
    scheduler.holds.hold, scheduler.holds.let_go = pool.hold, pool.let_go
    scheduler.heard(results.report)
    scheduler.received(results.received)
    assert pool.held == sorted([*range(100, 112), 210, 211])
    moved.complete(1)
    scheduler.heard(worker.take().report)
    assert pool.held
    moved.complete(2)
    scheduler.heard(worker.take().report)
    assert not pool.held


def test_ranks_with_equal_bytes_have_one_key_and_one_of_them_saves():
    scheduler, session, pool = make(FULL_0, ranks=4, replicas=2)
    scheduler.arrived("a", list(range(200)))
    assert len(session.posted) == 2
    for number in (1, 2):
        session.complete(number, 0)
    scheduler.matched("a", 0, 200, 0)
    scheduler.scheduled("a", [list(range(13))], True, 200)
    (save,) = scheduler.orders().saves
    stores = []
    for rank in range(4):
        moved = FakeSession()
        Worker(Options(), linked(moved), rank=rank, sections=(FULL_0,), replicas=2).save(save)
        stores.append([posted[1] for posted in moved.posted.values()])
    assert stores == [[save.keys[0]], [], [save.keys[1]], []]
    for _ in range(2):
        assert pool.held
        scheduler.heard(Report(saved=Counter({save.job: 1})))
    assert not pool.held, "two have read it, and no more will"


def test_pages_that_the_kernels_split_are_named_as_they_were_registered():
    scheduler, session, _ = make(FULL_0)
    moved = FakeSession()
    scheduler.arrived("a", list(range(80)))
    session.complete(1, 1)
    scheduler.allocated("a", [[7, 8, 9, 10, 11]], 0, scheduler.matched("a", 0, 80, 0))
    worker = Worker(Options(), linked(moved), rank=0, sections=(FULL_0,), splits=(2,))
    worker.load(scheduler.orders().loads[0])
    assert moved.posted[1][2] == [14, 15, 16, 17, 18, 19, 20, 21]


def test_several_sections_have_fewer_loads_with_the_card():
    assert make(FULL_0)[0].options.loads_max == 8
    assert make(FULL_0, SHORT)[0].options.loads_max == 8
    assert make(*[section(WINDOW, need=32, group=group) for group in range(7)])[0].options.loads_max == 2


# What is made of vLLM's groups


def spec(kind, **words):
    made = type(kind, (), {})()
    base = dict(num_kv_heads=2, head_size=64, head_size_v=64, dtype="torch.bfloat16", block_size=16)
    vars(made).update(base | words)
    return made


def shapes(*specs, eagle=False, **changes):
    groups = [
        SimpleNamespace(kv_cache_spec=each, layer_names=[f"model.layers.{index}.attn"], is_eagle_group=eagle)
        for index, each in enumerate(specs)
    ]
    return connector._shapes(config("/m", **changes), SimpleNamespace(kv_cache_groups=groups))


def refusal(*specs, **changes):
    with pytest.raises(kvlane.InputError) as error:
        shapes(*specs, **changes)
    return str(error.value)


def test_windows_latents_and_states_are_what_vllm_says():
    window, full = shapes(spec("SlidingWindowSpec", sliding_window=128), spec("FullAttentionSpec"))
    assert (window.kind, window.need, window.group) == (WINDOW, 128, 0) and (full.kind, full.group) == (FULL, 1)
    (window,) = shapes(spec("SlidingWindowSpec", sliding_window=1024), eagle=True)
    assert window.need == 1024 + 16, "a drafter takes one page more"
    (latent,) = shapes(spec("MLAAttentionSpec", num_kv_heads=1, head_size=576, head_size_v=0))
    assert (latent.planes, latent.heads, latent.head_size, latent.lossless_only) == (1, 1, 576, True)
    state = spec(
        "MambaSpec", mamba_cache_mode="align", dtypes=("torch.bfloat16", "torch.float32"), state_content_size_bytes=4096
    )
    (found,) = shapes(state)
    assert (found.kind, found.element, found.head_size) == (STATE, "u16", 4096)


def test_one_byte_elements_are_named_and_what_only_kernels_understand_is_opaque():
    byte = spec("FullAttentionSpec", dtype="torch.uint8", kv_quant_mode=SimpleNamespace(name="FP8_PER_TENSOR"))
    elements = [shapes(byte, cache__cache_dtype=name)[0].element for name in ("fp8", "fp8_e5m2")]
    assert elements == ["fp8_e4m3", "fp8_e5m2"]
    content = dict(state_content_bytes=656, state_content_size_bytes=656)
    packed = spec("MLAAttentionSpec", dtype="torch.uint8", head_size_v=0, **content)
    assert (shapes(packed)[0].element, shapes(packed)[0].head_size, shapes(packed)[0].planes) == ("u16", 328, 1)
    unequal = spec("FullAttentionSpec", head_size_v=32, state_content_size_bytes=192)
    assert (shapes(unequal)[0].element, shapes(unequal)[0].head_size) == ("u16", 96)


def test_what_cannot_be_passed_around_is_refused_with_a_reason():
    assert "ChunkedLocalAttentionSpec is not supported" in refusal(spec("ChunkedLocalAttentionSpec"))
    state = spec("MambaSpec", mamba_cache_mode="none", dtypes=(), state_content_size_bytes=1)
    assert "'align'" in refusal(state)
    assert "tokens_per_state" in refusal(spec("MLAAttentionSpec", tokens_per_state=4))
    assert "pipeline_parallel_size 2" in refusal(spec("FullAttentionSpec"), parallel__pipeline_parallel_size=2)


# Pictures


def picture(identifier, offset, length):
    return SimpleNamespace(identifier=identifier, mm_position=SimpleNamespace(offset=offset, length=length))


def test_a_chunk_names_the_pictures_that_its_tokens_stand_for():
    extras = extras_of([picture("b", 130, 10), picture("a", 60, 10)], CHUNK)
    assert len(extras) == 3 and all(extras) and len({*extras}) == 3
    assert extras_of([picture("a", 60, 10)], CHUNK) == extras[:2]
    assert extras_of([picture("a", 61, 10)], CHUNK)[0] != extras[0], "elsewhere in the chunk"
    assert extras_of([picture("c", 60, 10)], CHUNK)[0] != extras[0]
    assert extras_of([], CHUNK) == extras_of(None, CHUNK) == []


def test_a_prompt_with_pictures_is_asked_for_by_their_names():
    asked = []
    for pictures in ([], [picture("a", 70, 20)], [picture("b", 70, 20)]):
        scheduler, session, _ = make(FULL_0)
        half = SimpleNamespace(_scheduler=scheduler)
        connector.KvlaneConnector._arrived(half, request(prompt_token_ids=list(range(200)), mm_features=pictures))
        asked.append(session.posted[1][1])
    assert len({keys[:32] for keys in asked}) == 1, "before the picture nothing differs"
    assert len({keys[32:64] for keys in asked}) == len({keys[64:] for keys in asked}) == 3
