"""Disks of a store in forms that the platform of its datastore runs: which of their files say that they are whole, and who makes them.

``vmfs-sparse``: a disk a layer, made by us; below the scratch disk an empty flat one, ``blank``, since a redo log must stand on
something. ``vmfs``: a disk an image, which the platform makes of an uploaded streamOptimized one, as files or as objects of its own.
``docs/decisions/0024-seeding-copies-disks-as-they-are.md`` says where which is used.

What the platform makes is protected: its descriptor then says that it must not be deleted, and ``DeleteVirtualDisk`` refuses it
(vmware/vic ``lib/portlayer/storage``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from imgstore import layout
from imgstore.blocks import SECTOR, MemoryBlockDevice, ReadableFile
from imgstore.datastores.datastore import Datastore
from imgstore.errors import CorruptError, ImgstoreError, InvalidError, NotFoundError, UnsupportedError
from imgstore.markers import DiskRecord
from imgstore.vmdk.descriptor import Descriptor, derive_cid, is_reserved, replace_cid, replace_deletable
from imgstore.vmdk.formats import SUFFIX, DiskFormat, ParentDisk, write_disk
from imgstore.vmdk.stack import MAX_DESCRIPTOR_FILE, open_disks, open_link, read_descriptor

BLANK_PATH = f"{layout.DISKS}/{layout.disk_file(layout.BLANK)}"
_SCRATCH_PATH = f"{layout.DISKS}/{layout.disk_file(layout.SCRATCH)}"


def measured_file(record: DiskRecord) -> str | None:
    """Path of the file that a record has the size and the digest of; None of a disk that the platform made."""
    match record.format:
        case DiskFormat.VMFS:
            return None
        case DiskFormat.VMFS_SPARSE:
            return f"{layout.DISKS}/{layout.delta_file(record.file.removesuffix(SUFFIX))}"
        case _:
            return f"{layout.DISKS}/{record.file}"


def problems(datastore: Datastore, record: DiskRecord, capacity: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a disk, not of the form hosted, that a look at its size and its descriptor shows: path and problem."""
    path = f"{layout.DISKS}/{record.file}"
    try:
        match record.format:
            case DiskFormat.VMFS:
                with datastore.open(path) as file:
                    _check(read_descriptor(file), record, path, capacity)
            case DiskFormat.VMFS_SPARSE:
                with contextlib.closing(open_link(datastore.open, path)) as link:
                    _check(link.descriptor, record, path, capacity)
                    yield from _size_problem(link.file, record)
            case _:
                with datastore.open(path) as file:
                    yield from _size_problem(file, record)
    except (NotFoundError, CorruptError, UnsupportedError) as error:
        yield path, str(error)


def scratch_form(datastore: Datastore) -> DiskFormat | None:
    """VMFS_SPARSE where there is a whole scratch disk of this form, with what it stands on; else None."""
    try:
        with open_disks(datastore.open, _SCRATCH_PATH), contextlib.closing(open_link(datastore.open, _SCRATCH_PATH)) as link:
            return DiskFormat.VMFS_SPARSE if link.parent_hint == layout.disk_file(layout.BLANK) else None
    except (NotFoundError, CorruptError, UnsupportedError):
        return None


def make_blank(datastore: Datastore, capacity: int) -> ParentDisk:
    """The empty disk of a store of ``vmfs-sparse`` disks; made, by the platform if there is one, unless it is there.

    After a crash it may be there unprotected, and is protected the next time.

    Raises:
        InvalidError: a disk of another size is there.
        UnsupportedError: the platform makes none that others can stand on.
        NoSpaceError: the datastore is full.
    """
    is_there = datastore.exists(BLANK_PATH)
    if not is_there and not datastore.platform_disks:
        with datastore.stage(layout.DISKS, layout.BLANK) as staging:
            empty = MemoryBlockDevice(capacity)
            write_disk(DiskFormat.VMFS, staging.create, layout.BLANK, empty, (), cid=derive_cid(layout.BLANK), deletable=False)
            staging.publish()
    elif not is_there:
        datastore.make_disk(BLANK_PATH, capacity)
    try:
        if datastore.platform_disks:
            _protect(datastore, BLANK_PATH, give_cid=True)
        with datastore.open(BLANK_PATH) as file:
            found = read_descriptor(file)
        if found.create_type != "vmfs" or found.parent_cid is not None or is_reserved(found.cid):
            raise UnsupportedError(f"{BLANK_PATH}: is a {found.create_type} disk with content id {found.cid:08x}")
    except (CorruptError, UnsupportedError) as error:
        if not is_there:
            _remove_all(datastore, layout.BLANK)
        raise UnsupportedError(
            f"{datastore.prefix}{BLANK_PATH}: is no empty disk that others can stand on: {error}",
            hint="--disk-format chooses another form",
        ) from error
    if found.capacity * SECTOR != capacity:
        raise InvalidError(f"{BLANK_PATH}: is a disk of {found.capacity * SECTOR} bytes, those of the store have {capacity}")
    return ParentDisk(layout.disk_file(layout.BLANK), found.cid, capacity)


