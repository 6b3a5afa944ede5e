"""``imgstore serve``."""

from __future__ import annotations

import gc
import os
import posixpath
import sys
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from imgstore.cli.listening import (
    end_threads,
    protection_options,
    raise_file_limit,
    signals_call,
    start_logging,
    take_protection,
)
from imgstore.cli.nbd import create_nbd_server, open_nbd_listeners, tell_nbd
from imgstore.cli.output import printable
from imgstore.cli.registry_options import options_of, registry_options
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from imgstore.listeners import Listeners
    from imgstore.store import ImageStore

SHUTDOWN_SECONDS = 15
_SYSTEM_SOCKET = "/run/imgstore.sock"
_COLLECTIONS = (10_000, 10, 100)
"""Thresholds of the garbage collector. With Python's own, a list of 10,000 images has it look at all objects several times, which keeps
everybody waiting for 50 ms and more."""


@click.command()
@click.option(
    "-H",
    "--host",
    "hosts",
    multiple=True,
    metavar="ADDRESS",
    help="Listen on unix://PATH, tcp://ADDRESS:PORT, or fd:// for what systemd passes. May be repeated.",
)
@click.option(
    "--nbd-host",
    "nbd_hosts",
    multiple=True,
    metavar="ADDRESS",
    help="Also serve disks as network block devices, on unix://PATH or tcp://ADDRESS:PORT. May be repeated.",
)
@protection_options
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="Name of this machine that plain HTTP clients use."
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(0, 86400),
    default=SHUTDOWN_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long running requests may go on after SIGTERM.",
)
@registry_options
@click.pass_obj
def serve(
    session: Session,
    /,
    hosts: tuple[str, ...],
    nbd_hosts: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    shutdown_timeout: float,
    **words: Any,
) -> None:
    """Answer Docker's clients: the Docker Engine API for images.

    Point them here with DOCKER_HOST, docker -H or a docker context. Ends on SIGTERM, when the requests that run have ended.
    """
    from imgstore.listeners import Listeners, activated_sockets

    protection = take_protection(words)
    access = protection.access(protocols=["http/1.1"])
    start_logging(session)
    raise_file_limit()
    gc.set_threshold(*_COLLECTIONS)
    activated = activated_sockets(session.environment, os.getpid())
    with Listeners() as listeners, Listeners() as nbd_listeners:
        for host in hosts or [_default_host(session.environment)]:
            listeners.open(host, access, activated)
        if nbd_hosts:
            open_nbd_listeners(nbd_listeners, nbd_hosts, protection, activated)
            if not {listener.socket for listener in listeners.all}.isdisjoint(listener.socket for listener in nbd_listeners.all):
                raise InvalidError("--host and --nbd-host: mean the same socket", hint="tell them apart by name: fd://NAME")
        names = listeners.names.union(name.lower().removesuffix(".") for name in allowed_hosts)
        with session.open_store(registries=options_of(session)) as store:
            _serve(session, store, listeners, nbd_listeners, shutdown_timeout, frozenset(names))
            listeners.close()
            nbd_listeners.close()
            end_threads()


def _serve(
    session: Session,
    store: ImageStore,
    listeners: Listeners,
    nbd_listeners: Listeners,
    shutdown_timeout: float,
    names: frozenset[str],
) -> None:
    from imgstore.docker_api.server import Server
    from imgstore.docker_api.service import Service
    from imgstore.docker_api.systemd import READY, STOPPING, notify

    def tell() -> None:
        for listener in listeners.all:
            print(f"API listen on {printable(listener.address)}", file=sys.stderr, flush=True)
        tell_nbd(nbd_listeners)
        notify(session.environment, READY)

    service = Service(store, warnings=tuple(listeners.warnings()))
    server = Server(
        service,
        listeners.all,
        shutdown_timeout=shutdown_timeout,
        allowed_hosts=names,
        on_start=tell,
        companions=[create_nbd_server(store, nbd_listeners)] if nbd_listeners.all else (),
    )
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        server.stop(at_once=asked)
        asked = True
        notify(session.environment, STOPPING)

    with signals_call(stop):
        server.run()


def _default_host(environment: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return f"unix://{_SYSTEM_SOCKET}"
    directory = environment.get("XDG_RUNTIME_DIR", "")
    if not posixpath.isabs(directory):
        raise InvalidError(f"no place for a socket, XDG_RUNTIME_DIR is {directory!r}", hint="say where with --host unix://PATH")
    return f"unix://{directory}/imgstore.sock"
