"""Images in the archives that ``docker save`` writes, from its first form (``<id>/layer.tar``) to that of Docker 25 (a layout as well).

Source: moby ``image/tarexport`` (``load.go``, ``save.go``); ``manifest.json`` names the configuration and the layers of each image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from registry_client import media_types
from registry_client.blobs import BlobStream, read_blob
from registry_client.digest import Digest
from registry_client.errors import (
    InvalidError,
    InvalidReferenceError,
    MalformedError,
    NoMatchingPlatformError,
    NotFoundError,
    UnsupportedError,
)
from registry_client.files import GZIP_MAGIC, ArchiveFiles, open_file_blob, read_file
from registry_client.image import Document, Image
from registry_client.image_config import ImageConfig, parse_image_config
from registry_client.manifest import LAYERS_MAX, Descriptor, check_document_size
from registry_client.platform import Platform, choose
from registry_client.reference import Reference
from registry_client.strict_json import SIZE_MAX, Fields, parse_json

MANIFEST = "manifest.json"
MANIFEST_SIZE_MAX = 1 << 20
IMAGES_MAX = 1000
TAGS_MAX = 1000
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOB_NAME = re.compile(r"blobs/(sha256|sha512)/([0-9a-f]+)")
_CONFIG_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")
_NAMES_SHOWN = 20
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image of a docker-archive.

    Attributes:
        config: name of the file that is its configuration, or what that file would be called.
        layers: names of the files of its layers, lowest first.
        references: the names that it bears.
        config_data: the configuration itself, where no file of the archive is it; else None.
    """

    config: str
    layers: tuple[str, ...]
    references: tuple[Reference, ...]
    config_data: bytes | None = None


class DockerArchiveSource:
    """An ImageSource for one image of a docker-archive.

    The images have no manifest. A layer that lies there uncompressed, as docker writes it, is described by its diff id; of one
    that is compressed and not named by its digest, the digest is computed when the image is resolved.

    Attributes:
        name: ``docker-archive:FILE:REFERENCE`` as typed.
        reference: the one asked for, or the image's first; None if it has none.
        references: all names of the image.
    """

    local = True

    def __init__(self, name: str, path: PurePath, files: ArchiveFiles, image: ArchivedImage, reference: Reference | None) -> None:
        self.name = name
        self.reference = reference
        self.references = image.references
        self._path = path
        self._files = files
        self._image = image
        self._names: dict[Digest, str] = {}

    def resolve(self, platform: Platform | None) -> Image:
        """See ImageSource."""
        config = self._read_config()
        if len(config.diff_ids) != len(self._image.layers):
            raise MalformedError(
                f"{self.name}: manifest.json has {len(self._image.layers)} layers, the configuration {len(config.diff_ids)} diff ids"
            )
        if platform is not None and choose(platform, [config.platform]) is None:
            raise NoMatchingPlatformError(
                f"{self.name}: image was found, but its platform ({config.platform}) does not match the specified platform ({platform})"
            )
        layers = (self._describe(name, diff_id) for name, diff_id in zip(self._image.layers, config.diff_ids, strict=True))
        return Image(config, tuple(layers))

    def digest(self) -> Digest | None:
        """See ImageSource."""
        return None

    def root(self) -> Document:
        """See ImageSource."""
        raise UnsupportedError(f"{self.name}: a docker-archive holds no manifest as registries have them")

    def read(self, descriptor: Descriptor) -> bytes:
        """See ImageSource."""
        check_document_size(descriptor, f"{self.name} ({descriptor.digest.short})")
        return read_blob(self.open_blob(descriptor))

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> BlobStream:
        """See ImageSource; for the layers and the configuration of a resolved image.

        Raises:
            NotFoundError: a descriptor that `resolve` did not give.
        """
        name = self._names.get(descriptor.digest)
        if name is None:
            raise NotFoundError(f"{self._path}: holds no blob {descriptor.digest}")
        return open_file_blob(self._files, name, descriptor, offset)

    def tags(self) -> list[str]:
        """The tags of all images of the archive."""
        return read_tags(self._path, self._files)

    def close(self) -> None:
        """See ImageSource."""
        self._files.close()

    def _read_config(self) -> ImageConfig:
        data = self._image.config_data
        if data is None:
            data = read_file(self._files, self._image.config, SIZE_MAX)
        named = _CONFIG_NAME.fullmatch(self._image.config)
        if named is not None and Digest.of(data).hex != named[1]:
            raise MalformedError(f"{self._path}: {self._image.config} has digest {Digest.of(data)}")
        self._names[Digest.of(data)] = self._image.config
        return parse_image_config(data, f"{self._path}: {self._image.config}")

    def _describe(self, name: str, diff_id: Digest) -> Descriptor:
        """Descriptor of the bytes of a layer as they lie in the archive."""
        size = self._files.size(name)
        body = self._files.open(name)
        magic = body.read(len(_ZSTD_MAGIC))
        media_type, digest = media_types.DOCKER_LAYER, Digest(diff_id)
        if magic.startswith(GZIP_MAGIC) or magic == _ZSTD_MAGIC:
            media_type = media_types.DOCKER_LAYER_ZSTD if magic == _ZSTD_MAGIC else media_types.DOCKER_LAYER_GZIP
            named = _BLOB_NAME.fullmatch(name)
            digest = Digest(f"{named[1]}:{named[2]}") if named else digest
            if digest == diff_id:  # not the name of the compressed bytes
                digest = self._hash(name)
        self._names[digest] = name
        return Descriptor(media_type, digest, size)

    def _hash(self, name: str) -> Digest:
        body = self._files.open(name)
        running = Digest.of(b"").new_hash()
        while piece := body.read(_HASH_CHUNK):
            running.update(piece)
        return Digest(f"sha256:{running.hexdigest()}")


