"""An engine that is told to forget: nothing of before is served or saved under a name that could be asked for, and the memory
goes only when nobody touches it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

from fakes import linked
from kvlane.engine.words import Report
from standins import connector_module
from test_scheduler import arrive, make
from test_worker import load, save
from test_worker import make as make_worker

connector = connector_module()


def names(session):
    return [keys for what, keys, _, _ in session.posted.values() if what == "lookup"]


def test_after_a_reset_the_same_prompt_has_other_names_each_time():
    scheduler, session, _ = make()
    asked = []
    for request in "abc":
        arrive(scheduler, session, 200, 3, request)
        asked.append(names(session)[-1])
        scheduler.finished(request)
        assert scheduler.reset()
    assert len(set(asked)) == 3


def test_a_waiting_prompt_is_asked_for_again_and_what_was_found_does_not_count():
    scheduler, session, _ = make()
    arrive(scheduler, session, 200, 3)
    assert scheduler.matched("a", 0, 200, 0) == 192
    scheduler.reset()
    assert scheduler.matched("a", 0, 200, 0) is None, "asked under the new name"
    session.complete(2, 0)
    assert scheduler.matched("a", 0, 200, 0) == 0
    scheduler.scheduled("a", [list(range(13))], True, 200)
    (saved,) = scheduler.orders().saves
    assert saved.keys[0] == names(session)[1]


def test_an_answer_that_comes_after_the_reset_is_not_taken():
    scheduler, session, _ = make()
    scheduler.arrived("a", list(range(200)))
    scheduler.reset()
    session.complete(1, 3)
    assert scheduler.matched("a", 0, 200, 0) is None


def test_a_running_prompt_is_not_saved_after_a_reset_until_it_is_computed_again():
    scheduler, session, _ = make()
    arrive(scheduler, session, 300, 0)
    scheduler.matched("a", 0, 300, 0)
    scheduler.scheduled("a", [list(range(10))], True, 150)
    (before,) = scheduler.orders().saves
    scheduler.reset()
    scheduler.scheduled("a", [list(range(10, 19))], False, 300)
    assert not scheduler.orders().saves, "one half of it is of before"
    assert scheduler.matched("a", 0, 300, 1) is None
    session.complete(2, 0)
    scheduler.matched("a", 0, 300, 1)
    scheduler.scheduled("a", [list(range(20, 39))], True, 300)
    (after,) = scheduler.orders().saves
    assert after.pages == tuple(range(20, 36)) and after.keys[0][:64] != before.keys[0][:64]


def test_a_save_on_its_way_keeps_its_name_and_its_pages():
    scheduler, session, pool = make()
    arrive(scheduler, session, 200, 0)
    scheduler.matched("a", 0, 200, 0)
    scheduler.scheduled("a", [list(range(13))], True, 200)
    (saved,) = scheduler.orders().saves
    assert scheduler.reset() and pool.held == list(range(12)) == scheduler.holds.pages
    assert saved.keys[0] == names(session)[0]
    scheduler.heard(Report(saved=Counter({saved.job: 1})))
    assert not pool.held


def test_a_reset_with_loads_on_their_way_says_that_it_is_not_done():
    scheduler, session, _ = make()
    arrive(scheduler, session, 200, 3)
    scheduler.allocated("a", [list(range(13))], 0, scheduler.matched("a", 0, 200, 0))
    assert not scheduler.reset()
    scheduler.received({"a"})
    assert scheduler.reset()


def test_a_prompt_whose_adapter_changed_is_not_saved():
    scheduler, session, _ = make()
    arrive(scheduler, session, 200, 0)
    scheduler.matched("a", 0, 200, 0)
    scheduler.unchanged = lambda request: False
    scheduler.scheduled("a", [list(range(13))], True, 200)
    assert not scheduler.orders().saves


class Block:
    def __init__(self):
        self.ref_cnt = 0


class BlockPool:
    """As vLLM's: it forgets only while no block is in use."""

    def __init__(self, count):
        self.blocks = [Block() for _ in range(count)]
        self.resets = 0

    def touch(self, blocks):
        for block in blocks:
            block.ref_cnt += 1

    def free_blocks(self, blocks):
        for block in blocks:
            block.ref_cnt -= 1

    def reset_prefix_cache(self):
        if any(block.ref_cnt for block in self.blocks):
            return False
        self.resets += 1
        return True


def test_the_engine_can_forget_while_saves_hold_pages():
    scheduler, session, _ = make()
    pool = BlockPool(20)
    connector.KvlaneConnector.bind_gpu_block_pool(SimpleNamespace(_scheduler=scheduler), pool)
    arrive(scheduler, session, 200, 0)
    scheduler.matched("a", 0, 200, 0)
    scheduler.scheduled("a", [list(range(13))], True, 200)
    held = [block.ref_cnt for block in pool.blocks]
    assert sum(held) == 12 and pool.reset_prefix_cache() and pool.resets == 1
    assert [block.ref_cnt for block in pool.blocks] == held, "nobody else gets them before the card has read them"
    pool.touch(pool.blocks[15:16])
    assert not pool.reset_prefix_cache(), "a running request still stands in the way"


# Sleep


def test_a_worker_lets_go_when_the_card_has_and_ends_what_was_on_its_way():
    worker, session = make_worker()
    worker.load(load())
    worker.save(save())
    assert worker.let_go() and worker.link.closed and worker.link.session is None
    report = worker.take().report
    assert report.saved == {9: 1} and report.unsaved == {9: 0} and report.short == {1: 0}


def test_a_worker_whose_card_does_not_let_go_keeps_the_memory():
    worker, session = make_worker()
    session.lets_go = False
    worker.save(save())
    assert not worker.let_go()
    half = SimpleNamespace(_worker=worker, _fenced=[])
    try:
        connector.KvlaneConnector.unregister_kv_caches(half)
    except RuntimeError as error:
        assert "has not let go" in str(error)
    else:
        raise AssertionError("the memory may not go")


def test_what_was_to_be_saved_from_memory_that_goes_is_dropped_and_a_new_link_takes_over():
    worker, session = make_worker()
    half = SimpleNamespace(_worker=worker, _fenced=[(None, [save(), save(10)])])
    connector.KvlaneConnector.unregister_kv_caches(half)
    connector.KvlaneConnector.unregister_kv_caches(half)
    assert worker.take().report.saved == {9: 1, 10: 1} and not half._fenced
    new = type(session)()
    half._registered = lambda rank: linked(new)
    connector.KvlaneConnector.restore_kv_caches(half)
    connector.KvlaneConnector.restore_kv_caches(half)
    worker.save(save(11))
    assert not session.posted and len(new.posted) == 1
