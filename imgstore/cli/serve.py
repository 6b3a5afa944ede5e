"""``imgstore serve``."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import posixpath
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

import click

from imgstore.cli.output import printable
from imgstore.cli.registry_options import options_of, path_of, registry_options
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    import ssl

    from imgstore.listeners import Listeners
    from imgstore.store import ImageStore

SHUTDOWN_SECONDS = 15
_SYSTEM_SOCKET = "/run/imgstore.sock"
_FILES_MAX = 65536
_COLLECTIONS = (10_000, 10, 100)
"""Thresholds of the garbage collector. With Python's own, a list of 10,000 images has it look at all objects several times, which keeps
everybody waiting for 50 ms and more."""
_THREAD_END_SECONDS = 1.0  # for threads that have nothing left to do


@click.command()
@click.option(
    "-H",
    "--host",
    "hosts",
    multiple=True,
    metavar="ADDRESS",
    help="Listen on unix://PATH, tcp://ADDRESS:PORT, or fd:// for what systemd passes. May be repeated.",
)
@click.option("--group", metavar="GROUP", help="Group that may use the Unix sockets.")
@click.option("--tls", is_flag=True, help="Encrypt TCP; needs --tlscert and --tlskey.")
@click.option("--tlsverify", is_flag=True, help="Encrypt TCP, and let in only who has a certificate of --tlscacert.")
@click.option("--tlscacert", metavar="FILE", help="Certificates of the authorities whose clients are let in, PEM.")
@click.option("--tlscert", metavar="FILE", help="Certificate of the service, PEM.")
@click.option("--tlskey", metavar="FILE", help="Key of the service, PEM.")
@click.option(
    "--insecure-no-auth", is_flag=True, help="Let everybody in who reaches a TCP address that is not this machine's own."
)
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
    hosts: tuple[str, ...],
    group: str | None,
    tls: bool,
    tlsverify: bool,
    tlscacert: str | None,
    tlscert: str | None,
    tlskey: str | None,
    insecure_no_auth: bool,
    allowed_hosts: tuple[str, ...],
    shutdown_timeout: float,
) -> None:
    """Answer Docker's clients: the Docker Engine API for images.

    Point them here with DOCKER_HOST, docker -H or a docker context. Ends on SIGTERM, when the requests that run have ended.
    """
    from imgstore.listeners import Access, Listeners, activated_sockets, find_group

    access = Access(
        group=None if group is None else find_group(group),
        tls=_create_tls(tls or tlsverify, tlsverify, tlscacert, tlscert, tlskey),
        allow_anyone=insecure_no_auth,
    )
    _start_logging(session)
    _raise_file_limit()
    gc.set_threshold(*_COLLECTIONS)
    activated = activated_sockets(session.environment, os.getpid())
    with Listeners() as listeners:
        for host in hosts or [_default_host(session.environment)]:
            listeners.open(host, access, activated)
        names = listeners.names.union(name.lower().removesuffix(".") for name in allowed_hosts)
        with session.open_store(registries=options_of(session)) as store:
            _serve(session, store, listeners, shutdown_timeout, frozenset(names))
            listeners.close()
            _end_threads()


def _serve(session: Session, store: ImageStore, listeners: Listeners, shutdown_timeout: float, names: frozenset[str]) -> None:
    from imgstore.docker_api.server import Server
    from imgstore.docker_api.service import Service
    from imgstore.docker_api.systemd import READY, STOPPING, notify

    def tell() -> None:
        for listener in listeners.all:
            print(f"API listen on {printable(listener.address)}", file=sys.stderr, flush=True)
        notify(session.environment, READY)

    service = Service(store, warnings=tuple(listeners.warnings()))
    server = Server(service, listeners.all, shutdown_timeout=shutdown_timeout, allowed_hosts=names, on_start=tell)
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        server.stop(at_once=asked)
        asked = True
        notify(session.environment, STOPPING)

    with _signals_call(stop):
        server.run()


def _default_host(environment: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return f"unix://{_SYSTEM_SOCKET}"
    directory = environment.get("XDG_RUNTIME_DIR", "")
    if not posixpath.isabs(directory):
        raise InvalidError(f"no place for a socket, XDG_RUNTIME_DIR is {directory!r}", hint="say where with --host unix://PATH")
    return f"unix://{directory}/imgstore.sock"


def _start_logging(session: Session) -> None:
    """Errors of requests go to standard error; with ``--debug`` all does."""
    if session.debug:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("imgstore").addHandler(handler)


def _raise_file_limit() -> None:
    # Every connection and every disk of a chain takes a descriptor; the usual limit is for programs that use select(2).
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _signals_call(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _end_threads() -> None:
    """Ends the process where a thread still works for a request that was cut: it cannot be told to stop, and a store can be killed."""
    deadline = time.monotonic() + _THREAD_END_SECONDS
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if busy := sum(thread.is_alive() for thread in others):
        print(f"imgstore: {busy} threads were still at work; the next start removes what they left", file=sys.stderr, flush=True)
        os._exit(0)


def _create_tls(wanted: bool, verify: bool, ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    certificate_file, key_file = path_of(certificate, "--tlscert"), path_of(key, "--tlskey")
    ca_file = path_of(ca, "--tlscacert")
    if not wanted:
        if certificate_file or key_file or ca_file:
            raise InvalidError("--tlscacert, --tlscert, --tlskey: need --tlsverify or --tls")
        return None
    if certificate_file is None or key_file is None:
        raise InvalidError("--tls and --tlsverify: need --tlscert and --tlskey")
    if verify and ca_file is None:
        raise InvalidError("--tlsverify: needs --tlscacert")
    from imgstore.listeners import create_tls

    return create_tls(certificate_file, key_file, ca_file if verify else None)
