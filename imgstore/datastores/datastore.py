"""Datastore: where disks live. A PyFilesystem2 file system, plus what that lacks.

Byte ranges of open files and their holes, files that appear whole or not at all, stable storage, space taken.

How files are made: ``stage`` gives a private directory inside the one where they will lie, they are created and written in it, and
``publish`` puts them on stable storage and then moves them one directory up, one after the other in the order in which they were
created. A crash at any instant leaves each of them visible whole or not at all, and perhaps a leftover, which ``sweep`` removes. It
may come between two of them: who needs all or nothing of several files writes a marker afterwards, with ``write_atomic``, and takes
files without a marker for what a crash left. Names that begin with a dot and end in ``.part`` are private and never listed.

Paths are relative to the root of the datastore: components joined by ``/``, none of them empty, ``.`` or ``..``; the root is ``""``.
A path that is no such path is an InvalidError. Symbolic links are never followed. Methods may be called from several threads.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from imgstore import _fscompat  # noqa: F401  # before fs
from imgstore.blocks import Bytes
from imgstore.errors import (
    AlreadyExistsError,
    CorruptError,
    DeniedError,
    ImgstoreError,
    InUseError,
    InvalidError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

from fs.base import FS  # isort: skip

T = TypeVar("T")
R = TypeVar("R")

PART_SUFFIX = ".part"


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a storage, all of them and those that are free."""

    total: int
    free: int


