"""A certificate authority of our own, and the files that servers and clients need of it."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import trustme

LOCAL_NAMES = ("127.0.0.1", "localhost")
Certificate = tuple[Path, Path]
"""Files of a certificate (with its chain) and of its key, PEM."""


class Authority:
    """An authority that no system trusts. Makes its certificates when they are first asked for, in ``directory``.

    Attributes:
        ca_file: its own certificate.
        key_type: of all certificates, ECDSA or RSA.
    """

    def __init__(self, directory: Path, *, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key_type = key_type
        self.ca_file = directory / "ca.pem"
        self._ca = trustme.CA(key_type=key_type)
        self._ca.cert_pem.write_to_path(self.ca_file)

    @property
    def server(self) -> Certificate:
        """For a server at ``127.0.0.1`` and ``localhost``."""
        return self.issue("server", *LOCAL_NAMES)

    @property
    def client(self) -> Certificate:
        """For a client that shows who it is."""
        return self.issue("client", "client@example.com")

    def issue(self, name: str, *identities: str, not_after: datetime.datetime | None = None) -> Certificate:
        """The certificate ``name``, the same each time.

        Args:
            identities: host names, addresses or mail addresses.
            not_after: when it ends; in the past for one that has expired.
        """
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        if not certificate.exists():
            leaf = self._ca.issue_cert(*identities, not_after=not_after, key_type=self.key_type)
            certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
            leaf.private_key_pem.write_to_path(key)
        return certificate, key

    def server_context(self, certificate: Certificate | None = None, *, client_ca: Path | None = None) -> ssl.SSLContext:
        """For a server in this process.

        Args:
            certificate: in the place of `server`.
            client_ca: demand certificates of this authority from clients.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(certificate or self.server))
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def write_cert_dir(self, directory: Path, *, client: Certificate | None = None) -> Path:
        """Writes ``ca.crt``, and ``client.cert`` and ``client.key``, as docker and skopeo look for them; returns the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.crt").write_bytes(self.ca_file.read_bytes())
        if client is not None:
            (directory / "client.cert").write_bytes(client[0].read_bytes())
            (directory / "client.key").write_bytes(client[1].read_bytes())
        return directory
