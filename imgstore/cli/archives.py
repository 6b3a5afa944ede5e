"""``imgstore save``, ``load`` and ``import``: images as archives, and file trees as images."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from imgstore.cli import output
from imgstore.cli.exports import archive_output, destination_option
from imgstore.cli.progress_shown import progress_shown
from imgstore.cli.session import Session
from imgstore.errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    from imgstore.answers import LoadedImage

STANDARD_INPUT = "standard input"
_SCHEMES = ("http://", "https://", "ftp://")


@click.command()
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@destination_option
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Refuse images that are for another platform.")
@click.pass_obj
def save(session: Session, references: tuple[str, ...], destination: Path | None, platform: str | None) -> None:
    """Save images to a tar archive.

    The archive is a docker-archive and an OCI image layout at once; docker, podman, skopeo and imgstore load it. To standard output, for
    example: imgstore save REF | gzip > image.tar.gz

    A REF without a tag stands for all tags of its repository.
    """
    with (
        archive_output(session, destination, f"imgstore save {' '.join(references)}") as out,
        session.open_store() as store,
        closing(store.save(references, platform=platform)) as pieces,
    ):
        for piece in pieces:
            out.write(piece)


@click.command()
@click.option(
    "-i", "--input", "archive", type=click.Path(path_type=Path), metavar="FILE", help="Read from FILE, not from standard input."
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="Leave out images for other platforms, and take this one of a multi-platform image.",
)
@output.format_option
@click.pass_obj
def load(session: Session, archive: Path | None, quiet: bool, platform: str | None) -> None:
    """Load images from a tar archive.

    Reads what imgstore save and docker save write, and tars of OCI image layouts; compressed with gzip, zstd, xz or bzip2, or not.

    Prints a line for every name that an image got; for an image that the archive gives no name, its id.
    """
    if archive is None and sys.stdin.isatty():
        raise InvalidError("requested load from stdin, but stdin is a terminal", hint="imgstore load -i FILE")
    session.kept = "images that were printed as loaded are kept, and layers that were complete"
    loaded: list[LoadedImage] = []
    with session.open_store() as store, progress_shown(session, quiet=quiet) as progress:
        source: Path | BinaryIO = sys.stdin.buffer if archive is None else archive
        try:
            for image in store.load(source, name=STANDARD_INPUT, platform=platform, progress=progress):
                loaded.append(image)
                if not session.json:
                    _print_loaded(image)
        finally:
            if session.json and (loaded or sys.exc_info()[0] is None):
                output.print_json([{"image_id": image.image.id, "references": list(image.references)} for image in loaded])


@click.command("import")
@click.argument("source", metavar="FILE|-")
@click.argument("reference", metavar="[REF]", required=False)
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="Apply an instruction of a Dockerfile to the image, as in 'CMD [\"sh\"]'. May be repeated.",
)
@click.option(
    "-m", "--message", default="", metavar="TEXT", help="Comment of the image; else 'Imported from -', as docker has it."
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="What the image is for; else Linux on this machine's CPU.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@output.format_option
@click.pass_obj
def import_tree(
    session: Session,
    source: str,
    reference: str | None,
    changes: tuple[str, ...],
    message: str,
    platform: str | None,
    quiet: bool,
) -> None:
    """Make an image of one layer from a tar archive of a file tree.

    FILE is a tar, compressed with gzip, zstd, xz or bzip2 or not; - is standard input. Prints the image id. The image gets the name REF, if
    there is one.

    Instructions that can be applied: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR.
    """
    if source.startswith(_SCHEMES):
        raise UnsupportedError(
            f"{source}: importing from a URL is not supported", hint=f"curl -fsSL {source} | imgstore import -"
        )
    if source == "-" and sys.stdin.isatty():
        raise InvalidError("requested import from stdin, but stdin is a terminal", hint="imgstore import FILE")
    with session.open_store() as store, progress_shown(session, quiet=quiet) as progress:
        image = store.import_image(
            sys.stdin.buffer if source == "-" else Path(source),
            reference=reference,
            changes=changes,
            message=message,
            platform=platform,
            name=STANDARD_INPUT,
            progress=progress,
        )
    if session.json:
        output.print_json({"image_id": image.id, "references": list(image.references)})
    else:
        output.print_line(image.id)


def _print_loaded(image: LoadedImage) -> None:
    for reference in image.references:
        output.print_line(f"Loaded image: {reference}")
    if not image.references:
        output.print_line(f"Loaded image ID: {image.image.id}")
    sys.stdout.flush()
