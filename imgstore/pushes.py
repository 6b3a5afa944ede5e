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
from imgstore.progress import ProgressEvent, ProgressSink, State
from registry_client import media_types
from registry_client.digest import Digest
from registry_client.errors import CancelledError, InvalidDigestError
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

_POLL_SECONDS = 0.1

_compressing = threading.BoundedSemaphore(max(1, (os.cpu_count() or 2) // 2))
"""Who compresses keeps about two processors busy: one reads the disk, hashes and writes, the other deflates. Others upload meanwhile."""


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
        tasks: list[Callable[[threading.Event], None]] = [lambda stop: self._push_config(config, image.config, stop)]
        tasks += [_task(self._push_layer, layer) for layer in layers]
        push_each(tasks, lambda task, stop: task(stop))
        chosen = [self._chosen[layer.diff_id] for layer in image.layers]
        if manifest is not None and chosen == list(manifest.layers):
            data = image.manifest
        else:
            data = encode_manifest(self._media_type, config, chosen, manifest.annotations if manifest is not None else {})
        tag = str(self._destination.tag)
        digest = self._writer.put_manifest(tag, data, self._media_type)
        self._progress(ProgressEvent("", message=f"{tag}: digest: {digest} size: {len(data)}"))
        rows = tuple(
            ImageLayerRow(row.chain_id, row.diff_id, str(blob.digest), blob.media_type)
            for row, blob in zip(image.layers, chosen, strict=True)
        )
        return Pushed(replace(image, manifest_digest=str(digest), manifest=data, layers=rows), digest)

    def _manifest_of(self, image: ImageRow) -> Manifest | None:
        if image.manifest_digest is None:
            return None
        parsed = parse_manifest(image.manifest, "", f"manifest {image.manifest_digest} of image {image.id}")
        return parsed if isinstance(parsed, Manifest) else None

    def _push_config(self, config: Descriptor, data: bytes, stop: threading.Event) -> None:
        self._writer.push_blob(config, lambda offset: iter([data[offset:]]), stop=stop)

    def _push_layer(self, layer: _Layer, stop: threading.Event) -> None:
        remembered = self._remembered(layer)
        candidates = [layer.original, *remembered] if layer.original is not None else remembered
        descriptor = self._find(layer, candidates, stop)
        if descriptor is None and layer.original is not None and layer.original.digest == layer.diff_id:
            descriptor = layer.original  # it was never compressed
            self._upload(layer, descriptor, lambda offset: _from(self._read(layer, stop), offset), stop)
        elif descriptor is None:
            spool = self._compress(layer, stop)
            try:
                descriptor = self._describe(layer, Digest(spool.digest), spool.size)
                self._upload(layer, descriptor, spool.open_at, stop)
            finally:
                spool.close()
        if descriptor is not layer.original:
            self._blobs.remember(layer.chain_id, str(descriptor.digest), descriptor.size, self._destination.name)
        self._chosen[layer.diff_id] = descriptor

    def _remembered(self, layer: _Layer) -> list[Descriptor]:
        """The blobs that earlier pushes made of the layer."""
        found = []
        for blob in self._blobs.of(layer.chain_id):
            try:
                descriptor = self._describe(layer, Digest(blob.digest), blob.size)
            except InvalidDigestError:
                continue
            if descriptor is not layer.original:
                found.append(descriptor)
        return found

    def _describe(self, layer: _Layer, digest: Digest, size: int) -> Descriptor:
        """A gzip of the layer; that of the manifest itself, if it is the same one."""
        if layer.original is not None and layer.original.digest == digest:
            return layer.original
        return Descriptor(_GZIP_TYPES[self._media_type], digest, size)

    def _find(self, layer: _Layer, candidates: Sequence[Descriptor], stop: threading.Event) -> Descriptor | None:
        """A blob that the repository has, or now has because another has it."""
        for descriptor in candidates:
            if self._writer.has_blob(descriptor):
                self._progress(ProgressEvent(layer.short, State.IN_REGISTRY))
                return descriptor
        places = [(each, repository) for each in candidates for repository in self._repositories_with(layer, each)]
        for descriptor, repository in places[:MOUNTS_MAX]:
            _check(stop)
            if self._writer.mount_blob(descriptor, repository):
                self._progress(ProgressEvent(layer.short, State.MOUNTED, message=repository))
                return descriptor
        return None

    def _repositories_with(self, layer: _Layer, blob: Descriptor) -> list[str]:
        """Other repositories of the registry that are likely to have the blob."""
        prefix = f"{self._destination.registry}/"
        pulled = self._catalog.names_with_blob(layer.chain_id, str(blob.digest), prefix, _NAMES_MAX)
        names = [Reference.parse(name).name for name in pulled]
        for record in self._blobs.of(layer.chain_id):
            if record.digest == blob.digest:
                names += record.repositories
        others = dict.fromkeys(name for name in names if name.startswith(prefix) and name != self._destination.name)
        return [name.removeprefix(prefix) for name in others]

    def _read(self, layer: _Layer, stop: threading.Event, tell: Callable[[int], None] = lambda done: None) -> Iterator[Bytes]:
        """The layer's tar."""
        done = 0
        for piece in self._disks.read_layer(layer.chain_ids):
            _check(stop)
            yield piece
            done += len(piece)
            tell(done)

    def _compress(self, layer: _Layer, stop: threading.Event) -> SpooledBlob:
        total = self._disks.read_marker(layer.chain_id).size

        def tell(done: int) -> None:
            self._progress(ProgressEvent(layer.short, State.COMPRESSING, done, total))

        with _turn_to_compress(stop):
            tell(0)
            return compress_layer(self._read(layer, stop, tell), self._spool_directory, f"layer {layer.short}")

    def _upload(self, layer: _Layer, descriptor: Descriptor, open_at: OpenAt, stop: threading.Event) -> None:
        def tell(position: int) -> None:
            self._progress(ProgressEvent(layer.short, State.PUSHING, position, descriptor.size))

        status = self._writer.push_blob(descriptor, open_at, progress=tell, stop=stop)
        self._progress(ProgressEvent(layer.short, State.IN_REGISTRY if status is PushStatus.EXISTS else State.PUSHED))


@contextlib.contextmanager
def _turn_to_compress(stop: threading.Event) -> Iterator[None]:
    while not _compressing.acquire(timeout=_POLL_SECONDS):
        _check(stop)
    try:
        yield
    finally:
        _compressing.release()


def _task(push: Callable[[_Layer, threading.Event], None], layer: _Layer) -> Callable[[threading.Event], None]:
    return lambda stop: push(layer, stop)


def _layers_of(image: ImageRow, manifest: Manifest | None) -> list[_Layer]:
    """Each layer once, however often the image has it."""
    layers: dict[str, _Layer] = {}
    chain_ids: tuple[str, ...] = ()
    originals = [None] * len(image.layers) if manifest is None else manifest.layers
    for row, original in zip(image.layers, originals, strict=True):
        chain_ids = (*chain_ids, row.chain_id)
        layers.setdefault(row.diff_id, _Layer(chain_ids, row.diff_id, original))
    return list(layers.values())


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise CancelledError("push cancelled")


def _from(pieces: Iterator[Bytes], offset: int) -> Iterator[bytes]:
    """The pieces without their first ``offset`` bytes."""
    for piece in pieces:
        if offset < len(piece):
            yield bytes(memoryview(piece)[offset:])
        offset = max(0, offset - len(piece))
