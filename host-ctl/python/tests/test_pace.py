"""Whether a load is worth it, and how many are with the card at once."""

from __future__ import annotations

import pytest
from kvlane.engine.options import Options
from kvlane.engine.pace import Pace

TOKENS = 1000


def make(prefill=5000.0, **options):
    return Pace(Options(prefill_tokens_s=prefill, **options))


def loads(pace, clock, count, seconds):
    """Loads of a second's fraction each, one after the other."""
    for job in range(count):
        pace.begun(1000 + job, TOKENS, clock.now)
        clock.now += seconds
        pace.ended(1000 + job, TOKENS, seconds, clock.now)


def test_a_fast_store_is_loaded_from(clock):
    pace = make()
    for _ in range(100):
        assert pace.verdict(TOKENS, clock.now) == "load"
        loads(pace, clock, 1, 0.1)


@pytest.mark.parametrize("seconds", [0.25, 0.4, 3.0])
def test_a_slow_store_is_learned_and_prompts_do_not_wait_for_it(clock, seconds):
    pace = make()
    paid = 0
    for _ in range(100):
        if pace.verdict(TOKENS, clock.now) == "load":
            paid += 1
            loads(pace, clock, 1, seconds)
    assert paid <= 3 and pace.slow


def test_a_store_that_completes_nothing_is_slow_before_its_deadline(clock):
    pace = make()
    loads(pace, clock, 20, 0.01)
    for job in range(4):
        pace.begun(job, TOKENS, clock.now)
    clock.now += 0.5
    assert pace.verdict(TOKENS, clock.now) == "load", "all of them may be there in a moment"
    clock.now += 5.0
    assert pace.verdict(TOKENS, clock.now) == "slow"


def test_a_store_that_is_fast_again_is_used_again(clock):
    pace = make(probe_s=5.0, probe_max_s=60.0)
    loads(pace, clock, 4, 1.0)
    assert pace.verdict(TOKENS, clock.now) == "slow"
    tries = []
    while len(tries) < 6:
        clock.now += 1.0
        if pace.verdict(TOKENS, clock.now) == "load":
            tries.append(clock.now)
            assert pace.begun(1, TOKENS, clock.now) == pytest.approx(0.2), "no longer than recomputation"
            assert pace.verdict(TOKENS, clock.now) == "slow", "one at a time"
            pace.ended(1, 0, 0.2, clock.now)
    apart = [after - before for before, after in zip(tries, tries[1:])]
    assert apart == sorted(apart) and apart[0] == 10.0 and apart[-1] == 60.0
    clock.now += 60.0
    assert pace.verdict(TOKENS, clock.now) == "load"
    loads(pace, clock, 1, 0.01)
    assert not pace.slow
    for _ in range(20):
        assert pace.verdict(TOKENS, clock.now) == "load"
        loads(pace, clock, 1, 0.01)


def test_a_try_that_nobody_ended_is_not_the_last(clock):
    pace = make(probe_s=5.0)
    loads(pace, clock, 4, 1.0)
    pace.verdict(TOKENS, clock.now)
    clock.now += 5.0
    assert pace.verdict(TOKENS, clock.now) == "load"
    pace.begun(1, TOKENS, clock.now)
    pace.forget(1, clock.now)
    clock.now += 10.0
    assert pace.verdict(TOKENS, clock.now) == "load"


def test_what_the_card_cannot_restore_soon_waits_on_our_side(clock):
    pace = make(loads_max=4)
    for job in range(4):
        assert pace.verdict(TOKENS, clock.now) == "load"
        pace.begun(job, TOKENS, clock.now)
    assert pace.verdict(TOKENS, clock.now) == "wait"
    pace.ended(0, TOKENS, 0.1, clock.now)
    # 10000 tokens a second: three loads are with the card for 0.3 s, and a fourth is welcome.
    assert pace.verdict(TOKENS, clock.now) == "load"
    assert pace.verdict(4 * TOKENS, clock.now) == "wait", "half a second ahead is enough"


def test_a_short_prompt_does_not_wait_behind_a_very_long_one(clock):
    pace = make()
    loads(pace, clock, 4, 0.01)
    pace.begun(1, 500 * TOKENS, clock.now)
    assert pace.verdict(TOKENS, clock.now) == "queue"


def test_prefill_is_measured_and_a_step_does_not_pay_for_the_one_before_it(clock):
    pace = Pace(Options())
    assert pace.prefill is None and pace.verdict(TOKENS, clock.now) == "load"
    began = clock.now
    pace.computed(500, began, began + 0.1)
    pace.computed(500, began, began + 0.2)
    assert pace.prefill == pytest.approx(5000.0)


def test_steps_that_compute_little_say_how_fast_the_engine_is_at_least(clock):
    pace = Pace(Options())
    assert pace.listens(20) and not pace.listens(1)
    pace.computed(20, clock.now, clock.now + 0.01)
    assert pace.prefill == pytest.approx(2000.0)
    loads(pace, clock, 3, 1.0)
    assert pace.verdict(TOKENS, clock.now) == "slow", "an engine that has computed no prompt learns it all the same"
    pace.computed(1000, clock.now, clock.now + 0.2)
    assert pace.prefill == pytest.approx(5000.0) and not pace.listens(20)


def test_a_missed_deadline_is_slow_before_the_engine_has_computed_anything(clock):
    pace = Pace(Options(probe_s=5.0))
    pace.begun(1, TOKENS, clock.now)
    clock.now += 2.1
    pace.ended(1, 500, 2.1, clock.now)
    pace.late(clock.now)
    assert pace.verdict(TOKENS, clock.now) == "slow"
    clock.now += 5.0
    assert pace.verdict(TOKENS, clock.now) == "load"
    loads(pace, clock, 1, 0.1)
    assert not pace.slow
