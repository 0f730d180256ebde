"""What is said of faults: their begin and their end."""

from __future__ import annotations

from kvlane.engine.faults import QUIET, Faults


def test_a_fault_is_said_when_it_begins_and_when_it_ends(clock, log):
    faults = Faults()
    for _ in range(39):
        faults.seen("saves", "no_space: nothing new is saved", lasting=True)
        clock.now += 0.5
    faults.sweep()
    clock.now += 10 * QUIET
    faults.sweep()
    assert log() == ["kvlane: saves: no_space: nothing new is saved"], "it lasts"
    faults.over("saves")
    faults.over("saves")
    assert log()[1:] == ["kvlane: saves: over: 39 times in 319.5 s"]


def test_what_nobody_ends_is_over_when_it_is_quiet(clock, log):
    faults = Faults()
    for _ in range(3):
        faults.seen("loads corrupt", "computed")
        clock.now += 1.0
    faults.sweep()
    assert len(log()) == 1
    clock.now += QUIET
    faults.sweep()
    assert log()[1] == "kvlane: loads corrupt: over: 3 times in 2.0 s"
    faults.seen("loads corrupt", "computed")
    assert len(log()) == 3, "the next one is another one"
