"""Loads: the images of an archive become the store's, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from imgstore.catalog.catalog import ImageRow
from imgstore.errors import ImgstoreError
from imgstore.images import familiar, names_of
from imgstore.inputs import open_input
from imgstore.intake import Intake
from imgstore.progress import ProgressEvent, ProgressSink
from imgstore.registries import translate, translated
from imgstore.stop import Stop
from registry_client.archive import ArchiveSource, open_archive
from registry_client.errors import NoMatchingPlatformError, RegistryError
from registry_client.files import ArchiveFiles
from registry_client.platform import Platform


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image of an archive, and the names that it was given, as docker shows them."""

    image: ImageRow
    references: tuple[str, ...]


def load_images(
    archive: Path | BinaryIO,
    name: str,
    platform: Platform | None,
    intake: Intake,
    directory: Path | None,
    progress: ProgressSink,
    stop: Stop,
) -> Iterator[Loaded]:
    """Takes the images in, in the order of the archive; each is there, with its names, when it comes out.

    Args:
        name: what errors call the archive.
        platform: images for another one are left out.
        directory: where an archive that is compressed, or comes through a pipe, is put while it is read.

    Raises:
        NotFoundError: no archive of images, or a file in it is missing, or there is nothing for the platform.
        ImgstoreError: the first image that failed; those before it stay, and nothing of it.
    """
    with contextlib.ExitStack() as stack, translated():
        file = stack.enter_context(open_input(archive, name, directory))
        path = PurePath(name)
        files = stack.enter_context(contextlib.closing(ArchiveFiles(path, file=file)))
        others: list[NoMatchingPlatformError] = []
        found = False
        for source in open_archive(path, files):
            try:
                loaded = _load(source, platform, intake, progress, stop)
            except NoMatchingPlatformError as error:
                if platform is None:
                    raise
                others.append(error)
                continue
            except (ImgstoreError, RegistryError):
                with contextlib.suppress(ImgstoreError):
                    intake.collect()
                raise
            found = True
            yield loaded
        if others and not found:
            raise translate(others[0])


def _load(source: ArchiveSource, platform: Platform | None, intake: Intake, progress: ProgressSink, stop: Stop) -> Loaded:
    stop.check()
    image = source.resolve(platform)
    image_id = str(image.config.image_id)
    names = [row for reference in source.references for row in names_of(reference, image_id, None)]
    taken = intake.take(source, image, names, progress, stop)
    for moved, old in taken.moved.items():
        message = f"The image {familiar(moved)} already exists, renaming the old one with ID {old} to empty string"
        progress(ProgressEvent("", message=message))
    return Loaded(taken.image, tuple(reference.familiar for reference in source.references))
