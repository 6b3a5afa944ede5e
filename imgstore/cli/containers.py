"""``imgstore container``: containers, and the disks that are theirs alone."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from imgstore.cli import output, units
from imgstore.cli.failures import do_each
from imgstore.cli.filters import filter_option
from imgstore.cli.groups import Commands, LazyGroup
from imgstore.cli.images import short_id
from imgstore.cli.prompts import confirm
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from imgstore.answers import Container

COMMAND_WIDTH = 20

CONTAINER_COMMANDS: Commands = {
    "create": ("containers", "create", "Make a container: a disk of its own over an image's."),
    "ls": ("containers", "list_containers", "List the containers of the store."),
    "inspect": ("containers", "inspect", "Show all that is known of containers, as JSON."),
    "cp": ("container_files", "copy", "Copy files into a container or out of it, its volumes included."),
    "diff": ("container_files", "diff", "Show what a container changed in its image's file tree."),
    "export": ("container_files", "export", "Write the file tree of a container as a tar archive, without its volumes."),
    "commit": ("commits", "commit", "Make an image of what a container changed."),
    "rename": ("containers", "rename", "Give a container another name."),
    "rm": ("containers", "remove", "Remove containers with their disks."),
    "prune": ("containers", "prune", "Remove all containers whose disk no guest has open."),
}


@click.group("container", cls=LazyGroup, table=CONTAINER_COMMANDS)
def container() -> None:
    """Make, list and remove containers.

    A container is a writable disk over the disks of an image, and what it is to run. CONTAINER is a name, an id, or the start of an id.
    """


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("image", metavar="IMAGE")
@click.argument("command", metavar="[COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", metavar="NAME", help="Its name; else one is made up.")
@click.option("--size", metavar="SIZE", help="Capacity of its disk, at least that of the image's: 40G, 1TiB.")
@click.option("--read-only", is_flag=True, help="What runs is not to write the disk.")
@click.option(
    "-v", "--volume", "volumes", metavar="[VOLUME:]PATH[:ro]", multiple=True, help="Where a volume is; may be repeated."
)
@click.option("-e", "--env", "environment", metavar="NAME=VALUE", multiple=True, help="Set a variable; may be repeated.")
@click.option("-l", "--label", "labels", metavar="KEY[=VALUE]", multiple=True, help="Set a label; may be repeated.")
@click.option("--entrypoint", metavar="COMMAND", help="What is run instead of the image's entrypoint.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="As whom it is run.")
@click.option("-w", "--workdir", metavar="PATH", help="Where it is run.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Fail unless the image is for this platform.")
@click.option("--vic-base", is_flag=True, help="Add the files that the VMs of vSphere Integrated Containers expect.")
@click.option("--count", type=click.IntRange(min=1), help="Make so many at once, named NAME-1, NAME-2 and so on.")
@output.format_option
@click.pass_obj
def create(
    session: Session,
    image: str,
    command: tuple[str, ...],
    name: str | None,
    size: str | None,
    read_only: bool,
    volumes: tuple[str, ...],
    environment: tuple[str, ...],
    labels: tuple[str, ...],
    entrypoint: str | None,
    user: str | None,
    workdir: str | None,
    platform: str | None,
    vic_base: bool,
    count: int | None,
) -> None:
    """Make a container: a disk of its own over an image's.

    Prints its id. The image stays as it is, and cannot be removed without force as long as the container is there.
    """
    session.kept = "there may be a container"
    config: dict[str, object] = {
        "Cmd": list(command) or None,
        "Env": list(environment),
        "Labels": dict(_split_label(label) for label in labels),
        "Entrypoint": None if entrypoint is None else [entrypoint],
        "User": user,
        "WorkingDir": workdir,
    }
    config = {key: value for key, value in config.items() if value is not None}
    capacity = None if size is None else units.parse_size(size)
    with session.open_store() as store:
        from imgstore.mounts import parse_bind

        mounts = [parse_bind(text) for text in volumes]
        if count is None:
            made = [
                store.create_container(
                    image,
                    name=name,
                    size=capacity,
                    read_only=read_only,
                    mounts=mounts,
                    vic_base=vic_base,
                    platform=platform,
                    config=config,
                )
            ]
        else:
            made = store.create_containers(
                image,
                count,
                name_prefix=name,
                size=capacity,
                read_only=read_only,
                mounts=mounts,
                vic_base=vic_base,
                platform=platform,
                config=config,
            )
    if session.json:
        output.print_json([_summarize(one) for one in made])
    else:
        for one in made:
            output.print_line(one.id)


@click.command("ls")
@click.option("-a", "--all", "everything", is_flag=True, help="Changes nothing: all containers are shown, though none runs.")
@filter_option
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print ids and commands in full.")
@output.format_option
@click.pass_obj
def list_containers(session: Session, everything: bool, filters: dict[str, list[str]], quiet: bool, no_trunc: bool) -> None:
    """List the containers of the store.

    The newest first.
    """
    with session.open_store() as store:
        shown = store.containers(filters)
    if session.json:
        output.print_json([one.id if quiet else _summarize(one) for one in shown])
    elif quiet:
        for one in shown:
            output.print_line(one.id if no_trunc else short_id(one.id))
    else:
        _print_containers(shown, no_trunc=no_trunc)


@click.command()
@click.argument("references", metavar="CONTAINER...", nargs=-1, required=True)
@output.format_option
@click.pass_obj
def inspect(session: Session, references: tuple[str, ...]) -> None:
    """Show all that is known of containers, as JSON.

    Prints an array, one object a container. "chain" has the paths of its disks, its own last.
    """
    found: list[dict[str, object]] = []
    with session.open_store() as store:

        def show(reference: str) -> None:
            one = store.container(reference)
            found.append(_describe(one, store.container_disk_paths(one.id)))

        try:
            do_each(references, show)
        finally:
            if found or len(references) > 1:
                output.print_json(found)


@click.command()
@click.argument("reference", metavar="CONTAINER")
@click.argument("new", metavar="NEW")
@click.pass_obj
def rename(session: Session, reference: str, new: str) -> None:
    """Give a container another name."""
    with session.open_store() as store:
        store.rename_container(reference, new)


@click.command("rm")
@click.argument("references", metavar="CONTAINER...", nargs=-1, required=True)
@click.option("-v", "--volumes", is_flag=True, help="Also its volumes without a name that no other container has.")
@click.pass_obj
def remove(session: Session, references: tuple[str, ...], volumes: bool) -> None:
    """Remove containers with their disks.

    Prints each name or id that was given, when its container is gone.
    """
    session.kept = "what was printed is removed, the rest is whole"
    with session.open_store() as store:

        def remove_one(reference: str) -> None:
            store.remove_container(reference, volumes=volumes)
            output.print_line(reference)

        do_each(references, remove_one)


@click.command()
@filter_option
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@output.format_option
@click.pass_obj
def prune(session: Session, filters: dict[str, list[str]], force: bool) -> None:
    """Remove all containers whose disk no guest has open.

    Their volumes stay.
    """
    session.kept = "what was not removed is whole"
    with session.open_store() as store:
        if not force and not confirm(f"This removes all containers{' that match' if filters else ''}.", "use --force"):
            return
        removed, reclaimed = store.prune_containers(filters)
    if session.json:
        output.print_json({"deleted": [one.id for one in removed], "reclaimed": reclaimed})
        return
    for one in removed:
        output.print_line(f"Deleted: {one.id}")
    print(f"Total reclaimed space: {units.format_size(reclaimed)}")


def _split_label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key:
        raise InvalidError(f"--label {text}: has no name")
    return key, value


def _print_containers(containers: list[Container], *, no_trunc: bool) -> None:
    now = datetime.now(UTC)
    rows = []
    for one in containers:
        command = shlex.join([*(one.config.get("Entrypoint") or ()), *(one.config.get("Cmd") or ())])
        if not no_trunc and len(command) > COMMAND_WIDTH:
            command = command[: COMMAND_WIDTH - 1] + "…"
        rows.append(
            [
                one.id if no_trunc else short_id(one.id),
                one.image,
                command,
                units.format_age(one.created, now),
                units.format_size(one.size_rw),
                one.name,
            ]
        )
    output.print_table(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "SIZE", "NAME"], rows)


def _summarize(one: Container) -> dict[str, object]:
    return {
        "id": one.id,
        "name": one.name,
        "created": one.created.isoformat(),
        "image": one.image,
        "image_id": one.image_id,
        "platform": one.platform,
        "capacity": one.capacity,
        "read_only": one.read_only,
        "mounts": [
            {"volume": mount.volume, "destination": mount.destination, "read_only": mount.read_only} for mount in one.mounts
        ],
        "labels": dict(one.labels),
        "disk": one.disk,
        "size_rw": one.size_rw,
    }


def _describe(one: Container, chain: list[str]) -> dict[str, object]:
    return {**_summarize(one), "chain": chain, "config": one.config, "host_config": one.host_config}
