"""Archives: images as files, out of a store and into it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from imgstore.answers import (
    Image,
    LoadedImage,
)
from imgstore.blocks import Bytes
from imgstore.imports import ImportOptions, import_image
from imgstore.loads import load_images
from imgstore.progress import ProgressSink, ignore
from imgstore.registries import translated
from imgstore.saves import select_images, write_archive
from imgstore.stop import Stop
from imgstore.store.core import StoreCore
from registry_client.platform import Platform


class Archives(StoreCore):
    """The methods of an `ImageStore` that read and write archives."""

    def save(self, references: Sequence[str], *, platform: str | None = None) -> Generator[Bytes, None, None]:
        """Images as one tar, which is an OCI image layout and a docker-archive at once; the same bytes each time.

        That the images are there is seen before this returns. What needs its layers is kept from then until the last piece has come,
        or until the iterator is closed.

        Args:
            references: names, ids, or the starts of ids. A name without a tag stands for all tags of its repository.
            platform: ``os/arch[/variant]`` that all of them must be for; None: any.

        Returns:
            Pieces of at most about a MiB; an archive only if no error comes with them.

        Raises:
            NotFoundError: there is no such image, or it is for another platform.
            InvalidError: a reference is none, or several ids start so.
            CorruptError: from the iterator as well: a layer is damaged.
        """
        with translated():
            wanted = None if platform is None else Platform.parse(platform)
        return write_archive(select_images(self._images, self._catalog, references, wanted), self._disks, self._leases)

    def load(
        self,
        archive: Path | BinaryIO,
        *,
        name: str = "archive",
        platform: str | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Iterator[LoadedImage]:
        """Brings the images of an archive into the store, one after the other; begins when the first one is asked for.

        The archive is what ``docker save`` writes or ever wrote, or a tar of an OCI image layout; it may be compressed with gzip,
        Zstandard, xz or bzip2. A name goes over from the image that has it, which stays. Of an image that fails, and of those after
        it, nothing new is visible; those before it stay.

        Args:
            archive: a file, or an open body that is read from where it stands. What is no plain regular file is put into a file without
                a name, in the directory of the store, while it is read.
            name: what errors call an open body.
            platform: images for another one are left out; of an image for several, this one is taken. None: all images, and for Linux
                on this machine's architecture where there is a choice.
            progress: told what happens; called from several threads.
            stop: ends it from another thread, between its images or within one.

        Raises:
            NotFoundError: no such file, no archive of images, a part of it is missing, or there is nothing for the platform.
            CorruptError: the archive is cut off, or is not what it says of itself.
            NoSpaceError: an image does not fit a disk of this store, or the archive not the datastore.
            InvalidError, UnsupportedError: what is in it cannot be read.
        """
        with translated():
            wanted = None if platform is None else Platform.parse(platform)
        if isinstance(archive, Path):
            name = str(archive)
        with self._mended():
            for loaded in load_images(archive, name, wanted, self._intake, self._directory, progress, stop or Stop()):
                yield LoadedImage(self._listing.image(loaded.image), loaded.references)

    def import_image(
        self,
        body: Path | BinaryIO,
        *,
        reference: str | None = None,
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | None = None,
        created: datetime | None = None,
        name: str = "body",
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Image:
        """Makes an image of one layer out of a tar of a file tree.

        Args:
            body: as for `load`; may be compressed as an archive may.
            reference: a name for the image, with the tag ``latest`` if it has none.
            changes: instructions of a Dockerfile that configure it: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD,
                STOPSIGNAL, USER, VOLUME, WORKDIR.
            message: its comment; if empty, ``Imported from -``, as docker has it.
            platform: ``os/arch[/variant]`` that it is said to run on; None: Linux on this machine's architecture.
            created: when it is said to be made; None: now. The id of the image depends on it.
            name: what errors call an open body.
            progress: told what happens; called from several threads.
            stop: ends it from another thread.

        Raises:
            InvalidError: reference, changes or platform make no sense, or the tar cannot be a layer.
            NotFoundError: no such file.
            CorruptError: the tar is damaged or cut off, or no tar.
            NoSpaceError: it does not fit a disk of this store, or not the datastore.
        """
        with translated():
            wanted = None if platform is None else Platform.parse(platform)
        options = ImportOptions(reference, changes, message, wanted, created)
        if isinstance(body, Path):
            name = str(body)
        with self._mended(), translated():
            return self._listing.image(import_image(body, name, options, self._intake, self._directory, progress, stop or Stop()))
