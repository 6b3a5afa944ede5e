"""Volume contents: the file tree of a volume as a tar, out and in, and what a volume gets of the image at first."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from imgstore.blocks import BlockDevice, Bytes, WritableBlockDevice
from imgstore.changes import Change, Entry, FileType, HardLink
from imgstore.errors import CorruptError, InvalidError, NotFoundError
from imgstore.ext4.paths import resolve_path
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import recover, recovered
from imgstore.ext4.structures import BLOCK_SIZE, ROOT_INODE
from imgstore.ext4.writer import LayerWriter
from imgstore.layers.read_ahead import read_ahead
from imgstore.layers.tar_reader import read_changes
from imgstore.layers.tar_writer import tar_pieces
from imgstore.stop import Stop

_PIECE = 1 << 20
_AHEAD = 2


def read_tree(device: BlockDevice) -> Iterator[Bytes]:
    """The file tree on a disk as a tar, its root first, in pieces of at most about a MiB; the same bytes for the same tree.

    Names that begin with ``.wh.`` are names like others: this is no layer.
    """
    return tar_pieces(FileSystem(recovered(device)).changes(), whiteouts=False)


def write_tree(device: WritableBlockDevice, body: BinaryIO, name: str, stop: Stop) -> None:
    """Unpacks a tar over what is on the disk, as ``tar -x`` would. After an error the disk is half changed.

    Names that begin with ``.wh.`` are names like others: this is no layer.

    Args:
        body: not compressed.
        name: what errors call it.

    Raises:
        InvalidError: the tar cannot be unpacked.
        CorruptError: it is damaged or cut off.
        NoSpaceError: it does not fit the disk.
    """
    recover(device)
    writer = LayerWriter(device, now_ns=time.time_ns())
    try:
        with contextlib.closing(read_ahead(_pieces(body, stop), _AHEAD, name="imgstore-read")) as pieces:
            for change in read_changes(pieces, capacity=device.size, whiteouts=False):
                writer.apply(change)
    except (CorruptError, InvalidError) as error:
        raise type(error)(f"{name}: {error}") from error
    writer.finish()


def measure_tree(device: BlockDevice) -> tuple[int, int]:
    """Bytes of blocks in use and free, as statfs(2) tells them: what the file system needs for itself counts as neither."""
    file_system = FileSystem(recovered(device))
    free = sum(file_system.groups.free_blocks)
    used = file_system.geometry.blocks - file_system.super_block.overhead_clusters - free
    return used * BLOCK_SIZE, free * BLOCK_SIZE


def copy_up(device: WritableBlockDevice, file_system: FileSystem, path: bytes) -> bool:
    """Gives an empty disk what an image has in a directory, and its owner, mode, times and extended attributes, as docker does.

    Args:
        file_system: of the image.
        path: of the directory in it; symbolic links are followed.

    Returns:
        Whether there was something to do: the disk was empty, and the image has the directory.

    Raises:
        InvalidError: the image has a file there that is no directory.
        NoSpaceError: it does not fit the disk.
    """
    try:
        found = resolve_path(file_system, path)
    except NotFoundError:
        return False
    if found.node is None:
        return False
    if found.node.type is not FileType.DIRECTORY:
        shown = path.decode(errors="backslashreplace")
        raise InvalidError(f"cannot mount volume over existing file, file exists {shown}")
    recover(device)
    ours = FileSystem(device)
    if ours.list_directory(ours.node(ROOT_INODE)):
        return False
    writer = LayerWriter(device, now_ns=time.time_ns())
    for change in file_system.changes(found.path):
        writer.apply(_moved(change, len(found.path)))
    writer.finish()
    return True


def _moved(change: Change, above: int) -> Change:
    """The change with paths that count from the directory, whose own path is ``above`` bytes long."""
    start = above + 1 if above else 0
    if isinstance(change, HardLink):
        return HardLink(change.path[start:], change.target[start:])
    if isinstance(change, Entry):
        return replace(change, path=change.path[start:])
    return change


def _pieces(body: BinaryIO, stop: Stop) -> Iterator[bytes]:
    while piece := body.read(_PIECE):
        stop.check()
        yield piece