def open_docker_archive(name: str, path: PurePath, files: ArchiveFiles, selector: str | None) -> DockerArchiveSource:
    """One image of a docker-archive.

    Args:
        selector: a reference, or ``@N`` for the N-th image from 0; None if there is but one.

    Raises:
        NotFoundError: no docker-archive, or no such image in it.
        InvalidError: nothing was selected, but there are several images.
        MalformedError: a document breaks its specification.
    """
    images = read_images(path, files)
    if not images:
        raise NotFoundError(f"{path}: holds no image")
    image, reference = _select(path, images, selector)
    return DockerArchiveSource(name, path, files, image, reference)


def read_images(path: PurePath, files: ArchiveFiles) -> list[ArchivedImage]:
    """The images that ``manifest.json`` names, in its order.

    Raises:
        NotFoundError: there is no such file: this is no docker-archive.
        MalformedError: it breaks its specification.
    """
    what = f"{path}: manifest.json"
    if MANIFEST not in files:
        raise NotFoundError(f"{path}: not a docker-archive (it has no file manifest.json)")
    entries = parse_json(read_file(files, MANIFEST, MANIFEST_SIZE_MAX), what, size_max=MANIFEST_SIZE_MAX)
    if entries is None:
        raise MalformedError(f"{what}: invalid manifest, manifest cannot be null (but can be [])")
    return [_parse_image(entry) for entry in Fields({"images": entries}, what).objects("images", maximum=IMAGES_MAX)]


def read_tags(path: PurePath, files: ArchiveFiles) -> list[str]:
    """The tags of all images of an archive, whether there is one or many. Raises what `read_images` raises."""
    tags = (reference.tag for image in read_images(path, files) for reference in image.references)
    return list(dict.fromkeys(tag for tag in tags if tag is not None))


def parse_tags(fields: Fields, texts: list[str]) -> tuple[Reference, ...]:
    """The names that an archive gives to an image. Raises MalformedError where one is none, or has a digest."""
    references = []
    for text in texts:
        try:
            reference = Reference.parse(text)
        except InvalidReferenceError as error:
            raise MalformedError(f"{fields.what}: RepoTags: {error}") from None
        if reference.digest is not None:
            raise MalformedError(f"{fields.what}: RepoTags: invalid tag {text!r}: it has a digest")
        references.append(reference)
    return tuple(dict.fromkeys(references))


def _select(path: PurePath, images: list[ArchivedImage], selector: str | None) -> tuple[ArchivedImage, Reference | None]:
    if selector is None:
        if len(images) > 1:
            raise InvalidError(f"{path}: holds several images, say which: {_offers(images)}")
        image = images[0]
        return image, image.references[0] if image.references else None
    if re.fullmatch(r"@\d{1,4}", selector):
        number = int(selector[1:])
        if number >= len(images):
            raise NotFoundError(f"{path}: no image {selector}, it holds {len(images)}")
        image = images[number]
        return image, image.references[0] if image.references else None
    wanted = Reference.parse(selector)
    for image in images:
        if wanted in image.references:
            return image, wanted
    raise NotFoundError(f"{path}: no image {selector!r} (there are: {_offers(images)})")


def _offers(images: list[ArchivedImage]) -> str:
    names = [
        ", ".join(reference.familiar for reference in image.references) or f"@{number}" for number, image in enumerate(images)
    ]
    return ", ".join(names[:_NAMES_SHOWN])


def _parse_image(fields: Fields) -> ArchivedImage:
    references = parse_tags(fields, fields.strings("RepoTags", maximum=TAGS_MAX))
    return ArchivedImage(fields.string("Config"), tuple(fields.strings("Layers", maximum=LAYERS_MAX)), references)
