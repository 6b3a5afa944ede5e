"""What a file system has that it had not before, as ``docker diff`` tells it and as ``docker commit`` makes a layer of it.

Source: moby's ``go-archive``: ``changes.go``, ``changes_unix.go``.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imgstore.changes import Change, FileType, HardLink, Whiteout
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4.directories import DIRECTORY_TYPE, TYPE_MASK
from imgstore.ext4.extents import Run
from imgstore.ext4.inode_diff import changed_inodes, in_use
from imgstore.ext4.inodes import decode_device
from imgstore.ext4.name_search import directories_naming
from imgstore.ext4.reader import FileSystem, Node, show_path
from imgstore.ext4.structures import BLOCK_SHIFT, ROOT_INODE

_SECOND = 10**9
_PATH_MAX = 4096
_PIECE = 1 << 20
_DEVICES = (FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE)


class Kind(enum.IntEnum):
    """What happened to a path; the values are those of docker's API."""

    CHANGED = 0
    """Something of it; of a directory also, something in it. Whatever was there before, if it is of another type now."""
    ADDED = 1
    DELETED = 2
    """With all that was in it, which is not told."""

    @property
    def letter(self) -> str:
        """As docker's client shows it."""
        return "CAD"[self]


class Difference(NamedTuple):
    """One line of a diff.

    Attributes:
        path: in normal form.
        inode: of the file that is there now, 0 if it was deleted.
    """

    path: bytes
    kind: Kind
    inode: int


def diff(before: FileSystem, after: FileSystem, changed: Iterable[tuple[int, int]], *, exact: bool = False) -> list[Difference]:
    """The differences, sorted by the bytes of their paths; the root is never one.

    Takes time by what changed: only inodes in changed ranges are compared, and only their directories are read, but where a
    file changed that no changed directory has, which is looked for in the others, nearest first.

    Docker compares mode, owner, device number and ``security.capability``, and of all but directories mtime and size. Two times in one
    second are equal to it if one of them has no fraction. So it overlooks other xattrs, times of directories, and new content
    under an old time; a commit that must not lose them asks for an ``exact`` comparison.

    Args:
        before: the file system.
        after: the same after someone wrote to it; it may have grown.
        changed: (offset, length) of all bytes that may differ, in any order.
        exact: compare all that a layer can say.

    Raises:
        CorruptError: a directory has two names or none, a file has fewer names than links, or what is read is damaged.
        InvalidError: these are different file systems.
        UnsupportedError: a path is longer than 4096 bytes.
    """
    return _Comparison(before, after, _joined(changed), exact).differences()


def layer_changes(after: FileSystem, differences: Iterable[Difference]) -> Iterator[Change]:
    """The layer that makes what ``after`` is of what was there before, in the order of ``differences``.

    As docker's ``ExportChanges``: further names of a file in the layer are HardLinks; a file whose other names are all older than the
    layer comes whole, and is another file then. Sockets are left out; one that took the place of something leaves a Whiteout.

    Raises:
        CorruptError: what is read is damaged.
    """
    linked: dict[int, bytes] = {}
    for path, kind, inode in differences:
        if kind is Kind.DELETED:
            yield Whiteout(path)
            continue
        node = after.node(inode)
        if node.type is FileType.SOCKET:
            if kind is Kind.CHANGED:
                yield Whiteout(path)
            continue
        if node.links > 1 and node.type is not FileType.DIRECTORY:
            first = linked.setdefault(inode, path)
            if first != path:
                yield HardLink(path, first)
                continue
        yield after.entry(path, node)


