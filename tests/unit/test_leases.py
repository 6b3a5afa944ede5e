from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imgstore.errors import NotFoundError, UnavailableError
from imgstore.leases import FileLeases, Leases, MemoryLeases, held


@pytest.fixture(params=[FileLeases, lambda path: MemoryLeases()], ids=["files", "memory"])
def leases(request: pytest.FixtureRequest, tmp_path: Path) -> Leases:
    make: Callable[[Path], Leases] = request.param
    return make(tmp_path / "leases")


def test_exclusive_and_shared(leases: Leases) -> None:
    first = leases.acquire("a", shared=True)
    second = leases.acquire("a", shared=True)
    assert first is not None and second is not None
    assert leases.acquire("a") is None
    first.release()
    assert leases.acquire("a") is None
    second.release()
    alone = leases.acquire("a")
    assert alone is not None
    assert leases.acquire("a", shared=True) is None


def test_notes(leases: Leases) -> None:
    assert leases.read_note("a") == {}
    lease = leases.acquire("a")
    assert lease is not None
    lease.note({"current": 1})
    assert leases.read_note("a") == {"current": 1}
    lease.release()
    assert leases.read_note("a") == {}


def test_sweep_ends_what_was_abandoned_and_nothing_else(leases: Leases) -> None:
    assert leases.sweep() == []
    living, given_up, released = leases.acquire("living"), leases.acquire("given-up"), leases.acquire("released")
    assert living is not None and given_up is not None and released is not None
    given_up.abandon()
    released.release()
    assert leases.sweep() == ["given-up"]
    assert leases.sweep() == []
    assert leases.acquire("living") is None
    assert leases.acquire("given-up") is not None


def test_an_error_abandons_unless_it_comes_before_any_change(leases: Leases) -> None:
    with pytest.raises(NotFoundError), held(leases, "a"):
        raise NotFoundError("No such image: a")
    assert leases.sweep() == []
    with pytest.raises(UnavailableError), held(leases, "a"):
        raise UnavailableError("a.json: cannot write it: Input/output error")
    assert leases.sweep() == ["a"]


def test_a_file_of_a_dead_process_is_swept(tmp_path: Path) -> None:
    (tmp_path / "names").touch()
    assert FileLeases(tmp_path).sweep() == ["names"]
    assert list(tmp_path.iterdir()) == []
