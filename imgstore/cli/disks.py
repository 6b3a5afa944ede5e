"""``imgstore disk``."""

from __future__ import annotations

import click

from imgstore.cli import output
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
