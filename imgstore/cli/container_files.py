"""``imgstore container cp``, ``diff`` and ``export``: the files of containers."""

from __future__ import annotations

import io
import os
import posixpath
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from imgstore.blocks import Bytes
from imgstore.changes import FileType
from imgstore.cli import output, units
from imgstore.cli.copy_paths import (
    Destination,
    Source,
    absolute,
    find_destination,
    find_source,
    keep_end,
    place_copy,
    split_argument,
)
from imgstore.cli.exports import archive_output, destination_option
from imgstore.cli.files import DEVICES
from imgstore.cli.session import Session
from imgstore.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from imgstore.copies.archive import PathStatus
    from imgstore.store import ImageStore

_KINDS = "CAD"
_KIND_NAMES = ("changed", "added", "deleted")
_FILES = (FileType.REGULAR, FileType.DIRECTORY)


@click.command("cp")
@click.argument("source", metavar="CONTAINER:PATH|PATH|-")
@click.argument("destination", metavar="CONTAINER:PATH|PATH|-")
@click.option(
    "-a", "--archive", "archive", is_flag=True, help="What is copied in belongs to the user that the container runs as."
)
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Copy what a source that is a symbolic link leads to.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say how much was copied; nobody is told where no terminal is.")
@click.pass_obj
def copy(session: Session, source: str, destination: str, archive: bool, follow: bool, quiet: bool) -> None:
    """Copy files into a container or out of it, its volumes included.

    As docker cp does it: into a directory that is there, or under a new name; of a SOURCE that ends with /. what is in the directory,
    without its name. A dash is a tar archive, on standard input or output. A path of this machine with a colon in it begins with / or ./

    What is copied in is there as a whole, or after any error not at all.
    """
    quiet = quiet or not sys.stdout.isatty()
    if not source or not destination:
        raise InvalidError(f"{'destination' if source else 'source'} can not be empty")
    container, path = split_argument(source)
    other, other_path = split_argument(destination)
    if container is not None and other is not None:
        raise InvalidError("copying between containers is not supported")
    with session.open_store() as store:
        if container is not None:
            _copy_out(session, store, container, path, other_path, follow=follow, quiet=quiet)
        elif other is not None:
            _copy_in(store, other, path, other_path, archive=archive, follow=follow, quiet=quiet)
        else:
            raise InvalidError("must specify at least one container source")


@click.command()
@click.argument("container", metavar="CONTAINER")
@output.format_option
@click.pass_obj
def diff(session: Session, container: str) -> None:
    """Show what a container changed in its image's file tree.

    One path a line, after A for what was added, C for what was changed and D for what was deleted. Volumes are not looked at.
    """
    with session.open_store() as store:
        differences = store.diff_container(container)
    if session.json:
        rows = [{"kind": _KIND_NAMES[kind], "path": "/" + os.fsdecode(path)} for path, kind, *_ in differences]
        output.print_json(rows)
    else:
        output.print_names(_KINDS[kind].encode() + b" /" + path for path, kind, *_ in differences)


@click.command()
@click.argument("container", metavar="CONTAINER")
@destination_option
@click.pass_obj
def export(session: Session, container: str, destination: Path | None) -> None:
    """Write the file tree of a container as a tar archive, without its volumes.

    To standard output, for example: imgstore container export CONTAINER > rootfs.tar
    """
    with (
        archive_output(session, destination, f"imgstore container export {container}") as out,
        session.open_store() as store,
        closing(store.export_container(container)) as pieces,
    ):
        for piece in pieces:
            out.write(piece)


def _copy_out(
    session: Session, store: ImageStore, container: str, path: str, destination: str, *, follow: bool, quiet: bool
) -> None:
    if destination == "-" and sys.stdout.isatty():
        raise InvalidError("standard output: a terminal cannot take an archive", hint="redirect it to a file")
    place = None if destination == "-" else find_destination(destination)
    name = ""
    if follow:
        found = store.container_status(container, path)
        if found.link_target:
            name = posixpath.basename(path)
            path = keep_end(found.link_target, path)
    session.kept = "what was copied until then is there"
    status, pieces = store.copy_from_container(container, path)
    with closing(pieces):
        if place is None:
            with output.binary_output() as out:
                for piece in pieces:
                    out.write(piece)
            return
        size = _unpack(pieces, status, name or status.name, place)
    if not quiet:
        print(f"Successfully copied {units.format_size(size)} to {absolute(destination)}", file=sys.stderr)


def _unpack(pieces: Iterable[Bytes], status: PathStatus, name: str, destination: Destination) -> int:
    """Puts an archive in its place; returns its size."""
    from imgstore.cli.local_trees import Unpacking
    from imgstore.ext4.format import MAXIMUM_SIZE
    from imgstore.layers.tar_reader import read_changes

    counted = _Counted(pieces)
    directory, new = place_copy(Source("", status.status.type is FileType.DIRECTORY, name), destination)
    with Unpacking(directory, _entry_name(status.name), _entry_name(new)) as unpacking:
        for change in read_changes(counted, capacity=MAXIMUM_SIZE, whiteouts=False):
            unpacking.apply(change)
        unpacking.finish()
    return counted.size


def _entry_name(name: str) -> bytes:
    return b"" if name in (".", "/") else os.fsencode(name)


def _copy_in(store: ImageStore, container: str, path: str, inside: str, *, archive: bool, follow: bool, quiet: bool) -> None:
    place = _find_inside(store, container, inside)
    if path == "-":
        if not place.is_directory:
            raise InvalidError(f'destination "{container}:{inside}" must be a directory')
        if sys.stdin.isatty():
            raise InvalidError("standard input: a terminal gives no archive", hint="redirect it from a file")
        store.copy_to_container(container, place.path, sys.stdin.buffer, keep_directories=True, owner_of_user=archive)
        return
    from imgstore.cli.local_trees import pack
    from imgstore.layers.tar_writer import tar_pieces

    source = find_source(path, follow=follow)
    directory, name = place_copy(source, place)
    changes = pack(source.path, os.fsencode(name))
    pieces = _Counted(tar_pieces(changes, whiteouts=False))
    with closing(changes):
        body = cast("BinaryIO", _Body(pieces))
        store.copy_to_container(container, directory, body, keep_directories=True, owner_of_user=archive)
    if not quiet:
        print(f"Successfully copied {units.format_size(pieces.size)} to {container}:{place.path}", file=sys.stderr)


def _find_inside(store: ImageStore, container: str, path: str) -> Destination:
    """A path of a container as a destination. What cannot be looked at counts as not there: putting something there will tell."""
    place = path
    try:
        found = store.container_status(container, place)
        if found.link_target:
            place = found.link_target
            found = store.container_status(container, place)
    except (NotFoundError, InvalidError):
        return Destination(place, None)
    if found.status.type not in _FILES:
        kind = "a device" if found.status.type in DEVICES else "an irregular file"
        raise InvalidError(f'destination "{container}:{path}" must be a directory or a regular file: got {kind}')
    return Destination(place, found.status.type is FileType.DIRECTORY)


class _Counted:
    """Pieces, and how many bytes they had so far."""

    def __init__(self, pieces: Iterable[Bytes]) -> None:
        self._pieces = iter(pieces)
        self.size = 0

    def __iter__(self) -> Iterator[Bytes]:
        return self

    def __next__(self) -> Bytes:
        piece = next(self._pieces)
        self.size += len(piece)
        return piece


class _Body(io.RawIOBase):
    """Pieces as an open body that is read once."""

    def __init__(self, pieces: Iterable[Bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count
