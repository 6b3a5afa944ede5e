"""Formats a device: an empty ext4 whose bytes depend on nothing but the size."""

from __future__ import annotations

from imgstore.blocks import WritableBlockDevice

MINIMUM_SIZE = 64 << 20
MAXIMUM_SIZE = (2 << 40) - (64 << 10)
SIZE_MULTIPLE = 64 << 10


def format_file_system(device: WritableBlockDevice) -> None:
    """Writes an empty file system that fills ``device``.

    The device must read as zeros before; only what is not zero is written. Same size, same bytes. Of a disk of 32 GiB a
    handful of 64-KiB grains is touched. After a crash the device is unusable: format another.

    Raises:
        InvalidError: the size is not a multiple of 64 KiB from ``MINIMUM_SIZE`` (64 MiB) to ``MAXIMUM_SIZE`` (2 TiB - 64 KiB).
    """
    raise NotImplementedError