class StoredFile(abc.ABC):
    """A file opened for reading: ``imgstore.blocks.ReadableFile``."""

    @property
    @abc.abstractmethod
    def path(self) -> str:
        """Where it lies in its datastore."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Length in bytes."""

    @abc.abstractmethod
    def pread(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, fewer only where the file ends.

        Raises:
            UnavailableError: the datastore does not answer.
        """

    def read_ready_into(self, offset: int, buffer: memoryview) -> bool:
        """Fills ``buffer`` with what is at ``offset`` if all of it is in memory; whether it is filled. Not what would wait, or fail.

        Not every datastore can tell: one that cannot never has anything ready.
        """
        return False

    @abc.abstractmethod
    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs inside the range that may hold data, ascending; what is between them reads as zeros."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the file back; allowed more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class StagedFile(StoredFile):
    """A file that is being made: ``imgstore.blocks.WritableFile``. Can be read, also after it was published, until it is closed."""

    @abc.abstractmethod
    def pwrite(self, offset: int, data: Bytes) -> None:
        """Puts all of ``data`` at ``offset``; a gap behind the former end becomes a hole.

        Raises:
            NoSpaceError: the datastore, a quota or a size limit is full.
        """

    @abc.abstractmethod
    def truncate(self, size: int) -> None:
        """Sets the length in bytes: what is added is hole."""

    @abc.abstractmethod
    def fsync(self) -> None:
        """Returns when everything written before would survive a power cut."""

    def clone(self, source: StoredFile) -> bool:
        """Makes this empty file one that shares the storage of ``source``, at no cost; or changes nothing, and returns False.

        The file systems that can do that are few (Btrfs, XFS, bcachefs, NFS 4.2), and both files must lie on the same one.
        """
        return False


class LiveFile(StagedFile):
    """A file at its final place, which everybody sees while it is written: what is half done after a crash is the writer's to know."""

    @abc.abstractmethod
    def punch(self, offset: int, length: int) -> None:
        """Gives back the storage of bytes that nobody needs any more, where the datastore can; they read as before then, or as zeros."""

    @abc.abstractmethod
    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Makes bytes inside the file read as zeros, by the quickest way that the datastore has.

        Args:
            keep_space: keep their storage; else it is given back where that can be done.

        Raises:
            NoSpaceError: the datastore is full; any part may be zeros.
        """

    @abc.abstractmethod
    def fdatasync(self) -> None:
        """Returns when the bytes written before would survive a power cut, and be found; times and the file's name may not."""


class Staging(abc.ABC):
    """Files in a private directory, to be published or discarded. Leaving the ``with`` block discards what was not published."""

    @abc.abstractmethod
    def create(self, filename: str) -> StagedFile:
        """A new, empty file, whose ``path`` is already the one that ``publish`` will give it.

        Raises:
            AlreadyExistsError: the staging has one of that name.
        """

    @abc.abstractmethod
    def publish(self) -> None:
        """Makes the files visible in the directory: durable, whole, read-only (0444).

        All are put on stable storage before the first is moved; then they are moved in the order in which they were created. Files
        that are still open may be read on. Crash at any instant: each file is visible whole or not at all, and any first few of that
        order may be (after a power cut, any of them, where the file system does not keep the order of renames). Who needs all or
        nothing writes a marker afterwards, with ``Datastore.write_atomic``.

        If it fails, what was moved already is removed again as far as that is possible, and the staging can only be discarded.
        Stagings with names in common may be published at once only by those who agree who does it (a lease): a file that appears
        between the look whether it exists and the move may be replaced.

        Raises:
            AlreadyExistsError: there is something under one of the final names; nothing was moved.
            NoSpaceError: the datastore is full.
            UnavailableError: the datastore failed to make it durable: what was written cannot be trusted.
        """

    def replace(self) -> None:
        """As `publish`, but each file takes the place of one that is there under its name, in one step: at any instant it is either.

        Who has the old file open reads on in it. If it fails, what was moved already stays.

        Raises:
            UnsupportedError: the datastore cannot do that (`Datastore.can_replace`).
            NoSpaceError, UnavailableError: as `publish`.
        """
        raise UnsupportedError("a file of this datastore cannot be replaced in one step")

    @abc.abstractmethod
    def discard(self) -> None:
        """Closes all files and removes the private directory; nothing after ``publish`` or a former ``discard``."""

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.discard()


class Datastore(abc.ABC):
    """Where disks live; see the module.

    Attributes:
        fs: the PyFilesystem2 view of the same files, for those who bring their own tools.
        can_replace: whether a staging can `Staging.replace` files.
        platform_disks: the disks of containers are made and written by the platform that runs them, and never by us.
    """

    fs: FS
    can_replace: ClassVar[bool] = False
    platform_disks: ClassVar[bool] = False

    @abc.abstractmethod
    def open(self, path: str) -> StoredFile:
        """Opens a file for reading.

        Raises:
            NotFoundError: it is missing, or not a regular file.
        """

    @abc.abstractmethod
    def create(self, path: str) -> LiveFile:
        """A new, empty file at its final place, writable, for its owner alone (0600); its directory is made if it is missing.

        Nobody is kept from opening it meanwhile. After a crash it may be there in part, or not at all; ``LiveFile.fsync`` makes its
        name durable with its contents, and so does ``sync``.

        Raises:
            AlreadyExistsError: there is something of that name.
        """

    @abc.abstractmethod
    def open_live(self, path: str, *, writable: bool) -> LiveFile:
        """Opens a file that others may write, QEMU among them, and locks it as QEMU does, until it is closed.

        Who writes has it alone: neither QEMU nor another imgstore, nor another thread of this one, opens it meanwhile. Several may
        read it. Locks are of the file, not of its name, and end with the process. ``open`` neither takes nor asks for them.

        Raises:
            InUseError: somebody has it open in a way that forbids this.
            NotFoundError: it is missing, or not a regular file.
        """

    def create_unnamed(self, label: str) -> LiveFile:
        """A new, empty file that nobody else sees, and that vanishes when it is closed, or with the process.

        Args:
            label: its ``path``: what errors call it.

        Raises:
            NoSpaceError: the datastore is full.
            UnsupportedError: the datastore has no such files.
        """
        raise UnsupportedError(f"{label}: the datastore has no files without a name")

    @abc.abstractmethod
    def sync(self) -> None:
        """Returns when all that anybody wrote to the datastore before, names and contents, would survive a power cut.

        Raises:
            UnavailableError: the storage failed.
        """

    @abc.abstractmethod
    def stage(self, directory: str, name: str) -> Staging:
        """Begins files that ``publish`` will put into a directory, in a private directory ``.<name>.<owner>-<nonce>.part`` there.

        Args:
            directory: made, and made durable, with those above it, if it is missing.
            name: what is made, for who reads errors and the names of leftovers; need not be unique.

        Raises:
            NotFoundError: there is something in the way that is not a directory.
        """

    @abc.abstractmethod
    def write_atomic(self, path: str, data: bytes) -> None:
        """Makes or replaces a small file (marker, JSON): whoever reads sees the old or the new one, durable when it returns."""

    @abc.abstractmethod
    def write_many(self, directory: str, files: Sequence[tuple[str, bytes]]) -> None:
        """Makes small files in a directory, which is made if it is missing; it must not have their names.

        Costs one ``sync`` and one more flush, however many they are; all that was written to the datastore before is durable before the
        first of them is seen. When it returns all are durable; a crash leaves each of them whole or not there, some or all.

        Args:
            files: name and contents of each.
        """

    @abc.abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file or directory."""

    @abc.abstractmethod
    def list(self, path: str = "") -> list[str]:
        """The names in a directory, sorted; leftovers and the datastore's own lock files are not among them.

        Raises:
            NotFoundError: it is missing, or not a directory.
        """

    @abc.abstractmethod
    def remove_file(self, path: str) -> None:
        """Removes a file, durably.

        Raises:
            NotFoundError: it is missing, or a directory.
        """

    @abc.abstractmethod
    def remove_tree(self, path: str) -> None:
        """Removes a directory with all that is in it. It disappears at once; a crash may leave a leftover for ``sweep``.

        Raises:
            NotFoundError: it is missing, or not a directory.
        """

    @abc.abstractmethod
    def usage(self, path: str = "") -> int:
        """Bytes of storage that a file, or a directory with all that is in it, takes: holes do not count."""

    def remove_platform_disk(self, path: str) -> None:
        """Removes a disk that the platform made, with all its files, where ``platform_disks`` is set.

        Raises:
            NotFoundError: there is none.
            InUseError: a machine has it open; nothing was removed.
        """
        raise UnsupportedError(f"{path}: no platform makes disks on this datastore")

    def make_disk(self, path: str, capacity: int) -> None:
        """Has the platform make an empty disk, thin and flat, where ``platform_disks`` is set.

        Raises:
            AlreadyExistsError: there is one.
            NoSpaceError: the datastore is full.
        """
        raise UnsupportedError(f"{path}: no platform makes disks on this datastore")

    def import_disk(self, source: str, path: str) -> None:
        """Has the platform make a flat disk, thin if it can, of one of any form; the source stays.

        What the platform makes of a form that it does not know is for the caller to see. An error may leave a part of it.

        Raises:
            NotFoundError: the source is missing.
            NoSpaceError: the datastore is full.
            UnsupportedError: it does not make one of such a source.
        """
        raise UnsupportedError(f"{path}: no platform makes disks on this datastore")

    def describe_disk(self, path: str, descriptor: bytes) -> None:
        """Puts another descriptor in the place of that of a disk that the platform made. An error may leave the disk without one."""
        raise UnsupportedError(f"{path}: no platform makes disks on this datastore")

    def remove_disk(self, path: str) -> None:
        """Removes a disk that the platform made, with all its files, and nothing around it.

        Raises:
            NotFoundError: there is none.
            InUseError: a running machine has it open.
        """
        raise UnsupportedError(f"{path}: no platform makes disks on this datastore")

    def files_in_use(self) -> frozenset[str]:
        """Paths of the files that virtual machines have as disks, running or not, where ``platform_disks`` is set."""
        return frozenset()

    @abc.abstractmethod
    def usages(self, directory: str) -> dict[str, int]:
        """Bytes of storage that each file in a directory takes, by name; none where there is no directory.

        One look, however many files there are; leftovers and directories are not among them.
        """

    @abc.abstractmethod
    def sweep(self) -> Sequence[str]:
        """Removes the leftovers of owners that are no more. Those of live ones, this process too, are left alone.

        Costs one look at the root as long as every owner is alive or ended well.

        Returns:
            The paths of what was removed.
        """

    @abc.abstractmethod
    def local_path(self, path: str) -> Path | None:
        """Where programs on this machine find the file, or None if they cannot."""

    @property
    def location(self) -> str:
        """Where it is, as people name it: a directory, ``vsphere://`` or ``mem://``."""
        root = self.local_path("")
        return "mem://" if root is None else str(root)

    @property
    def prefix(self) -> str:
        """What makes a path one that people and the platform can use: ``/directory/``, ``[DATASTORE] directory/`` or nothing."""
        root = self.local_path("")
        return "" if root is None else f"{root}/"

    def storage_type(self) -> str:
        """What the platform calls the storage below it, such as ``VMFS 6``; empty where there is no platform that would say."""
        return ""

    def space(self) -> Space | None:
        """How much the storage below it has; None where nobody can say."""
        return None

    def each(self, call: Callable[[T], R], values: Iterable[T]) -> Iterable[R]:
        """What ``call`` gives for each of the values, in their order; several run at once where they wait long for the datastore."""
        return map(call, values)

    def check_live(self) -> None:  # noqa: B027 - most can
        """Raises UnsupportedError where `create` and `open_live` do: containers and volumes cannot be there."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives everything back; stagings that are open become leftovers, which the next ``sweep`` finds. Allowed more than once."""

    def parts(self, path: str) -> Sequence[str]:
        """Paths of what is being made in a directory, by whomever, or was left there; none where there is no directory."""
        if not self.fs.isdir(path):
            return []
        return [join_path(path, name) for name in self.fs.listdir(path) if owner_of(name) is not None]

    def read_bytes(self, path: str, limit: int = 4 << 20) -> bytes:
        """The contents of a small file.

        Raises:
            NotFoundError: it is missing.
            CorruptError: it has more than ``limit`` bytes.
        """
        with self.open(path) as file:
            data = file.pread(0, limit + 1)
        if len(data) > limit:
            raise CorruptError(f"{path}: has more than {limit} bytes")
        return data

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def list_names(datastore: Datastore, path: str) -> list[str]:
    """The names in a directory, sorted; none if it is not there."""
    try:
        return datastore.list(path)
    except NotFoundError:
        return []


def split_path(path: str) -> tuple[str, ...]:
    """The components of a path, none for the root.

    Raises:
        InvalidError: a component is empty, ``.`` or ``..``, or has a NUL.
    """
    if not path:
        return ()
    components = tuple(path.split("/"))
    for component in components:
        if component in ("", ".", "..") or "\0" in component:
            raise InvalidError(f"path {path!r}: component {component!r} is not a name")
    return components


def split_name(path: str) -> tuple[tuple[str, ...], str]:
    """The directory's components and the name.

    Raises:
        InvalidError: the path is the root or no path.
    """
    components = split_path(path)
    if not components:
        raise InvalidError("the root of a datastore cannot be made, replaced or removed")
    return components[:-1], components[-1]


def single_name(name: str) -> str:
    """The name itself.

    Raises:
        InvalidError: it is none.
        ValueError: it is a path.
    """
    components, last = split_name(name)
    if components:
        raise ValueError(f"{name!r} must not be in a directory of its own")
    return last


def join_path(directory: str, name: str) -> str:
    """The path of a name in a directory, which may be the root."""
    return f"{directory}/{name}" if directory else name


def part_name(name: str, owner: str) -> str:
    """A new name for what is being made under ``name``; ``owner_of`` tells its owner."""
    # 255 bytes is the limit of a name: the rest takes less than 55.
    return f".{name.encode()[:200].decode(errors='ignore')}.{owner}-{secrets.token_hex(6)}{PART_SUFFIX}"


def owner_of(name: str) -> str | None:
    """The owner in a name that ``part_name`` made, or None if it is not one."""
    if not (name.startswith(".") and name.endswith(PART_SUFFIX)):
        return None
    owner, dash, nonce = name[: -len(PART_SUFFIX)].rpartition(".")[2].partition("-")
    return owner if owner and dash and nonce else None


def is_private(name: str) -> bool:
    """Whether a name belongs to the datastore itself."""
    return name.startswith(".") and name.endswith((PART_SUFFIX, ".lock"))


def in_use(path: str) -> InUseError:
    """What ``open_live`` raises."""
    return InUseError(
        f"{path}: is in use by a running guest or another imgstore", hint="stop the guest, or wait until the other one has ended"
    )


@contextlib.contextmanager
def named_errors(path: str, what: str) -> Iterator[None]:
    """Turns an OSError into the kind of ImgstoreError it is, naming the file."""
    try:
        yield
    except OSError as error:
        raise translate(error, path, what) from error


def translate(error: OSError, path: str, what: str) -> ImgstoreError:
    """The ImgstoreError that an OSError is."""
    message = f"{path or 'the root of the datastore'}: cannot {what}: {error.strerror or error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpaceError(message)
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.ELOOP:
            return NotFoundError(message)
        case errno.EEXIST | errno.ENOTEMPTY:
            return AlreadyExistsError(message)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return DeniedError(message)
        case errno.ENAMETOOLONG:
            return InvalidError(message)
        case _:
            return UnavailableError(message)
