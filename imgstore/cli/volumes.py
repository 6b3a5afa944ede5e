"""``imgstore volume``: disks that outlive the containers that have them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgstore.cli import output, units
from imgstore.cli.exports import archive_output, destination_option
from imgstore.cli.failures import do_each
from imgstore.cli.filters import filter_option
from imgstore.cli.groups import Commands, LazyGroup
from imgstore.cli.prompts import confirm
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from imgstore.answers import Volume

STANDARD_INPUT = "standard input"

VOLUME_COMMANDS: Commands = {
    "create": ("volumes", "create", "Make a volume."),
    "ls": ("volumes", "list_volumes", "List the volumes."),
    "inspect": ("volumes", "inspect", "Show all that is known of volumes, as JSON."),
    "rm": ("volumes", "remove", "Remove volumes, or snapshots of them."),
    "prune": ("volumes", "prune", "Remove volumes that no container has."),
    "grow": ("volumes", "grow", "Make a volume larger."),
    "snapshot": ("volumes", "snapshot", "Keep what a volume is now."),
    "clone": ("volumes", "clone", "Make a volume with the contents of another."),
    "export": ("volumes", "export", "Write the files of a volume as a tar archive."),
    "import": ("volumes", "import_files", "Unpack a tar archive into a volume."),
    "df": ("volumes", "usage", "Show what volumes take and hold."),
}


@click.group("volume", cls=LazyGroup, table=VOLUME_COMMANDS)
def volume() -> None:
    """Make, list, copy and remove volumes.

    A volume is a disk with a file system of its own, which containers can have, and which stays when they go.
    """


def _creation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What ``create`` and ``clone`` have in common."""
    for option in (
        click.option("-l", "--label", "labels", metavar="KEY[=VALUE]", multiple=True, help="Set a label; may be repeated."),
        click.option(
            "-o",
            "--opt",
            "options",
            metavar="KEY=VALUE",
            multiple=True,
            help="Capacity=SIZE (512, in MiB; 10GB; 10GiB) or VolumeStore=NAME; may be repeated.",
        ),
        click.option(
            "-d", "--driver", metavar="DRIVER", default="local", show_default=True, help="local or vsphere: they mean the same."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@_creation_options
@output.format_option
@click.pass_obj
def create(session: Session, name: str | None, driver: str, options: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Make a volume.

    Prints its name; without NAME one is made up, and the volume is anonymous: prune removes it when no container has it.
    """
    session.kept = "there may be a volume"
    with session.open_store() as store:
        made = store.create_volume(name, driver=driver, options=_pairs("--opt", options), labels=_pairs("--label", labels))
    _print_made(session, made)


@click.command("ls")
@filter_option
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@output.format_option
@click.pass_obj
def list_volumes(session: Session, filters: dict[str, list[str]], quiet: bool) -> None:
    """List the volumes.

    Filters: dangling=true|false, driver=NAME, label=KEY[=VALUE], name=PART. What cannot be read is told on standard error.
    """
    with session.open_store() as store:
        shown, warnings = store.volumes(filters)
    for warning in warnings:
        print(f"warning: {output.printable(warning)}", file=sys.stderr)
    if session.json:
        output.print_json([one.name if quiet else _describe(one) for one in shown])
    elif quiet:
        for one in shown:
            output.print_line(one.name)
    else:
        rows = [
            [
                one.driver,
                one.name,
                one.store,
                units.format_binary_size(one.capacity),
                units.format_size(one.size),
                str(len(one.used_by)),
            ]
            for one in shown
        ]
        output.print_table(["DRIVER", "VOLUME NAME", "STORE", "CAPACITY", "SIZE", "CONTAINERS"], rows)


@click.command()
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@output.format_option
@click.pass_obj
def inspect(session: Session, names: tuple[str, ...]) -> None:
    """Show all that is known of volumes, as JSON.

    Prints an array, one object a volume.
    """
    found: list[dict[str, object]] = []
    with session.open_store() as store:
        try:
            do_each(names, lambda name: found.append(_describe(store.volume(name))))
        finally:
            if found or len(names) > 1:
                output.print_json(found)


@click.command("rm")
@click.argument("names", metavar="VOLUME[@SNAPSHOT]...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="A volume that is not there is fine.")
@click.pass_obj
def remove(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove volumes, or snapshots of them.

    A volume goes with its snapshots; its clones stay. Prints each name that was given, when it is gone.
    """
    session.kept = "what was printed is removed, the rest is whole"
    with session.open_store() as store:

        def remove_one(name: str) -> None:
            of, at, kept = name.partition("@")
            if at:
                store.remove_snapshot(of, kept)
            else:
                store.remove_volume(of, force=force)
            output.print_line(name)

        do_each(names, remove_one)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Remove volumes that were given a name, too.")
@filter_option
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@output.format_option
@click.pass_obj
def prune(session: Session, everything: bool, filters: dict[str, list[str]], force: bool) -> None:
    """Remove volumes that no container has.

    Without --all only anonymous ones. Filters: label=KEY[=VALUE], label!=KEY[=VALUE].
    """
    session.kept = "what was not removed is whole"
    if everything:
        filters["all"] = ["true"]
    what = "all volumes" if filters.get("all") == ["true"] else "all anonymous volumes"
    with session.open_store() as store:
        matching = " and match" if set(filters) - {"all"} else ""
        if not force and not confirm(f"This removes {what} that no container has{matching}.", "use --force"):
            return
        report = store.prune_volumes(filters)
    if session.json:
        output.print_json({"deleted": list(report.names), "reclaimed": report.reclaimed})
        return
    for name in report.names:
        output.print_line(f"Deleted: {name}")
    print(f"Total reclaimed space: {units.format_size(report.reclaimed)}")


@click.command()
@click.argument("name", metavar="VOLUME")
@click.argument("capacity", metavar="SIZE")
@click.pass_obj
def grow(session: Session, name: str, capacity: str) -> None:
    """Make a volume larger.

    SIZE is its new capacity, as in -o Capacity=SIZE: 2048 (MiB), 20GB, 20GiB. What it holds is copied once; its snapshots keep the size
    they had. No guest may have it open.
    """
    session.kept = "the volume has the size that it had, or the new one"
    from imgstore.volume_options import parse_capacity

    with session.open_store() as store:
        store.grow_volume(name, parse_capacity(capacity))


@click.command()
@click.argument("name", metavar="VOLUME")
@click.argument("label", metavar="SNAPSHOT")
@click.pass_obj
def snapshot(session: Session, name: str, label: str) -> None:
    """Keep what a volume is now.

    Under the name VOLUME@SNAPSHOT it can be cloned, exported and removed. Takes no space by itself. No guest may have the volume open.
    """
    session.kept = "there may be a snapshot"
    with session.open_store() as store:
        store.snapshot_volume(name, label)


@click.command()
@click.argument("source", metavar="VOLUME[@SNAPSHOT]")
@click.argument("name", metavar="[NAME]", required=False)
@_creation_options
@output.format_option
@click.pass_obj
def clone(
    session: Session, source: str, name: str | None, driver: str, options: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    """Make a volume with the contents of another.

    It shares the disks of its source, however large that is, and neither sees what is written to the other. In another volume store, or
    with a larger capacity, it is a copy. Prints its name.
    """
    session.kept = "there may be a volume"
    with session.open_store() as store:
        made = store.clone_volume(source, name, driver=driver, options=_pairs("--opt", options), labels=_pairs("--label", labels))
    _print_made(session, made)


@click.command()
@click.argument("source", metavar="VOLUME[@SNAPSHOT]")
@destination_option
@click.pass_obj
def export(session: Session, source: str, destination: Path | None) -> None:
    """Write the files of a volume as a tar archive.

    To standard output, for example: imgstore volume export db | gzip > db.tar.gz
    """
    with (
        archive_output(session, destination, f"imgstore volume export {source}") as out,
        session.open_store() as store,
        closing(store.export_volume(source)) as pieces,
    ):
        for piece in pieces:
            out.write(piece)


@click.command("import")
@click.argument("name", metavar="VOLUME")
@click.argument("archive", metavar="FILE|-")
@click.pass_obj
def import_files(session: Session, name: str, archive: str) -> None:
    """Unpack a tar archive into a volume.

    FILE is a tar, compressed with gzip, zstd, xz or bzip2 or not; - is standard input. Files of the same names are replaced, others stay.
    Either all of it is in the volume afterwards, or nothing.
    """
    if archive == "-" and sys.stdin.isatty():
        raise InvalidError("requested import from stdin, but stdin is a terminal", hint=f"imgstore volume import {name} FILE")
    session.kept = "the volume is as it was, or has all of the archive"
    with session.open_store() as store:
        store.import_volume(name, sys.stdin.buffer if archive == "-" else Path(archive), archive_name=STANDARD_INPUT)


@click.command("df")
@output.format_option
@click.pass_obj
def usage(session: Session) -> None:
    """Show what volumes take and hold.

    SIZE is what the disks take that are the volume's alone; USED and FREE are of its file system, and unknown while a guest writes it.
    """
    with session.open_store() as store:
        usages = store.volume_usage()
    if session.json:
        output.print_json(
            [
                {
                    "name": one.name,
                    "store": one.store,
                    "capacity": one.capacity,
                    "size": one.size,
                    "used": one.used,
                    "free": one.free,
                }
                for one in usages
            ]
        )
        return
    rows = [
        [
            one.name,
            one.store,
            units.format_binary_size(one.capacity),
            units.format_size(one.size),
            *("unknown" if size is None else units.format_size(size) for size in (one.used, one.free)),
        ]
        for one in usages
    ]
    output.print_table(["VOLUME NAME", "STORE", "CAPACITY", "SIZE", "USED", "FREE"], rows)


def _pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise InvalidError(f"{option} {text}: has no name")
        pairs[key] = value
    return pairs


def _print_made(session: Session, made: Volume) -> None:
    if session.json:
        output.print_json(_describe(made))
    else:
        output.print_line(made.name)


def _describe(one: Volume) -> dict[str, object]:
    return {
        "name": one.name,
        "store": one.store,
        "driver": one.driver,
        "options": dict(one.options),
        "labels": dict(one.labels),
        "created": one.created.isoformat(),
        "capacity": one.capacity,
        "size": one.size,
        "disk": one.disk,
        "image": one.image,
        "snapshots": [{"name": kept.name, "created": kept.created.isoformat(), "disk": kept.disk} for kept in one.snapshots],
        "containers": list(one.used_by),
        "anonymous": one.anonymous,
    }
