"""All images of one archive, whatever its form: what ``docker load`` reads.

An archive with ``manifest.json`` is a docker-archive, even if it is an OCI layout as well, as Docker 25 and later write it; one with
``oci-layout`` alone is a layout; else it may be what Docker before 1.10 wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Protocol

from registry_client import layout
from registry_client.docker_archive import MANIFEST, ArchivedImage, DockerArchiveSource, read_images
from registry_client.errors import NotFoundError
from registry_client.files import ArchiveFiles
from registry_client.legacy_archive import is_legacy, read_legacy_images
from registry_client.reference import Reference
from registry_client.source import ImageSource


class ArchiveSource(ImageSource, Protocol):
    """An ImageSource for one image of an archive, which the others share: closing one closes all.

    Attributes:
        references: the names that the archive gives to the image, with a tag each; none is allowed.
    """

    references: tuple[Reference, ...]


def open_archive(path: PurePath, files: ArchiveFiles) -> Sequence[ArchiveSource]:
    """The images of an archive, in its order; none is an archive, too.

    Args:
        path: of the archive, for messages.

    Raises:
        NotFoundError: no form of archive that is known.
        MalformedError: a document breaks its specification.
        UnsupportedError: a layout of a later version.
    """
    if MANIFEST in files:
        return _docker_sources(path, files, read_images(path, files))
    if layout.LAYOUT in files:
        return layout.open_images(str(path), path, files)
    if is_legacy(files):
        return _docker_sources(path, files, read_legacy_images(path, files))
    raise NotFoundError(f"{path}: holds no images (it has neither manifest.json nor oci-layout nor repositories)")


def _docker_sources(path: PurePath, files: ArchiveFiles, images: list[ArchivedImage]) -> list[DockerArchiveSource]:
    return [
        DockerArchiveSource(f"{path}:@{number}", path, files, image, image.references[0] if image.references else None)
        for number, image in enumerate(images)
    ]
