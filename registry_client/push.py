"""Pushes a whole image: from a registry, a layout or an archive into a repository, byte for byte.

::

    with Connections(options) as connections, closing(open_source("oci:build:1.36")) as source:
        digest = push_image(source, Reference.parse("harbor.example.com/project/app:1.36"), options, connections)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from registry_client import media_types
from registry_client.client import RepositoryClient
from registry_client.digest import Digest
from registry_client.errors import CancelledError, DigestMismatchError, MalformedError, UnsupportedError
from registry_client.image import INDEX_DEPTH_MAX, Document
from registry_client.manifest import Descriptor, Index, parse_manifest
from registry_client.options import Options
from registry_client.platform import Platform
from registry_client.reference import Reference
from registry_client.server import Connections
from registry_client.source import ImageSource, RegistrySource
from registry_client.uploads import PushStatus
from registry_client.writer import RepositoryWriter

T = TypeVar("T")

BLOBS_AT_ONCE = 3  # as docker pulls and pushes
DOCUMENTS_MAX = 1000
DOCUMENT_BYTES_MAX = 64 << 20
"""Bytes of all manifests and indexes of one image: they are kept in memory until all blobs are there."""


@dataclass(frozen=True, slots=True)
class PushEvent:
    """One step of one blob.

    Attributes:
        blob: its descriptor.
        status: None while it is sent.
        sent: bytes sent, out of ``blob.size``.
    """

    blob: Descriptor
    status: PushStatus | None
    sent: int = 0


PushSink = Callable[[PushEvent], None]
"""Takes events; called from several threads, must not block for long and must not raise."""


def ignore_event(event: PushEvent) -> None:
    """Drops the event."""


def push_image(
    source: ImageSource,
    destination: Reference,
    options: Options | None = None,
    connections: Connections | None = None,
    *,
    platform: Platform | None = None,
    mount_candidates: Sequence[str] = (),
    progress: PushSink = ignore_event,
) -> Digest:
    """Copies an image into a repository; all bytes stay what they are, so all digests do.

    Blobs go first, three at a time, then manifests, then the indexes that name them, and the tag last: a push that ends anywhere leaves no
    tag, manifest or index that names something missing. What the repository has is not sent again, so an interrupted push goes on when it
    is repeated. Foreign layers are not in registries and stay where they are.

    Args:
        destination: with a tag; with a digest, too, the image must have that digest. With a digest alone, no tag is written.
        options, connections: for the destination.
        platform: of an index, push the manifest for this platform alone, as `ImageSource.resolve` chooses it, which must be an image
            that can run; None pushes all, with attestations.
        mount_candidates: repositories of the destination's registry that may have some of the blobs. A source in the same registry is
            tried in any case.

    Returns:
        The digest that the image has in the repository.

    Raises:
        UnsupportedError: a docker-archive, which has no manifest; or an entry of an index that is neither manifest nor index.
        DigestMismatchError: the image has not the digest of ``destination``.
        DeniedError, NotFoundError, UnavailableError, CorruptError: from the source, or from the registry.
    """
    options = options or Options()
    contents = _Contents(source)
    root = source.root() if platform is None else _choose(source, platform)
    contents.add(root, INDEX_DEPTH_MAX)
    if destination.digest is not None and not destination.digest.names(root.data):
        raise DigestMismatchError(f"{source.name}: has {root.digest}, which cannot be pushed as {destination.familiar}")
    with RepositoryClient.of(destination, options, connections) as client:
        writer = RepositoryWriter(client.primary, options.upload_chunk)
        mount_from = dict.fromkeys([*_own_repository(source, destination), *mount_candidates])
        mount_from.pop(destination.repository, None)
        _push_blobs(source, writer, contents.blobs, list(mount_from), progress)
        for document in contents.documents[:-1]:
            writer.put_manifest(document.digest, document.data, document.media_type)
        return writer.put_manifest(destination.tag or root.digest, root.data, contents.documents[-1].media_type)


@dataclass
class _Contents:
    """What an image consists of.

    Attributes:
        blobs: configurations and layers, each once.
        documents: manifests and indexes, each once, after all that it names.
    """

    source: ImageSource
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    documents: list[Document] = field(default_factory=list)
    _seen: set[Digest] = field(default_factory=set)
    _bytes: int = 0

    def add(self, document: Document, depth: int) -> None:
        what = f"{self.source.name}: manifest {document.digest.short}"
        self._seen.add(document.digest)
        self._bytes += len(document.data)
        if len(self._seen) > DOCUMENTS_MAX or self._bytes > DOCUMENT_BYTES_MAX:
            raise MalformedError(
                f"{self.source.name}: more than {DOCUMENTS_MAX} manifests, or {DOCUMENT_BYTES_MAX} bytes of them"
            )
        parsed = parse_manifest(document.data, document.media_type, what)
        if isinstance(parsed, Index):
            if depth == 0:
                raise MalformedError(f"{self.source.name}: indexes nested deeper than {INDEX_DEPTH_MAX}")
            for entry in parsed.manifests:
                self._add_entry(entry, depth - 1)
        else:
            for blob in (parsed.config, *parsed.layers):
                if not media_types.is_foreign(blob.media_type):
                    self.blobs.setdefault(blob.digest, blob)
        self.documents.append(Document(document.data, parsed.media_type, document.digest))

    def _add_entry(self, entry: Descriptor, depth: int) -> None:
        if entry.media_type not in media_types.INDEXES | media_types.MANIFESTS:
            raise UnsupportedError(
                f"{self.source.name}: entry {entry.digest.short} of its index is neither manifest nor index ({entry.media_type})"
            )
        if entry.digest not in self._seen:
            self.add(Document(self.source.read(entry), entry.media_type, entry.digest), depth)


def _choose(source: ImageSource, platform: Platform) -> Document:
    document = source.resolve(platform).manifest_document
    return source.root() if document is None else document  # a docker-archive, whose root() says why not


def _own_repository(source: ImageSource, destination: Reference) -> list[str]:
    """The repository of a source in the destination's registry: its blobs need not travel."""
    reference = source.reference
    if not isinstance(source, RegistrySource) or reference is None or reference.registry != destination.registry:
        return []
    return [reference.repository]


