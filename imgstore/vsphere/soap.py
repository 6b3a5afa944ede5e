"""pyVmomi: the vSphere API's types, and the connection that calls go over. No other module imports it."""

from __future__ import annotations

import ssl
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from imgstore.errors import CorruptError, UnsupportedError

try:
    from pyVmomi import SoapStubAdapter, VmomiSupport, vim, vmodl
except ImportError as error:
    raise UnsupportedError(f"vSphere needs pyVmomi: {error}", hint="pip install 'imgstore[vsphere]'") from error

__all__ = ["COOKIE", "SoapStubAdapter", "connect", "newest_version", "vim", "vmodl"]

COOKIE = "vmware_soap_session"

_IDLE_LIMIT = 20.0
"""Seconds after which an unused connection is not used again: servers close theirs unasked."""


def newest_version(document: bytes, server: str) -> str:
    """The newest version of the API that both the server and pyVmomi speak.

    Args:
        document: the server's ``/sdk/vimServiceVersions.xml``.

    Raises:
        CorruptError: it is no such document.
        UnsupportedError: they have none in common.
    """
    # Expat of Python 3.11 and later bounds what entities may grow to.
    try:
        offered = set(_versions(ElementTree.fromstring(document)))  # noqa: S314
    except ElementTree.ParseError as error:
        raise CorruptError(f"{server}: /sdk/vimServiceVersions.xml is no XML: {error}") from error
    for version in VmomiSupport.GetServiceVersions("vim25"):
        if VmomiSupport.versionIdMap[version] in offered:
            return str(version)
    raise UnsupportedError(f"{server}: speaks no version of the vSphere API that pyVmomi speaks, only {sorted(offered)}")


def connect(host: str, port: int, version: str, context: ssl.SSLContext, timeout: float) -> SoapStubAdapter:
    """What calls go over, not logged in. Connects when it is used first; may be used by several threads."""
    return SoapStubAdapter(
        host=f"[{host}]" if ":" in host else host,
        port=port,
        path="/sdk",
        version=version,
        sslContext=context,
        httpConnectionTimeout=timeout,
        connectionPoolTimeout=_IDLE_LIMIT,
    )


def _versions(root: ElementTree.Element) -> Iterator[str]:
    for namespace in root.iter("namespace"):
        if namespace.findtext("name") == "urn:vim25":
            for version in namespace.iter("version"):
                yield version.text or ""
