"""Seconds by part."""

from types import SimpleNamespace

import pytest

from rdcd.training import clock as module
from rdcd.training.clock import Clock, untimed


def test_parts_add_up_whatever_happens_inside(monkeypatch):
    times = iter([0.0, 2.0, 10.0, 11.0, 20.0, 23.5])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    clock = Clock()
    with clock.part("student"):
        pass
    with pytest.raises(ZeroDivisionError), clock.part("losses"):
        1 / 0
    start = clock.now()
    clock.since(start, "student")
    clock.add("data", 0.25)
    clock.add("data", 0.5)
    assert clock.seconds() == {"student": 5.5, "losses": 1.0, "data": 0.75}


def test_untimed_measures_nothing():
    with untimed("anything") as nothing:
        assert nothing is None