def _push_blobs(
    source: ImageSource,
    writer: RepositoryWriter,
    blobs: dict[Digest, Descriptor],
    mount_from: Sequence[str],
    progress: PushSink,
) -> None:
    """Pushes all blobs, the biggest first."""

    stop = threading.Event()

    def push(blob: Descriptor) -> None:
        def tell(position: int) -> None:
            progress(PushEvent(blob, None, position))

        def read(offset: int) -> Iterator[bytes]:
            return source.open_blob(blob, offset)

        progress(PushEvent(blob, writer.push_blob(blob, read, mount_from=mount_from, progress=tell, stop=stop), blob.size))

    push_each(sorted(blobs.values(), key=lambda blob: -blob.size), push, stop)


def push_each(blobs: Sequence[T], push: Callable[[T], None], stop: threading.Event) -> None:
    """Calls ``push`` for every blob, three at a time, in threads. Returns when all have ended.

    Args:
        stop: no other is begun when it is set. A failure of one sets it, as does an interrupt of the caller, so that the others end.

    Raises:
        BaseException: what the first of those that failed raised; not that it was cancelled, if another failed for a better reason.
    """

    def run(blob: T) -> None:
        if stop.is_set():
            return
        try:
            push(blob)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(BLOBS_AT_ONCE, thread_name_prefix="push") as pool:
        waiting = [pool.submit(run, blob) for blob in blobs]
        try:
            wait(waiting)
        except BaseException:
            stop.set()
            raise
    errors = [error for future in waiting if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, CancelledError))
