"""File trees of this machine as Changes, and Changes as file trees of this machine: the other end of a copy.

What is packed or unpacked is never named by more than one component below an open directory, and no link is followed on the way, so that
nobody who changes the tree meanwhile can lead us out of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Generator, Iterator

from imgstore.changes import NO_XATTRS, Change, Entry, FileType, HardLink
from imgstore.errors import DeniedError, InvalidError, NoSpaceError, NotFoundError, UnavailableError

_PIECE = 1 << 20
_CAPABILITY = "security.capability"
_NO_XATTR = (errno.ENODATA, errno.ENOTSUP)
_NOT_SET = (errno.EPERM, errno.ENOTSUP)
_DEVICES = (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)
_KINDS = {
    errno.ENOENT: NotFoundError,
    errno.EACCES: DeniedError,
    errno.EPERM: DeniedError,
    errno.EROFS: DeniedError,
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
}
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(path: str, name: bytes) -> Generator[Change, None, None]:
    """The file or directory at ``path`` with all that is in it, parents first, names sorted. Sockets are left out.

    Args:
        path: links on the way to it are followed; itself only if it ends with a slash or with ``/.``.
        name: of the first entry; the others are below it.

    Raises:
        NotFoundError, DeniedError: something is not there any more, or cannot be read.
    """
    above, _, base = os.fsencode(path).rpartition(b"/")
    if base in (b"", b"."):
        above, base = os.fsencode(path), b"."
    with _errors_named(path):
        directory = os.open(above or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from _Packing().pack(directory, base, name, path)
        finally:
            os.close(directory)


class _Packing:
    def __init__(self) -> None:
        self._linked: dict[tuple[int, int], bytes] = {}

    def pack(self, directory: int, base: bytes, name: bytes, shown: str) -> Iterator[Change]:
        # One open directory for each level: a stack, since a tree may be deeper than Python calls.
        levels: list[tuple[int, Iterator[bytes], bytes]] = []
        try:
            while True:
                with _errors_named(f"{shown}: {os.fsdecode(name)}"):
                    status = os.lstat(base, dir_fd=directory)
                    kind = FileType(status.st_mode >> 12)
                    if kind is FileType.DIRECTORY:
                        inner = os.open(base, _DIRECTORY_FLAGS, dir_fd=directory)
                        levels.append((inner, iter(sorted(map(os.fsencode, os.listdir(inner)))), name))  # noqa: PTH208 - an open directory
                    if kind is not FileType.SOCKET:
                        yield from self._changes(directory, base, name, kind, status)
                while levels:
                    directory, names, prefix = levels[-1]
                    following = next(names, None)
                    if following is not None:
                        base, name = following, prefix + following if prefix.endswith(b"/") else prefix + b"/" + following
                        break
                    os.close(levels.pop()[0])
                else:
                    return
        finally:
            for opened, _, _ in levels:
                os.close(opened)

    def _changes(self, directory: int, base: bytes, name: bytes, kind: FileType, status: os.stat_result) -> Iterator[Change]:
        if kind is not FileType.DIRECTORY and status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                yield HardLink(name, first)
                return
        entry = Entry(name, kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        if kind is FileType.SYMLINK:
            entry.target = os.readlink(base, dir_fd=directory)
        elif kind in _DEVICES:
            entry.rdev = (os.major(status.st_rdev), os.minor(status.st_rdev))
        if kind is not FileType.REGULAR:
            yield entry
            return
        file = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            entry.size = os.fstat(file).st_size
            entry.xattrs = _capability(file)
            if status.st_blocks * 512 < entry.size:
                entry.segments = list(_segments(file, entry.size))
            segments = [(0, entry.size)] if entry.segments is None else entry.segments
            entry.data = (piece for offset, length in segments for piece in _pieces(file, offset, length))
            yield entry
        finally:
            os.close(file)


def _capability(file: int) -> dict[bytes, bytes]:
    try:
        return {os.fsencode(_CAPABILITY): os.getxattr(file, _CAPABILITY)}
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        return dict(NO_XATTRS)


def _segments(file: int, size: int) -> Iterator[tuple[int, int]]:
    offset = 0
    while offset < size:
        try:
            start = os.lseek(file, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # behind the last data
                raise
            return
        offset = min(os.lseek(file, start, os.SEEK_HOLE), size)
        if start < offset:
            yield start, offset - start


def _pieces(file: int, offset: int, length: int) -> Iterator[memoryview]:
    while length:
        piece = os.pread(file, min(length, _PIECE), offset)
        if not piece:
            raise UnavailableError(f"the file became {length} bytes shorter while it was read")
        yield memoryview(piece)
        offset += len(piece)
        length -= len(piece)


class Unpacking:
    """Changes put into a directory of this machine, which must be there. What is there already stays if an error comes.

    As docker's command line does it: a directory never takes the place of another file nor the reverse, all belongs to who runs this,
    and a symbolic link that leads out of the directory is refused.

    Args:
        directory: path; links on it are followed.
        cut: path of the first entry in the archive; ``name`` stands in its place.
    """

    def __init__(self, directory: str, cut: bytes, name: bytes) -> None:
        self._shown = directory
        self._cut = cut
        self._name = name
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # The directory of the last entry, since most entries are in that of the one before.
        self._path = b""
        self._open = self._root
        self._entered: list[tuple[bytes, Entry]] = []

    def __enter__(self) -> Unpacking:
        return self

    def __exit__(self, *rest: object) -> None:
        self._enter(b"")
        os.close(self._root)

    def apply(self, change: Change) -> None:
        """Puts one entry in.

        Raises:
            InvalidError: something else is in its place, or it is no entry for a directory.
            DeniedError, NoSpaceError: the system does not let us.
        """
        path = self._renamed(change.path)
        if not path:
            return
        shown = self._shown_path(path)
        with _errors_named(shown):
            above, _, base = path.rpartition(b"/")
            self._enter(above)
            found = self._type(base)
            is_directory = isinstance(change, Entry) and change.type is FileType.DIRECTORY
            if found is FileType.DIRECTORY and not is_directory:
                raise InvalidError(f'cannot overwrite directory "{shown}" with non-directory "{self._shown}"')
            if found is not None and found is not FileType.DIRECTORY:
                if is_directory:
                    raise InvalidError(f'cannot overwrite non-directory "{shown}" with directory "{self._shown}"')
                os.unlink(base, dir_fd=self._open)
            if isinstance(change, HardLink):
                self._link(change, base)
            elif isinstance(change, Entry):
                self._put(change, path, base, shown, found)

    def finish(self) -> None:
        """Gives directories their times, which putting something into them changed, and their modes, which could have forbidden it."""
        for path, entry in reversed(self._entered):
            with _errors_named(self._shown_path(path)):
                self._enter(path)
                os.fchmod(self._open, entry.mode)
                os.utime(self._open, ns=(entry.mtime_ns, entry.mtime_ns))

    def _renamed(self, path: bytes) -> bytes:
        rest = path[len(self._cut) :] if self._cut else b"/" + path if path else b""
        return (self._name + rest).strip(b"/")

    def _shown_path(self, path: bytes) -> str:
        return posixpath.join(self._shown, os.fsdecode(path))

    def _enter(self, path: bytes) -> None:
        if path == self._path:
            return
        if self._open != self._root:
            os.close(self._open)
        self._path, self._open = b"", self._root
        for component in path.split(b"/") if path else ():
            inner = os.open(component, _DIRECTORY_FLAGS, dir_fd=self._open)
            if self._open != self._root:
                os.close(self._open)
            self._open = inner
        self._path = path

    def _type(self, base: bytes) -> FileType | None:
        try:
            return FileType(os.lstat(base, dir_fd=self._open).st_mode >> 12)
        except FileNotFoundError:
            return None

    def _link(self, link: HardLink, base: bytes) -> None:
        above, _, name = self._renamed(link.target).rpartition(b"/")
        directory = self._root
        try:
            for component in above.split(b"/") if above else ():
                inner = os.open(component, _DIRECTORY_FLAGS, dir_fd=directory)
                if directory != self._root:
                    os.close(directory)
                directory = inner
            os.link(name, base, src_dir_fd=directory, dst_dir_fd=self._open, follow_symlinks=False)
        finally:
            if directory != self._root:
                os.close(directory)

    def _put(self, entry: Entry, path: bytes, base: bytes, shown: str, found: FileType | None) -> None:
        if entry.type is FileType.SYMLINK:
            root = self._shown.rstrip("/")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(shown), os.fsdecode(entry.target).lstrip("/")))
            if target != root and not target.startswith(f"{root}/"):
                raise InvalidError(f'invalid symlink "{shown}" -> "{os.fsdecode(entry.target)}"')
            os.symlink(entry.target, base, dir_fd=self._open)
        elif entry.type is FileType.DIRECTORY:
            if found is None:
                os.mkdir(base, 0o700, dir_fd=self._open)
            self._entered.append((path, entry))
            return
        elif entry.type is FileType.REGULAR:
            self._write(entry, base)
            return
        else:
            os.mknod(base, entry.type << 12 | entry.mode, os.makedev(*entry.rdev), dir_fd=self._open)
            os.chmod(base, entry.mode, dir_fd=self._open)
        os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=self._open, follow_symlinks=False)

    def _write(self, entry: Entry, base: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(base, flags, 0o600, dir_fd=self._open)
        try:
            segments = iter([(0, entry.size)] if entry.segments is None else entry.segments)
            offset = left = 0
            for piece in entry.data:
                while piece:
                    while not left:
                        offset, left = next(segments)
                    written = os.pwrite(file, piece[:left], offset)
                    offset += written
                    left -= written
                    piece = piece[written:]
            if entry.segments is not None:
                os.ftruncate(file, entry.size)
            os.fchmod(file, entry.mode)
            for name, value in entry.xattrs.items():
                try:
                    os.setxattr(file, name, value)
                except OSError as error:
                    if error.errno not in _NOT_SET:
                        raise
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)


@contextlib.contextmanager
def _errors_named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, InvalidError)
        raise kind(f"{name}: {error.strerror}") from error
