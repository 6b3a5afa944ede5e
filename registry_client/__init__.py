"""Container registries, OCI layouts and docker-archives: read, written, logged in to. Stands alone: it knows nothing of disks.

::

    import registry_client

    with registry_client.RepositoryClient("harbor.example.com", "project/app") as client:
        print(list(client.tags()), client.find_manifest("1.0"))

Everything here comes from a module below, which is imported when its first name is used: only ``client``, ``source`` and what stands
on them need an HTTP library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry_client.blobs import BlobStream
    from registry_client.client import RepositoryClient
    from registry_client.credentials import Credential, erase_credential, find_credential, store_credential
    from registry_client.digest import Digest
    from registry_client.errors import (
        CancelledError,
        CorruptError,
        DeniedError,
        InvalidError,
        NotFoundError,
        RegistryError,
        UnavailableError,
        UnsupportedError,
    )
    from registry_client.image import Document, Image
    from registry_client.login import check_login
    from registry_client.manifest import Descriptor, Index, Manifest
    from registry_client.options import Options, Places, Policy, RegistryOptions
    from registry_client.platform import Platform
    from registry_client.push import PushEvent, push_image
    from registry_client.reference import Reference
    from registry_client.retry import RetryPolicy
    from registry_client.server import Connections
    from registry_client.source import ImageSource, list_tags, open_source
    from registry_client.uploads import PushStatus
    from registry_client.writer import RepositoryWriter

__all__ = [
    "BlobStream",
    "CancelledError",
    "Connections",
    "CorruptError",
    "Credential",
    "DeniedError",
    "Descriptor",
    "Digest",
    "Document",
    "Image",
    "ImageSource",
    "Index",
    "InvalidError",
    "Manifest",
    "NotFoundError",
    "Options",
    "Places",
    "Platform",
    "Policy",
    "PushEvent",
    "PushStatus",
    "Reference",
    "RegistryError",
    "RegistryOptions",
    "RepositoryClient",
    "RepositoryWriter",
    "RetryPolicy",
    "UnavailableError",
    "UnsupportedError",
    "check_login",
    "erase_credential",
    "find_credential",
    "list_tags",
    "open_source",
    "push_image",
    "store_credential",
]

_ELSEWHERE = {
    "BlobStream": "blobs",
    "Connections": "server",
    "Credential": "credentials",
    "Descriptor": "manifest",
    "Digest": "digest",
    "Document": "image",
    "Image": "image",
    "ImageSource": "source",
    "Index": "manifest",
    "Manifest": "manifest",
    "Options": "options",
    "Places": "options",
    "Platform": "platform",
    "Policy": "options",
    "PushEvent": "push",
    "PushStatus": "uploads",
    "Reference": "reference",
    "RegistryOptions": "options",
    "RepositoryClient": "client",
    "RepositoryWriter": "writer",
    "RetryPolicy": "retry",
    "check_login": "login",
    "erase_credential": "credentials",
    "find_credential": "credentials",
    "list_tags": "source",
    "open_source": "source",
    "push_image": "push",
    "store_credential": "credentials",
}
"""Modules of the names that are no error."""

if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = _ELSEWHERE.get(name, "errors")
        value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
