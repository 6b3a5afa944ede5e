"""``imgstore attach --vm``, ``detach --vm`` and ``attachments``: disks on virtual machines of vSphere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from imgstore.cli import output
from imgstore.cli.session import Session

if TYPE_CHECKING:
    from imgstore.attach.vm_attachment import VmAttachment

_HEADINGS = ("NAME", "UNIT", "MODE", "IN THE GUEST")


@click.command()
@click.option("--vm", metavar="URL", required=True, help="The machine: vsphere://HOST/DATACENTER/vm/NAME, or its name.")
@output.format_option
@click.pass_obj
def attachments(session: Session, vm: str) -> None:
    """List the disks of the store that a machine of vSphere has.

    The store is one on a datastore of the same server. UNIT is the SCSI controller's number and the disk's on it. A disk
    that is nothing of the store any more is shown by its file.
    """
    with session.open_store(create=False) as store:
        found = store.vm_attachments(vm)
    if session.json:
        output.print_json([_describe(each) for each in found])
    else:
        output.print_table(_HEADINGS, (_cells(each) for each in found))


def attach_to_vm(session: Session, names: Sequence[str], vm: str, *, make_volumes: bool, protect: bool) -> None:
    """Adds the disks, and prints what the machine has of them."""
    session.kept = f"VM {vm} may have the disks, or get them still: imgstore attachments --vm says so"
    with session.open_store(create=False) as store:
        report = store.attach_to_vm(names, vm, make_volumes=make_volumes, protect=protect)
    if session.json:
        shown = [{**_describe(each), "was_there": each.was_there} for each in report.attachments]
        output.print_json({"disks": shown, "protection_failure": report.protection_failure})
    else:
        output.print_table(
            (*_HEADINGS, "STATUS"),
            ((*_cells(each), "was attached" if each.was_there else "attached") for each in report.attachments),
        )
    if report.protection_failure:
        _warn(f"nothing keeps VM {vm} from being destroyed with its disks, those of images too: {report.protection_failure}")
        _hint("detach them first, whenever it is to be destroyed")


def detach_from_vm(session: Session, names: Sequence[str], vm: str) -> None:
    """Takes the disks from the machine, and prints which it had."""
    session.kept = f"VM {vm} may have the disks, or lose them still: imgstore attachments --vm says so"
    with session.open_store(create=False) as store:
        report = store.detach_from_vm(names, vm)
    if session.json:
        shown = [{"name": each.name, "disk": each.path, "was_there": each.was_there} for each in report.attachments]
        output.print_json({"disks": shown, "protection_failure": report.protection_failure})
    else:
        rows = [(each.name, "detached" if each.was_there else "was not attached") for each in report.attachments]
        output.print_table(("NAME", "STATUS"), rows)
    if report.protection_failure:
        _warn(f"VM {vm} can still not be destroyed: {report.protection_failure}")


def device_names(names: Iterable[str]) -> list[str]:
    """What has no kind, and is no file, is a container."""
    return [name if "/" in name or name.startswith("[") else f"container/{name}" for name in names]


def _describe(each: VmAttachment) -> dict[str, object]:
    return {
        "name": each.name,
        "disk": each.path,
        "mode": each.mode,
        "bus": each.bus,
        "unit": each.unit,
        "key": each.key,
        "uuid": each.uuid,
        "guest_path": each.guest_path,
    }


def _cells(each: VmAttachment) -> tuple[str, ...]:
    unit = "" if each.unit is None else f"{each.bus}:{each.unit}"
    return each.name or each.path, unit, each.mode, each.guest_path


def _warn(text: str) -> None:
    print(f"imgstore: warning: {output.printable(text)}", file=sys.stderr)


def _hint(text: str) -> None:
    print(f"hint: {text}", file=sys.stderr)
