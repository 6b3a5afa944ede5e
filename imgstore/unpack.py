"""Unpack: a layer blob becomes a committed disk under its chain id.

The blob streams through once: inflated in one thread, hashed in a second, read as tar and applied to the file system in this one, and
written behind it by a fourth. The tar that goes by is remembered in the layer's recipe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from imgstore.disks import PreparedDisk
from imgstore.errors import CorruptError
from imgstore.ext4.writer import LayerWriter
from imgstore.layers.compression import LayerStream
from imgstore.layers.read_ahead import read_ahead
from imgstore.layers.recipe import RecipeSummary, RecipeWriter
from imgstore.layers.tar_reader import read_changes

_PIECES_AHEAD = 3
"""Inflated pieces between the thread that inflates and the one that applies; each is about a MiB."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of a blob.

    Attributes:
        size: bytes of the inflated tar.
        changed: False when the layer changes nothing over its parent: then only the recipe is worth publishing.
        recipe: what was written to the prepared disk's recipe.
    """

    size: int
    changed: bool
    recipe: RecipeSummary


def unpack(blob: Iterable[bytes], disk: PreparedDisk, diff_id: str, *, interrupt: Callable[[], None] = lambda: None) -> Unpacked:
    """Applies the layer in ``blob`` to the file system on ``disk``.

    On any error the disk is unusable and must be discarded; nothing of it was visible.

    Args:
        blob: compressed or plain, in pieces; its own digest is checked by who gives it.
        disk: fresh; its device shows the parent's file system.
        diff_id: what the digest of the inflated tar must be.
        interrupt: called on an error, Ctrl-C too, from this thread: makes a ``blob`` that waits for its next piece end soon.

    Raises:
        CorruptError: the stream is damaged, or its diff id is another.
        InvalidError: the layer cannot be applied.
        NoSpaceError: it does not fit the disk, or the disk not the datastore.
    """
    capacity = disk.device.size
    stream = LayerStream(blob, max_size=capacity)
    recipe = RecipeWriter(disk.create_recipe())
    writer = LayerWriter(disk.device, recipe.place)
    with contextlib.closing(read_ahead(stream, _PIECES_AHEAD, name="imgstore-hash", interrupt=interrupt)) as pieces:
        for change in read_changes(recipe.follow(pieces), capacity=capacity, announce=recipe.announce):
            writer.apply(change)
    if stream.diff_id != diff_id:
        raise CorruptError(
            f"layer {diff_id}: the inflated tar has digest {stream.diff_id}, not the diff id of the image's config"
        )
    return Unpacked(stream.size, writer.finish().changed, recipe.finish(stream.size, stream.diff_id))
