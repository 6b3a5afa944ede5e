"""``imgstore volume-store``: the places where volumes lie."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from imgstore import config
from imgstore.cli import output
from imgstore.cli.failures import do_each
from imgstore.cli.groups import Commands, LazyGroup
from imgstore.cli.session import Session

if TYPE_CHECKING:
    from imgstore.answers import VolumeStoreInfo

VOLUME_STORE_COMMANDS: Commands = {
    "add": ("volume_stores", "add", "Add a place for volumes."),
    "ls": ("volume_stores", "list_stores", "List the places for volumes."),
    "rm": ("volume_stores", "remove", "Forget places for volumes."),
}


@click.group("volume-store", cls=LazyGroup, table=VOLUME_STORE_COMMANDS)
def volume_store() -> None:
    """Add, list and forget the places where volumes lie.

    A volume is made in one with -o VolumeStore=NAME. The store itself is the one called default. All processes see a change at once.
    """


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("location", metavar="DIR|URL")
@output.format_option
@click.pass_obj
def add(session: Session, name: str, location: str) -> None:
    """Add a place for volumes.

    DIR must be there; volumes that lie in it are there at once. Several stores may have it.
    """
    with session.open_store() as store:
        added = store.add_volume_store(name, config.absolute_location(location, directory=os.getcwd()))  # noqa: PTH109 - as for --store
    if session.json:
        output.print_json(_describe(added))
    else:
        output.print_line(added.name)


@click.command("ls")
@output.format_option
@click.pass_obj
def list_stores(session: Session) -> None:
    """List the places for volumes.

    Also those that cannot be used now, and why.
    """
    with session.open_store() as store:
        shown = store.volume_stores()
    if session.json:
        output.print_json([_describe(one) for one in shown])
        return
    rows = [[one.name, one.location, str(one.volumes) if one.problem is None else "", one.problem or ""] for one in shown]
    output.print_table(["NAME", "LOCATION", "VOLUMES", "PROBLEM"], rows)


@click.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_obj
def remove(session: Session, names: tuple[str, ...]) -> None:
    """Forget places for volumes.

    The volumes stay where they are, and come back when the place is added again. Prints each name, when it is forgotten.
    """
    with session.open_store() as store:

        def remove_one(name: str) -> None:
            store.remove_volume_store(name)
            output.print_line(name)

        do_each(names, remove_one)


def _describe(one: VolumeStoreInfo) -> dict[str, object]:
    return {"name": one.name, "location": one.location, "volumes": one.volumes, "problem": one.problem}
