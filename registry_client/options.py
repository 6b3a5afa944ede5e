"""How to reach registries: what the user chose, in one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from registry_client.credentials import Credential
from registry_client.retry import RetryPolicy

RetrySink = Callable[[str, float], None]
"""Told before each wait: a sentence that says what failed, and the seconds until the next try. May be called from several threads."""


def ignore_retry(message: str, delay: float) -> None:
    """Drops the message."""


@dataclass(frozen=True)
class Options:
    """Choices for `open_source`.

    Attributes:
        credential: for the registry of the reference; None looks into the files of docker, podman and skopeo. To be sure that
            nothing is sent, give ``Credential()``.
        ca_file: PEM file of certificate authorities to trust beside the system's.
        connect_timeout: seconds for a connection and for the TLS handshake.
        read_timeout: seconds without a byte, after which a connection counts as dead.
        retry: how often, and how long between.
        on_retry: told before each wait.
        spool_directory: where a compressed archive is unpacked to, in a file without a name; None is the system's place for
            temporary files.
    """

    credential: Credential | None = None
    ca_file: Path | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_retry: RetrySink = ignore_retry
    spool_directory: Path | None = None
