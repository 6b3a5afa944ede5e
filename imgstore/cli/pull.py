"""``imgstore pull``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from imgstore.cli import output
from imgstore.cli.progress_shown import progress_shown
from imgstore.cli.registry_options import credentials_option, options_of, registry_options
from imgstore.cli.session import Session

if TYPE_CHECKING:
    from imgstore.answers import PullResult
    from imgstore.store import ImageStore


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="Take this platform of a multi-platform image; else Linux on this machine's CPU.",
)
@click.option("-a", "--all-tags", is_flag=True, help="Pull every tag of the repository REF.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image id and nothing else.")
@credentials_option
@registry_options
@output.format_option
@click.pass_obj
def pull(session: Session, reference: str, platform: str | None, all_tags: bool, quiet: bool) -> None:
    """Pull an image into a chain of VMDK snapshot disks.

    REF is a name as docker takes it (alpine:3.10, harbor.example/project/app@sha256:...), or one of oci:DIR[:TAG], oci-archive:FILE[:TAG],
    docker-archive:FILE[:TAG].

    A layer that the store has is neither downloaded nor converted again.
    """
    session.kept = "layers that were complete are kept and will not be pulled again"
    from imgstore.answers import PullStatus

    results: list[PullResult] = []
    with session.open_store(registries=options_of(session)) as store:
        with progress_shown(session, quiet=quiet) as progress:
            if all_tags:
                results.extend(store.pull_all_tags(reference, platform=platform, progress=progress))
            else:
                results.append(store.pull(reference, platform=platform, progress=progress))
        for result in results:
            if not quiet:
                _narrate(result, downloaded=result.status is PullStatus.DOWNLOADED)
            if not session.json:
                output.print_line(result.image.id if quiet else result.reference)
        if session.json:
            described = [_describe(store, result) for result in results]
            output.print_json(described if all_tags else described[0])


def _narrate(result: PullResult, *, downloaded: bool) -> None:
    if result.digest is not None:
        print(f"Digest: {result.digest}", file=sys.stderr)
    status = "Downloaded newer image for" if downloaded else "Image is up to date for"
    print(f"Status: {status} {output.printable(result.reference)}", file=sys.stderr)


def _describe(store: ImageStore, result: PullResult) -> dict[str, object]:
    return {
        "reference": result.reference,
        "image_id": result.image.id,
        "digest": result.digest,
        "status": result.status.name.lower().replace("_", "-"),
        "disk": store.disk_paths(result.image.id)[-1],
    }
