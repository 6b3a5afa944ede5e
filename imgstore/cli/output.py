"""Data on standard output: tables as docker prints them, JSON, and text that cannot steer a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO, TypeVar

import click

from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from pathlib import Path

Command = TypeVar("Command", bound=Callable[..., Any])

COLUMN_GAP = "   "


def format_option(command: Command) -> Command:
    """Gives a command ``--format table|json``, kept in ``Session.json``."""
    return click.option(
        "--format",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        expose_value=False,
        is_eager=True,  # so that an error in the other words is printed in this format
        callback=_keep_format,
        help="For people, or for programs.",
    )(command)


def _keep_format(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
    ctx.ensure_object(Session).json = value == "json"


def print_line(text: str) -> None:
    """Prints one line of data, with what a terminal would obey escaped."""
    print(printable(text))


def print_names(names: Iterable[bytes]) -> None:
    """Prints names of files, one a line: byte for byte into a pipe, escaped on a terminal."""
    if sys.stdout.isatty():
        for name in names:
            print(printable(os.fsdecode(name)))
        return
    with binary_output() as out:
        out.writelines(name + b"\n" for name in names)


def print_paths(paths: Iterable[str]) -> None:
    """Prints paths of files of this machine, as print_names() does."""
    print_names(os.fsencode(path) for path in paths)


@contextmanager
def binary_output() -> Iterator[BinaryIO]:
    """Opens standard output for bytes, after what was printed. All is written when the block has ended."""
    sys.stdout.flush()
    # Not sys.stdout.buffer: with PYTHONUNBUFFERED that is the raw file, which may write a part and call it done.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        yield out


@contextmanager
def appearing_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that gets its name when the block ends well, and is removed when it does not.

    A device or a pipe is written as it is.

    Raises:
        InvalidError: it cannot be made.
    """
    if path.exists() and not path.is_file():
        with _open(path, path, "wb") as out:
            yield out
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    out = _open(path, part, "xb")
    try:
        with out:
            yield out
        part.replace(path)
    except BaseException:
        part.unlink()
        raise


def _open(path: Path, actual: Path, mode: Literal["wb", "xb"]) -> BinaryIO:
    try:
        return actual.open(mode)
    except OSError as error:
        raise InvalidError(f"{path}: cannot be written: {error.strerror}") from error


def print_json(value: object, stream: TextIO | None = None) -> None:
    """Prints JSON in ASCII: bytes of a name that are not UTF-8 appear as lone surrogates (``surrogateescape``), so nothing is lost."""
    import json  # most runs print none

    print(json.dumps(value, indent=2), file=stream or sys.stdout)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints left-aligned columns, three spaces apart, the headings first even where no row follows."""
    lines = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(COLUMN_GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Returns the text with control characters, direction marks and lone surrogates as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8, as os.fsdecode() keeps it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