def import_disk(datastore: Datastore, record: DiskRecord, capacity: int) -> DiskRecord:
    """Has the platform make a disk of the streamOptimized one that lies beside its place, and is gone afterwards.

    After an error there is neither; after a crash either may be there, in part or whole, until the layer is removed or made again.

    Returns:
        The record, with the content id that the disk has got.

    Raises:
        UnsupportedError: the platform does not import such disks, or copies them as they are.
        NoSpaceError: the datastore is full.
    """
    stem = record.file.removesuffix(SUFFIX)
    path, source = f"{layout.DISKS}/{record.file}", f"{layout.DISKS}/{layout.import_file(stem)}"
    try:
        datastore.import_disk(source, path)
        try:
            with datastore.open(path) as file:
                found = read_descriptor(file)
        except (CorruptError, UnsupportedError) as error:
            raise UnsupportedError(
                f"{datastore.prefix}{path}: the platform made no disk that can be used of what was uploaded: {error}",
                hint="--disk-format stream-optimized leaves it to you to import the disks",
            ) from error
        record = msgspec.structs.replace(record, cid=f"{found.cid:08x}")
        _check(found, record, path, capacity)
        _protect(datastore, path)
    except BaseException:
        with contextlib.suppress(ImgstoreError):
            _remove_all(datastore, stem)
        raise
    with contextlib.suppress(ImgstoreError):  # who removes the layer, or makes it again, finds it
        datastore.remove_file(source)
    return record


def remove_made_disk(datastore: Datastore, path: str) -> None:
    """Has the platform remove a disk that it made, if that is one; it knows what the disk is made of.

    Raises:
        InUseError: a running machine has it open.
    """
    if not datastore.platform_disks:
        return
    try:
        data = _read(datastore, path)
        if Descriptor.from_bytes(data, path, ("vmfs",), offset=0).parent_cid is None:
            datastore.describe_disk(path, replace_deletable(data, deletable=True))
            datastore.remove_disk(path)
    except (NotFoundError, CorruptError, UnsupportedError):
        return  # it is a disk of ours, or none; the files that are there are removed one by one


def _check(found: Descriptor, record: DiskRecord, path: str, capacity: int) -> None:
    """Raises CorruptError unless a disk is what its marker says."""
    expected = "vmfs" if record.format == DiskFormat.VMFS else "vmfsSparse"
    if found.create_type != expected:
        raise CorruptError(f"{path}: is a {found.create_type} disk, not {expected}")
    if f"{found.cid:08x}" != record.cid:
        raise CorruptError(f"{path}: its content id is {found.cid:08x}, its marker says {record.cid}")
    if found.capacity * SECTOR != capacity:
        raise CorruptError(f"{path}: is a disk of {found.capacity * SECTOR} bytes, those of the store have {capacity}")
    stands_on_none = found.parent_hint in (None, layout.disk_file(layout.BLANK))
    if stands_on_none != record.merged:
        raise CorruptError(
            f"{path}: stands on {found.parent_hint}, but its marker says that it {'was' if record.merged else 'was not'} merged"
        )


def _size_problem(file: ReadableFile, record: DiskRecord) -> Iterator[tuple[str, str]]:
    if file.size != record.size:
        yield file.path, f"has {file.size} bytes, its marker says {record.size}"


def _protect(datastore: Datastore, path: str, *, give_cid: bool = False) -> None:
    """Has the descriptor of a disk that the platform made say that it must not be deleted.

    Args:
        give_cid: and a content id that a child can name: ESXi gives none to a disk that nobody has written (``fffffffe``).
    """
    data = _read(datastore, path)
    wanted = replace_deletable(data, deletable=False)
    with datastore.open(path) as file:
        if give_cid and is_reserved(read_descriptor(file).cid):
            wanted = replace_cid(wanted, derive_cid(path), path)
    if wanted != data:
        datastore.describe_disk(path, wanted)


def _read(datastore: Datastore, path: str) -> bytes:
    """A descriptor; raises CorruptError for what is too long to be one."""
    with datastore.open(path) as file:
        if file.size > MAX_DESCRIPTOR_FILE:
            raise CorruptError(f"{path}: has {file.size} bytes, more than a descriptor")
        return file.pread(0, file.size)


def _remove_all(datastore: Datastore, stem: str) -> None:
    remove_made_disk(datastore, f"{layout.DISKS}/{layout.disk_file(stem)}")
    for name in layout.disk_files(stem):
        with contextlib.suppress(NotFoundError):
            datastore.remove_file(f"{layout.DISKS}/{name}")
