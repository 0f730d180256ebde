"""Chunks that the answer completes: saved when their tokens are known and their KV is there, and not a token before."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from fakes import FakeSession
from kvlane._kvlane import chunk_keys
from kvlane.engine.words import Report
from standins import connector_module, request
from test_hybrid import FULL_0, STATE_1
from test_hybrid import make as make_hybrid
from test_scheduler import CHUNK, GEOMETRY, PAGE, make

connector = connector_module()


class Chat:
    """One request of an engine: what it knows, its pages, and its steps."""

    def __init__(self, made, prompt, found=0, name="a", first_page=100):
        self.scheduler, self.session, self.pool = made
        self.name, self.known, self.computed, self.preemptions = name, list(range(prompt)), 0, 0
        self.pages, self.next = [], first_page
        asked = len(self.session.posted)
        self.scheduler.arrived(name, list(self.known), known=self.known)
        for number in range(asked + 1, len(self.session.posted) + 1):
            self.session.complete(number, found)
        self.scheduler.matched(name, 0, prompt, 0)

    def step(self, tokens, groups=1):
        """Computes so many tokens more; returns the saves that were ordered."""
        new, replaced = [], not self.pages
        while len(self.pages) * PAGE < self.computed + tokens:
            new.append(self.next)
            self.pages.append(self.next)
            self.next += 1
        self.computed += tokens
        self.scheduler.scheduled(self.name, [self.pages if replaced else new] * groups, replaced, self.computed)
        return self.scheduler.orders().saves

    def sampled(self, *tokens):
        self.known.extend(tokens or [1000 + len(self.known)])

    def generate(self, tokens):
        """Steps without speculation, each known when the next is ordered."""
        saves = []
        for _ in range(tokens):
            self.sampled()
            saves += self.step(1)
        return saves

    def preempt(self):
        self.pages, self.computed = [], 0
        self.next += 100
        self.preemptions += 1

    def finish(self):
        pages = self.pages[: -(-self.computed // PAGE)]
        self.scheduler.finished(self.name, (pages,), self.computed)
        return self.scheduler.orders().saves


def names(tokens):
    words = dict(model="m", geometry=GEOMETRY, recipe="lossless", salt=b"", rank=0, ranks=1, chunk_tokens=CHUNK)
    return chunk_keys(tokens, **words)


def test_chunks_of_the_answer_have_the_names_that_the_next_prompt_has():
    chat = Chat(make(), 100)
    (of_prompt,) = chat.step(100)
    (first, second) = chat.generate(100)
    assert (of_prompt.first_chunk, first.first_chunk, second.first_chunk) == (0, 1, 2)
    assert of_prompt.keys[0] + first.keys[0] + second.keys[0] == names(chat.known[:192])
    assert first.pages == tuple(range(104, 108)) and second.pages == tuple(range(108, 112))
    assert not chat.finish(), "there is nothing left"


def test_names_are_made_when_a_chunk_is_complete_and_not_once_a_step(monkeypatch):
    made = []

    def counted(tokens, **words):
        made.append(len(tokens))
        return chunk_keys(tokens, **words)

    monkeypatch.setattr("kvlane.engine.prompts.chunk_keys", counted)
    chat = Chat(make(), 100)
    chat.step(100)
    chat.generate(200)
    assert made == [100, 128, 192, 256]


@pytest.mark.parametrize(("answer", "saved"), [(27, 0), (28, 0), (29, 1)])
def test_an_answer_that_ends_with_a_chunk(answer, saved):
    """Of the last token nothing is computed: with it the chunk is not whole."""
    chat = Chat(make(), 100)
    chat.step(100)
    assert not chat.generate(answer - 1)
    chat.sampled()
    saves = chat.finish()
    assert len(saves) == saved and chat.pool.held == list(range(100, 108 if saved else 104))
    for save in saves:
        assert save.keys[0] == names(chat.known[:128])[32:] and save.pages == tuple(range(104, 108))
        chat.scheduler.heard(Report(saved=Counter({save.job: 1})))
        assert chat.pool.held == [100, 101, 102, 103], "its pages come back after the request is gone"


def test_steps_that_run_ahead_save_nothing_of_which_the_tokens_are_not_known():
    chat = Chat(make(), 120)
    chat.step(120)
    for _ in range(8):
        assert not chat.step(1), "computed up to the chunk's end, and none of it known"
    chat.sampled(*range(500, 508))
    assert not chat.step(1), "the last of the chunk is the last that is known"
    chat.sampled(508)
    (save,) = chat.step(1)
    assert save.keys[0] == names(chat.known[:128])[32:]


def test_guesses_that_were_rejected_are_never_named():
    chat = Chat(make(), 120)
    chat.step(120)
    chat.sampled(500)
    assert not chat.step(1 + 9), "one token and nine guesses reach past the end of the chunk"
    chat.computed -= 7  # Two were right, seven were not.
    chat.sampled(501, 502, 503)
    assert not chat.step(1 + 9)
    chat.computed -= 4
    chat.sampled(504, 505, 506, 507, 508, 509)
    (save,) = chat.step(1 + 9)
    assert save.keys[0] == names(list(range(120)) + list(range(500, 508)))[32:] and save.pages == tuple(range(104, 108))


def test_an_answer_that_is_stopped_within_what_was_guessed_right():
    chat = Chat(make(), 120)
    chat.step(120)
    chat.sampled(500)
    chat.step(1 + 20)
    chat.sampled(*range(501, 506))
    assert not chat.finish(), "the engine says that 141 are computed, and five are the answer's"


def test_a_preempted_answer_is_loaded_and_what_comes_behind_it_is_saved_once():
    chat = Chat(make(), 100)
    first = chat.step(100) + chat.generate(40)
    assert [save.first_chunk for save in first] == [0, 1]
    chat.preempt()
    chat.sampled()
    total = len(chat.known)
    assert chat.scheduler.matched("a", 0, total, 1) is None
    asked = chat.session.posted[max(chat.session.posted)]
    assert asked[1] == names(chat.known[:128]), "of the answer, too"
    chat.session.complete(max(chat.session.posted), 2)
    assert chat.scheduler.matched("a", 0, total, 1) == 128
    chat.scheduler.allocated("a", [list(range(200, 209))], 0, 128)
    assert not chat.finish(), "what waits for its load has nothing to save"


def test_a_preempted_answer_that_is_recomputed_saves_from_its_new_pages():
    chat = Chat(make(), 100)
    chat.step(100)
    chat.generate(40)
    chat.preempt()
    total = len(chat.known)
    assert chat.scheduler.matched("a", 0, total, 1) is None
    chat.session.complete(max(chat.session.posted), 2)
    chat.scheduler.matched("a", 0, total, 1)
    assert not chat.step(total), "all that is whole is there"
    (save,) = chat.generate(60)
    assert save.first_chunk == 2 and save.pages == tuple(chat.pages[8:12])


def test_a_request_that_ends_while_it_is_preempted_saves_nothing():
    chat = Chat(make(), 100)
    chat.step(100)
    chat.generate(28)
    chat.preempt()
    assert not chat.finish()
    again = Chat(make(), 100)
    again.step(100)
    again.generate(29)
    again.scheduler.matched("a", 0, 129, 1)
    again.scheduler.finished("a", (list(range(9)),), 128)
    assert not again.scheduler.orders().saves, "no step has run in these pages"


def test_an_aborted_answer_keeps_what_was_whole():
    chat = Chat(make(), 100)
    chat.step(100)
    chat.generate(27)
    chat.sampled()
    chat.step(1)
    chat.sampled()
    (save,) = chat.finish()
    assert save.first_chunk == 1 and len(save.keys[0]) == 32


def test_nothing_of_an_answer_is_saved_after_a_reset():
    chat = Chat(make(), 100)
    chat.step(100)
    chat.generate(20)
    assert chat.scheduler.reset()
    assert not chat.generate(50) and not chat.finish(), "its KV is of before"


def test_an_answer_to_a_short_prompt_is_saved():
    chat = Chat(make(), 20)
    assert not chat.session.posted, "there is nothing to ask for"
    chat.step(20)
    (save,) = chat.generate(60)
    assert save.keys[0] == names(chat.known[:64])
    gone = make()
    gone[1].gone = True
    gone[0].link.lose(gone[1], Exception())
    away = Chat(gone, 20)
    away.step(20)
    assert not away.generate(60)


def test_what_another_request_answered_alike_is_saved_once():
    made = make()
    assert [len(chat.step(100) + chat.generate(40)) for chat in (Chat(made, 100), Chat(made, 100, name="b"))] == [2, 0]


def test_without_the_option_only_prompts_are_saved():
    chat = Chat(make(save_answers=False), 100)
    assert [save.first_chunk for save in chat.step(100)] == [0]
    assert not chat.generate(100) and not chat.finish()
    short = Chat(make(save_answers=False), 20)
    short.step(20)
    assert not short.generate(60)


def test_states_of_an_answer_are_saved_where_the_engine_says():
    made = make_hybrid(FULL_0, STATE_1)
    chat = Chat(made, 100, found=1)
    chat.step(100, groups=2)
    saves = []
    for at in range(101, 130):
        chat.sampled()
        if at == 128:
            chat.scheduler.bounded("a", 1, 7, 128)
            chat.scheduler.bounded("a", 1, 9, 192)
        assert chat.scheduler.saving("a", at) == (at == 129), "tables are asked for when a chunk is whole"
        saves += chat.step(1, groups=2)
    assert [(save.section, save.first_chunk) for save in saves] == [(1, 1), (0, 1)]
    assert [save.pages for save in saves] == [(7,), (104, 105, 106, 107)]


def test_what_the_connector_hands_over_grows_with_the_request():
    scheduler, session, _ = make()
    half = SimpleNamespace(_scheduler=scheduler, _adapted={}, _told=None)
    asked = request(prompt_token_ids=list(range(100)), all_token_ids=list(range(100)), num_computed_tokens=128)
    connector.KvlaneConnector._arrived(half, asked)
    session.complete(1, 1)
    scheduler.matched("r", 0, 100, 0)
    scheduler.scheduled("r", [list(range(9))], True, 100)
    asked.all_token_ids.extend(range(500, 529))
    connector.KvlaneConnector.request_finished_all_groups(half, asked, (list(range(8)),))
    (save,) = scheduler.orders().saves
    assert save.keys[0] == names(asked.all_token_ids[:128])[32:]
    grown = FakeSession()
    half._scheduler = SimpleNamespace(arrived=lambda *words: setattr(grown, "known", words[-1]), chunk=CHUNK)
    connector.KvlaneConnector._arrived(half, request(all_token_ids=[1], resumable=True))
    assert grown.known == (), "a session that takes tokens back is left alone"
