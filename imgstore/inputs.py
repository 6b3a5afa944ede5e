"""Inputs: what people hand in, a file, a pipe or an open body, compressed or not, as one plain file that can be read at any place.

Archives are read by their tables of contents, and a layer without a manifest must be hashed before it is converted: both need to go back.
A plain file is used where it lies; all else becomes a file without a name, which the kernel forgets with us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imgstore.blocks import Bytes
from imgstore.errors import CorruptError, DeniedError, InvalidError, NoSpaceError, NotFoundError, UnavailableError
from imgstore.layers.compression import inflate_archive, is_compressed
from imgstore.layers.read_ahead import read_ahead

SIZE_MAX = 1 << 40
"""Bytes of an input, inflated. What is compressed can become more than anybody has; mostly the disk is full before."""

_CHUNK = 1 << 20
_AHEAD = 2


@contextlib.contextmanager
def open_input(source: Path | BinaryIO, name: str, directory: Path | None) -> Iterator[BinaryIO]:
    """Opens an input as a plain file, to be read from its first byte on.

    Args:
        source: a file, or an open body, read from where it stands; the caller closes that.
        name: what errors call it.
        directory: where a file without a name goes; None: the system's temporary directory.

    Raises:
        NotFoundError, DeniedError, InvalidError: no such file, or none that can be read.
        CorruptError: empty, or its compression is damaged or cut off.
        UnsupportedError: compressed by something that is not known.
        NoSpaceError: it does not fit the directory.
    """
    with contextlib.ExitStack() as stack:
        body = stack.enter_context(_open(source, name)) if isinstance(source, Path) else source
        if _is_plain(body):
            yield body
            return
        spool = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        size = 0
        try:
            pieces = inflate_archive(read_chunks(body, name))
            for piece in stack.enter_context(contextlib.closing(read_ahead(pieces, _AHEAD, name="imgstore-inflate"))):
                size += len(piece)
                if size > SIZE_MAX:
                    raise NoSpaceError(f"{name}: has more than the {SIZE_MAX} uncompressed bytes that it may have")
                _write(spool, piece, name, directory)
        except CorruptError as error:
            raise CorruptError(f"{name}: {error}") from error
        if not size:
            raise CorruptError(f"{name}: is empty: it has 0 bytes")
        spool.seek(0)
        yield spool


def _open(path: Path, name: str) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"{name}: no such file") from None
    except OSError as error:
        kind = DeniedError if error.errno in (errno.EACCES, errno.EPERM) else InvalidError
        raise kind(f"{name}: cannot be read: {error.strerror}") from error


def _is_plain(body: BinaryIO) -> bool:
    """Whether it is a regular file at its beginning with bytes in it that are not compressed."""
    try:
        descriptor = body.fileno()
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size or body.tell():
            return False
        return not is_compressed(os.pread(descriptor, 8, 0))
    except OSError:  # a body in memory has no descriptor
        return False


def read_chunks(body: BinaryIO, name: str) -> Iterator[bytes]:
    """What an open body has from where it stands, in pieces of at most a MiB.

    Raises:
        UnavailableError: from the iterator: it cannot be read on.
    """
    while True:
        try:
            chunk = body.read(_CHUNK)
        except OSError as error:
            raise UnavailableError(f"{name}: cannot be read on: {error.strerror or error}") from error
        if not chunk:
            return
        yield chunk


def _write(spool: BinaryIO, piece: Bytes, name: str, directory: Path | None) -> None:
    try:
        spool.write(piece)
        spool.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(f"{name}: no space left for what it holds in {directory or tempfile.gettempdir()}") from error
        raise
