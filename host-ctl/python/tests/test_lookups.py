"""Look-ups: in order, few at a time, and a silent card is waited for once."""

from __future__ import annotations

import kvlane
from fakes import FakeSession, linked
from kvlane.engine.faults import Faults
from kvlane.engine.lookups import WINDOW, Lookups, Question
from kvlane.engine.options import Options


def make(**options):
    session, answers = FakeSession(), {}
    lookups = Lookups(
        Options(**options), linked(session), lambda request, chunks, why, each: answers.update({request: (chunks, why)}), Faults()
    )
    return lookups, session, answers


def keys(number, chunks=2):
    return (Question(number.to_bytes(2, "big") * 16 * chunks),)


def test_two_thousand_at_once_wait_here_and_are_answered_in_order():
    lookups, session, answers = make()
    for request in range(2000):
        lookups.ask(str(request), keys(request))
    answered = 0
    while len(answers) < 2000:
        assert len(session.posted) - answered <= WINDOW < session.full_at
        answered += 1
        assert session.posted[answered][1] == keys(answered - 1)[0].keys, "in order"
        session.complete(answered, 1)
        lookups.pump()
    assert set(answers.values()) == {(1, "")} and not lookups.waiting


def test_a_deadline_runs_from_when_the_card_has_it(clock):
    lookups, session, answers = make(lookup_deadline_ms=500.0)
    for request in range(WINDOW + 1):
        lookups.ask(str(request), keys(request))
    clock.now += 0.4
    session.complete(1, 2)
    lookups.pump()
    for number in range(2, WINDOW + 1):
        session.complete(number, 2)
    clock.now += 0.4
    lookups.pump()
    assert str(WINDOW) not in answers and not lookups.silent, "0.8 s after it was asked, 0.4 s after it was posted"
    session.complete(WINDOW + 1, 2)
    lookups.pump()
    assert answers[str(WINDOW)] == (2, "")


def test_a_silent_card_is_paid_for_once(clock, log):
    lookups, session, answers = make(lookup_deadline_ms=500.0)
    for request in range(WINDOW + 10):
        lookups.ask(str(request), keys(request))
    clock.now += 0.6
    lookups.pump()
    assert len(answers) == WINDOW + 10 and lookups.silent
    assert answers["0"] == (None, "lookup_timeouts") and answers[str(WINDOW + 9)] == (None, "silent")
    assert len(session.cancelled) == WINDOW
    for _ in range(50):
        clock.now += 10.0
        lookups.pump()
    assert len(session.posted) == WINDOW + 1, "one tries, and nobody waits for it"
    for number in range(1, WINDOW + 1):
        session.complete(number, 0, "cancelled")
    session.complete(WINDOW + 1, 1)
    lookups.pump()
    assert not lookups.silent
    lookups.ask("again", keys(7))
    session.complete(WINDOW + 2, 2)
    lookups.pump()
    assert answers["again"] == (2, "")
    assert len(log()) == 2 and "until the card answers again" in log()[0] and "over: once in 500.0 s" in log()[1]


def test_a_card_that_answers_late_stays_silent(clock):
    lookups, session, _ = make(lookup_deadline_ms=500.0)
    lookups.ask("a", keys(1))
    clock.now += 0.6
    lookups.pump()
    session.complete(1, 2, seconds=0.7)
    lookups.pump()
    assert lookups.silent, "who asked now would wait as long"
    session.complete(2, 1, seconds=0.7)
    lookups.pump()
    assert lookups.silent and len(session.posted) == 2
    clock.now += 1.1
    lookups.pump()
    session.complete(3, 1)
    lookups.pump()
    assert not lookups.silent


def test_one_slow_lookup_silences_nobody(clock):
    lookups, session, answers = make(lookup_deadline_ms=500.0)
    for request in range(3):
        lookups.ask(str(request), keys(request))
    session.complete(3, 2)
    clock.now += 0.6
    lookups.pump()
    assert answers["0"] == (None, "lookup_timeouts") and not lookups.silent
    assert answers["1"] == (None, "lookup_timeouts") and answers["2"] == (2, "") and session.cancelled == [1, 2]


def test_a_card_that_keeps_what_nobody_waits_for_blocks_nobody(clock):
    lookups, session, answers = make(lookup_deadline_ms=500.0)
    for request in range(WINDOW):
        lookups.ask(str(request), keys(request))
        lookups.drop(str(request))
    lookups.ask("a", keys(1))
    assert answers["a"] == (None, "silent"), "there is no room for it, and nobody knows for how long"
    lookups.pump()
    session.complete(WINDOW + 1, 1)
    lookups.pump()
    assert lookups.silent
    for number in range(1, WINDOW + 1):
        session.complete(number, 0, "cancelled")
    clock.now += 2.0
    lookups.pump()
    session.complete(WINDOW + 2, 1)
    lookups.pump()
    assert not lookups.silent


def test_a_new_session_ends_what_the_old_one_was_asked():
    lookups, session, answers = make()
    lookups.ask("a", keys(1))
    session.gone = True
    lookups.pump()
    assert answers == {"a": (None, "lookup_errors")} and not lookups.waiting


def test_nobody_hears_of_a_request_that_is_gone():
    lookups, session, answers = make()
    lookups.ask("a", keys(1))
    lookups.drop("a")
    assert session.cancelled == [1]
    session.complete(1, 0, "cancelled")
    lookups.pump()
    assert not answers and kvlane.KEY_BYTES == 32
