"""An engine that has nothing to do, and what it has to be woken for."""

from __future__ import annotations

import queue
import threading

from kvlane.engine.idle import Alarm, Idle
from kvlane.vllm_core import Core


def test_an_idle_engine_looks_ever_more_rarely():
    idle, now, pauses = Idle(0.002, 16.0), 100.0, []
    idle.active(now)
    for _ in range(20):
        pauses.append(idle.left(now))
        now += idle.left(now)
        idle.looked(now)
    assert pauses == sorted(pauses) and pauses[-1] == 16.0
    idle.active(now)
    assert idle.left(now) < 0.01


def test_an_alarm_rings_once_and_at_the_earliest_time():
    rung = threading.Semaphore(0)
    alarm = Alarm(rung.release)
    alarm.set(3600.0)
    for _ in range(10):
        alarm.set(0.01)
    assert rung.acquire(timeout=10.0) and not rung.acquire(timeout=0.2)
    alarm.set(0.0)
    assert rung.acquire(timeout=10.0)
    alarm.set(3600.0)
    alarm.off()


def test_who_is_woken_can_set_it_again():
    rung = threading.Semaphore(0)

    def wake():
        rung.release()
        if len(rings) < 5:
            rings.append(alarm.set(0.0))

    rings, alarm = [], Alarm(wake)
    alarm.set(0.0)
    for _ in range(6):
        assert rung.acquire(timeout=10.0)


class EngineCore:
    """As vLLM's: its connector is made deep below its own making."""

    def __init__(self):
        self.input_queue, self.shutdown_state = queue.Queue(), 0
        self._make()

    def _make(self):
        self.core = Core()


def test_the_engine_core_is_found_among_the_callers_or_done_without():
    engine = EngineCore()
    assert engine.core.found and not engine.core.stopping
    engine.shutdown_state = 1
    assert engine.core.stopping
    alone = Core()
    assert not alone.found and not alone.stopping
