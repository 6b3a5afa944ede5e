"""``imgstore container commit``: an image of what a container changed."""

from __future__ import annotations

import click

from imgstore.cli import output
from imgstore.cli.progress_shown import progress_shown
from imgstore.cli.session import Session


@click.command()
@click.argument("container", metavar="CONTAINER")
@click.argument("reference", metavar="[REF]", required=False)
@click.option("-a", "--author", default="", metavar="TEXT", help="Author of the image.")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="Apply an instruction of a Dockerfile to the image, as in 'CMD [\"sh\"]'. May be repeated.",
)
@click.option("-m", "--message", default="", metavar="TEXT", help="Comment of the image's newest step.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@output.format_option
@click.pass_obj
def commit(
    session: Session, container: str, reference: str | None, author: str, changes: tuple[str, ...], message: str, quiet: bool
) -> None:
    """Make an image of what a container changed.

    Its layers are those of the container's image, and one with all that the container's disk has over them; volumes are not in it.
    Prints the image id. The image gets the name REF, if there is one.
    """
    with session.open_store() as store, progress_shown(session, quiet=quiet) as progress:
        image = store.commit_container(
            container, reference=reference, message=message, author=author, changes=changes, progress=progress
        )
    if session.json:
        output.print_json({"image_id": image.id, "references": list(image.references)})
    else:
        output.print_line(image.id)
