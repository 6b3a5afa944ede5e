"""What commands that listen have in common: options, protection, signals, and an end that comes."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from imgstore.cli.registry_options import path_of
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    import ssl

    from imgstore.listeners import Access

_FILES_MAX = 65536
_THREAD_END_SECONDS = 1.0  # for threads that have nothing left to do

_OPTIONS = (
    click.option("--group", metavar="GROUP", help="Group that may use the Unix sockets."),
    click.option("--tls", is_flag=True, help="Encrypt TCP; needs --tlscert and --tlskey."),
    click.option("--tlsverify", is_flag=True, help="Encrypt TCP, and let in only who has a certificate of --tlscacert."),
    click.option("--tlscacert", metavar="FILE", help="Certificates of the authorities whose clients are let in, PEM."),
    click.option("--tlscert", metavar="FILE", help="Certificate of the service, PEM."),
    click.option("--tlskey", metavar="FILE", help="Key of the service, PEM."),
    click.option(
        "--insecure-no-auth",
        is_flag=True,
        help="Let everybody in who reaches a TCP address that is not this machine's own.",
    ),
)


@dataclass(frozen=True)
class Protection:
    """What the options say of who may connect, and how."""

    group: str | None
    tls: bool
    tlsverify: bool
    tlscacert: str | None
    tlscert: str | None
    tlskey: str | None
    insecure_no_auth: bool

    def access(self, *, port: int | None = None, protocols: Sequence[str] = ()) -> Access:
        """How listeners are protected.

        Args:
            port: where an address names none; None for Docker's.
            protocols: what TLS is to offer by ALPN.

        Raises:
            InvalidError: options do not fit, there is no such group, or a file cannot be used.
        """
        from imgstore.listeners import Access, find_group

        return Access(
            group=None if self.group is None else find_group(self.group),
            tls=self._create_tls(protocols),
            allow_anyone=self.insecure_no_auth,
            port=port,
        )

    def _create_tls(self, protocols: Sequence[str]) -> ssl.SSLContext | None:
        certificate, key = path_of(self.tlscert, "--tlscert"), path_of(self.tlskey, "--tlskey")
        authority = path_of(self.tlscacert, "--tlscacert")
        if not (self.tls or self.tlsverify):
            if certificate or key or authority:
                raise InvalidError("--tlscacert, --tlscert, --tlskey: need --tlsverify or --tls")
            return None
        if certificate is None or key is None:
            raise InvalidError("--tls and --tlsverify: need --tlscert and --tlskey")
        if self.tlsverify and authority is None:
            raise InvalidError("--tlsverify: needs --tlscacert")
        from imgstore.listeners import create_tls

        return create_tls(certificate, key, authority if self.tlsverify else None, protocols)


def protection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `take_protection` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_protection(words: dict[str, Any]) -> Protection:
    """Takes what the options of `protection_options` say out of a command's arguments."""
    return Protection(**{name: words.pop(name) for name in Protection.__dataclass_fields__})


def start_logging(session: Session) -> None:
    """Errors of requests go to standard error; with ``--debug`` all does."""
    if session.debug:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("imgstore").addHandler(handler)


def raise_file_limit() -> None:
    """Lets the process have more open files: every connection and every disk of a chain takes one.

    The usual limit is for programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def signals_call(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call ``handler`` while the block runs; one that the parent told us to ignore (``nohup``) does not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_threads() -> None:
    """Ends the process where a thread still works for a request that was cut: it cannot be told to stop, and a store can be killed."""
    deadline = time.monotonic() + _THREAD_END_SECONDS
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if busy := sum(thread.is_alive() for thread in others):
        print(f"imgstore: {busy} threads were still at work; the next start removes what they left", file=sys.stderr, flush=True)
        os._exit(0)
