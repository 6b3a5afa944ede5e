"""Pushes: an image of the store, sent to a registry.

The configuration goes as it is, so the image keeps its id. For every layer a blob is wanted that the repository has, or can mount from
another one: the blob that the image's manifest names, or one that an earlier push made. Where there is none, the layer's tar is read back
from its disk and compressed. If in the end every layer has the blob of the manifest, the manifest goes as it is and keeps its digest;
else another one is made, which names what was pushed.

Blobs that other images name for the same layer are no candidates: a pull does not fetch a layer that is there, so nobody looked whether
what a manifest names for it is that layer. What this image's own manifest says is all the same what its source serves.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgstore import layout
from imgstore.blobs import KnownBlobs, SpooledBlob, compress_layer
from imgstore.blocks import Bytes
from imgstore.catalog.catalog import Catalog, ImageLayerRow, ImageRow
from imgstore.disks import Disks
from imgstore.errors import InvalidError
from imgstore.images import Images, NoSuchImageError, names_of, parse_reference
from imgstore.markers import BlobRecord
from imgstore.progress import ProgressEvent, ProgressSink, State
from registry_client import media_types
from registry_client.digest import Digest
from registry_client.errors import CancelledError, InvalidDigestError, RegistryError
from registry_client.manifest import Descriptor, Manifest, encode_manifest, parse_manifest
from registry_client.push import push_each
from registry_client.reference import Reference
from registry_client.uploads import OpenAt, PushStatus
from registry_client.writer import RepositoryWriter

MOUNTS_MAX = 4
"""Repositories that are tried for one layer, as docker does: each costs two requests."""

_NAMES_MAX = 64
"""Names looked at to find those repositories; most have several of one repository."""

_GZIP_TYPES = {
    media_types.OCI_MANIFEST: media_types.OCI_LAYER_GZIP,
    media_types.DOCKER_MANIFEST: media_types.DOCKER_LAYER_GZIP,
}

_BLOB_MISSING = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "DIGEST_INVALID"})

_POLL_SECONDS = 0.1

_compressing = threading.BoundedSemaphore(os.cpu_count() or 2)
"""Deflating keeps a processor busy; what reads, hashes and writes beside it, a third of one, runs while others wait for the network."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that was pushed.

    Attributes:
        image: with the manifest that was pushed, and the blobs that it names.
        digest: of that manifest.
    """

    image: ImageRow
    digest: Digest


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer on its way.

    Attributes:
        chain_ids: of all layers up to this one, lowest first.
        original: its blob, as the image's manifest has it; None without a manifest.
    """

    chain_ids: tuple[str, ...]
    diff_id: str
    original: Descriptor | None

    @property
    def chain_id(self) -> str:
        return self.chain_ids[-1]

    @property
    def short(self) -> str:
        """What progress calls it: the start of the diff id, as docker does. The blob is not known yet."""
        return layout.hex_of(self.diff_id)[:12]


def find_tagged(catalog: Catalog, destination: Reference) -> ImageRow:
    """The image that is pushed under a name.

    Raises:
        NoSuchImageError: docker's words: the store has nothing of this repository, or not this tag of it.
    """
    named = catalog.reference(str(destination))
    image = None if named is None else catalog.image(named.image_id)
    if image is not None:
        return image
    if tags_of(catalog, destination):
        words = f"tag does not exist: {destination.familiar}"
    else:
        words = f"An image does not exist locally with the tag: {destination.familiar_name}"
    raise NoSuchImageError(words, hint=f"give an image this name: imgstore tag IMAGE {destination.familiar}")


def tags_of(catalog: Catalog, repository: Reference) -> list[Reference]:
    """The names with a tag that the store has of a repository."""
    prefix = f"{repository.name}:"
    return [Reference.parse(row.name) for row in catalog.references() if row.name.startswith(prefix)]


def parse_destination(text: str) -> Reference:
    """Parses the name that an image is pushed under.

    Raises:
        InvalidError: it is no name with a tag.
    """
    destination = parse_reference(text.removeprefix("docker://"))
    if destination.digest is not None:
        raise InvalidError(f"{text}: cannot push a digest reference")
    return destination


def parse_repository(text: str) -> Reference:
    """Parses the name of a repository all of whose tags are pushed.

    Raises:
        InvalidError: it is none, or has a tag or digest.
    """
    if set(":@") & set(text.rpartition("/")[2]):
        raise InvalidError(f"{text}: tag can't be used with --all-tags/-a")
    return parse_destination(text)


