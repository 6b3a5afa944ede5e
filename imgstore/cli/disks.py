"""``imgstore disk`` and ``flatten``."""

from __future__ import annotations

import sys

import click

from imgstore.cli import output, units
from imgstore.cli.progress_shown import progress_shown
from imgstore.cli.session import Session


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--chain", is_flag=True, help="Print every disk of the chain, one a line, the scratch disk first.")
@output.format_option
@click.pass_obj
def disk(session: Session, reference: str, chain: bool) -> None:
    """Print the path of an image's top disk.

    The disk is read-only. To run the image, give a machine a snapshot disk on top of it.
    """
    with session.open_store() as store:
        paths = store.disk_paths(reference)
    if session.json:
        output.print_json({"disk": paths[-1], "chain": paths})
    else:
        output.print_paths(paths if chain else paths[-1:])


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--depth",
    metavar="N",
    type=int,
    help="How many disks may be left, the scratch disk counted; else the most that the store allows, or 1.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be merged, and change nothing.")
@output.format_option
@click.pass_obj
def flatten(session: Session, reference: str, depth: int | None, dry_run: bool) -> None:
    """Merge the lowest disks of an image into one.

    What the image shows, its id and its layers stay. The merged disk takes the place of one in the chain, so that containers and other
    images stand on it as before; the layers below it keep their own disks, and the copy takes space beside them.
    """
    session.kept = "the image is as before, or flattened"
    with session.open_store(create=False) as store, progress_shown(session, quiet=session.json) as progress:
        result = store.flatten(reference, depth, dry_run=dry_run, progress=progress)
    if session.json:
        found = {"id": result.image.id, "disks_before": result.before, "disks_after": result.after, "written": result.written}
        output.print_json({**found, "disk": result.image.disks[-1], "dry_run": dry_run})
        return
    output.print_paths(result.image.disks[-1:])
    if result.before == result.after:
        said = f"{result.before} disk{'' if result.before == 1 else 's'}: nothing to merge"
    else:
        verb = "would be" if dry_run else "are"
        said = f"{result.before} disks {verb} {result.after} now, {units.format_size(result.written)} copied"
    print(said, file=sys.stderr)
