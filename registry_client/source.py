"""ImageSource: where an image comes from, the same interface for registries, layouts and archives.

::

    with closing(open_source("docker://harbor.example.com/library/busybox:1.36")) as source:
        image = source.resolve(None)
        for layer in image.layers:
            for piece in source.open_blob(layer):
                ...
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from registry_client import docker_archive, layout, media_types
from registry_client.blobs import BlobStream, read_blob
from registry_client.client import RepositoryClient
from registry_client.digest import Digest
from registry_client.docker_archive import open_docker_archive
from registry_client.errors import InvalidReferenceError, SizeMismatchError
from registry_client.files import ArchiveFiles, DirectoryFiles
from registry_client.image import Document, Image, ImageResolver
from registry_client.layout import open_layout
from registry_client.manifest import Descriptor, check_document_size
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.reference import Reference
from registry_client.server import Connections

_KINDS = {"oci": "directory", "oci-archive": "file", "docker-archive": "file"}


class ImageSource(Protocol):
    """One image, and the blobs it consists of.

    Attributes:
        name: what the user typed, in full form.
        reference: what to call the image, or None if the source gives it no name.
        local: whether the blobs lie on this machine.
    """

    name: str
    reference: Reference | None
    local: bool

    def resolve(self, platform: Platform | None) -> Image:
        """Reads manifest and configuration, and chooses the platform.

        Args:
            platform: None means Linux on this machine's architecture where there is a choice, and whatever there is where there is none.

        Raises:
            NotFoundError: no such image, or (NoMatchingPlatformError) not for this platform.
            UnsupportedError: known, and not readable: schema 1, an artifact, an encrypted or foreign layer.
            CorruptError: a digest is wrong, or a document breaks its specification.
            DeniedError, UnavailableError: from a registry.
        """

    def digest(self) -> Digest | None:
        """What the source has under the image's name now: `Image.digest` of what `resolve` would give.

        Costs a registry one request, which `resolve` does not repeat.

        Returns:
            None where that is not known before the image is resolved.
        """

    def root(self) -> Document:
        """The manifest or index that the name stands for, as it came; from a registry it is not asked for twice.

        Raises:
            UnsupportedError: a docker-archive has none, and neither has a layout in which several entries bear the name.
            Otherwise what `resolve` raises.
        """

    def read(self, descriptor: Descriptor) -> bytes:
        """A manifest, index or configuration below `root`: whole, checked, at most 4 MiB. Raises what `resolve` raises."""

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """A layer's bytes as a checked stream. May be called from several threads; each stream belongs to one."""

    def tags(self) -> list[str]:
        """The tags that the repository, layout or archive has. Raises what `resolve` raises."""

    def close(self) -> None:
        """Gives back connections and files; streams that are still open fail."""


class RegistrySource:
    """An ImageSource for one reference of a registry."""

    local = False

    def __init__(self, reference: Reference, options: Options, connections: Connections | None = None) -> None:
        """Sends nothing yet. Raises what `RepositoryClient` raises."""
        self.name = str(reference)
        self.reference: Reference | None = reference
        self._familiar = reference.familiar
        self._wanted = str(reference.digest or reference.tag)
        self._client = RepositoryClient.of(reference, options, connections)
        self._root: Document | None = None

    def resolve(self, platform: Platform | None) -> Image:
        """See ImageSource."""
        return ImageResolver(self.read, self._familiar, platform).resolve(self.root())

    def digest(self) -> Digest | None:
        """See ImageSource."""
        return self.root().digest

    def root(self) -> Document:
        """See ImageSource."""
        if self._root is None:
            self._root = self._client.manifest(self._wanted, self._familiar)
        return self._root

    def read(self, descriptor: Descriptor) -> bytes:
        """See ImageSource."""
        check_document_size(descriptor, f"{self._familiar} ({descriptor.digest.short})")
        if descriptor.media_type not in media_types.INDEXES | media_types.MANIFESTS:
            return read_blob(self._client.open_blob(descriptor))
        data = self._client.manifest(descriptor.digest, f"{self._familiar} ({descriptor.digest.short})").data
        if len(data) != descriptor.size:
            raise SizeMismatchError(f"manifest {descriptor.digest}: {len(data)} bytes, its descriptor says {descriptor.size}")
        return data

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """See ImageSource."""
        return self._client.open_blob(descriptor, offset)

    def tags(self) -> list[str]:
        """See ImageSource."""
        return list(self._client.tags())

    def close(self) -> None:
        """See ImageSource."""
        self._client.close()