def record(images: Images, catalog: Catalog, destination: Reference, pushed: Pushed) -> None:
    """Gives the image the digest under which the registry has it now, and the manifest that was pushed if it had none.

    The caller holds the lease under which names are changed. A name that is gone, or moved to another image meanwhile, is left alone.
    """
    named = catalog.reference(str(destination))
    image = catalog.image(pushed.image.id)
    if image is None or named is None or named.image_id != image.id:
        return
    images.commit(image if image.manifest_digest else pushed.image, names_of(destination, image.id, str(pushed.digest)))


class ImagePush:
    """Pushes one image to one repository. Use once.

    Args:
        destination: with a tag.
        spool_directory: for layers that are compressed; None: the system's temporary directory.

    Attributes:
        stop: set from another thread, it ends the push soon, with a CancelledError.
    """

    def __init__(
        self,
        writer: RepositoryWriter,
        destination: Reference,
        disks: Disks,
        catalog: Catalog,
        blobs: KnownBlobs,
        progress: ProgressSink,
        spool_directory: Path | None,
    ) -> None:
        self._writer = writer
        self._destination = destination
        self._disks = disks
        self._catalog = catalog
        self._blobs = blobs
        self._progress = progress
        self._spool_directory = spool_directory
        self.stop = threading.Event()
        self._media_type = media_types.DOCKER_MANIFEST
        self._chosen: dict[str, Descriptor] = {}

    def run(self, image: ImageRow) -> Pushed:
        """Returns when the tag names the image. Ended anywhere before, the tag is as it was, and what was uploaded is found next time.

        The caller keeps the layers from being collected.

        Raises:
            CorruptError: a layer cannot be read back as it was.
            NoSpaceError: the spool directory is full.
            RegistryError: what the registry raises.
        """
        manifest = self._manifest_of(image)
        if manifest is None:
            config = Descriptor(media_types.DOCKER_CONFIG, Digest(image.id), len(image.config))
        else:
            self._media_type, config = manifest.media_type, manifest.config
        layers = _layers_of(image, manifest)
        self._progress(ProgressEvent("", message=f"The push refers to repository [{self._destination.name}]"))
        for layer in layers:
            self._progress(ProgressEvent(layer.short, State.PREPARING))
        tasks = [functools.partial(self._push_layer, layer) for layer in layers]
        push_each([functools.partial(self._push_config, config, image.config), *tasks], lambda task: task(), self.stop)
        self._check()
        chosen = [self._chosen[layer.diff_id] for layer in image.layers]
        if manifest is not None and chosen == list(manifest.layers):
            data = image.manifest
        else:
            data = encode_manifest(self._media_type, config, chosen, manifest.annotations if manifest is not None else {})
        tag = str(self._destination.tag)
        digest = self._put_manifest(tag, data)
        self._progress(ProgressEvent("", message=f"{tag}: digest: {digest} size: {len(data)}"))
        rows = tuple(
            ImageLayerRow(row.chain_id, row.diff_id, str(blob.digest), blob.media_type)
            for row, blob in zip(image.layers, chosen, strict=True)
        )
        return Pushed(replace(image, manifest_digest=str(digest), manifest=data, layers=rows), digest)

    def _put_manifest(self, tag: str, data: bytes) -> Digest:
        """Writes the manifest, once more if the registry says that it lacks a blob: we have seen that it has them.

        docker-registry 2.8 reads a link that another push of the same blob to the same repository is just writing.
        """
        try:
            return self._writer.put_manifest(tag, data, self._media_type)
        except RegistryError as error:
            if _BLOB_MISSING.isdisjoint(error.codes):
                raise
        self.stop.wait(_POLL_SECONDS)
        self._check()
        return self._writer.put_manifest(tag, data, self._media_type)

    def _manifest_of(self, image: ImageRow) -> Manifest | None:
        if image.manifest_digest is None:
            return None
        parsed = parse_manifest(image.manifest, "", f"manifest {image.manifest_digest} of image {image.id}")
        return parsed if isinstance(parsed, Manifest) else None

    def _push_config(self, config: Descriptor, data: bytes) -> None:
        self._writer.push_blob(config, lambda offset: iter([data[offset:]]), stop=self.stop)

    def _push_layer(self, layer: _Layer) -> None:
        self._check()
        made = self._blobs.of(layer.chain_id)
        descriptor = self._find(layer, made)
        if descriptor is None and layer.original is not None and layer.original.digest == layer.diff_id:
            descriptor = layer.original  # it was never compressed
            self._upload(layer, descriptor, lambda offset: _from(self._read(layer), offset))
        elif descriptor is None:
            spool = self._compress(layer)
            try:
                descriptor = self._describe(layer, spool.digest, spool.size)
                self._upload(layer, descriptor, spool.open_at)
            finally:
                spool.close()
        if descriptor is not layer.original:
            self._blobs.remember(layer.chain_id, str(descriptor.digest), descriptor.size, self._destination.name)
        self._chosen[layer.diff_id] = descriptor

    def _describe(self, layer: _Layer, digest: str, size: int) -> Descriptor:
        """A gzip of the layer; that of the manifest itself, if it is the same one."""
        if layer.original is not None and layer.original.digest == digest:
            return layer.original
        return Descriptor(_GZIP_TYPES[self._media_type], Digest(digest), size)

    def _find(self, layer: _Layer, made: Sequence[BlobRecord]) -> Descriptor | None:
        """A blob of the layer that the repository has, or now has because another one of the registry has it.

        Args:
            made: what earlier pushes made of the layer.
        """
        known = {} if layer.original is None else {str(layer.original.digest): layer.original}
        for blob in made:
            with contextlib.suppress(InvalidDigestError):
                known.setdefault(blob.digest, self._describe(layer, blob.digest, blob.size))
        for descriptor in known.values():
            if self._writer.has_blob(descriptor):
                self._progress(ProgressEvent(layer.short, State.IN_REGISTRY))
                return descriptor
        places = [(each, repository) for each in known.values() for repository in self._repositories_with(layer, each, made)]
        for descriptor, repository in places[:MOUNTS_MAX]:
            self._check()
            if self._writer.mount_blob(descriptor, repository):
                self._progress(ProgressEvent(layer.short, State.MOUNTED, message=repository))
                return descriptor
        return None

    def _repositories_with(self, layer: _Layer, blob: Descriptor, made: Sequence[BlobRecord]) -> list[str]:
        """Other repositories of the registry that are likely to have the blob: they got it from us, or gave an image that names it."""
        prefix = f"{self._destination.registry}/"
        got = [name for each in made if each.digest == blob.digest for name in each.repositories]
        got_another = {name for each in made if each.digest != blob.digest for name in each.repositories}
        pulled = self._catalog.names_with_blob(layer.chain_id, str(blob.digest), prefix, _NAMES_MAX)
        gave = [name for name in (Reference.parse(name).name for name in pulled) if name not in got_another]
        others = dict.fromkeys(name for name in (*got, *gave) if name.startswith(prefix) and name != self._destination.name)
        return [name.removeprefix(prefix) for name in others]

    def _read(self, layer: _Layer, tell: Callable[[int], None] = lambda done: None) -> Iterator[Bytes]:
        """The layer's tar."""
        done = 0
        for piece in self._disks.read_layer(layer.chain_ids):
            self._check()
            yield piece
            done += len(piece)
            tell(done)

    def _compress(self, layer: _Layer) -> SpooledBlob:
        total = self._disks.read_marker(layer.chain_id).size

        def tell(done: int) -> None:
            self._progress(ProgressEvent(layer.short, State.COMPRESSING, done, total))

        with self._turn_to_compress():
            tell(0)
            return compress_layer(self._read(layer, tell), self._spool_directory, f"layer {layer.short}")

    @contextlib.contextmanager
    def _turn_to_compress(self) -> Iterator[None]:
        while not _compressing.acquire(timeout=_POLL_SECONDS):
            self._check()
        try:
            yield
        finally:
            _compressing.release()

    def _check(self) -> None:
        if self.stop.is_set():
            raise CancelledError(f"push of {self._destination.familiar} cancelled")

    def _upload(self, layer: _Layer, descriptor: Descriptor, open_at: OpenAt) -> None:
        def tell(position: int) -> None:
            self._progress(ProgressEvent(layer.short, State.PUSHING, position, descriptor.size))

        status = self._writer.push_blob(descriptor, open_at, progress=tell, stop=self.stop)
        self._progress(ProgressEvent(layer.short, State.IN_REGISTRY if status is PushStatus.EXISTS else State.PUSHED))


def _layers_of(image: ImageRow, manifest: Manifest | None) -> list[_Layer]:
    """Each layer once, however often the image has it."""
    layers: dict[str, _Layer] = {}
    chain_ids: tuple[str, ...] = ()
    originals = [None] * len(image.layers) if manifest is None else manifest.layers
    for row, original in zip(image.layers, originals, strict=True):
        chain_ids = (*chain_ids, row.chain_id)
        layers.setdefault(row.diff_id, _Layer(chain_ids, row.diff_id, original))
    return list(layers.values())


def _from(pieces: Iterator[Bytes], offset: int) -> Iterator[bytes]:
    """The pieces without their first ``offset`` bytes; the last one comes only when there is no error behind it."""
    held = b""
    for piece in pieces:
        if held:
            yield held
        held = bytes(memoryview(piece)[offset:])
        offset = max(0, offset - len(piece))
    if held:
        yield held
