"""``imgstore attach``: the disks of a container, for what runs virtual machines."""

from __future__ import annotations

import shlex

import click

from imgstore.cli import output
from imgstore.cli.session import Session


@click.command()
@click.argument("container", metavar="CONTAINER")
@click.option("--print-qemu", is_flag=True, required=True, help="Print them as arguments of QEMU.")
@output.format_option
@click.pass_obj
def attach(session: Session, container: str, print_qemu: bool) -> None:
    """Hand the disks of a container to a virtual machine.

    Prints the arguments that give QEMU the container's disk and its volumes, quoted for a shell: eval "qemu-system-x86_64 ... $(imgstore
    attach --print-qemu web)". In the guest they are /dev/disk/by-id/virtio-root, virtio-volume-1 and so on.
    """
    with session.open_store(create=False) as store:
        from imgstore.attach.qemu import qemu_arguments

        disks = store.container_disks(container)
        words = qemu_arguments(disks)
    if session.json:
        shown = [
            {
                "destination": disk.destination,
                "volume": disk.volume or None,
                "chain": [str(path) for path in disk.chain],
                "read_only": disk.read_only,
            }
            for disk in disks
        ]
        output.print_json({"arguments": words, "disks": shown})
    else:
        output.print_line(shlex.join(words))
