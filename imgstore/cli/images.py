"""``imgstore images``, ``inspect``, ``history``, ``tag``, ``rm`` and ``prune``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from imgstore.cli import output, units
from imgstore.cli.failures import do_each
from imgstore.cli.filters import filter_option
from imgstore.cli.prompts import confirm
from imgstore.cli.session import Session

if TYPE_CHECKING:
    from imgstore.answers import HistoryItem, Image

NONE = "<none>"
CREATED_BY_WIDTH = 45


@click.command()
@click.argument("name", metavar="[NAME[:TAG]]", default="")
@click.option("-a", "--all", "intermediate", is_flag=True, help="Also images without a name that others were made from.")
@filter_option
@click.option("-q", "--quiet", is_flag=True, help="Print image ids only.")
@click.option("--digests", is_flag=True, help="Show the digest under which a registry has the image.")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@output.format_option
@click.pass_obj
def images(
    session: Session, name: str, intermediate: bool, filters: dict[str, list[str]], quiet: bool, digests: bool, no_trunc: bool
) -> None:
    """List the images of the store.

    With a NAME those that have it; it may be a pattern, such as "harbor.example/*/app".
    """
    if name:
        filters.setdefault("reference", []).append(name)
    with session.open_store() as store:
        shown = store.images(filters, intermediate=intermediate)
    if session.json:
        output.print_json([image.id if quiet else _summarize(image) for image in shown])
    elif quiet:
        for image in shown:
            output.print_line(image.id if no_trunc else short_id(image.id))
    else:
        _print_images(shown, digests=digests, no_trunc=no_trunc)


@click.command()
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@output.format_option
@click.pass_obj
def inspect(session: Session, references: tuple[str, ...]) -> None:
    """Show all that is known of images, as JSON.

    Prints an array, one object an image. The configuration of the image is in "config" as its maker wrote it; every layer has its disk.
    """
    found: list[dict[str, object]] = []
    with session.open_store() as store:

        def show(reference: str) -> None:
            image = store.image(reference)
            found.append(_describe(image, store.disk_paths(image.id)[-1]))

        try:
            do_each(references, show)
        finally:
            if found or len(references) > 1:
                output.print_json(found)


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--no-trunc", is_flag=True, help="Print ids and commands in full.")
@output.format_option
@click.pass_obj
def history(session: Session, reference: str, no_trunc: bool) -> None:
    """Show the steps that built an image.

    The newest first.
    """
    with session.open_store() as store:
        image = store.image(reference)
        items = store.history(image.id)
    if session.json:
        output.print_json([_describe_step(item) for item in items])
    else:
        _print_history(image, items, no_trunc=no_trunc)


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("new", metavar="NEW")
@click.pass_obj
def tag(session: Session, reference: str, new: str) -> None:
    """Give an image one more name.

    If NEW is the name of another image, that one loses it.
    """
    with session.open_store() as store:
        store.tag(reference, new)


@click.command("rm")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Remove an image by its id though it has several names.")
@output.format_option
@click.pass_obj
def remove(session: Session, references: tuple[str, ...], force: bool) -> None:
    """Remove images by name or id.

    A name is taken away; with its last name the image goes, and with it the disks that no other image needs.
    """
    session.kept = "what was printed as removed is removed, the rest is whole"
    untagged: list[str] = []
    deleted: list[str] = []
    with session.open_store() as store:

        def remove_one(reference: str) -> None:
            removal = store.remove(reference, force=force)
            untagged.extend(removal.untagged)
            deleted.extend(removal.deleted)
            if not session.json:
                for name in removal.untagged:
                    output.print_line(f"Untagged: {name}")
                for identifier in removal.deleted:
                    output.print_line(f"Deleted: {identifier}")

        try:
            do_each(references, remove_one)
        finally:
            if session.json:
                output.print_json({"untagged": untagged, "deleted": deleted})


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Remove images that have a tag, too.")
@filter_option
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@output.format_option
@click.pass_obj
def prune(session: Session, everything: bool, filters: dict[str, list[str]], force: bool) -> None:
    """Remove images that have no tag.

    With them go the disks that no other image needs.
    """
    session.kept = "what was not removed is whole"
    if everything:
        filters["dangling"] = ["false"]
    what = "all images" if filters.get("dangling") == ["false"] else "all images without a tag"
    with session.open_store() as store:
        if not force and not confirm(
            f"This removes {what}{' that match' if set(filters) - {'dangling'} else ''}.", "use --force"
        ):
            return
        report = store.prune(filters)
    untagged = [name for removal in report.removals for name in removal.untagged]
    deleted = [identifier for removal in report.removals for identifier in removal.deleted]
    if session.json:
        output.print_json({"untagged": untagged, "deleted": deleted, "reclaimed": report.reclaimed})
        return
    for name in untagged:
        output.print_line(f"Untagged: {name}")
    for identifier in deleted:
        output.print_line(f"Deleted: {identifier}")
    print(f"Total reclaimed space: {units.format_size(report.reclaimed)}")


def short_id(identifier: str) -> str:
    """Returns the first 12 hex digits of a digest, as docker shows it."""
    return identifier.rpartition(":")[2][:12]


def split_reference(reference: str) -> tuple[str, str]:
    """Returns repository and tag of a name, or repository and digest of ``name@digest``; ``<none>`` where there is no tag."""
    repository, at, digest = reference.partition("@")
    if at:
        return repository, digest
    head, colon, tail = reference.rpartition(":")
    if not colon or "/" in tail:  # that colon belongs to the port of the host
        return reference, NONE
    return head, tail


def _print_images(images: list[Image], *, digests: bool, no_trunc: bool) -> None:
    now = datetime.now(UTC)
    rows = []
    for image in images:
        for repository, name, digest in _names(image):
            row = [repository, name, *([digest] if digests else [])]
            row += [
                image.id if no_trunc else short_id(image.id),
                units.format_age(image.created, now),
                units.format_size(image.size),
            ]
            rows.append(row)
    output.print_table(["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "CREATED", "SIZE"], rows)


def _names(image: Image) -> Iterator[tuple[str, str, str]]:
    """Yields (repository, tag, digest) for every row of an image: one a tag, one a digest whose repository has no tag, at least one."""
    digests = dict(split_reference(name) for name in image.digests)
    tags = [split_reference(reference) for reference in image.references]
    for repository, name in tags:
        yield repository, name, digests.get(repository, NONE)
    untagged = digests.keys() - {repository for repository, _ in tags}
    for repository in sorted(untagged):
        yield repository, NONE, digests[repository]
    if not tags and not untagged:
        yield NONE, NONE, NONE


def _print_history(image: Image, items: list[HistoryItem], *, no_trunc: bool) -> None:
    now = datetime.now(UTC)
    rows = []
    for position, item in enumerate(items):
        identifier = "<missing>" if position else image.id if no_trunc else short_id(image.id)
        command = item.created_by.replace("\t", " ")
        if not no_trunc and len(command) > CREATED_BY_WIDTH:
            command = command[: CREATED_BY_WIDTH - 1] + "…"
        rows.append([identifier, units.format_age(item.created, now), command, units.format_size(item.size), item.comment])
    output.print_table(["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], rows)


def _summarize(image: Image) -> dict[str, object]:
    return {
        "id": image.id,
        "references": list(image.references),
        "digests": list(image.digests),
        "created": _isoformat(image.created),
        "os": image.os,
        "architecture": image.architecture,
        "variant": image.variant,
        "size": image.size,
    }


def _describe(image: Image, disk: str) -> dict[str, object]:
    layers = [
        {"chain_id": layer.chain_id, "diff_id": layer.diff_id, "digest": layer.digest, "disk": layer.disk, "size": layer.size}
        for layer in image.layers
    ]
    return {**_summarize(image), "disk": disk, "layers": layers, "config": image.config}


def _describe_step(item: HistoryItem) -> dict[str, object]:
    return {
        "created": _isoformat(item.created),
        "created_by": item.created_by,
        "size": item.size,
        "comment": item.comment,
        "empty": item.empty,
        "chain_id": item.chain_id,
    }


def _isoformat(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
