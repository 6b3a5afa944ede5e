"""Which file systems are written here: what their superblock must and may say."""

from __future__ import annotations

from imgstore.errors import UnsupportedError
from imgstore.ext4.geometry import SUPER_OFFSET, Geometry
from imgstore.ext4.structures import INODE_SIZE, CompatFeature, IncompatFeature, RoCompatFeature, SuperBlock

_WRITABLE_INCOMPAT = IncompatFeature.FILETYPE | IncompatFeature.EXTENTS | IncompatFeature.FLEX_BG | IncompatFeature.CSUM_SEED
_REQUIRED_INCOMPAT = IncompatFeature.FILETYPE | IncompatFeature.EXTENTS
_WRITABLE_RO_COMPAT = (
    RoCompatFeature.SPARSE_SUPER
    | RoCompatFeature.LARGE_FILE
    | RoCompatFeature.HUGE_FILE
    | RoCompatFeature.DIR_NLINK
    | RoCompatFeature.EXTRA_ISIZE
    | RoCompatFeature.METADATA_CSUM
)


def prove_writable(super_block: SuperBlock, geometry: Geometry) -> None:
    """Proves that a file system can be written without harm to what is not known here.

    Raises:
        UnsupportedError: it has a feature that is read but not written, or was not cleanly unmounted.
    """
    where = f"SuperBlock at byte {SUPER_OFFSET}"
    incompat, ro_compat = super_block.feature_incompat, super_block.feature_ro_compat
    if incompat & ~int(_WRITABLE_INCOMPAT) or incompat & _REQUIRED_INCOMPAT != _REQUIRED_INCOMPAT:
        raise UnsupportedError(f"{where}: cannot write with incompatible features {IncompatFeature(incompat)!r}")
    if ro_compat & ~int(_WRITABLE_RO_COMPAT) or geometry.checksum_seed is None:
        raise UnsupportedError(f"{where}: cannot write with read-only features {RoCompatFeature(ro_compat)!r}")
    if not super_block.feature_compat & CompatFeature.DIR_INDEX:
        raise UnsupportedError(
            f"{where}: cannot write without dir_index, compatible features are {super_block.feature_compat:#x}"
        )
    if geometry.inode_size != INODE_SIZE:
        raise UnsupportedError(f"{where}: cannot write inodes of {geometry.inode_size} bytes")
    if super_block.state != 1 or super_block.last_orphan:
        raise UnsupportedError(
            f"{where}: state is {super_block.state}, orphans start at inode {super_block.last_orphan}",
            hint="run e2fsck on the file system",
        )
