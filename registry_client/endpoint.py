"""Endpoint: a server that is asked for a repository, the registry itself or a mirror of it, and how to reach it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

HTTPS = "https"
HTTP = "http"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What is trusted and shown in a TLS handshake with one host.

    Attributes:
        ca_files: PEM files of authorities, trusted beside the system's.
        client_certificates: PEM files of a certificate and of its key. They are shown to this host alone.
        verify: False: any certificate will do.
    """

    ca_files: tuple[Path, ...] = ()
    client_certificates: tuple[tuple[Path, Path], ...] = ()
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests for a repository go.

    Attributes:
        registry: what credentials are looked up for: as in a Reference, ``docker.io`` for Docker Hub.
        host: network location, ``host`` or ``host:port``; ``registry-1.docker.io`` for Docker Hub.
        repository: what the repository is called there.
        schemes: in the order in which they are tried; ``http`` stands only where the user said so, or for this machine.
        api: path of the API's root, ``/v2`` but for mirrors below another path; no slash at the end.
        namespace: the registry that a mirror is to answer for, sent as the query ``ns`` (containerd); or None.
        headers: sent with each request to this host alone.
        proxy: URL; ``""`` for none; None for what the environment says.
        connect_timeout: seconds, or None for what the Options say.
        realms: hosts to which token requests may go although they are addresses of an internal network.
        serves_tags: may be asked what a tag names.
        serves_digests: may be asked for manifests by digest, and for blobs.
        is_mirror: what it does not give, the next endpoint may have.
    """

    registry: str
    host: str
    repository: str
    schemes: tuple[str, ...] = (HTTPS,)
    tls: TlsSettings = TlsSettings()
    api: str = "/v2"
    namespace: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    proxy: str | None = field(default=None, repr=False)
    connect_timeout: float | None = None
    realms: tuple[str, ...] = ()
    serves_tags: bool = True
    serves_digests: bool = True
    is_mirror: bool = False
