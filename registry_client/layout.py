"""Images in an OCI image layout: a directory, or a tar of one.

Source: OCI image-spec image-layout.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from registry_client import media_types
from registry_client.blobs import BlobStream, read_blob
from registry_client.digest import Digest
from registry_client.errors import InvalidError, InvalidReferenceError, MalformedError, NotFoundError, UnsupportedError
from registry_client.files import Files, open_file_blob, read_file
from registry_client.image import Document, Image, ImageResolver
from registry_client.manifest import Descriptor, Index, check_document_size, parse_manifest
from registry_client.platform import Platform
from registry_client.reference import Reference, is_tag
from registry_client.strict_json import SIZE_MAX, parse_object

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
LAYOUT = "oci-layout"
_LAYOUT_SIZE_MAX = 4096
_NAMES_SHOWN = 20


class LayoutSource:
    """An ImageSource for one image of a layout.

    Attributes:
        name: ``oci:DIR:TAG`` as typed, without a trailing slash.
        reference: the image's name as the layout's annotations give it. Where they give a bare tag, the name of the directory
            or archive stands before it: tag ``latest`` in ``images/three-layers`` is ``three-layers:latest``. None where that
            makes no valid reference.
        references: the names that the annotations give in full, all of which one image can have.
    """

    local = True

    def __init__(self, name: str, path: PurePath, files: Files, index: Index, entries: Sequence[Descriptor]) -> None:
        """Takes entries of the index; several are the platforms of one image."""
        self.name = name
        self.reference = _reference_of(entries[0], path)
        self.references = tuple(dict.fromkeys(filter(None, map(_full_name, entries))))
        self._files = files
        self._index = index
        self._entries = entries

    def resolve(self, platform: Platform | None) -> Image:
        """See ImageSource."""
        resolver = ImageResolver(self.read, self.name, platform)
        if len(self._entries) > 1:
            return resolver.choose(Index(media_types.OCI_INDEX, tuple(self._entries)), None)
        return resolver.resolve(self.root())

    def digest(self) -> Digest | None:
        """See ImageSource."""
        return self._entries[0].digest if len(self._entries) == 1 else None

    def root(self) -> Document:
        """See ImageSource."""
        if len(self._entries) > 1:
            raise UnsupportedError(
                f"{self.name}: {len(self._entries)} entries have this name, so no manifest or index is its own"
            )
        entry = self._entries[0]
        return Document(self.read(entry), entry.media_type, entry.digest)

    def read(self, descriptor: Descriptor) -> bytes:
        """See ImageSource."""
        check_document_size(descriptor, f"{self.name} ({descriptor.digest.short})")
        return read_blob(self.open_blob(descriptor))

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """See ImageSource."""
        return open_file_blob(self._files, _blob_path(descriptor.digest), descriptor, offset)

    def tags(self) -> list[str]:
        """The names that the layout gives to its images."""
        return _tags_of(self._index)

    def close(self) -> None:
        """See ImageSource."""
        self._files.close()


def open_layout(name: str, path: PurePath, files: Files, tag: str | None) -> LayoutSource:
    """One image of a layout.

    Args:
        tag: the annotation ``org.opencontainers.image.ref.name`` of the image wanted; None if there is but one.

    Raises:
        NotFoundError: no layout here, or no such tag.
        InvalidError: no tag was given, but there are several images.
        MalformedError: a document breaks its specification.
    """
    index = _read_index(path, files)
    return LayoutSource(name, path, files, index, _select(path, index, tag))


def open_images(name: str, path: PurePath, files: Files) -> list[LayoutSource]:
    """All images of a layout, in the order of its index: entries of one name are the platforms of one image.

    Entries of one digest under several names are one image that bears them all.

    Raises:
        NotFoundError: no layout here.
        MalformedError: a document breaks its specification.
    """
    index = _read_index(path, files)
    by_name: dict[str, list[Descriptor]] = {}
    for number, entry in enumerate(index.manifests):
        if not entry.is_attestation:
            by_name.setdefault(_name_of(entry, whole=True) or f"@{number}", []).append(entry)
    by_digests: dict[tuple[Digest, ...], list[Descriptor]] = {}
    for entries in by_name.values():
        by_digests.setdefault(tuple(entry.digest for entry in entries), []).extend(entries)
    sources = []
    for digests, entries in by_digests.items():
        source = LayoutSource(name, path, files, index, entries[: len(digests)])
        source.references = tuple(dict.fromkeys(filter(None, map(_full_name, entries))))
        sources.append(source)
    return sources


def _select(path: PurePath, index: Index, tag: str | None) -> list[Descriptor]:
    """The entries for the tag. Several of one name are the platforms of one image."""
    entries = [entry for entry in index.manifests if not entry.is_attestation]
    names = sorted({_name_of(entry) for entry in entries})
    if tag is not None:
        entries = [entry for entry in entries if tag in (entry.annotations.get(REF_NAME), entry.annotations.get(CONTAINERD_NAME))]
    if not entries:
        there = f" (there are: {', '.join(names[:_NAMES_SHOWN])})" if names else ", it is empty"
        raise NotFoundError(f"{path}: no image {tag!r}{there}" if tag else f"{path}: holds no image")
    if len({_name_of(entry) for entry in entries}) > 1:
        raise InvalidError(f"{path}: holds several images, say which: {', '.join(names[:_NAMES_SHOWN])}")
    return entries


def read_tags(path: PurePath, files: Files) -> list[str]:
    """The names that a layout gives to its images, whether there is one or many. Raises what LayoutSource raises about the layout."""
    return _tags_of(_read_index(path, files))


def _read_index(path: PurePath, files: Files) -> Index:
    try:
        marker = parse_object(read_file(files, LAYOUT, _LAYOUT_SIZE_MAX), f"{path}/{LAYOUT}")
    except NotFoundError:
        raise NotFoundError(f"{path}: not an OCI image layout (it has no file oci-layout)") from None
    version = marker.string("imageLayoutVersion")
    if not version.startswith("1."):
        raise UnsupportedError(f"{path}: OCI image layout of version {version[:40]!r}, not 1.x")
    what = f"{path}/index.json"
    index = parse_manifest(read_file(files, "index.json", SIZE_MAX), media_types.OCI_INDEX, what)
    if not isinstance(index, Index):
        raise MalformedError(f"{what}: not an index")
    return index


def _tags_of(index: Index) -> list[str]:
    names = (entry.annotations.get(REF_NAME, "") for entry in index.manifests)
    return [name for name in dict.fromkeys(names) if is_tag(name)]


def _blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _name_of(entry: Descriptor, *, whole: bool = False) -> str:
    """The name of an entry: a tag as a rule, or with ``whole`` that of containerd, which has the repository."""
    names = (entry.annotations.get(REF_NAME), entry.annotations.get(CONTAINERD_NAME))
    return next(filter(None, reversed(names) if whole else names), "")


def _full_name(entry: Descriptor) -> Reference | None:
    """The name of an entry, if it is more than a tag."""
    name = _name_of(entry, whole=True)
    try:
        return None if not name or is_tag(name) else Reference.parse(name)
    except InvalidReferenceError:
        return None


def _reference_of(entry: Descriptor, path: PurePath) -> Reference | None:
    name = entry.annotations.get(CONTAINERD_NAME) or entry.annotations.get(REF_NAME) or ""
    try:
        if is_tag(name):
            return replace(Reference.parse(path.name.removesuffix(".tar")), tag=name, digest=None)
        return Reference.parse(name) if name else None
    except InvalidReferenceError:
        return None
