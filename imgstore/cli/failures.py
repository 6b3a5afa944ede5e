"""From an exception to a message on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

import click

from imgstore.cli import output
from imgstore.cli.session import Session
from imgstore.cli.signals import Interrupted
from imgstore.errors import (
    AlreadyExistsError,
    CorruptError,
    DeniedError,
    ImgstoreError,
    InUseError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    PartialError,
    UnavailableError,
    UnsupportedError,
)

EXIT_CODES: dict[type[ImgstoreError], int] = {
    InvalidError: 2,
    PartialError: 3,
    NotFoundError: 4,
    DeniedError: 5,
    UnavailableError: 6,
    CorruptError: 7,
    NoSpaceError: 8,
    InUseError: 9,
    AlreadyExistsError: 10,
    UnsupportedError: 11,
}
UNEXPECTED = 1
PROBLEMS_FOUND = 12

KINDS_OF_ERRNO: dict[int, type[ImgstoreError]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.EACCES: DeniedError,
    errno.EPERM: DeniedError,
    errno.EROFS: DeniedError,
}
"""What the operating system says that is the user's to solve wherever it comes up. Any other OSError that gets here is a bug."""


def report(error: BaseException, session: Session) -> int:
    """Says on standard error what went wrong, and returns the exit code.

    A closed pipe is no error worth a word: the reader has what it wanted.
    """
    if isinstance(error, BrokenPipeError):
        # Python flushes standard output once more when it ends; what is left must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if session.debug and not isinstance(error, click.ClickException):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return EXIT_CODES[InvalidError]
    code, name, message, hint = _explain(error, session)
    _print(session, name, message, hint)
    return code


def kind_of(error: ImgstoreError) -> type[ImgstoreError]:
    """Returns the kind that an error is of: one of the keys of EXIT_CODES, or ImgstoreError itself."""
    return next((kind for kind in EXIT_CODES if isinstance(error, kind)), ImgstoreError)


def do_each(references: Sequence[str], act: Callable[[str], object]) -> None:
    """Does ``act`` for every reference; the failure of one does not stop the others.

    Raises:
        ImgstoreError: the only reference failed, with its own error; all failed in one way, of that kind.
        PartialError: some failed, or all in several ways. The message has them all.
    """
    errors: list[ImgstoreError] = []
    for reference in references:
        try:
            act(reference)
        except ImgstoreError as error:
            if len(references) == 1:
                raise
            errors.append(error)
    if not errors:
        return
    kinds = {kind_of(error) for error in errors}
    kind = kinds.pop() if len(errors) == len(references) and len(kinds) == 1 else PartialError
    hint = next((error.hint for error in errors if error.hint), "")
    raise kind(f"{len(errors)} of {len(references)} failed: {'; '.join(map(str, errors))}", hint=hint) from errors[0]


def _explain(error: BaseException, session: Session) -> tuple[int, str, str, str]:
    """Returns exit code, stable name, message and hint."""
    match error:
        case ImgstoreError():
            return EXIT_CODES.get(kind_of(error), UNEXPECTED), error.code, str(error), error.hint
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "imgstore"
            # Of an option with choices that is missing, click makes a list of several lines.
            return EXIT_CODES[InvalidError], InvalidError.code, " ".join(error.format_message().split()), f"{path} --help"
        case KeyboardInterrupt():
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
            return 128 + number, "interrupted", f"{what}: {session.kept}", "run the same command again"
        case OSError() if error.errno in KINDS_OF_ERRNO:
            kind = KINDS_OF_ERRNO[error.errno]
            return EXIT_CODES[kind], kind.code, f"{error.filename or 'write failed'}: {error.strerror}", ""
    hint = "" if session.debug else "run with --debug to see where, and report it"
    return UNEXPECTED, "unexpected", f"unexpected {type(error).__name__}: {error}", hint


def _print(session: Session, code: str, message: str, hint: str) -> None:
    if session.json:
        output.print_json({"error": {"code": code, "message": message, "hint": hint}}, sys.stderr)
        return
    print(f"imgstore: {output.printable(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {output.printable(hint)}", file=sys.stderr)
