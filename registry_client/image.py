"""Image: a manifest, its configuration and its layers, chosen for one platform; the same from a registry, a layout or an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from registry_client import media_types
from registry_client.digest import Digest
from registry_client.errors import MalformedError, NoMatchingPlatformError
from registry_client.image_config import ImageConfig, parse_image_config
from registry_client.manifest import Descriptor, Index, Manifest, check_document_size, parse_manifest
from registry_client.platform import Platform, choose

INDEX_DEPTH_MAX = 3
DOCUMENTS_MAX = 16  # manifests and configurations fetched to find the one; with 4 MiB each, 64 MiB in all


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index as it came.

    Attributes:
        media_type: as served, or ``""``.
        digest: of the bytes.
    """

    data: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one platform.

    Attributes:
        config: its bytes are ``config.raw``, the image id is ``config.image_id``.
        layers: as many as ``config.diff_ids``, lowest first. The digest is that of the compressed bytes.
        manifest: None for an image from a docker-archive, which has none.
        manifest_document: the manifest's bytes and digest; None likewise.
        index_digest: digest of the index through which the image was found, or None.
    """

    config: ImageConfig
    layers: tuple[Descriptor, ...]
    manifest: Manifest | None = None
    manifest_document: Document | None = None
    index_digest: Digest | None = None

    @property
    def platform(self) -> Platform:
        """What the configuration says; differs from the platform wanted only if none was asked for explicitly."""
        return self.config.platform

    @property
    def digest(self) -> Digest | None:
        """The digest that names the image in its repository (docker's RepoDigest): of the index, or else of the manifest."""
        if self.index_digest is not None or self.manifest_document is None:
            return self.index_digest
        return self.manifest_document.digest


class ImageResolver:
    """Finds the one image for a platform, below a manifest or an index.

    Args:
        read: gives the bytes of a manifest, index or configuration, checked against digest and size.
        name: of the image, for messages.
    """

    def __init__(self, read: Callable[[Descriptor], bytes], name: str, platform: Platform | None) -> None:
        self._read = read
        self._name = name
        self._explicit = platform
        self._wanted = platform or Platform.host()
        self._documents = 0

    def resolve(self, root: Document) -> Image:
        """The image.

        Raises:
            NoMatchingPlatformError: nothing for this platform.
            UnsupportedError: schema 1, an artifact, a layer that cannot be read.
            MalformedError: a document breaks its specification, or two contradict each other.
        """
        parsed = parse_manifest(root.data, root.media_type, self._what(root.digest))
        if isinstance(parsed, Manifest):
            image = self._image(root, parsed, None)
            if self._explicit is not None and choose(self._explicit, [image.platform]) is None:
                raise NoMatchingPlatformError(
                    f"{self._name}: image was found, but its platform ({image.platform}) "
                    f"does not match the specified platform ({self._explicit})"
                )
            return image
        return self.choose(parsed, root.digest)

    def choose(self, index: Index, index_digest: Digest | None) -> Image:
        """The image of an index; raises what `resolve` raises.

        Args:
            index_digest: None for an index that is not a document of its own.
        """
        found = self._search(index, index_digest, INDEX_DEPTH_MAX)
        if found is None:
            raise NoMatchingPlatformError(
                f"{self._name}: no matching manifest for {self._wanted} in the manifest list entries{_offers(index)}"
            )
        return found

    def _search(self, index: Index, index_digest: Digest | None, depth: int) -> Image | None:
        """The best image of an index: by the platforms it names, then by what unnamed entries turn out to be, then in indexes below."""
        entries = [entry for entry in index.manifests if not entry.is_attestation]
        manifests = [entry for entry in entries if entry.media_type in media_types.MANIFESTS]
        named = [(entry, entry.platform) for entry in manifests if entry.platform is not None and entry.platform.os]
        best = choose(self._wanted, [platform for _, platform in named])
        if best is not None:
            entry, platform = named[best]
            image = self._open(entry, index_digest)
            if not platform.agrees_with(image.platform):
                raise MalformedError(
                    f"{self._name}: manifest {entry.digest.short} is for {platform} says the index, for {image.platform} its configuration"
                )
            return image
        unnamed = [self._open(entry, index_digest) for entry in manifests if entry.platform is None or not entry.platform.os]
        best = choose(self._wanted, [image.platform for image in unnamed])
        if best is not None:
            return unnamed[best]
        for entry in entries:
            if entry.media_type in media_types.INDEXES:
                if depth <= 1:
                    raise MalformedError(f"{self._name}: indexes nested deeper than {INDEX_DEPTH_MAX}")
                data = self._fetch(entry)
                inner = parse_manifest(data, entry.media_type, self._what(entry.digest))
                found = self._search(inner, index_digest, depth - 1) if isinstance(inner, Index) else None
                if found is not None:
                    return found
        return None

    def _open(self, entry: Descriptor, index_digest: Digest | None) -> Image:
        document = Document(self._fetch(entry), entry.media_type, entry.digest)
        manifest = parse_manifest(document.data, document.media_type, self._what(entry.digest))
        if not isinstance(manifest, Manifest):
            raise MalformedError(f"{self._what(entry.digest)}: an index, where a manifest was announced")
        return self._image(document, manifest, index_digest)

    def _image(self, document: Document, manifest: Manifest, index_digest: Digest | None) -> Image:
        manifest.check_runnable(self._name)
        config = parse_image_config(self._fetch(manifest.config), f"{self._name}: configuration {manifest.config.digest.short}")
        if len(config.diff_ids) != len(manifest.layers):
            raise MalformedError(
                f"{self._name}: manifest has {len(manifest.layers)} layers, its configuration {len(config.diff_ids)} diff ids"
            )
        return Image(config, manifest.layers, manifest, document, index_digest)

    def _fetch(self, descriptor: Descriptor) -> bytes:
        check_document_size(descriptor, self._what(descriptor.digest))
        self._documents += 1
        if self._documents > DOCUMENTS_MAX:
            raise MalformedError(f"{self._name}: more than {DOCUMENTS_MAX} documents to read to find the image")
        return self._read(descriptor)

    def _what(self, digest: Digest) -> str:
        return f"{self._name}: manifest {digest.short}"


def _offers(index: Index) -> str:
    """What there is, for the message."""
    platforms = [str(entry.platform) for entry in index.manifests if entry.platform and not entry.is_attestation]
    shown = ", ".join(dict.fromkeys(platform[:40] for platform in platforms[:20]))
    return f" (there are: {shown})" if shown else ""
