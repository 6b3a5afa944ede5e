"""``imgstore seed``, ``copy`` and ``ls-remote``: images on the datastores of others."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgstore import layout
from imgstore.cli import output, units
from imgstore.cli.failures import do_each
from imgstore.cli.images import NONE, short_id
from imgstore.cli.progress_shown import progress_shown
from imgstore.cli.registry_options import credentials_option, options_of, registry_options
from imgstore.cli.session import Session
from imgstore.errors import ImgstoreError, InvalidError, NotFoundError, PartialError

if TYPE_CHECKING:
    from imgstore.answers import CopyResult, RemoteStore, SeedPlan, SeedReport
    from imgstore.seed_files import SeedImage
    from imgstore.store import ImageStore
    from imgstore.vsphere.login import VsphereLogin

STANDARD_INPUT = "standard input"
_KEPT = "images and layers that were complete are kept, and will be neither pulled nor copied again"

depth_option = click.option(
    "--max-depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="Merge disks there so that no image has more than N; for a store that is made, and fixed with it.",
)

form_option = click.option(
    "--disk-format",
    metavar="FORM",
    help="hosted, vmfs-sparse (a disk a layer), vmfs or stream-optimized (one an image); else by what the datastore is.",
)


@click.command()
@click.option("-f", "--file", "file", metavar="FILE|-", required=True, help="The list of images, in YAML; - is standard input.")
@click.option(
    "--datastore",
    "datastores",
    metavar="DIR|URL",
    multiple=True,
    required=True,
    help="A store that is to have the images; made if there is none. May be repeated.",
)
@click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="For the images that ask for none in the list; else Linux on this machine's CPU.",
)
@depth_option
@form_option
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Copy to so many datastores at once; else 3.")
@click.option("--dry-run", is_flag=True, help="Only say what would be pulled and copied.")
@click.option("--keep-going", is_flag=True, help="Let the failure of one image or datastore not stop the others.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@credentials_option
@registry_options
@output.format_option
@click.pass_obj
def seed(
    session: Session,
    file: str,
    datastores: tuple[str, ...],
    platform: str | None,
    max_depth: int | None,
    disk_format: str | None,
    jobs: int | None,
    dry_run: bool,
    keep_going: bool,
    quiet: bool,
) -> None:
    """Pull a list of images, and copy them to datastores.

    The store (--store) has all images afterwards, and the datastores are stores of their own. What is there is neither pulled nor copied
    again, so that the same command brings what is new, and goes on where it was interrupted.

    The first failure ends it; with --keep-going all else is done, and the exit code is 3.
    """
    images = _read_list(file)
    places: dict[str, str] = {}
    logins: dict[str, VsphereLogin] = {}
    for datastore in datastores:
        place = _target(session, datastore)
        if (login := session.vsphere_login(place)) is not None:
            logins[place] = login
        if place in places:
            raise InvalidError(f"{datastore}: is named twice")
        places[place] = datastore
    if dry_run:
        with _store_to_look_at(session) as store:
            plans = store.plan_seed(
                images, list(places), platform=platform, max_depth=max_depth, disk_format=disk_format, logins=logins
            )
        _show_plans(session, plans, places)
        return
    session.kept = _KEPT
    from imgstore.store.seeds import JOBS_DEFAULT

    with session.open_store(registries=options_of(session)) as store, progress_shown(session, quiet=quiet) as progress:
        report = store.seed(
            images,
            list(places),
            platform=platform,
            max_depth=max_depth,
            disk_format=disk_format,
            jobs=jobs or JOBS_DEFAULT,
            keep_going=keep_going,
            logins=logins,
            progress=progress,
        )
    if session.json:
        output.print_json(_describe_report(report))
    else:
        _print_copies(report.copies, places)
    if report.failures:
        words = [
            f"{': '.join(filter(None, (failure.reference, failure.location)))}: {failure.error}" for failure in report.failures
        ]
        hint = next((failure.error.hint for failure in report.failures if failure.error.hint), "")
        raise PartialError(f"{len(words)} failed: {'; '.join(words)}", hint=hint)


@click.command("copy")
@click.argument("references", metavar="REF...", nargs=-1)
@click.option("--to", "datastore", metavar="DIR|URL", required=True, help="The store to copy to; made if there is none.")
@depth_option
@form_option
@click.option("-a", "--all", "everything", is_flag=True, help="Copy all images of the store.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@output.format_option
@click.pass_obj
def copy(
    session: Session,
    references: tuple[str, ...],
    datastore: str,
    max_depth: int | None,
    disk_format: str | None,
    everything: bool,
    quiet: bool,
) -> None:
    """Copy images of the store to a datastore.

    Only what is missing there is copied, each disk as it is. A REF that is a name is the name there too; an image that is given by its id
    gets all its names.

    With several REFs the failure of one does not stop the others.
    """
    if everything == bool(references):
        raise InvalidError("name the images, or give --all", hint="imgstore copy --help")
    place = _target(session, datastore)
    session.kept = _KEPT
    copies: list[CopyResult] = []
    try:
        with session.open_store(create=False) as store, progress_shown(session, quiet=quiet) as progress:
            wanted = [image.id for image in store.images()] if everything else list(dict.fromkeys(references))
            if references and not any(_is_there(store, reference) for reference in references):
                do_each(wanted, store.image)  # says what is wrong with each, before a datastore is made for nothing
            with _open_target(session, store, place, max_depth, disk_format) as target:
                do_each(wanted, lambda reference: copies.append(store.copy_image(reference, target, progress=progress)))
    finally:
        if copies or sys.exc_info()[0] is None:
            _show_copies(session, copies, {place: datastore})


@click.command("ls-remote")
@click.argument("datastore", metavar="DIR|URL")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@output.format_option
@click.pass_obj
def list_remote(session: Session, datastore: str, no_trunc: bool) -> None:
    """List the images of a datastore, and change nothing there.

    What is there and not whole is told on standard error.
    """
    from imgstore.store import ImageStore

    place = _place(session, datastore)
    remote = ImageStore.list_remote(place, vsphere=session.vsphere_login(place))
    if session.json:
        output.print_json(_describe_remote(remote))
        return
    rows = [
        [
            name,
            image.id if no_trunc else short_id(image.id),
            units.format_size(image.size),
            str(len(image.disks)),
        ]
        for image in remote.images
        for name in image.references or image.digests or (NONE,)
    ]
    output.print_table(["IMAGE", "IMAGE ID", "SIZE", "DISKS"], rows)
    for sentence in remote.left_out:
        print(f"not whole: {output.printable(sentence)}", file=sys.stderr)


def _is_there(store: ImageStore, reference: str) -> bool:
    try:
        store.image(reference)
    except ImgstoreError:
        return False
    return True


def _open_target(session: Session, store: ImageStore, place: str, max_depth: int | None, disk_format: str | None) -> ImageStore:
    login = session.vsphere_login(place)
    return store.open_target(place, max_depth=max_depth, disk_format=disk_format, vsphere=login)


def _target(session: Session, datastore: str) -> str:
    if datastore.startswith("mem://"):
        raise InvalidError(f"{datastore}: what is copied there is gone when the command ends")
    return _place(session, datastore)


def _place(session: Session, datastore: str) -> str:
    if not datastore:
        raise InvalidError("the name of the datastore is empty")
    return session.absolute(datastore)


def _read_list(file: str) -> list[SeedImage]:
    from imgstore.seed_files import LIMIT, parse_seed_file

    if file == "-":
        if sys.stdin.isatty():
            raise InvalidError("requested the list of images from stdin, but stdin is a terminal", hint="imgstore seed -f FILE")
        return parse_seed_file(sys.stdin.buffer.read(LIMIT + 1), STANDARD_INPUT)
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(LIMIT + 1)
    except FileNotFoundError:
        raise NotFoundError(f"{file}: no such file") from None
    except OSError as error:
        raise InvalidError(f"{file}: cannot be read: {error.strerror}") from None
    return parse_seed_file(data, file)


def _show_plans(session: Session, plans: Sequence[SeedPlan], places: Mapping[str, str]) -> None:
    if session.json:
        output.print_json([_describe_plan(plan) for plan in plans])
    else:
        rows = [
            [plan.reference, _to_pull(plan), places[copy.location], str(copy.layers), str(copy.present_layers)]
            for plan in plans
            for copy in plan.copies
            if not copy.problem
        ]
        output.print_table(["IMAGE", "LAYERS TO PULL", "DATASTORE", "TO COPY", "PRESENT"], rows)
    problems = [f"{plan.reference}: {plan.problem}" for plan in plans if plan.problem]
    problems += dict.fromkeys(copy.problem for plan in plans for copy in plan.copies if copy.problem)
    if problems:
        raise PartialError(f"{len(problems)} cannot be done: {'; '.join(problems)}")


def _to_pull(plan: SeedPlan) -> str:
    return f"{plan.pulled_layers} ({units.format_size(plan.pulled_bytes)})" if plan.pulled_layers else "0"


def _store_to_look_at(session: Session) -> ImageStore:
    """The store; one in memory where there is none, for a look must not make it."""
    options = options_of(session)
    location = session.location
    if "://" not in location and not (Path(location) / layout.STORE).exists():
        from imgstore.store import ImageStore

        return ImageStore.open("mem://", registries=options)
    return session.open_store(create=False, registries=options)


def _show_copies(session: Session, copies: Sequence[CopyResult], places: Mapping[str, str]) -> None:
    if session.json:
        output.print_json([_describe_copy(copy) for copy in copies])
    else:
        _print_copies(copies, places)


def _print_copies(copies: Sequence[CopyResult], places: Mapping[str, str]) -> None:
    """A table. ``places`` has, for each location, what the user called it."""
    rows = [
        [
            places.get(copy.location, copy.location),
            next((name for name in copy.references if "@" not in name), next(iter(copy.references), NONE)),
            short_id(copy.image_id),
            str(copy.copied_layers),
            str(copy.present_layers),
            units.format_size(copy.copied_bytes),
        ]
        for copy in copies
    ]
    output.print_table(["DATASTORE", "IMAGE", "IMAGE ID", "COPIED", "PRESENT", "SIZE"], rows)


def _describe_report(report: SeedReport) -> dict[str, Any]:
    return {
        "pulls": [
            {
                "reference": pull.reference,
                "image_id": pull.image.id,
                "digest": pull.digest,
                "status": pull.status.name.lower().replace("_", "-"),
            }
            for pull in report.pulls
        ],
        "copies": [_describe_copy(copy) for copy in report.copies],
        "failures": [
            {
                "reference": failure.reference or None,
                "datastore": failure.location or None,
                "code": failure.error.code,
                "message": str(failure.error),
            }
            for failure in report.failures
        ],
    }


def _describe_copy(copy: CopyResult) -> dict[str, Any]:
    return {
        "datastore": copy.location,
        "image_id": copy.image_id,
        "references": list(copy.references),
        "copied_layers": copy.copied_layers,
        "present_layers": copy.present_layers,
        "copied_bytes": copy.copied_bytes,
        "changed": copy.changed,
    }


def _describe_plan(plan: SeedPlan) -> dict[str, Any]:
    return {
        "reference": plan.reference,
        "layers_to_pull": plan.pulled_layers,
        "bytes_to_pull": plan.pulled_bytes,
        "problem": plan.problem or None,
        "copies": [
            {
                "datastore": copy.location,
                "layers_to_copy": copy.layers,
                "present_layers": copy.present_layers,
                "bytes_known": copy.bytes,
                "problem": copy.problem or None,
            }
            for copy in plan.copies
        ],
    }


def _describe_remote(remote: RemoteStore) -> dict[str, Any]:
    return {
        "datastore": remote.location,
        "disk_size": remote.capacity,
        "images": [
            {
                "id": image.id,
                "references": list(image.references),
                "digests": list(image.digests),
                "size": image.size,
                "disks": list(image.disks),
            }
            for image in remote.images
        ],
        "left_out": list(remote.left_out),
    }