def is_registry_name(text: str) -> bool:
    """Whether `open_source` takes the text for the name of an image in a registry."""
    transport, colon, _ = text.partition(":")
    return not colon or transport not in _KINDS


def open_source(text: str, options: Options | None = None, connections: Connections | None = None) -> ImageSource:
    """Opens what the text names.

    ========================================  ===========================================================================
    ``alpine``, ``host:5000/a/b:tag``         a registry
    ``docker://host:5000/a/b:tag``            the same
    ``oci:DIR[:TAG]``                         OCI image layout
    ``oci-archive:FILE[:TAG]``                a tar of one, gzip allowed
    ``docker-archive:FILE[:REFERENCE|:@N]``   what ``docker save`` writes, gzip allowed
    ========================================  ===========================================================================

    A file name ends at the first ``:``, as for skopeo. Nothing is sent to a registry yet.

    Args:
        connections: to share with other sources of registries; None: its own.

    Raises:
        InvalidReferenceError: names nothing of these.
        DeniedError: a registry that the policy forbids.
        NotFoundError: no such directory or file, or no such image in it.
        InvalidError: there are several images, and none was selected.
        MalformedError: a broken layout or archive.
    """
    options = options or Options()
    if is_registry_name(text):
        return RegistrySource(Reference.parse(text.removeprefix("docker://")), options, connections)
    transport, path, selector = _split(text)
    name = f"{transport}:{path}:{selector}" if selector else f"{transport}:{path}"
    if transport == "oci":
        return open_layout(name, path, DirectoryFiles(path), selector or None)
    files = ArchiveFiles(path, options.spool_directory)
    try:
        if transport == "oci-archive":
            return open_layout(name, path, files, selector or None)
        return open_docker_archive(name, path, files, selector or None)
    except BaseException:
        files.close()
        raise


def list_tags(text: str, options: Options | None = None, *, companions: bool = False) -> list[str]:
    """All tags of the repository, layout or archive that the text names.

    Args:
        text: as for `open_source`, but without a tag, selector or digest.
        companions: see `RepositoryClient.tags`; layouts and archives tell nothing apart.

    Raises:
        InvalidReferenceError: names none of these, or more than that.
        Otherwise what `open_source` and `RepositoryClient.tags` raise.
    """
    options = options or Options()
    if is_registry_name(text):
        name = text.removeprefix("docker://")
        if set(":@") & set(name.rpartition("/")[2]):
            raise InvalidReferenceError(f"{text!r}: name a repository, without a tag or digest")
        with RepositoryClient.of(Reference.parse(name), options) as client:
            return list(client.tags(companions=companions))
    transport, path, selector = _split(text)
    if selector:
        raise InvalidReferenceError(f"{text!r}: name a {_KINDS[transport]}, without a tag")
    if transport == "oci":
        return layout.read_tags(path, DirectoryFiles(path))
    with contextlib.closing(ArchiveFiles(path, options.spool_directory)) as files:
        return layout.read_tags(path, files) if transport == "oci-archive" else docker_archive.read_tags(path, files)


def _split(text: str) -> tuple[str, Path, str]:
    """Transport, file and selector of the name of a layout or archive."""
    transport, _, rest = text.partition(":")
    file, _, selector = rest.partition(":")
    if not file:
        raise InvalidReferenceError(f"{text!r}: invalid reference format: {transport}: needs the name of a {_KINDS[transport]}")
    return transport, Path(file), selector
