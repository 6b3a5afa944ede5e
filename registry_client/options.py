"""How to reach registries: what the user chose, in one value."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from registry_client.credentials import Credential
from registry_client.retry import RetryPolicy

RetrySink = Callable[[str, float], None]
"""Told before each wait: a sentence that says what failed, and the seconds until the next try. May be called from several threads."""


FallbackSink = Callable[[str], None]
"""Told when a mirror failed and another place is asked, in a sentence."""


def ignore_retry(message: str, delay: float) -> None:
    """Drops the message."""


def ignore_fallback(message: str) -> None:
    """Drops the message."""


@dataclass(frozen=True)
class Places:
    """Where the files of docker, podman, skopeo and containerd lie that say how to reach registries. A missing one is no error.

    Attributes:
        registries_conf: files and directories (``*.conf``) of containers-registries.conf(5), in the order in which they are read.
        certs_d: directories with a directory for each ``host[:port]``: ``*.crt`` authorities, ``X.cert`` and ``X.key`` client
            certificates (docker, containers-certs.d(5)).
        hosts_toml: likewise, with a ``hosts.toml`` (containerd).
    """

    registries_conf: tuple[Path, ...] = ()
    certs_d: tuple[Path, ...] = ()
    hosts_toml: tuple[Path, ...] = ()

    @classmethod
    def usual(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The usual places: the user's before the system's."""
        home = Path(environment.get("HOME") or "/")
        configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        containers, system = configuration / "containers", Path("/etc/containers")
        user, drop_ins = containers / "registries.conf", (system / "registries.conf.d", containers / "registries.conf.d")
        if chosen := environment.get("CONTAINERS_REGISTRIES_CONF"):
            registries_conf: tuple[Path, ...] = (Path(chosen), *drop_ins)
        elif user.exists():
            registries_conf = (user, drop_ins[1])  # then none of the system's, as in containers/image
        else:
            registries_conf = (system / "registries.conf", *drop_ins)
        return cls(
            registries_conf=registries_conf,
            certs_d=(containers / "certs.d", system / "certs.d", Path("/etc/docker/certs.d")),
            hosts_toml=(Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d")),
        )


@dataclass(frozen=True)
class RegistryOptions:
    """What the user configured for one registry; beats what all files of other programs say.

    Attributes:
        insecure: any certificate will do, and plain HTTP where there is no HTTPS.
        ca_file, client_certificate, client_key: PEM files.
        proxy: URL; ``""`` for none; None for what the environment says.
        mirrors: asked before the registry, in this order: ``host[:port][/path]``; each may have RegistryOptions of its own.
        realms: hosts to which this registry's token requests may go although they are addresses of an internal network.
    """

    insecure: bool = False
    ca_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: str | None = None
    mirrors: tuple[str, ...] = ()
    realms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policy:
    """Which registries may be talked to: ``deny`` beats ``allow``, and an empty ``allow`` allows all.

    An entry is a host glob (``*.example.com``, ``host:5000``), with or without the beginning of a repository
    (``harbor.example.com/project``), or a network (``10.0.0.0/8``), which matches registries named by an address.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """Choices for `open_source`.

    Attributes:
        credential: for the registry of the reference; None looks into the files of docker, podman and skopeo. To be sure that
            nothing is sent, give ``Credential()``.
        authfile: the only file in which credentials are looked up, and into which `login` writes them; None is the usual ones.
        cert_dir: directory with ``*.crt``, ``X.cert`` and ``X.key`` for the registry of the reference, in the place of certs.d.
        insecure_registries: ``host``, ``host:port`` or a network: as `RegistryOptions.insecure`.
        registries: by ``host[:port][/path]``; the longest that matches a repository counts.
        policy: which registries may be talked to.
        places: of other programs' configuration.
        ca_file: PEM file of certificate authorities to trust beside the system's.
        upload_chunk: bytes that one request of an upload sends at most; None for all in one.
        connect_timeout: seconds for a connection and for the TLS handshake.
        read_timeout: seconds without a byte, after which a connection counts as dead; twice as many for the answer to a PUT, before
            which a registry may move a whole blob.
        retry: how often, and how long between.
        on_retry: told before each wait.
        on_fallback: told when a mirror is given up.
        spool_directory: where a compressed archive is unpacked to, in a file without a name; None is the system's place for
            temporary files.
    """

    credential: Credential | None = None
    authfile: Path | None = None
    cert_dir: Path | None = None
    insecure_registries: frozenset[str] = frozenset()
    registries: Mapping[str, RegistryOptions] = field(default_factory=dict)
    policy: Policy = Policy()
    places: Places = field(default_factory=Places.usual)
    ca_file: Path | None = None
    upload_chunk: int | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 25.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    on_retry: RetrySink = ignore_retry
    on_fallback: FallbackSink = ignore_fallback
    spool_directory: Path | None = None
