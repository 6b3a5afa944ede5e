"""``imgstore attach`` and ``detach``: disks of the store, for what runs virtual machines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgstore.cli import output
from imgstore.cli.session import Session
from imgstore.cli.vm_attach import attach_to_vm, detach_from_vm, device_names
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from imgstore.attach.qemu import DeviceModel

_MODELS = ("virtio-blk-pci", "virtio-scsi", "nvme")


@click.command()
@click.argument("names", metavar="CONTAINER|NAME...", nargs=-1, required=True)
@click.option("--print-qemu", is_flag=True, help="Print them as arguments of QEMU.")
@click.option(
    "--qmp", metavar="SOCKET", type=click.Path(path_type=Path), help="Plug them into the machine that has this monitor."
)
@click.option("--device", type=click.Choice(_MODELS), help="What the guest sees a disk as.  [default: virtio-blk-pci]")
@click.option("--nbd", metavar="ADDRESS", help="Reach them through imgstore nbd serve at unix:///PATH or tcp://HOST:PORT.")
@click.option("--vm", metavar="URL", help="Add them to this machine of vSphere: vsphere://HOST/DATACENTER/vm/NAME, or its name.")
@click.option("--make-volumes", is_flag=True, help="With --vm: make volumes that are not there, as large as the store's disks.")
@click.option("--no-protect", is_flag=True, help="With --vm: let the vCenter destroy the machine while it has them.")
@output.format_option
@click.pass_obj
def attach(
    session: Session,
    names: tuple[str, ...],
    print_qemu: bool,
    qmp: Path | None,
    device: str | None,
    nbd: str | None,
    vm: str | None,
    make_volumes: bool,
    no_protect: bool,
) -> None:
    """Hand disks to a virtual machine.

    A container comes with its volumes; any disk can be named by itself: container/NAME, volume/NAME, image/REF.

    With --print-qemu, prints the arguments that give QEMU the disks, quoted for a shell: eval "qemu-system-x86_64 ... $(imgstore attach
    --print-qemu web)". In the guest they are /dev/disk/by-id/virtio-root, virtio-volume-1, virtio-image-1 and so on.

    With --qmp, plugs them into a machine that runs: -qmp unix:SOCKET,server=on,wait=off. It needs a free pcie-root-port for each, or a
    virtio-scsi-pci controller.

    With --vm, adds them to a machine of vSphere, running or not, on paravirtual SCSI controllers; the store is one on a datastore there.
    A container's disk is made by the platform, and its volumes are named by themselves.
    """
    _check_targets({"--print-qemu": print_qemu, "--qmp": qmp is not None, "--vm": vm is not None})
    if vm is not None:
        _check_goes_with("--vm", {"--device": device is not None, "--nbd": nbd is not None})
        attach_to_vm(session, device_names(names), vm, make_volumes=make_volumes, protect=not no_protect)
        return
    _check_goes_with("--print-qemu and --qmp", {"--make-volumes": make_volumes, "--no-protect": no_protect})
    from imgstore.attach.qemu import DeviceModel

    model = DeviceModel(device) if device else None
    if qmp is None:
        _print_arguments(session, names, model, nbd)
    else:
        _plug(session, names, qmp, model, nbd)


@click.command()
@click.argument("names", metavar="CONTAINER|NAME...", nargs=-1, required=True)
@click.option(
    "--qmp", metavar="SOCKET", type=click.Path(path_type=Path), help="Take them out of the machine that has this monitor."
)
@click.option(
    "--vm", metavar="URL", help="Take them out of this machine of vSphere: vsphere://HOST/DATACENTER/vm/NAME, or its name."
)
@output.format_option
@click.pass_obj
def detach(session: Session, names: tuple[str, ...], qmp: Path | None, vm: str | None) -> None:
    """Take disks out of a virtual machine.

    Unmount them in the guest first, if it runs. With --qmp a container's volumes go with it. What the machine does not have is fine. No
    file is removed.
    """
    _check_targets({"--qmp": qmp is not None, "--vm": vm is not None})
    if vm is not None:
        detach_from_vm(session, device_names(names), vm)
        return
    assert qmp is not None  # noqa: S101 - it is the only target
    with session.open_store(create=False) as store:
        disks = store.unplug_disks(device_names(names), qmp)
    if session.json:
        output.print_json([{"name": str(each.disk.name), "was_there": each.was_there} for each in disks])
    else:
        rows = [(str(each.disk.name), "detached" if each.was_there else "was not attached") for each in disks]
        output.print_table(("NAME", "STATUS"), rows)


def _print_arguments(session: Session, names: tuple[str, ...], model: DeviceModel | None, nbd: str | None) -> None:
    from imgstore.attach.qemu import DeviceModel, boot_serials, parse_nbd_address, qemu_arguments

    server = None if nbd is None else parse_nbd_address(nbd)
    with session.open_store(create=False) as store:
        disks = store.machine_disks(device_names(names))
        if nbd is None:
            disks = store.ready_disks(disks)
    words = qemu_arguments(disks, model=model or DeviceModel.VIRTIO_BLK, nbd=server)
    if session.json:
        shown = [
            {
                "name": str(disk.name),
                "serial": serial,
                "destinations": list(disk.destinations),
                "chain": [str(path) for path in disk.chain] if nbd is None else [],
                "read_only": disk.read_only,
            }
            for disk, serial in zip(disks, boot_serials(disks), strict=True)
        ]
        output.print_json({"arguments": words, "disks": shown})
    else:
        output.print_line(shlex.join(words))


def _plug(session: Session, names: tuple[str, ...], qmp: Path, model: DeviceModel | None, nbd: str | None) -> None:
    with session.open_store(create=False) as store:
        plugged = store.plug_disks(device_names(names), qmp, model=model, nbd=nbd)
    if session.json:
        shown = [
            {
                "name": str(each.disk.name),
                "serial": each.serial,
                "device": each.id,
                "destinations": list(each.disk.destinations),
                "read_only": each.disk.read_only,
                "was_there": each.was_there,
            }
            for each in plugged
        ]
        output.print_json(shown)
    else:
        rows = [(str(each.disk.name), each.serial, "was attached" if each.was_there else "attached") for each in plugged]
        output.print_table(("NAME", "SERIAL", "STATUS"), rows)


def _check_targets(targets: dict[str, bool]) -> None:
    """Raises InvalidError unless exactly one of the options was given."""
    given = [option for option, is_given in targets.items() if is_given]
    if not given:
        raise InvalidError(f"where to is not said: {' or '.join(targets)} is needed")
    if len(given) > 1:
        raise InvalidError(f"{' and '.join(given)} exclude each other")


def _check_goes_with(target: str, others: dict[str, bool]) -> None:
    """Raises InvalidError if an option was given that says nothing with this target."""
    for option, is_given in others.items():
        if is_given:
            raise InvalidError(f"{option} does not go with {target}")
