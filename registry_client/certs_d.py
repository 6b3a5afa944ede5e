"""certs.d: directories with the authorities and client certificates of one registry each.

Sources: docker's "Verify repository client with certificates" (``ReadCertsDirectory`` in its ``registry`` package);
containers-certs.d(5). In the directory ``host:port`` every ``*.crt`` is an authority, and ``X.cert`` with ``X.key`` is what we show.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from registry_client.endpoint import TlsSettings
from registry_client.errors import InvalidError, MalformedError
from registry_client.hosts import list_spellings

FILES_MAX = 1000


def find_certificates(host: str, directories: Sequence[Path]) -> TlsSettings:
    """What the first directory says that knows the host, as podman does; later ones are not read.

    In each one ``host`` and ``host:443`` are looked for under both names, and Docker Hub under all of its names.

    Raises:
        MalformedError: see `read_certificates`.
    """
    for directory in directories:
        for name in list_spellings(host):
            found = directory / name
            try:
                is_there = found.is_dir()
            except OSError:  # not ours to look at, or a name too long for a file
                is_there = False
            if is_there:
                return read_certificates(found)
    return TlsSettings()


def read_certificates(directory: Path, *, required: bool = False) -> TlsSettings:
    """The files of one directory, in the order of their names. Their contents are not read yet.

    A directory that is not there or may not be read says nothing, as for docker and podman, unless it is ``required``.

    Raises:
        MalformedError: a certificate without its key, or a key without its certificate.
        InvalidError: it is required and cannot be read.
    """
    try:
        names = sorted(path.name for path in islice(directory.iterdir(), FILES_MAX + 1))
    except OSError as error:
        if required:
            raise InvalidError(f"{directory}: {error.strerror}") from None
        return TlsSettings()
    if len(names) > FILES_MAX:
        raise MalformedError(f"{directory}: more than {FILES_MAX} files")
    for name in names:
        if name.endswith(".cert") and f"{name.removesuffix('.cert')}.key" not in names:
            raise MalformedError(
                f"{directory / name}: missing key {name.removesuffix('.cert')}.key for this client certificate "
                "(CA certificates should use the extension .crt)"
            )
        if name.endswith(".key") and f"{name.removesuffix('.key')}.cert" not in names:
            raise MalformedError(f"{directory / name}: missing client certificate {name.removesuffix('.key')}.cert for this key")
    return TlsSettings(
        ca_files=tuple(directory / name for name in names if name.endswith(".crt")),
        client_certificates=tuple(
            (directory / name, directory / f"{name.removesuffix('.cert')}.key") for name in names if name.endswith(".cert")
        ),
    )
