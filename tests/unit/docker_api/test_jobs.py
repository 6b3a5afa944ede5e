"""Jobs: shared by who wants the same, heard by all, stopped with the last."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from imgstore.docker_api import jobs as module
from imgstore.docker_api.jobs import Jobs, Listener, Teller
from imgstore.errors import NotFoundError
from imgstore.stop import Stop, StoppedError

TIME_MAX = 20.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, TIME_MAX))


async def hear(listener: Listener) -> list[Any]:
    """All that a listener gets."""
    heard: list[Any] = []
    while messages := await listener.take():
        assert messages.endswith(b"\r\n")
        heard += [json.loads(line) for line in messages.splitlines()]
    return heard


def status(text: str) -> dict[str, str]:
    return {"status": text}


def layer(state: str, name: str = "a") -> dict[str, Any]:
    return {"status": state, "progressDetail": {}, "id": name}


def progress(current: int, name: str = "a") -> dict[str, Any]:
    return {"status": "Downloading", "progressDetail": {"current": current, "total": 9}, "id": name}


def test_a_job_tells_what_it_does_and_ends() -> None:
    def act(teller: Teller, stop: Stop) -> None:
        teller.status("one", id="x")
        teller.send({"aux": {"é": "\udcff"}})

    async def main() -> None:
        jobs = Jobs()
        job, listener = jobs.join("key", act)
        assert await hear(listener) == [{"status": "one", "id": "x"}, {"aux": {"é": "\udcff"}}]
        assert job.error is None
        jobs.leave("key", job, listener)

    run(main())


def test_an_error_comes_after_the_messages() -> None:
    def act(teller: Teller, stop: Stop) -> None:
        teller.status("one")
        raise NotFoundError("gone")

    async def main() -> None:
        job, listener = Jobs().join("key", act)
        assert await hear(listener) == [status("one")]
        assert str(job.error) == "gone"

    run(main())


def test_who_wants_the_same_shares_the_job_and_late_comers_get_the_present_state() -> None:
    told, go_on = threading.Event(), threading.Event()
    runs = []

    def act(teller: Teller, stop: Stop) -> None:
        runs.append(1)
        teller.status("begin")
        for current in range(5):
            teller.layer_progress("a", "Downloading", current, 9)
        teller.layer("b", "Waiting")
        told.set()
        go_on.wait(TIME_MAX)
        teller.layer("a", "Pull complete")

    async def main() -> None:
        jobs = Jobs()
        job, first = jobs.join("key", act)
        await asyncio.to_thread(told.wait, TIME_MAX)
        await asyncio.sleep(0)  # what was told is under way to the loop before this
        late_job, late = jobs.join("key", act)
        assert late_job is job
        go_on.set()
        assert await hear(late) == [status("begin"), progress(4), layer("Waiting", "b"), layer("Pull complete")]
        heard = await hear(first)
        assert heard[0] == status("begin")
        assert heard[-2:] == [layer("Waiting", "b"), layer("Pull complete")]
        assert runs == [1]
        other_job, other = jobs.join("key", act)  # the first is over
        assert other_job is not job
        await hear(other)
        assert runs == [1, 1]

    run(main())


def test_the_last_one_who_leaves_stops_the_job() -> None:
    ended = threading.Event()

    def act(teller: Teller, stop: Stop) -> None:
        try:
            teller.status("begin")
            stop.wait(TIME_MAX)
        except StoppedError:
            ended.set()
            raise

    async def main() -> None:
        jobs = Jobs()
        job, one = jobs.join("key", act)
        _, two = jobs.join("key", act)
        assert await one.take()
        jobs.leave("key", job, one)
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        jobs.leave("key", job, two)
        again, three = jobs.join("key", lambda teller, stop: teller.status("again"))
        assert again is not job
        assert await hear(three) == [status("again")]
        assert await asyncio.to_thread(ended.wait, TIME_MAX)
        jobs.leave("key", again, three)
        await jobs.end()
        assert job.task.done()

    run(main())


def test_a_job_without_room_says_so_and_may_never_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOBS_MAX", 1)
    release = threading.Event()
    unused = []

    async def main() -> None:
        jobs = Jobs()
        _, listener = jobs.join(1, lambda teller, stop: (teller.status("begin"), release.wait(TIME_MAX))[0])
        assert await listener.take()
        waiting, other = jobs.join(2, lambda teller, stop: teller.status("never"), lambda: unused.append(2))
        assert json.loads(await other.take()) == status("Waiting")
        jobs.leave(2, waiting, other)
        _, last = jobs.join(3, lambda teller, stop: teller.status("at last"), lambda: unused.append(3))
        release.set()
        assert await hear(last) == [status("Waiting"), status("at last")]
        at_once, nobody = jobs.join(4, lambda teller, stop: None, lambda: unused.append(4))
        jobs.leave(4, at_once, nobody)  # before it could take a step
        await jobs.end()
        assert unused == [2, 4]

    run(main())


def test_a_slow_client_gets_every_state_but_the_newest_progress_only() -> None:
    async def main() -> None:
        listener = Listener()
        listener.put("a", False, b"Pulling\r\n")
        for number in range(1000):
            listener.put("a", True, b"%d\r\n" % number)
            listener.put("b", True, b"b%d\r\n" % number)
        assert await listener.take() == b"Pulling\r\n999\r\nb999\r\n"
        listener.put("a", True, b"1000\r\n")
        listener.put("a", False, b"Complete\r\n")
        listener.put("a", True, b"1\r\n")
        listener.end()
        assert await listener.take() == b"Complete\r\n1\r\n"
        assert await listener.take() == b""

    run(main())


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAG_MAX", 10)

    async def main() -> None:
        listener = Listener()
        for number in range(11):
            assert not listener.overrun
            listener.put(None, False, b"%d\r\n" % number)
        assert listener.overrun
        assert await listener.take() == b""

    run(main())


def test_what_late_comers_get_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRESENT_MAX", 3)
    told, go_on = threading.Event(), threading.Event()

    def act(teller: Teller, stop: Stop) -> None:
        for number in range(10):
            teller.status(str(number))
        told.set()
        go_on.wait(TIME_MAX)

    async def main() -> None:
        jobs = Jobs()
        _, first = jobs.join("key", act)
        await asyncio.to_thread(told.wait, TIME_MAX)
        await asyncio.sleep(0)
        _, late = jobs.join("key", act)
        go_on.set()
        assert await hear(late) == [status("7"), status("8"), status("9")]
        assert len(await hear(first)) == 10

    run(main())
