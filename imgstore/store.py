"""ImageStore: one method for each thing a user can ask of a store. The command line and the API endpoint are its faces.

::

    with ImageStore.open("/var/lib/imgstore") as store:
        pulled = store.pull("harbor.example/library/app:1")
        print(store.disk_paths(pulled.reference)[-1])
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Self

from imgstore import gc, layout, markers
from imgstore.answers import (
    HistoryItem,
    Image,
    LoadedImage,
    PruneReport,
    PullResult,
    PullStatus,
    PushResult,
    RemoteImage,
    Removal,
    StoreInfo,
    Usage,
)
from imgstore.blobs import KnownBlobs
from imgstore.blocks import Bytes
from imgstore.catalog.catalog import Catalog
from imgstore.changes import FileType
from imgstore.check import Finding, check_store
from imgstore.config import DEFAULT_DISK_SIZE
from imgstore.datastores.datastore import Datastore
from imgstore.datastores.local import LocalDatastore
from imgstore.datastores.memory import MemoryDatastore
from imgstore.disks import Disks
from imgstore.errors import AlreadyExistsError, CorruptError, ImgstoreError, InUseError, InvalidError, NotFoundError
from imgstore.ext4.reader import FileStatus, FileSystem
from imgstore.image_filters import Filters, parse_list_filters, parse_prune_filters
from imgstore.images import Images, names_of, parse_reference
from imgstore.imports import ImportOptions, import_image
from imgstore.inquiries import describe_remote, parse_search_filters
from imgstore.intake import NAMES as _NAMES
from imgstore.intake import Intake
from imgstore.layers.tar_writer import write_tar
from imgstore.leases import FileLeases, Leases, MemoryLeases, held
from imgstore.listing import Listing, removal_of
from imgstore.loads import load_images
from imgstore.location import CATALOG, LEASES, check_disk_size, directory_of, make_store, open_catalog
from imgstore.progress import ProgressEvent, ProgressSink, State, ignore
from imgstore.pushes import ImagePush, find_tagged, parse_destination, parse_repository, record, tags_of
from imgstore.rebuild import RebuildReport, rebuild
from imgstore.registries import translated
from imgstore.saves import select_images, write_archive
from imgstore.stop import Stop
from imgstore.vmdk.chain import Chain
from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.image_config import ImageConfig, parse_image_config
from registry_client.login import check_login
from registry_client.options import Options
from registry_client.platform import Platform, choose
from registry_client.search import LIMIT_DEFAULT, FoundRepository, search, split_term
from registry_client.server import Connections
from registry_client.source import ImageSource, open_source
from registry_client.writer import RepositoryWriter

_PRUNE = "prune"
"""Lease of the only prune."""


class ImageStore:
    """A store: images, and the disks that show them. Make one with `open` or `create`; several processes may use one directory.

    Methods raise ImgstoreErrors only; which kinds mean what is in ``docs/reference/errors.md``. They may be called from several threads.
    """

    def __init__(
        self,
        datastore: Datastore,
        catalog: Catalog,
        leases: Leases,
        marker: markers.StoreMarker,
        directory: Path | None,
        registries: Options,
    ) -> None:
        self._datastore = datastore
        self._catalog = catalog
        self._leases = leases
        self._directory = directory
        self._id = marker.id
        self._disks = Disks(datastore, leases, marker.disk_size)
        self._images = Images(datastore, catalog)
        self._listing = Listing(datastore, catalog)
        self._intake = Intake(self._disks, self._images, catalog, leases, directory, self._tidy)
        self._registries = registries
        self._connections = Connections(registries)

    @classmethod
    def open(cls, location: str, *, create: bool = True, registries: Options | None = None) -> Self:
        """Opens the store at ``location``.

        Args:
            location: a directory, ``file://`` or ``osfs://`` with one, or ``mem://`` for a store that vanishes with this object.
            create: make it, with the default disk size, if there is none; the directory must be missing or empty then.
            registries: how to reach registries; None: as the files of docker, podman and containerd say.

        What processes that were killed left behind is removed, and the catalog is made again from the datastore if they could have
        left it behind that, or if it is missing, of another version, or no catalog at all.

        Raises:
            NotFoundError: there is none, and ``create`` is False.
            InvalidError: the directory holds something else.
            UnsupportedError: a newer imgstore made it, or no datastore of ours is reached that way.
        """
        return cls._open(location, disk_size=DEFAULT_DISK_SIZE if create else None, registries=registries)

    @classmethod
    def create(cls, location: str, *, disk_size: int = DEFAULT_DISK_SIZE) -> Self:
        """Makes a store.

        Args:
            disk_size: capacity of all its disks in bytes, for good: a multiple of 64 KiB, at least 64 MiB.

        Raises:
            AlreadyExistsError: there is one.
            InvalidError: the directory holds something else, or the size is none.
        """
        check_disk_size(disk_size)
        return cls._open(location, disk_size=disk_size, exclusive=True)

    @classmethod
    def _open(cls, location: str, *, disk_size: int | None, exclusive: bool = False, registries: Options | None = None) -> Self:
        options = registries or Options()
        directory = directory_of(location)
        if directory is None:
            marker = markers.StoreMarker(str(uuid.uuid4()), disk_size or DEFAULT_DISK_SIZE)
            store = cls(MemoryDatastore(), Catalog(None), MemoryLeases(), marker, None, options)
            store.rebuild()
            return store
        if not (directory / layout.STORE).exists():
            if disk_size is None:
                raise NotFoundError(f"{directory}: there is no store", hint="imgstore init makes one")
            make_store(directory, disk_size)
        elif exclusive:
            raise AlreadyExistsError(f"{directory}: there is a store already")
        datastore = LocalDatastore(directory)
        try:
            path = f"{directory}/{layout.STORE}"
            marker = markers.decode(markers.StoreMarker, datastore.read_bytes(layout.STORE, markers.LIMIT), path)
            leases = FileLeases(directory / LEASES)
            store = cls(datastore, open_catalog(directory), leases, marker, directory, options)
        except BaseException:
            datastore.close()
            raise
        with contextlib.ExitStack() as undo:
            undo.callback(store.close)
            if leases.sweep() or not store._has_catalog():
                store.rebuild()
            else:
                datastore.sweep()
            undo.pop_all()
        return store

    @property
    def location(self) -> str:
        """Where the store is: its directory, absolute, or ``mem://``."""
        return "mem://" if self._directory is None else str(self._directory)

    def close(self) -> None:
        """Gives everything back. The store is unusable afterwards; a second call does nothing."""
        self._connections.close()
        self._catalog.close()
        self._datastore.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> PullResult:
        """Brings an image into the store, and gives it its name.

        Layers that are there already are not fetched; an image that is there costs one request. What other pulls, in this process or
        another, are converting is waited for. After an error or an interrupt nothing new is visible; converted layers stay, and the
        next pull goes on from there.

        Args:
            reference: ``alpine``, ``docker://host/name:tag``, ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE``.
            platform: ``os/arch[/variant]``; None: Linux on this machine's architecture.
            credential: for the registry of the reference; None: what the store's options or the files of docker and podman have.
            progress: told what happens; called from several threads.
            stop: ends it from another thread.

        Raises:
            InvalidError, NotFoundError, DeniedError, UnavailableError, UnsupportedError: as the source says.
            CorruptError: what came is not what its digest says, or breaks its format.
            NoSpaceError: it does not fit a disk of this store, or not the datastore.
            StoppedError: ``stop`` was set. A request that the registry leaves without an answer ends only when its time is over.
        """
        stop = stop or Stop()
        with contextlib.ExitStack() as stack, translated():
            wanted = None if platform is None else Platform.parse(platform)
            source = open_source(reference, self._options(progress, credential, stop), self._connections)
            stack.callback(source.close)
            progress(ProgressEvent("", message=f"Pulling {source.name}"))
            with self._mended():
                return self._pull(source, wanted, progress, stop)

    def pull_all_tags(
        self,
        reference: str,
        *,
        platform: str | None = None,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Iterator[PullResult]:
        """Pulls every tag of a repository, one after the other; signatures and the like, which are no images, are left out.

        Raises:
            InvalidError: the reference names a tag or digest, or no registry.
            Otherwise what `pull` raises; what came before stays.
        """
        tags = self.list_tags(reference, credential=credential, progress=progress, stop=stop)
        for tag in tags:
            yield self.pull(f"{reference}:{tag}", platform=platform, credential=credential, progress=progress, stop=stop)

    def list_tags(
        self,
        repository: str,
        *,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> list[str]:
        """The tags that a repository has in its registry, without those of signatures and the like. Arguments as for `pull`.

        Raises:
            InvalidError: the reference names a tag or digest, or no registry.
            Otherwise what `pull` raises.
        """
        with contextlib.ExitStack() as stack, translated():
            source = open_source(repository, self._options(progress, credential, stop or Stop()), self._connections)
            stack.callback(source.close)
            if source.reference is None or repository.startswith(("oci", "docker-archive")):
                raise InvalidError(f"{repository}: all tags can be pulled from a registry only")
            if set(":@") & set(repository.rpartition("/")[2]):
                raise InvalidError(f"{repository}: tag can't be used with --all-tags/-a")
            return source.tags()

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

    def push(
        self,
        reference: str,
        *,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> PushResult:
        """Sends the image that has this name to the registry that the name says.

        Layers that the repository has, or can mount from another one, are not sent; others are read back from their disks and
        compressed, the same way each time. The image keeps its id, and its manifest if the registry has, or gets, the very blobs that it
        names. Afterwards it has the name ``repository@digest`` here, too.

        After an error or an interrupt the tag in the registry is as it was; layers that were complete are not sent again. Pushes of one
        image at the same time do not wait for each other.

        Args:
            reference: a name with a tag; ``docker://`` may stand before it.
            credential: for the registry; None: what the store's options or the files of docker and podman have.
            progress: told what happens; called from several threads.
            stop: ends it from another thread.

        Raises:
            NotFoundError: no image has this name; or the registry has no such project.
            InvalidError: it is no name, or has a digest.
            DeniedError, UnavailableError, UnsupportedError: as the registry says.
            CorruptError: a layer cannot be read back as it was.
            NoSpaceError: there is no space for compressed layers in the directory of the store.
        """
        stop = stop or Stop()
        with translated(), self._mended():
            destination = parse_destination(reference)
            image = find_tagged(self._catalog, destination)
            options = self._options(progress, credential, stop)
            with (
                gc.kept(self._leases, {layer.chain_id for layer in image.layers}),
                RepositoryClient.of(destination, options, self._connections) as client,
            ):
                writer = RepositoryWriter(client.primary, options.upload_chunk)
                blobs = KnownBlobs(self._datastore)
                push = ImagePush(writer, destination, self._disks, self._catalog, blobs, progress, self._directory)
                with stop.interrupting(push.stop.set):
                    pushed = push.run(image)
                with held(self._leases, _NAMES):
                    record(self._images, self._catalog, destination, pushed)
        return PushResult(str(destination), str(pushed.digest), len(pushed.image.manifest))

    def push_all_tags(
        self,
        repository: str,
        *,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Iterator[PushResult]:
        """Pushes every tag that the store has of a repository, one after the other, by name.

        Raises:
            InvalidError: the reference names a tag or digest.
            NotFoundError: the store has no tag of this repository.
            Otherwise what `push` raises; what came before stays.
        """
        wanted = parse_repository(repository)
        for tagged in tags_of(self._catalog, wanted) or [wanted]:
            yield self.push(str(tagged), credential=credential, progress=progress, stop=stop)

    def images(self, filters: Filters | None = None, *, intermediate: bool = True) -> list[Image]:
        """The images, newest first, as they were at one moment.

        Args:
            filters: as docker has them: ``dangling``, ``label``, ``before``, ``since``, ``reference``, ``until``; name to values. With
                ``reference``, of an image those names are given that match.
            intermediate: also those without a name that others were made from.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
            NotFoundError: there is no image that ``before`` or ``since`` names.
        """
        wanted = parse_list_filters(filters or {}, self.image)
        images = self._listing.images()
        if not intermediate:
            parents = {image.parent for image in images}
            images = [image for image in images if image.references or image.digests or image.id not in parents]
        return wanted.select(images)

    def image(self, reference: str) -> Image:
        """The image that ``reference`` names: a name, an id, or the unambiguous start of an id.

        Raises:
            NotFoundError: there is none.
            InvalidError: it is no reference, or several ids start so.
        """
        return self._listing.image(self._images.find(reference))

    def history(self, reference: str) -> list[HistoryItem]:
        """How the image was made, newest step first. Raises what `image` raises."""
        image = self.image(reference)
        layers = iter(image.layers)
        items = []
        for step in _parse_config(image.config_bytes, image.id).history:
            layer = None if step.empty_layer else next(layers, None)
            chain_id, size = (None, 0) if layer is None else (layer.chain_id, layer.size)
            items.append(HistoryItem(step.created, step.created_by, size, step.comment, step.empty_layer, chain_id))
        items.extend(HistoryItem(None, "", layer.size, "", False, layer.chain_id) for layer in layers)  # more layers than steps
        return items[::-1]

    def tag(self, reference: str, new: str) -> None:
        """Gives an image one more name, taking the name from any other image.

        Raises:
            NotFoundError: there is no image ``reference``.
            InvalidError: ``new`` is no name, or has a digest.
        """
        with self._mended(), held(self._leases, _NAMES):
            self._images.name(self._images.find(reference), new)

    def remove(self, reference: str, *, force: bool = False, keep_parents: bool = False) -> Removal:
        """Removes a name; with its last name the image, and the layers that no other image has.

        Layers that a running pull needs stay, and go with the next removal. With an image go those that it was made from, as long as
        they have no name and nothing else was made from them.

        Args:
            force: remove by id an image that has several tags, or names in several repositories.
            keep_parents: let those stay that it was made from.

        Raises:
            NotFoundError: there is none.
            InUseError: by id, and others were made from it, or it has several names.
        """
        with self._mended(), held(self._leases, _NAMES):
            image = self.image(reference)
            removed = self._images.remove(reference, force=force, keep_parents=keep_parents)
            layers = gc.collect(self._disks, self._catalog, self._leases) if removed.image_ids else []
        return removal_of(removed, image, layers)

    def prune(self, filters: Filters | None = None) -> PruneReport:
        """Removes images without a tag, or all, and the layers that no image has then.

        Each image is removed by itself: what another names meanwhile stays, and an interrupt leaves the rest as it is.

        Args:
            filters: as docker has them: ``dangling`` (true if it is not given; false means all), ``label``, ``label!``, ``until``.

        Raises:
            InvalidError: an unknown filter, or a value that makes no sense.
            InUseError: another prune is running, in this process or another.
        """
        wanted = parse_prune_filters(filters or {})
        lease = self._leases.acquire(_PRUNE)
        if lease is None:
            raise InUseError("a prune operation is already running")
        with contextlib.ExitStack() as stack, self._mended():
            stack.callback(lease.release)
            sizes = self._listing.layer_sizes()
            removals = []
            for image in wanted.select(self._listing.images()):
                with held(self._leases, _NAMES):
                    removed = self._images.remove_unused(image.id, tagged=wanted.dangling is None)
                if removed.image_ids:
                    removals.append(removal_of(removed, image, ()))
            with held(self._leases, _NAMES):
                layers = gc.collect(self._disks, self._catalog, self._leases)
        if layers:
            removals.append(Removal((), tuple(layers)))
        return PruneReport(tuple(removals), sum(sizes[chain_id] for chain_id in layers))

    def search(
        self,
        term: str,
        filters: Filters | None = None,
        *,
        limit: int = LIMIT_DEFAULT,
        credential: Credential | None = None,
    ) -> list[FoundRepository]:
        """Repositories of a registry whose name has a word in it; of registries without a search those that they list.

        Args:
            term: ``host/word``, or a word, which is looked for at Docker Hub.
            filters: as docker has them: ``is-official``, ``stars``.
            limit: how many at most, before the filters.
            credential: for the registry; None: what the store's options or the files of docker and podman have.

        Raises:
            InvalidError: term, filters or limit make no sense.
            UnsupportedError: the registry lets nobody search.
            DeniedError, UnavailableError: as the registry says.
        """
        is_wanted = parse_search_filters(filters or {})
        with translated():
            registry, word = split_term(term)
            found = search(registry, word, self._options(ignore, credential, Stop()), self._connections, limit=limit)
        return [repository for repository in found if is_wanted(repository)]

    def describe_remote(self, reference: str, *, credential: Credential | None = None) -> RemoteImage:
        """What the registry has under a name: digest, size, platforms. Nothing is pulled.

        Raises:
            InvalidError, NotFoundError, DeniedError, UnavailableError, UnsupportedError, CorruptError: as the registry says.
        """
        with translated():
            name = f"docker://{parse_reference(reference)}"
            with contextlib.closing(open_source(name, self._options(ignore, credential, Stop()), self._connections)) as source:
                return describe_remote(source)

    def disk_paths(self, reference: str) -> list[str]:
        """Paths of the disks of the image's chain, scratch first, its top disk last.

        On a local datastore they are absolute and can be given to a hypervisor, read-only; else they are paths on the datastore.
        """
        with self._chain(reference) as chain:
            return [self._shown(file.path) for file in chain.files]

    def status(self, reference: str, path: str | bytes) -> FileStatus:
        """What the file system of the image says of a file; a symbolic link is not followed.

        Raises:
            NotFoundError: no such image, or no such file in it.
        """
        with self._file_system(reference) as file_system:
            return file_system.status(file_system.lookup(_inside(path)))

    def list_directory(self, reference: str, path: str | bytes) -> list[tuple[bytes, FileStatus]]:
        """The entries of a directory of the image, by name; a file that is no directory gives itself.

        Raises:
            NotFoundError: no such image, or no such file in it.
        """
        with self._file_system(reference) as file_system:
            inside = _inside(path)
            node = file_system.lookup(inside)
            status = file_system.status(node)
            if status.type is not FileType.DIRECTORY:
                return [(inside, status)]
            return [
                (name, file_system.status(file_system.node(number)))
                for name, number, _ in sorted(file_system.list_directory(node))
            ]

    def read_file(self, reference: str, path: str | bytes) -> Iterator[Bytes]:
        """The content of a regular file of the image, in pieces of at most a MiB; the image stays open as long as it is read.

        Raises:
            NotFoundError: no such image, or no such file in it.
            InvalidError: it is no regular file.
        """
        with self._file_system(reference) as file_system:
            node = file_system.lookup(_inside(path))
            if file_system.status(node).type is not FileType.REGULAR:
                raise InvalidError(f"{_text(path)}: is not a regular file")
            yield from file_system.read_file(node)

    def export(self, reference: str, out: BinaryIO) -> None:
        """Writes the image's whole file tree as a tar: POSIX with PAX records, names sorted, the same bytes each time."""
        with self._file_system(reference) as file_system:
            write_tar((change for change in file_system.changes() if change.path), out.write)

    def check(self, *, read_data: bool = False) -> Iterator[Finding]:
        """Looks at catalog, markers, disks, chains and file systems, and changes nothing; no finding means all is well.

        Args:
            read_data: read all data too, compare them with their checksums, and make the tar of every layer again.
        """
        return check_store(self._datastore, self._catalog, self._disks, self._images, read_data=read_data)

    def usage(self) -> Usage:
        """What takes how much space on the datastore, from the blocks that the file system counts."""
        sizes = self._listing.layer_sizes()
        scratch = self._usage(f"{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}")
        scratch += self._usage(f"{layout.DISKS}/{layout.grain_sums_file(layout.SCRATCH)}")
        free = None if self._directory is None else shutil.disk_usage(self._directory).free
        catalog = sum(file.stat().st_blocks * 512 for file in self._directory.glob(f"{CATALOG}*")) if self._directory else 0
        return Usage(
            images=self._listing.usages(sizes),
            disks=sum(row.disk is not None for row in self._catalog.layers()),
            disk_bytes=sizes.total(),
            scratch_bytes=scratch,
            catalog_bytes=catalog,
            metadata_bytes=self._usage(layout.IMAGES) + self._usage(layout.REFERENCES),
            staged_bytes=sum(self._usage(path) for path in self._datastore.parts(layout.DISKS)),
            free_bytes=free,
            capacity=self._disks.capacity,
        )

    def info(self) -> StoreInfo:
        """What the store is, and how much of what it has: a few queries, however much that is."""
        images, layers, shared = self._catalog.counts()
        space = None if self._directory is None else shutil.disk_usage(self._directory)
        return StoreInfo(
            id=self._id,
            directory=self._directory,
            images=images,
            layers=layers,
            shared_layers=shared,
            capacity=self._disks.capacity,
            space=None if space is None else space.total,
            free_space=None if space is None else space.free,
            registries=self._registries,
        )

    def check_login(self, registry: str, credential: Credential) -> Credential:
        """Asks a registry whether it takes a credential. Nothing is kept here.

        Args:
            registry: as references begin with it: ``docker.io``, ``host:port``.

        Returns:
            What to keep: the credential, or the identity token that the registry gave for it.

        Raises:
            DeniedError: it does not take it, or a policy forbids the registry.
            InvalidError, NotFoundError, UnavailableError: no such registry, or it does not answer.
        """
        with translated():
            return check_login(registry, credential, self._registries)

    def rebuild(self) -> RebuildReport:
        """Makes the catalog again from what lies whole on the datastore, and removes what interrupted work left there."""
        with held(self._leases, _NAMES):
            if self._catalog.damage():
                self._catalog.discard()
            self._images.remove_unfinished()
            self._tidy()
            return rebuild(self._catalog, self._disks, self._images)

    def _pull(self, source: ImageSource, platform: Platform | None, progress: ProgressSink, stop: Stop) -> PullResult:
        stop.check()
        unchanged = self._up_to_date(source, platform)
        if unchanged is not None:
            return unchanged
        stop.check()
        image = source.resolve(platform)
        stop.check()
        image_id = str(image.config.image_id)
        digest = None if image.digest is None else str(image.digest)
        taken = self._intake.take(source, image, names_of(source.reference, image_id, digest), progress, stop)
        status = PullStatus.DOWNLOADED if taken.changed else PullStatus.UP_TO_DATE
        name = image_id if source.reference is None else str(source.reference)
        return PullResult(name, self._listing.image(taken.image), status, digest)

    def _up_to_date(self, source: ImageSource, platform: Platform | None) -> PullResult | None:
        """The image that has the source's name already, if the source still means that one: one request tells."""
        if source.reference is None:
            return None
        reference = source.reference if source.reference.digest is None else source.reference.with_digest(source.reference.digest)
        row = self._catalog.reference(str(reference))
        image = None if row is None else self._catalog.image(row.image_id)
        if row is None or image is None or row.digest is None:
            return None
        if self._catalog.reference(str(reference.with_digest(Digest(row.digest)))) is None:
            return None  # a rebuild found it damaged and left it out
        if (
            choose(platform or Platform.host(), [_parse_config(image.config, image.id).platform]) is None
            or source.digest() != row.digest
        ):
            return None
        # Damaged, it is pulled again. To look at every layer would take the longer the more there are; that is for check.
        if not self._disks.has_scratch() or any(self._disks.find(layer.chain_id) is None for layer in image.layers[-1:]):
            return None
        return PullResult(row.name, self._listing.image(image), PullStatus.UP_TO_DATE, row.digest)

    def _options(self, progress: ProgressSink, credential: Credential | None, stop: Stop) -> Options:
        def on_retry(message: str, delay: float) -> None:
            progress(ProgressEvent("", State.RETRYING, message=f"{message}; trying again in {delay:.0f} s"))

        def on_fallback(message: str) -> None:
            progress(ProgressEvent("", State.RETRYING, message=message))

        return replace(
            self._registries,
            credential=self._registries.credential if credential is None else credential,
            retry=replace(self._registries.retry, wait=stop.wait),
            on_retry=on_retry,
            on_fallback=on_fallback,
            spool_directory=self._directory,
        )

    @contextlib.contextmanager
    def _mended(self) -> Iterator[None]:
        """Makes the catalog agree with the datastore should the block fail between the two; if that fails too, the next start does."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(ImgstoreError):
                if self._leases.sweep():
                    self.rebuild()
            raise

    def _has_catalog(self) -> bool:
        try:
            return self._catalog.is_current()
        except CorruptError:
            return False

    def _tidy(self) -> None:
        """Removes what interrupted work left: stagings without an owner, and layers without a marker that nobody is making."""
        self._datastore.sweep()
        known = {row.chain_id for row in self._catalog.layers()} if self._has_catalog() else set()
        for chain_id in set(self._disks.chain_ids()) - known:
            self._disks.remove_unfinished(chain_id)
        self._disks.mend_scratch()

    @contextlib.contextmanager
    def _chain(self, reference: str) -> Iterator[Chain]:
        image = self._images.find(reference)
        with self._disks.open_chain([layer.chain_id for layer in image.layers]) as chain:
            yield chain

    @contextlib.contextmanager
    def _file_system(self, reference: str) -> Iterator[FileSystem]:
        with self._chain(reference) as chain:
            yield FileSystem(chain)

    def _shown(self, path: str) -> str:
        local = self._datastore.local_path(path)
        return path if local is None else str(local)

    def _usage(self, path: str) -> int:
        try:
            return self._datastore.usage(path)
        except NotFoundError:
            return 0


def _parse_config(data: bytes, image_id: str) -> ImageConfig:
    with translated():
        return parse_image_config(data, f"image {image_id}")


def _inside(path: str | bytes) -> bytes:
    """A path as a user types it, in the normal form of ``changes``; ``..`` stays inside the image."""
    given = os.fsencode(path)
    return os.path.normpath(b"/" + given).lstrip(b"/")


def _text(path: str | bytes) -> str:
    return os.fsdecode(path)
