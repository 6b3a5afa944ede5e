from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from imgstore.layers.read_ahead import read_ahead


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) - before == set()


class Source:
    """Counts; says what happened to it."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.left = count
        self.made = 0
        self.error = error
        self.closed_in: str | None = None
        self.full = threading.Event()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.made == self.left:
            if self.error:
                raise self.error
            raise StopIteration
        self.made += 1
        return self.made - 1

    def close(self) -> None:
        self.closed_in = threading.current_thread().name


@pytest.mark.parametrize("depth", [1, 4])
def test_yields_everything_in_order(depth: int) -> None:
    source = Source(1000)
    assert list(read_ahead(source, depth, name="inflate")) == list(range(1000))
    assert source.closed_in == "inflate"


def test_works_in_a_thread() -> None:
    def names() -> Iterator[str]:
        yield threading.current_thread().name

    assert list(read_ahead(names(), 1, name="worker")) == ["worker"]


def test_errors_come_after_the_items() -> None:
    items = read_ahead(Source(3, OSError("cable out")), 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="cable out"):
        next(items)
    assert list(items) == []


@pytest.mark.parametrize("taken", [1, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_close_stops_the_thread(depth: int, taken: int) -> None:
    source = Source(10**9)
    items = read_ahead(source, depth)
    for _ in range(taken):
        next(items)
    items.close()
    assert source.closed_in is not None
    assert source.made <= taken + depth + 2


def test_is_bounded() -> None:
    made = threading.Semaphore(0)

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.release()
            yield number

    items = read_ahead(numbers(), 3)
    next(items)
    for _ in range(5):  # the one taken, three in the queue, one in hand
        assert made.acquire(timeout=10)
    assert not made.acquire(timeout=0.05)
    items.close()


def test_being_forgotten_stops_the_thread() -> None:
    source = Source(10**9)
    items = read_ahead(source, 2)
    next(items)
    del items
    gc.collect()
    assert source.closed_in is not None


def test_an_error_of_the_reader_stops_the_thread() -> None:
    source = Source(10**9)
    items = read_ahead(source, 2)
    with pytest.raises(KeyError):
        items.throw(KeyError("reader")) if next(items) == 0 else None
    assert source.closed_in is not None


def test_never_started() -> None:
    source = Source(10**9)
    read_ahead(source, 2).close()
    assert source.made == 0


def test_depth() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        read_ahead(Source(1), 0)
