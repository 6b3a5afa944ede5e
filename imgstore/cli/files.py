"""``imgstore ls``, ``cat`` and ``export``: the files of an image, read from its chain of disks without a mount."""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgstore.changes import FileType
from imgstore.cli import output, units
from imgstore.cli.exports import archive_output, destination_option
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from imgstore.ext4.reader import FileStatus

DEVICES = (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)


@click.command("ls")
@click.argument("reference", metavar="REF")
@click.argument("path", metavar="[PATH]", default="/")
@click.option(
    "-l", "long", is_flag=True, help="Also mode, links, owner, group, size (or device number), time (UTC), link target."
)
@output.format_option
@click.pass_obj
def list_files(session: Session, reference: str, path: str, long: bool) -> None:
    """List a directory of an image, or show one file.

    Names that begin with a dot are listed too. A PATH that is a symbolic link is followed, unless its own attributes are asked for: with
    -l, or in JSON.
    """
    name = os.fsencode(path)
    with session.open_store() as store:
        image_id = store.image(reference).id
        place, status = store.resolve_path(image_id, name, follow_last=not (long or session.json))
        files = store.list_directory(image_id, place) if status.type == FileType.DIRECTORY else [(name, status)]
    if session.json:
        output.print_json([_describe(*file) for file in files])
    else:
        output.print_names(_long_lines(files) if long else (name for name, _ in files))


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("path", metavar="PATH")
@click.pass_obj
def cat(session: Session, reference: str, path: str) -> None:
    """Print the contents of a file of an image.

    Symbolic links are followed, inside the image.
    """
    with session.open_store() as store, output.binary_output() as out:
        image_id = store.image(reference).id
        place, status = store.resolve_path(image_id, os.fsencode(path))
        if status.type != FileType.REGULAR:
            raise InvalidError(f"{path}: is no regular file, but a {_type_name(status)}")
        for piece in store.read_file(image_id, place):
            out.write(piece)


@click.command()
@click.argument("reference", metavar="REF")
@destination_option
@click.pass_obj
def export(session: Session, reference: str, destination: Path | None) -> None:
    """Write the file tree of an image as a tar archive.

    To standard output, for example: imgstore export REF > rootfs.tar
    """
    with archive_output(session, destination, f"imgstore export {reference}") as out, session.open_store() as store:
        store.export(reference, out)


def _long_lines(files: list[tuple[bytes, FileStatus]]) -> Iterator[bytes]:
    rows = [(_columns(status), name, status) for name, status in files]
    widths = [max(map(len, column)) for column in zip(*(columns for columns, _, _ in rows), strict=True)]
    for (mode, *numbers, time), name, status in rows:
        cells = [mode, *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)), time]
        arrow = b" -> " + status.target if status.type == FileType.SYMLINK else b""
        yield " ".join(cells).encode() + b" " + name + arrow


def _columns(status: FileStatus) -> list[str]:
    """Returns mode, links, owner, group, size or device number, and time."""
    size = "{}, {}".format(*status.rdev) if status.type in DEVICES else str(status.size)
    mode = stat.filemode(status.type << 12 | status.mode)
    return [mode, str(status.links), str(status.uid), str(status.gid), size, units.format_time(status.mtime_ns)]


def _type_name(status: FileStatus) -> str:
    return FileType(status.type).name.lower().replace("_", " ")


def _describe(name: bytes, status: FileStatus) -> dict[str, object]:
    return {
        "name": os.fsdecode(name),
        "type": _type_name(status).replace(" ", "-"),
        "mode": f"{status.mode:04o}",
        "uid": status.uid,
        "gid": status.gid,
        "size": status.size,
        "mtime": units.format_exact_time(status.mtime_ns),
        "inode": status.inode,
        "links": status.links,
        "target": os.fsdecode(status.target) if status.type == FileType.SYMLINK else None,
        "rdev": list(status.rdev) if status.type in DEVICES else None,
        "xattrs": {os.fsdecode(key): b64encode(value).decode() for key, value in status.xattrs.items()},
    }
