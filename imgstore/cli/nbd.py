"""``imgstore nbd``: disks as network block devices."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from imgstore.cli.groups import Commands, LazyGroup
from imgstore.cli.listening import (
    Protection,
    end_threads,
    protection_options,
    raise_file_limit,
    signals_call,
    start_logging,
    take_protection,
)
from imgstore.cli.output import printable
from imgstore.cli.session import Session
from imgstore.cli.signals import end_at_once

if TYPE_CHECKING:
    import socket

    from imgstore.listeners import Listeners
    from imgstore.nbd.server import Server
    from imgstore.store import ImageStore

NBD_COMMANDS: Commands = {
    "serve": ("nbd", "serve", "Serve disks to NBD clients."),
}


@click.group("nbd", cls=LazyGroup, table=NBD_COMMANDS)
def nbd() -> None:
    """Serve disks as network block devices.

    For QEMU, the programs of libnbd, and the kernel's nbd-client.
    """


@click.command()
@click.option(
    "-H",
    "--host",
    "hosts",
    required=True,
    multiple=True,
    metavar="ADDRESS",
    help="Listen on unix://PATH, tcp://ADDRESS:PORT, or fd:// for what systemd passes. May be repeated.",
)
@protection_options
@click.option("--read-only", is_flag=True, help="Let nobody write, whatever the disk.")
@click.option(
    "--export",
    "exports",
    multiple=True,
    metavar="NAME",
    help="Offer only this disk, such as container/web; the only one is the default export. May be repeated.",
)
@click.pass_obj
def serve(session: Session, /, hosts: tuple[str, ...], read_only: bool, exports: tuple[str, ...], **words: Any) -> None:
    """Serve disks to NBD clients.

    Exports are named image/REF, container/NAME and volume/NAME; with ?snapshot behind the name a client gets a private copy that it may
    write and that vanishes when it goes. Images are read-only. Ends on SIGTERM, when what clients wrote is on stable storage.
    """
    from imgstore.listeners import Listeners, activated_sockets

    start_logging(session)
    raise_file_limit()
    with Listeners() as listeners:
        open_nbd_listeners(listeners, hosts, take_protection(words), activated_sockets(session.environment, os.getpid()))
        with session.open_store(create=False) as store:
            server = create_nbd_server(store, listeners, names=exports, read_only=read_only)
            for name in exports:
                server.exports.describe(name)
            asyncio.run(_serve(session, server, listeners))
            listeners.close()
            end_threads()


def open_nbd_listeners(
    listeners: Listeners,
    hosts: Sequence[str],
    protection: Protection,
    activated: Mapping[str, Sequence[socket.socket]],
) -> None:
    """Opens the addresses at which NBD is served."""
    from imgstore.nbd.protocol import PORT

    access = protection.access(port=PORT)
    for host in hosts:
        listeners.open(host, access, activated)


def create_nbd_server(store: ImageStore, listeners: Listeners, *, names: Sequence[str] = (), read_only: bool = False) -> Server:
    """The server of a store's disks, not started yet. For the arguments see ``nbd.exports.Exports``."""
    from imgstore.nbd.exports import Exports
    from imgstore.nbd.server import Server

    return Server(Exports(store, names, read_only), listeners.all)


def tell_nbd(listeners: Listeners) -> None:
    """Says where NBD is served."""
    for listener in listeners.all:
        print(f"NBD listen on {printable(listener.address)}", file=sys.stderr, flush=True)


async def _serve(session: Session, server: Server, listeners: Listeners) -> None:
    from imgstore.docker_api.systemd import READY, STOPPING, notify

    loop, ended, asked = asyncio.get_running_loop(), asyncio.Event(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:  # the storage is too slow for somebody
            end_at_once(number, frame)
        asked = True
        loop.call_soon_threadsafe(ended.set)

    with signals_call(stop):
        await server.start()
        tell_nbd(listeners)
        notify(session.environment, READY)
        await ended.wait()
        notify(session.environment, STOPPING)
        await server.stop()
