"""What routers are told: what the card has said is stored, what is found gone, and nothing else."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from kvlane.engine import events
from kvlane.engine.events import Events
from kvlane.engine.words import Report, Save
from standins import connector_module, request
from test_answers import Chat
from test_hybrid import SHORT, STATE_1
from test_scheduler import CHUNK, PAGE, arrive, make

connector = connector_module()


def listening(**options):
    """A scheduler whose events are ("stored" or "removed", save, place)."""
    made = make(**options)
    made[0].events.describe = lambda save, at: (("stored", save.first_chunk + at), ("removed", save.first_chunk + at))
    return made


def computed(made, tokens=200, found=0, name="a"):
    """A prompt is computed; its save, if there is one."""
    scheduler, session, _ = made
    arrive(scheduler, session, tokens, found, name)
    scheduler.matched(name, 0, tokens, 0)
    scheduler.scheduled(name, [list(range(100, 100 + -(-tokens // PAGE)))], True, tokens)
    return next(iter(scheduler.orders().saves), None)


def ended(save, **words):
    return Report(saved=Counter({save.job: 1}), **words)


STORED = [("stored", 0), ("stored", 1), ("stored", 2)]
REMOVED = [("removed", 0), ("removed", 1), ("removed", 2)]


def test_a_chunk_is_said_when_the_cards_of_all_workers_have_it():
    made = listening(ranks=2)
    scheduler, session, _ = made
    scheduler.arrived("a", list(range(200)))
    for number in (1, 2):
        session.complete(number, 0)
    scheduler.matched("a", 0, 200, 0)
    scheduler.scheduled("a", [list(range(13))], True, 200)
    (save,) = scheduler.orders().saves
    assert not scheduler.events.take()
    scheduler.finished("a")
    scheduler.heard(ended(save, unsaved={save.job: 2}))
    assert not scheduler.events.take(), "one has said so"
    scheduler.heard(ended(save))
    assert scheduler.events.take() == STORED[:2] and not scheduler.events.take(), "what one has not stored no one has"


def test_what_a_look_up_does_not_find_is_said_once_and_said_again_when_it_is_stored_again():
    made = listening()
    scheduler = made[0]
    scheduler.heard(ended(computed(made)))
    assert scheduler.events.take() == STORED
    again = computed(made, found=1, name="b")
    assert scheduler.events.take() == REMOVED[1:]
    assert computed(made, found=1, name="c") is None and not scheduler.events.take()
    scheduler.heard(ended(again))
    assert scheduler.events.take() == STORED[1:]


def test_a_look_up_that_is_not_answered_says_nothing():
    made = listening(lookup_deadline_ms=0.0)
    made[0].events._said[b"name"] = ("removed", 0)
    made[0].arrived("a", list(range(200)))
    assert made[0].matched("a", 0, 200, 0) == 0 and not made[0].events.take()


@pytest.mark.parametrize(("why", "gone"), [(None, True), ("corrupt", True), ("card_gone", False), ("given_up", False)])
def test_what_a_fetch_does_not_find_is_gone_and_a_card_that_is_away_says_nothing(why, gone):
    made = listening()
    scheduler, session, _ = made
    scheduler.heard(ended(computed(made)))
    scheduler.events.take()
    arrive(scheduler, session, 200, 3, "b")
    scheduler.allocated("b", [list(range(13))], 0, scheduler.matched("b", 0, 200, 0))
    (load,) = scheduler.orders().loads
    scheduler.heard(Report(short={load.job: 1}, failed={load.job: why} if why else {}))
    assert scheduler.events.take() == (REMOVED[1:] if gone else [])


def test_after_a_reset_what_was_said_is_gone_and_saves_on_their_way_are_not_said():
    made = listening()
    scheduler = made[0]
    scheduler.heard(ended(computed(made)))
    scheduler.events.take()
    chat = Chat(made, 300, found=3, name="b")
    (save,) = chat.step(300)
    assert save.first_chunk == 3
    scheduler.reset()
    assert scheduler.events.take() == REMOVED
    scheduler.heard(ended(save))
    assert not scheduler.events.take(), "nobody here asks for that name any more"


def test_no_more_than_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(events, "SAID_MAX", 2)
    made = listening()
    made[0].heard(ended(computed(made)))
    assert made[0].events.take() == [*STORED, REMOVED[0]], "the oldest, whose end would not be heard of"


def test_nothing_is_kept_where_nobody_listens():
    made = make()
    made[0].heard(ended(computed(made)))
    kept = made[0].events
    assert not kept.take() and not kept._said and not kept._saving
    unnamed = Events()
    unnamed.describe = lambda save, at: None
    unnamed.begun(Save(1, "a", "lossless", (bytes(32),), (1,), 1.0, 0))
    unnamed.over(1)
    assert not unnamed.take()


# In vLLM's words


def describe(*sections):
    from kvlane.vllm_events import Describe

    made = Describe(sections, PAGE)
    lora = SimpleNamespace(adapter_id=7, name="tuned")
    made.requests["r"] = request(
        all_token_ids=list(range(300)), block_hashes=[bytes([at]) for at in range(300 // PAGE)], lora_request=lora
    )
    return made


def saved(first, chunks, section=0):
    return Save(1, "r", "lossless", (bytes(32 * chunks),), (), 1.0, first, section)


def test_a_chunk_is_the_blocks_that_vllm_names():
    scheduler, _, _ = make()
    first, removed = describe(*scheduler.sections)(saved(0, 2), 0)
    second, _ = describe(*scheduler.sections)(saved(0, 2), 1)
    assert first.block_hashes == removed.block_hashes == [bytes([at]) for at in range(4)]
    assert (first.parent_block_hash, second.parent_block_hash) == (None, bytes([3]))
    assert second.token_ids == list(range(CHUNK, 2 * CHUNK)) and second.block_size == PAGE
    assert first.extra_keys == [("salt",), None, None, None]
    assert (first.lora_id, first.lora_name, first.medium, removed.medium) == (7, "tuned", "kvlane", "kvlane")


def test_windows_and_states_name_the_blocks_that_are_kept():
    window, _ = describe(SHORT, STATE_1)(saved(1, 1), 0)
    assert window.block_hashes == [bytes([6]), bytes([7])] and window.parent_block_hash == bytes([5])
    assert window.token_ids == list(range(96, 128)) and window.group_idx == 1
    state, _ = describe(SHORT, STATE_1)(saved(1, 1, 1), 0)
    assert state.block_hashes == [bytes([7])] and state.parent_block_hash == bytes([3]) and state.block_size == CHUNK


def test_what_vllm_has_not_named_is_not_said():
    made = describe(SHORT, STATE_1)
    assert made(saved(4, 1), 0) is None
    made.requests.clear()
    assert made(saved(0, 1), 0) is None


def test_the_connector_listens_only_where_vllm_publishes():
    words = dict(_sections=(SHORT,), _kv_cache_config=SimpleNamespace(hash_block_size=PAGE))
    for config, told in ((None, False), (SimpleNamespace(enable_kv_cache_events=False), False),
                         (SimpleNamespace(enable_kv_cache_events=True), True)):  # fmt: skip
        half = SimpleNamespace(_vllm_config=SimpleNamespace(kv_events_config=config), **words)
        assert (connector.KvlaneConnector._describe(half) is not None) == told
    assert connector.KvlaneConnector.take_events(SimpleNamespace(_scheduler=None)) == []
