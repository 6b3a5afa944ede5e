"""DirectoryTree: the directories that a layer touches, in memory until it is finished; files are numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from imgstore.errors import InvalidError
from imgstore.ext4.allocation import InodeAllocator
from imgstore.ext4.directories import DIRECTORY_TYPE, TYPE_MASK
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import NAME_MAX, ROOT_INODE


class InvalidNameError(InvalidError):
    """A path has a component that no directory can hold."""


class Directory:
    """One directory.

    Attributes:
        number: its inode; ``parent`` that of its parent.
        path: for errors.
        entries: name to ``inode << 4 | file type``, without ``.`` and ``..``.
        stated: whether this layer has an Entry for it.
        changed: whether ``entries`` may differ from what the disk has.
    """

    __slots__ = ("changed", "entries", "number", "parent", "path", "stated")

    def __init__(self, number: int, parent: int, path: bytes, entries: dict[bytes, int]) -> None:
        self.number = number
        self.parent = parent
        self.path = path
        self.entries = entries
        self.stated = False
        self.changed = False


class DirectoryTree:
    """Finds directories by path, never through a symlink, and remembers what this layer put where."""

    def __init__(self, file_system: FileSystem, inodes: InodeAllocator) -> None:
        self._file_system = file_system
        self._inodes = inodes
        self._by_number: dict[int, Directory] = {}
        self._by_path: dict[bytes, Directory] = {}
        self._own_names: set[tuple[int, bytes]] = set()
        self.root = self._load(ROOT_INODE, ROOT_INODE, b"")

    def _load(self, number: int, parent: int, path: bytes) -> Directory:
        found = self._by_number.get(number)
        if found is None:
            entries = dict(self._file_system.directory_entries(self._file_system.node(number)))
            found = self._by_number[number] = Directory(number, parent, path, entries)
        return found

    def add(self, directory: Directory) -> None:
        """Takes in a directory that was just made; it counts as changed."""
        directory.changed = True
        self._by_number[directory.number] = directory

    def find(self, path: bytes) -> Directory | None:
        """The directory at ``path``, or None if there is none."""
        if not path:
            return self.root
        found = self._by_path.get(path)
        if found is None:
            above, _, name = path.rpartition(b"/")
            found = self._walk(path) if above not in self._by_path else self.child(self._by_path[above], name)
            if found is not None:
                self._by_path[path] = found
        return found

    def _walk(self, path: bytes) -> Directory | None:
        found: Directory | None = self.root
        for name in path.split(b"/"):
            if found is None:
                return None
            found = self.child(found, name)
        return found

    def child(self, directory: Directory, name: bytes) -> Directory | None:
        """The directory ``name`` inside ``directory``, or None."""
        value = directory.entries.get(name, 0)
        if value & TYPE_MASK != DIRECTORY_TYPE:
            return None
        path = directory.path + b"/" + name if directory.path else name
        return self._load(value >> 4, directory.number, path)

    def require(self, path: bytes, make: Callable[[Directory, bytes], Directory]) -> Directory:
        """The directory at ``path``; ``make`` puts those that are missing in the place of what is there."""
        found = self.find(path)
        if found is None:
            found = self.root
            for name in path.split(b"/"):
                found = self.child(found, name) or make(found, name)
            self._by_path[path] = found
        return found

    def touched(self, number: int) -> Directory | None:
        """The directory with this inode, if it is in memory."""
        return self._by_number.get(number)

    def changed(self) -> Iterator[Directory]:
        """All that may have to be written, by inode."""
        return (self._by_number[number] for number in sorted(self._by_number) if self._by_number[number].changed)

    def forget(self, number: int) -> list[tuple[bytes, int]]:
        """Forgets a directory that is removed; returns what was in it."""
        self._by_path.clear()
        directory = self._by_number.pop(number, None)
        if directory is None:
            return list(self._file_system.directory_entries(self._file_system.node(number)))
        return list(directory.entries.items())

    def put(self, directory: Directory, name: bytes, value: int) -> None:
        """Adds a name that is free.

        Raises:
            InvalidNameError: no directory can hold it.
        """
        if not 0 < len(name) <= NAME_MAX or name in (b".", b"..") or b"\0" in name:
            raise InvalidNameError(f"{directory.path[:4096]!r}: cannot hold a name of {len(name)} bytes, {name[:300]!r}")
        directory.entries[name] = value
        directory.changed = True

    def claim(self, directory: Directory, name: bytes) -> None:
        """Notes that a name is this layer's though its inode is not."""
        self._own_names.add((directory.number, name))

    def take_out(self, directory: Directory, name: bytes) -> int:
        """Removes a name; returns what it stood for."""
        self._own_names.discard((directory.number, name))
        directory.changed = True
        return directory.entries.pop(name)

    def is_own(self, directory: Directory, name: bytes, value: int) -> bool:
        """Whether this layer itself put ``name`` into ``directory``."""
        return self._inodes.is_new(value >> 4) or (directory.number, name) in self._own_names
