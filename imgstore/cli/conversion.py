"""``imgstore convert`` and ``export-disk``: VMDKs in other forms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, get_args

import click

from imgstore.cli import output
from imgstore.cli.session import Session
from imgstore.device_names import DeviceKind
from imgstore.disk_files import convert_disk
from imgstore.errors import InvalidError, UnsupportedError
from imgstore.vmdk.formats import FORMATS, DiskFormat

Command = TypeVar("Command", bound=Callable[..., Any])

STANDARD_OUTPUT = Path("-")


def _disk_format_option(command: Command) -> Command:
    return click.option(
        "--disk-format",
        "form",
        type=click.Choice([str(form) for form in DiskFormat if FORMATS[form].writable]),
        required=True,
        help="Form of the disk that is made.",
    )(command)


@click.command()
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.argument("target", metavar="DEST", type=click.Path(path_type=Path))
@_disk_format_option
@click.option(
    "--child-of",
    type=click.Path(path_type=Path),
    metavar="PARENT",
    help="Make a disk that stands on the VMDK PARENT, and holds only where SOURCE differs from it.",
)
@output.format_option
@click.pass_obj
def convert(session: Session, source: Path, target: Path, form: str, child_of: Path | None) -> None:
    """Write a VMDK in another form.

    SOURCE is a VMDK of any form: its descriptor, or the file that has it inside. What its parents have is in DEST, too. Holes stay holes.
    DEST ends in .vmdk; a dash is standard output, for stream-optimized.

    Prints the files that were made. None of them may be there before, and after an error none is.
    """
    session.kept = "what was written of the disk is incomplete" if target == STANDARD_OUTPUT else f"no {target} was made"
    disk_format = DiskFormat(form)
    command = f"imgstore convert {source} - --disk-format {form}"
    if target == STANDARD_OUTPUT:
        with output.binary_output() as out:
            convert_disk(source, _pipe(out, disk_format, command), disk_format, child_of=child_of)
    else:
        _print_files(session, convert_disk(source, target, disk_format, child_of=child_of))


@click.command("export-disk")
@click.argument("name", metavar="REF|KIND/NAME")
@_disk_format_option
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    default=STANDARD_OUTPUT,
    metavar="FILE|-",
    help="The disk, whose name ends in .vmdk; else standard output, for stream-optimized.",
)
@output.format_option
@click.pass_obj
def export_disk(session: Session, name: str, form: str, target: Path) -> None:
    """Write a disk of the store as a VMDK of any form.

    REF is an image. KIND/NAME is image/REF, container/NAME or volume/NAME; no guest may be writing that. The disk has all that its chain
    shows, and no parent.

    Prints the files that were made. None of them may be there before, and after an error none is.
    """
    session.kept = "what was written of the disk is incomplete" if target == STANDARD_OUTPUT else f"no {target} was made"
    disk_format = DiskFormat(form)
    device = name if name.partition("/")[0] in get_args(DeviceKind) else f"image/{name}"
    with session.open_store(create=False) as store:
        if target == STANDARD_OUTPUT:
            with output.binary_output() as out:
                store.export_disk(
                    device, _pipe(out, disk_format, f"imgstore export-disk {name} --disk-format {form}"), disk_format
                )
        else:
            _print_files(session, store.export_disk(device, target, disk_format))


def _pipe(out: BinaryIO, form: DiskFormat, command: str) -> BinaryIO:
    """Standard output, if it can take a disk."""
    if not FORMATS[form].streams:
        streaming = ", ".join(name for name in DiskFormat if FORMATS[name].streams)
        raise UnsupportedError(f"standard output: can take no disk of the form {form}, only {streaming}", hint="name a file")
    if sys.stdout.isatty():
        raise InvalidError("standard output: a terminal cannot take a disk", hint=f"{command} > FILE.vmdk")
    return out


def _print_files(session: Session, files: list[Path]) -> None:
    paths = [str(path) for path in files]
    if session.json:
        output.print_json({"disk": paths[-1], "files": paths})
    else:
        output.print_paths(paths)
