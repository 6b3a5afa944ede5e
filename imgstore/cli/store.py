"""``imgstore check``, ``df``, ``quota``, ``init`` and ``rebuild``: the store as a whole."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from imgstore import config
from imgstore.cli import output, units
from imgstore.cli.failures import PROBLEMS_FOUND
from imgstore.cli.images import NONE, short_id
from imgstore.cli.session import Session

if TYPE_CHECKING:
    from imgstore.answers import Usage


@click.command()
@click.option(
    "--read-data",
    is_flag=True,
    help="Also read every disk to its end, compare it with its checksums, and make every layer again.",
)
@output.format_option
@click.pass_context
def check(context: click.Context, read_data: bool) -> None:
    """Check catalog, disks, chains and file systems.

    Prints a line for every problem; the exit code is 12 if there is one. Changes nothing.
    """
    session = context.ensure_object(Session)
    problems = []
    with session.open_store(create=False) as store:
        for finding in store.check(read_data=read_data):
            problems.append(finding)
            if not session.json:
                place = "" if finding.offset is None else f" at byte {finding.offset}"
                output.print_line(f"{finding.object}{place}: {finding.problem}")
                sys.stdout.flush()
    if session.json:
        output.print_json([{"object": found.object, "problem": found.problem, "offset": found.offset} for found in problems])
    print(f"{len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'} found", file=sys.stderr)
    if problems:
        context.exit(PROBLEMS_FOUND)


@click.command("df")
@click.option("-v", "--verbose", is_flag=True, help="Also the size of every image, and how much of it others share.")
@output.format_option
@click.pass_obj
def usage(session: Session, verbose: bool) -> None:
    """Show what takes space, and how much is free."""
    with session.open_store() as store:
        used = store.usage()
    if session.json:
        output.print_json(_describe(used))
        return
    output.print_table(["TYPE", "COUNT", "SIZE"], _rows(used))
    if verbose:
        print()
        rows = [
            [
                ", ".join(image.references) or NONE,
                short_id(image.id),
                *map(units.format_size, (image.size, image.shared, image.unique)),
            ]
            for image in used.images
        ]
        output.print_table(["IMAGE", "IMAGE ID", "SIZE", "SHARED", "UNIQUE"], rows)


@click.command()
@click.argument("limit", metavar="[SIZE|none]", required=False)
@output.format_option
@click.pass_obj
def quota(session: Session, limit: str | None) -> None:
    """Show or set how much the store may take.

    SIZE, for example 200GiB, limits what images, containers and volumes take together on the datastore, for everyone who opens this store.
    "none" takes the limit away.
    """
    size = None if limit is None or limit == "none" else units.parse_size(limit)
    with session.open_store() as store:
        if limit is not None:
            store.set_quota(size)
        report = store.quota()
    if session.json:
        output.print_json(
            {
                "limit": report.limit,
                "used": report.used,
                "images": report.images,
                "containers": report.containers,
                "volumes": report.volumes,
                "reserved": report.reserved,
            }
        )
        return
    rows = [
        ["Limit", "none" if report.limit is None else units.format_size(report.limit)],
        ["Used", units.format_size(report.used)],
        ["Images", units.format_size(report.images)],
        ["Containers", units.format_size(report.containers)],
        ["Volumes", units.format_size(report.volumes)],
        ["Reserved", units.format_size(report.reserved)],
    ]
    output.print_table(["TYPE", "SIZE"], rows)


@click.command()
@click.option(
    "--disk-size",
    metavar="SIZE",
    help="Capacity of every disk: 32GiB (the default), 512MiB, 34359738368. Costs nothing until used.",
)
@click.option(
    "--max-depth",
    metavar="N",
    type=int,
    help="How many disks an image may have: of one with more layers the lowest are merged. Else any number.",
)
@output.format_option
@click.pass_obj
def init(session: Session, disk_size: str | None, max_depth: int | None) -> None:
    """Make a store.

    Only needed for another disk size, or for chains of a limited depth: a store is made on first use.
    """
    size = config.DEFAULT_DISK_SIZE if disk_size is None else units.parse_size(disk_size)
    location = session.location
    from imgstore.store import ImageStore

    session.kept = "there may be an empty store"
    with ImageStore.create(location, disk_size=size, max_depth=max_depth, vsphere=session.vsphere_login(location)):
        pass
    if session.json:
        output.print_json({"store": location, "disk_size": size, "max_depth": max_depth})
    else:
        output.print_paths([location])
        depth = "" if max_depth is None else f", at most {max_depth} in a chain"
        print(f"Made a store of disks of {units.format_binary_size(size)}{depth}", file=sys.stderr)


@click.command()
@output.format_option
@click.pass_obj
def rebuild(session: Session) -> None:
    """Make the catalog again from the datastore.

    For a catalog that is lost or damaged: every disk says what it is.
    """
    session.kept = "the disks are as they were, the catalog may lack some"
    with session.open_store(create=False) as store:
        report = store.rebuild()
    if session.json:
        counts = {"images": report.images, "disks": report.disks, "containers": report.containers}
        output.print_json({**counts, "left_out": list(report.left_out)})
        return
    row = [report.images, report.disks, report.containers, len(report.left_out)]
    output.print_table(["IMAGES", "DISKS", "CONTAINERS", "LEFT OUT"], [[str(number) for number in row]])
    for reason in report.left_out:
        print(f"Left out: {output.printable(reason)}", file=sys.stderr)


def _rows(used: Usage) -> list[list[str]]:
    return [
        ["Images", str(len(used.images)), ""],
        ["Layer disks", str(used.disks), units.format_size(used.disk_bytes)],
        ["Scratch disk", "", units.format_size(used.scratch_bytes)],
        ["Configs and names", "", units.format_size(used.metadata_bytes)],
        ["Containers", str(used.containers), units.format_size(used.container_bytes)],
        ["Volumes", str(used.volumes), units.format_size(used.volume_bytes)],
        ["Catalog", "", units.format_size(used.catalog_bytes)],
        ["Unfinished", "", units.format_size(used.staged_bytes)],
        ["Free space", "", "unknown" if used.free_bytes is None else units.format_size(used.free_bytes)],
    ]


def _describe(used: Usage) -> dict[str, object]:
    images = [
        {
            "id": image.id,
            "references": list(image.references),
            "size": image.size,
            "shared": image.shared,
            "unique": image.unique,
        }
        for image in used.images
    ]
    return {
        "images": images,
        "disks": used.disks,
        "disk_bytes": used.disk_bytes,
        "scratch_bytes": used.scratch_bytes,
        "catalog_bytes": used.catalog_bytes,
        "metadata_bytes": used.metadata_bytes,
        "containers": used.containers,
        "container_bytes": used.container_bytes,
        "volumes": used.volumes,
        "volume_bytes": used.volume_bytes,
        "staged_bytes": used.staged_bytes,
        "free_bytes": used.free_bytes,
        "disk_size": used.capacity,
    }
