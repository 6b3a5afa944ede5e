"""Images: committed, named, found, removed.

An image is its config, its manifest and the chain ids of its layers, in ``images/<hex>/``; its marker is written last. A name is a
marker of its own that points to an image. The datastore is written before the catalog, and on removal after it: what the catalog says
exists, exists.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from imgstore import layout, markers
from imgstore.catalog.catalog import Catalog, ImageLayerRow, ImageRow, ReferenceRow
from imgstore.datastores.datastore import Datastore, list_names
from imgstore.errors import CorruptError, ImgstoreError, InUseError, InvalidError, NotFoundError, UnsupportedError
from registry_client.digest import Digest, ImageId
from registry_client.errors import InvalidReferenceError
from registry_client.reference import Reference
from registry_client.strict_json import SIZE_MAX

_FULL_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


class NoSuchImageError(NotFoundError):
    """No image has this name or id."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What is gone.

    Attributes:
        names: canonical, in the order in which they went.
        image_ids: of the images, the one that was meant before those that it was made from.
        by_name: one of its names was given, and not its id.
    """

    names: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    by_name: bool = False


class Images:
    """The images of a store, on its datastore and in its catalog."""

    def __init__(self, datastore: Datastore, catalog: Catalog) -> None:
        self._datastore = datastore
        self._catalog = catalog

    def commit(self, image: ImageRow, references: Iterable[ReferenceRow]) -> None:
        """Makes the image visible under these names, all of whose layers are committed.

        After a crash at any instant either the image is there or it is not; of its names some may be missing.
        """
        references = list(references)
        directory = layout.image_directory(image.id)
        layers = tuple(
            markers.ImageLayer(layer.chain_id, layer.diff_id, layer.digest, layer.media_type) for layer in image.layers
        )
        known = self._catalog.image(image.id)
        if known is not None and image.parent is None:
            image = replace(image, parent=known.parent)  # to bring it once more does not make it another's child no longer
        marker = markers.ImageMarker(image.id, image.manifest_digest, layers, image.parent)
        self._datastore.write_atomic(f"{directory}/{layout.CONFIG}", image.config)
        self._datastore.write_atomic(f"{directory}/{layout.MANIFEST}", image.manifest)
        self._datastore.write_atomic(f"{directory}/{layout.IMAGE_MARKER}", markers.encode(marker))
        for reference in references:
            self._write_reference(reference)
        self._catalog.put_image(image, references)

    def ids(self) -> list[str]:
        """Ids of the images on the datastore, whole or not."""
        return [f"sha256:{name}" for name in list_names(self._datastore, layout.IMAGES)]

    def remove_unfinished(self) -> None:
        """Removes what is left of images without a marker, and the names of those that are not there at all.

        The caller holds the lease under which images are committed and removed, so nobody is making one.
        """
        ids = set()
        for image_id in self.ids():
            if self._datastore.exists(f"{layout.image_directory(image_id)}/{layout.IMAGE_MARKER}"):
                ids.add(image_id)
            else:
                self._datastore.remove_tree(layout.image_directory(image_id))
        for path in self.reference_paths():
            with contextlib.suppress(CorruptError, UnsupportedError):  # damage is for people to see
                if self.read_reference(path).image_id not in ids:
                    self._datastore.remove_file(path)

    def read(self, image_id: str) -> ImageRow:
        """An image, from what lies on the datastore.

        Raises:
            NotFoundError: it is not there, or has no marker.
            CorruptError: its marker, its config or its manifest is damaged.
        """
        directory = layout.image_directory(image_id)
        path = f"{directory}/{layout.IMAGE_MARKER}"
        marker = markers.decode(markers.ImageMarker, self._datastore.read_bytes(path, markers.LIMIT), path)
        config = self._datastore.read_bytes(f"{directory}/{layout.CONFIG}", SIZE_MAX)
        manifest = self._datastore.read_bytes(f"{directory}/{layout.MANIFEST}", SIZE_MAX)
        if marker.id != image_id or ImageId.of(config) != image_id:
            raise CorruptError(f"{directory}/{layout.CONFIG}: has digest {ImageId.of(config)}, not {image_id}")
        if marker.manifest_digest is not None and not Digest(marker.manifest_digest).names(manifest):
            raise CorruptError(f"{directory}/{layout.MANIFEST}: has another digest than {marker.manifest_digest}")
        layers = tuple(ImageLayerRow(layer.chain_id, layer.diff_id, layer.digest, layer.media_type) for layer in marker.layers)
        return ImageRow(image_id, marker.manifest_digest, manifest, config, layers, marker.parent)

    def read_all(self, image_ids: Iterable[str]) -> Iterable[ImageRow | CorruptError | NotFoundError]:
        """Each image, or why it cannot be read, in their order."""

        def read(image_id: str) -> ImageRow | CorruptError | NotFoundError:
            try:
                return self.read(image_id)
            except (CorruptError, NotFoundError) as error:
                return error

        return self._datastore.each(read, image_ids)

    def reference_paths(self) -> list[str]:
        """Paths of the markers of names on the datastore."""
        return [f"{layout.REFERENCES}/{name}" for name in list_names(self._datastore, layout.REFERENCES)]

    def read_reference(self, path: str) -> ReferenceRow:
        """A name, from its marker.

        Raises:
            CorruptError: the marker is damaged, or another name's.
        """
        marker = markers.decode(markers.ReferenceMarker, self._datastore.read_bytes(path, markers.LIMIT), path)
        if layout.reference_file(marker.name) != path:
            raise CorruptError(f"{path}: is the marker of {marker.name}")
        return ReferenceRow(marker.name, marker.image_id, marker.digest, marker.tagged)

    def read_references(self, paths: Iterable[str]) -> Iterable[ReferenceRow | ImgstoreError]:
        """Each name, or why it cannot be read, in their order."""

        def read(path: str) -> ReferenceRow | ImgstoreError:
            try:
                return self.read_reference(path)
            except ImgstoreError as error:
                return error

        return self._datastore.each(read, paths)

    def find(self, text: str) -> ImageRow:
        """The image that ``text`` names: an id, a reference, or the unambiguous start of an id.

        Raises:
            NoSuchImageError: there is none.
            InvalidError: several ids start so, or it is no reference at all.
        """
        image = self._by_full_id(text) or self._by_reference(text) or self._by_prefix(text)
        if image is None:
            is_id = _FULL_ID.fullmatch(text) is not None
            shown = f"sha256:{text.removeprefix('sha256:')}" if is_id else parse_reference(text).familiar
            raise NoSuchImageError(f"No such image: {shown}", hint="imgstore images lists those that are there")
        return image

    def name(self, image: ImageRow, new: str) -> None:
        """Gives the image one more name, taking it from any other image.

        Raises:
            InvalidError: ``new`` is no reference, has a digest, or would read as one.
        """
        reference = parse_reference(new)
        if reference.digest is not None:
            raise InvalidError(f"{new}: refusing to create a tag with a digest reference")
        if reference.familiar_name == "sha256":
            raise InvalidError(f"{new}: refusing to create an ambiguous tag using digest algorithm as name")
        row = ReferenceRow(str(reference), image.id, None, datetime.now(UTC).isoformat(timespec="microseconds"))
        self._write_reference(row)
        self._catalog.put_reference(row)

    def remove(self, text: str, *, force: bool = False, keep_parents: bool = False) -> Removed:
        """Removes a name, and the image with its last one; by id, all its names and the image.

        An image that others were made from is kept, without a name. With an image go those that it was made from, as long as they have
        no name, and neither other images nor containers were made from them.

        Source: moby ``daemon/images/image_delete.go``.

        Raises:
            NoSuchImageError: there is none.
            InUseError: by id, and others were made from it; or, unless ``force``, it has more than one tag, or names in several
                repositories; or the image would go, and a container was made from it.
        """
        image = self.find(text)
        references = self._catalog.references(image.id)
        named = None if names_id(text, image.id) else self._reference_row(text)
        if named is not None:
            if not force and _is_single(references):
                self._check_unused(image, text)
            going = _with_digests(named, references)
        else:
            self._check_removable(image, references, force=force)
            going = references
        if len(going) < len(references) or self._catalog.children(image.id):
            self._delete_references(going)
            return Removed(tuple(row.name for row in going), by_name=True)
        return self._delete(image, going, keep_parents=keep_parents, by_name=named is not None)

    def remove_unused(self, image_id: str, *, tagged: bool) -> Removed:
        """Removes an image with all its names, unless images or containers were made from it, or it has a tag and ``tagged`` is False."""
        image = self._catalog.image(image_id)
        references = self._catalog.references(image_id)
        if image is None or self._has_users(image_id) or (not tagged and not all(map(_is_digest, references))):
            return Removed()
        return self._delete(image, references, keep_parents=False, by_name=bool(references))

    def _check_removable(self, image: ImageRow, references: Sequence[ReferenceRow], *, force: bool) -> None:
        short = layout.hex_of(image.id)[:12]
        if self._catalog.children(image.id):
            raise InUseError(f"conflict: unable to delete {short} (cannot be forced) - image has dependent child images")
        if not (force or not references or _is_single(references)):
            raise InUseError(
                f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories",
                hint="remove it by its names, or use --force",
            )
        container = None if force else self._catalog.container_of(image.id)
        if container is not None:
            raise InUseError(
                f"conflict: unable to delete {short} (must be forced) - image is being used by stopped container {container[:12]}",
                hint="remove its containers, or use --force",
            )

    def _check_unused(self, image: ImageRow, text: str) -> None:
        container = self._catalog.container_of(image.id)
        if container is not None:
            raise InUseError(
                f'conflict: unable to remove repository reference "{text}" (must force) - '
                f"container {container[:12]} is using its referenced image {layout.hex_of(image.id)[:12]}",
                hint="remove its containers, or use --force",
            )

    def _has_users(self, image_id: str) -> bool:
        return bool(self._catalog.children(image_id)) or self._catalog.container_of(image_id) is not None

    def _delete(self, image: ImageRow, references: Sequence[ReferenceRow], *, keep_parents: bool, by_name: bool) -> Removed:
        self._delete_image(image.id)
        self._delete_references(references)
        ids = [image.id]
        parent = None if keep_parents else image.parent
        while parent is not None and (row := self._catalog.image(parent)) is not None:
            if self._catalog.references(parent) or self._has_users(parent):
                break
            self._delete_image(parent)
            ids.append(parent)
            parent = row.parent
        return Removed(tuple(row.name for row in references), tuple(ids), by_name)

    def _delete_image(self, image_id: str) -> None:
        self._catalog.delete_image(image_id)
        directory = layout.image_directory(image_id)
        with contextlib.suppress(NotFoundError):
            self._datastore.remove_file(f"{directory}/{layout.IMAGE_MARKER}")
        with contextlib.suppress(NotFoundError):
            self._datastore.remove_tree(directory)

    def _delete_references(self, references: Iterable[ReferenceRow]) -> None:
        for row in references:
            self._catalog.delete_reference(row.name)
            with contextlib.suppress(NotFoundError):
                self._datastore.remove_file(layout.reference_file(row.name))

    def find_id(self, text: str) -> ImageRow | None:
        """The image whose id this is: all of its digits, or ``sha256:`` and the first ones; None where the text is no id.

        Raises:
            NoSuchImageError: it is an id, and of no image.
            InvalidError: several ids start so.
        """
        digits = text.removeprefix("sha256:")
        if (digits == text and len(text) != 64) or not digits or not set(digits) <= set("0123456789abcdef"):
            return None
        return self.find(text)

    def _write_reference(self, row: ReferenceRow) -> None:
        marker = markers.ReferenceMarker(row.name, row.image_id, row.digest, row.tagged)
        self._datastore.write_atomic(layout.reference_file(row.name), markers.encode(marker))

    def _by_full_id(self, text: str) -> ImageRow | None:
        hexadecimal = text.removeprefix("sha256:")
        return self._catalog.image(f"sha256:{hexadecimal}") if len(hexadecimal) == 64 else None

    def _by_reference(self, text: str) -> ImageRow | None:
        row = self._reference_row(text)
        return self._catalog.image(row.image_id) if row is not None else None

    def _by_prefix(self, text: str) -> ImageRow | None:
        prefix = text.removeprefix("sha256:").lower()
        if not prefix or not set(prefix) <= set("0123456789abcdef"):
            return None
        ids = self._catalog.image_ids(f"sha256:{prefix}")
        if len(ids) > 1:
            raise InvalidError(f"{text}: several images have an id that starts so", hint="give more of its digits")
        return self._catalog.image(ids[0]) if ids else None

    def _reference_row(self, text: str) -> ReferenceRow | None:
        try:
            reference = Reference.parse(text)
        except InvalidReferenceError:
            return None
        if reference.digest is not None:
            reference = reference.with_digest(reference.digest)
        return self._catalog.reference(str(reference))


def parse_reference(text: str) -> Reference:
    """Parses a name.

    Raises:
        InvalidError: it is none; docker's words.
    """
    try:
        return Reference.parse(text)
    except InvalidReferenceError as error:
        raise InvalidError(str(error)) from error


def familiar(name: str) -> str:
    """A canonical name as docker shows it: what `Reference.familiar` says, without parsing all of it once more."""
    path = name.removeprefix("docker.io/")
    if len(path) == len(name):
        return name
    short = path.removeprefix("library/")
    return path if "/" in short else short


def names_id(text: str, image_id: str) -> bool:
    """Whether the text is the id, or the start of it, with or without ``sha256:``."""
    digits = text.removeprefix("sha256:")
    return bool(digits) and layout.hex_of(image_id).startswith(digits)


def names_of(reference: Reference | None, image_id: str, digest: str | None) -> list[ReferenceRow]:
    """The names that a pull of ``reference`` gives: the repository with the digest that the registry served, and the tag.

    The tag comes last: where it is found to be up to date, the others are there too.
    """
    if reference is None:
        return []
    rows = []
    if reference.digest is not None:
        digest = str(reference.digest)
    if digest is not None:
        rows.append(ReferenceRow(str(reference.with_digest(Digest(digest))), image_id, digest))
    if reference.digest is None:
        rows.append(ReferenceRow(str(reference), image_id, digest))
    return rows


def _repository(row: ReferenceRow) -> str:
    return Reference.parse(row.name).name


def _is_single(references: Sequence[ReferenceRow]) -> bool:
    """Whether there is at most one tag, and all digests are of one repository, that of the tag."""
    tags = [row for row in references if not _is_digest(row)]
    return len(tags) <= 1 and len({_repository(row) for row in references}) == 1


def _is_digest(row: ReferenceRow) -> bool:
    return "@" in row.name


def _with_digests(named: ReferenceRow, references: Iterable[ReferenceRow]) -> list[ReferenceRow]:
    """The name, and with the last tag of a repository its digests too, as docker does."""
    siblings = [row for row in references if _repository(row) == _repository(named) and row.name != named.name]
    if _is_digest(named) or any(not _is_digest(row) for row in siblings):
        return [named]
    return [named, *siblings]
