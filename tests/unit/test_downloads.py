from __future__ import annotations

import threading
from pathlib import Path

import pytest

from imgstore.downloads import CancelledError, Spool, Spools

PIECES = [bytes([number]) * (1 << 20) for number in range(12)]


class Writer(threading.Thread):
    """Writes all pieces, and keeps what goes wrong."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for piece in PIECES:
                self.spool.write(piece)
            self.spool.finish()
        except BaseException as error:
            self.error = error

    def seems_to_wait(self) -> bool:
        """Whether it has not ended after a while."""
        self.join(0.2)
        return self.is_alive()


def test_what_comes_before_its_turn_is_put_into_a_file(tmp_path: Path) -> None:
    writer = Writer(Spools(tmp_path).open("layer"))
    writer.start()
    writer.join()  # nobody reads

    assert list(writer.spool) == PIECES
    assert writer.error is None
    writer.spool.close()


def test_a_source_that_can_be_read_at_any_time_waits_for_its_turn(tmp_path: Path) -> None:
    writer = Writer(Spools(tmp_path / "nowhere to put a file", spill=False).open("layer"))
    writer.start()

    assert writer.seems_to_wait()
    assert list(writer.spool) == PIECES
    writer.join()
    assert writer.error is None
    writer.spool.close()


def test_a_source_that_waits_is_told_when_nobody_will_read(tmp_path: Path) -> None:
    dropped, cancelled = (Writer(Spools(tmp_path, spill=False).open("layer")) for _ in range(2))
    for writer in (dropped, cancelled):
        writer.start()
        assert writer.seems_to_wait()

    dropped.spool.stop_reading()
    cancelled.spool.close()

    dropped.join()
    cancelled.join()
    assert dropped.error is None
    assert isinstance(cancelled.error, CancelledError)
    with pytest.raises(CancelledError):
        list(cancelled.spool)
