"""Stop: what it interrupts, and when."""

from __future__ import annotations

import threading
import time

import pytest

from imgstore.stop import Stop, StoppedError


def test_nothing_ends_before_it_is_set() -> None:
    stop = Stop()
    stop.check()
    stop.wait(0)
    assert not stop.is_set


def test_once_set_all_ends() -> None:
    stop = Stop()
    stop.set()
    stop.set()
    assert stop.is_set
    with pytest.raises(StoppedError):
        stop.check()
    with pytest.raises(StoppedError):
        stop.wait(0)


def test_a_wait_ends_when_it_is_set() -> None:
    stop = Stop()
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(StoppedError):
        stop.wait(30)
    assert time.monotonic() - begin < 10
    timer.join()


def test_interrupts_are_called_while_their_block_runs() -> None:
    stop = Stop()
    called = []
    with stop.interrupting(lambda: called.append("left")):
        pass
    with stop.interrupting(lambda: called.append("outer")), stop.interrupting(lambda: called.append("inner")):
        stop.set()
        assert called == ["outer", "inner"]
        stop.set()
    assert called == ["outer", "inner"]


def test_an_interrupt_that_comes_late_is_called_at_once() -> None:
    stop = Stop()
    stop.set()
    called = []
    with stop.interrupting(lambda: called.append("late")):
        assert called == ["late"]
