"""The service manager: what it is told. See sd_notify(3)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(environment: Mapping[str, str], state: str) -> None:
    """Tells the service manager that started us; nothing where none did, and nothing if it does not listen."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
