"""``imgstore push``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgstore.cli import output
from imgstore.cli.progress_shown import progress_shown
from imgstore.cli.registry_options import credentials_option, options_of, registry_options
from imgstore.cli.session import Session

if TYPE_CHECKING:
    from imgstore.answers import PushResult


@click.command()
@click.argument("reference", metavar="REF")
@click.option("-a", "--all-tags", is_flag=True, help="Push every tag that the store has of the repository REF.")
@click.option("-q", "--quiet", is_flag=True, help="Print the full name and nothing else.")
@credentials_option
@registry_options
@output.format_option
@click.pass_obj
def push(session: Session, reference: str, all_tags: bool, quiet: bool) -> None:
    """Push an image to a registry.

    REF is the name that the image has in the store, and says where it goes: imgstore tag gives it one.

    What the registry has is not sent again. The image id stays what it is.
    """
    session.kept = "the tag in the registry is as it was; layers that were sent will not be sent again"
    results: list[PushResult] = []
    with session.open_store(registries=options_of(session)) as store, progress_shown(session, quiet=quiet) as progress:
        if all_tags:
            results.extend(store.push_all_tags(reference, progress=progress))
        else:
            results.append(store.push(reference, progress=progress))
    if session.json:
        described = [_describe(result) for result in results]
        output.print_json(described if all_tags else described[0])
        return
    for result in results:
        output.print_line(result.reference)


def _describe(result: PushResult) -> dict[str, object]:
    return {"reference": result.reference, "digest": result.digest, "size": result.size}
