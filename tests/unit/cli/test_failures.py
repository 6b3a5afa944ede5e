"""Every kind of error has its exit code and its words."""

from __future__ import annotations

import errno
import json
import signal

import click
import pytest

from imgstore import errors
from imgstore.cli import failures
from imgstore.cli.session import Session
from imgstore.cli.signals import Interrupted


class SpecificError(errors.NotFoundError):
    """An error that stands beside the code that raises it."""


@pytest.fixture
def session() -> Session:
    return Session({})


def test_every_kind_has_an_exit_code_of_its_own() -> None:
    assert set(errors.ImgstoreError.__subclasses__()) == set(failures.EXIT_CODES)
    codes = [*failures.EXIT_CODES.values(), failures.PROBLEMS_FOUND, failures.UNEXPECTED, 0]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.InvalidError("a: b"), 2, "imgstore: a: b\n"),
        (errors.PartialError("a: b"), 3, "imgstore: a: b\n"),
        (errors.NotFoundError("a: b", hint="look"), 4, "imgstore: a: b\nhint: look\n"),
        (SpecificError("a: b"), 4, "imgstore: a: b\n"),
        (errors.DeniedError("a: b"), 5, "imgstore: a: b\n"),
        (errors.UnavailableError("a: b", retry_after=3), 6, "imgstore: a: b\n"),
        (errors.CorruptError("a: b"), 7, "imgstore: a: b\n"),
        (errors.NoSpaceError("a: b"), 8, "imgstore: a: b\n"),
        (errors.InUseError("a: b"), 9, "imgstore: a: b\n"),
        (errors.AlreadyExistsError("a: b"), 10, "imgstore: a: b\n"),
        (errors.UnsupportedError("a: b"), 11, "imgstore: a: b\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/s/x"), 8, "imgstore: /s/x: No space left on device\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 8, "imgstore: write failed: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/s"), 5, "imgstore: /s: Permission denied\n"),
        (click.UsageError("Missing argument 'REF'."), 2, "imgstore: Missing argument 'REF'.\nhint: imgstore --help\n"),
        (KeyError("x"), 1, "imgstore: unexpected KeyError: 'x'\nhint: run with --debug to see where, and report it\n"),
        (errors.InvalidError("a\x1b[2J\nb"), 2, "imgstore: a\\x1b[2J\\nb\n"),
        (KeyboardInterrupt(), 130, "imgstore: interrupted: nothing was changed\nhint: run the same command again\n"),
        (Interrupted(signal.SIGTERM), 143, "imgstore: ended by SIGTERM: nothing was changed\nhint: run the same command again\n"),
    ],
)
def test_report(error: BaseException, code: int, words: str, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert code == failures.report(error, session)
    captured = capsys.readouterr()
    assert words == captured.err
    assert captured.out == ""


def test_report_in_json(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.json = True
    assert failures.report(errors.NotFoundError("No such image: a\n", hint="pull it"), session) == 4
    expected = {"error": {"code": "not-found", "message": "No such image: a\n", "hint": "pull it"}}
    assert expected == json.loads(capsys.readouterr().err)


def test_debug_shows_the_traceback_and_no_longer_asks_for_it(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.debug = True
    try:
        raise KeyError("x")
    except KeyError as error:
        assert failures.report(error, session) == 1
    words = capsys.readouterr().err
    assert "Traceback (most recent call last)" in words
    assert "--debug" not in words


class TestDoEach:
    ERRORS = {  # noqa: RUF012 - read only
        "missing": errors.NotFoundError("No such image: missing", hint="pull it"),
        "gone": SpecificError("No such image: gone"),
        "used": errors.InUseError("used: a container needs it"),
    }

    def act(self, reference: str) -> None:
        self.done = [*getattr(self, "done", []), reference]
        if reference in self.ERRORS:
            raise self.ERRORS[reference]

    def test_the_only_one_fails_as_it_fails(self) -> None:
        with pytest.raises(errors.NotFoundError) as caught:
            failures.do_each(["missing"], self.act)
        assert caught.value is self.ERRORS["missing"]

    def test_one_of_three_fails_and_the_others_are_done(self) -> None:
        with pytest.raises(errors.PartialError, match=r"^1 of 3 failed: No such image: missing$") as caught:
            failures.do_each(["a", "missing", "b"], self.act)
        assert caught.value.hint == "pull it"
        assert self.done == ["a", "missing", "b"]

    def test_all_fail_in_one_way(self) -> None:
        with pytest.raises(errors.NotFoundError, match=r"^2 of 2 failed: No such image: missing; No such image: gone$"):
            failures.do_each(["missing", "gone"], self.act)

    def test_all_fail_in_several_ways(self) -> None:
        with pytest.raises(errors.PartialError):
            failures.do_each(["missing", "used"], self.act)

    def test_all_go_well(self) -> None:
        failures.do_each(["a", "b"], self.act)
        assert self.done == ["a", "b"]
