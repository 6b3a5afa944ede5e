"""Where the archive of an export goes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from imgstore.cli import output
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

destination_option = click.option(
    "-o",
    "--output",
    "destination",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE, which appears when it is complete.",
)


@contextmanager
def archive_output(session: Session, destination: Path | None, command: str) -> Iterator[BinaryIO]:
    """Takes an archive: for a file, which appears when the block ends well, or for standard output.

    Args:
        command: the command line, for the hint where standard output is a terminal.
    """
    if destination is None and sys.stdout.isatty():
        raise InvalidError("cowardly refusing to save to a terminal. Use the -o flag or redirect", hint=f"{command} > FILE.tar")
    session.kept = "what was written of the archive is incomplete" if destination is None else f"no {destination} was made"
    with output.binary_output() if destination is None else output.appearing_file(destination) as out:
        yield out