class _Comparison:
    """One comparison: what changed, which directories lead there, and the walk through these."""

    def __init__(self, before: FileSystem, after: FileSystem, ranges: list[tuple[int, int]], exact: bool) -> None:
        self._before = before
        self._after = after
        self._ranges = ranges
        self._exact = exact
        self._changed: set[int] = set()
        self._reached: set[int] = set()
        self._kinds: dict[bytes, tuple[Kind, int]] = {}
        self._directories: dict[bytes, int] = {}

    def differences(self) -> list[Difference]:
        directories: set[int] = set()
        links: dict[int, int] = {}
        for number, old, new in changed_inodes(self._before, self._after, self._ranges):
            if not in_use(new):
                continue  # a directory that changed had its names
            self._changed.add(number)
            if new[1] >> 4 == FileType.DIRECTORY:
                directories.add(number)
            elif in_use(old) and old[1] >> 4 == new[1] >> 4:
                links[number] = int.from_bytes(new[26:28], "little")
        self._walk(self._leading_to(directories | self._naming(links, directories)))
        if self._changed != self._reached:
            raise CorruptError(f"inode {min(self._changed - self._reached)}: no directory that leads to it has its name")
        self._add_parents()
        return [Difference(path, kind, inode) for path, (kind, inode) in sorted(self._kinds.items())]

    def _naming(self, links: dict[int, int], changed: set[int]) -> set[int]:
        """The unchanged directories that have names of the files in ``links``, which has their counts of links."""
        for number in changed if links else ():
            for _, value in self._after.directory_entries(self._after.node(number)):
                if value >> 4 in links:
                    links[value >> 4] -= 1
        missing = {number: count for number, count in links.items() if count > 0}
        return set(directories_naming(self._after, missing, changed)) if missing else set()

    def _leading_to(self, directories: Iterable[int]) -> set[int]:
        """The directories and all above them."""
        found = {ROOT_INODE}
        for number in directories:
            while number not in found:
                found.add(number)
                number = self._after.parent_of(self._directory(self._after, number))
        return found

    def _directory(self, file_system: FileSystem, number: int) -> Node:
        node = file_system.node(number)
        if node.type is not FileType.DIRECTORY:
            raise CorruptError(f"inode {number}: is named as a directory, and is none")
        return node

    def _walk(self, leading: set[int]) -> None:
        """Finds all differences but the directories that are told only because something in them changed."""
        if ROOT_INODE in self._changed:
            self._reached.add(ROOT_INODE)
        visited: set[int] = set()
        pending = [(b"", ROOT_INODE, ROOT_INODE)]
        while pending:
            path, old, new = pending.pop()
            if new in visited:
                raise CorruptError(f"directory inode {new}: has a second name, {show_path(path)}")
            visited.add(new)
            self._directories[path] = new
            prefix = path + b"/" if path else b""
            same = old == new and new not in self._changed
            left = {} if same or not old else dict(self._before.directory_entries(self._directory(self._before, old)))
            for name, value in self._after.directory_entries(self._directory(self._after, new)):
                number, is_directory = value >> 4, value & TYPE_MASK == DIRECTORY_TYPE
                former = value if same else left.pop(name, 0)
                if former >> 4 == number and number not in self._changed and number not in leading:
                    continue
                child = prefix + name
                if len(child) > _PATH_MAX:
                    raise UnsupportedError(f"{show_path(child[:100])}...: a path of more than {_PATH_MAX} bytes")
                if number in self._changed:
                    self._reached.add(number)
                if not former:
                    self._kinds[child] = Kind.ADDED, number
                elif (former >> 4 != number or number in self._changed) and self._differ(former >> 4, number):
                    self._kinds[child] = Kind.CHANGED, number
                if is_directory:
                    pending.append((child, former >> 4 if former & TYPE_MASK == DIRECTORY_TYPE else 0, number))
            for name in left:
                self._kinds[prefix + name] = Kind.DELETED, 0

    def _add_parents(self) -> None:
        for path in list(self._kinds):
            above = path.rpartition(b"/")[0]
            while above and above not in self._kinds:
                self._kinds[above] = Kind.CHANGED, self._directories[above]
                above = above.rpartition(b"/")[0]

    def _differ(self, former: int, number: int) -> bool:
        old, new = self._before.node(former), self._after.node(number)
        if (old.type, old.mode, old.uid, old.gid) != (new.type, new.mode, new.uid, new.gid):
            return True
        if new.type in _DEVICES and decode_device(old.block) != decode_device(new.block):
            return True
        if new.type is not FileType.DIRECTORY and old.size != new.size:
            return True
        if self._exact:
            return self._differ_exactly(old, new)
        if new.type is not FileType.DIRECTORY and not _is_docker_time(old.mtime_ns, new.mtime_ns):
            return True
        return _capability(self._before, old) != _capability(self._after, new)

    def _differ_exactly(self, old: Node, new: Node) -> bool:
        if old.mtime_ns != new.mtime_ns or self._before.read_xattrs(old) != self._after.read_xattrs(new):
            return True
        if new.type is FileType.SYMLINK:
            return self._before.read_target(old) != self._after.read_target(new)
        return new.type is FileType.REGULAR and self._contents_differ(old, new)

    def _contents_differ(self, old: Node, new: Node) -> bool:
        """Whether two files of one size do."""
        runs = list(self._after.runs(new))
        if runs != list(self._before.runs(old)):
            return any(
                self._before.read(old, place, min(_PIECE, offset + length - place))
                != self._after.read(new, place, min(_PIECE, offset + length - place))
                for offset, length in self._before.data_segments(old) + self._after.data_segments(new)
                for place in range(offset, offset + length, _PIECE)
            )
        return any(self._run_differs(run, new.size) for run in runs if not run.unwritten)

    def _run_differs(self, run: Run, size: int) -> bool:
        """Whether the bytes of a run of a file of ``size`` bytes do; only changed ranges are read."""
        start = run.physical << BLOCK_SHIFT
        stop = start + min(run.length << BLOCK_SHIFT, size - (run.logical << BLOCK_SHIFT))
        for place in range(max(bisect_right(self._ranges, (start,)) - 1, 0), len(self._ranges)):
            offset, length = self._ranges[place]
            if offset >= stop:
                break
            if self._bytes_differ(max(offset, start), min(offset + length, stop)):
                return True
        return False

    def _bytes_differ(self, start: int, stop: int) -> bool:
        return any(
            self._before.device.read(offset, min(_PIECE, stop - offset))
            != self._after.device.read(offset, min(_PIECE, stop - offset))
            for offset in range(start, stop, _PIECE)
        )


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as ascending ranges that do not touch."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if joined and offset <= sum(joined[-1]):
            joined[-1] = (joined[-1][0], max(sum(joined[-1]), offset + length) - joined[-1][0])
        else:
            joined.append((offset, length))
    return joined


def _is_docker_time(left: int, right: int) -> bool:
    """``sameFsTime``."""
    return left == right or (left // _SECOND == right // _SECOND and not (left % _SECOND and right % _SECOND))


def _capability(file_system: FileSystem, node: Node) -> bytes:
    return file_system.read_xattrs(node).get(b"security.capability", b"")
