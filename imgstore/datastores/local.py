"""LocalDatastore: a directory of this machine, or one that it has mounted."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from imgstore.datastores.datastore import (
    Datastore,
    Space,
    Staging,
    StoredFile,
    is_private,
    join_path,
    named_errors,
    part_name,
    single_name,
    split_name,
    split_path,
)
from imgstore.datastores.linux import sync_file_system
from imgstore.datastores.local_files import READ, LocalFile, LocalLiveFile, LocalStagedFile, open_direct, pwrite_all
from imgstore.datastores.owners import Sweep, lock_name, take_owner
from imgstore.errors import AlreadyExistsError, NotFoundError

from fs.osfs import OSFS  # isort: skip

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_DIRECTORY_MODE = 0o750


class LocalDatastore(Datastore):
    """A directory. Files are sparse; published ones have mode 0444, directories 0750.

    Each object that makes something holds a lock (``flock``) on a file ``.owner-<nonce>.lock`` in the root as long as it is open; the
    kernel lets go of it when the process ends, however it ends. That is how ``sweep`` tells leftovers from what is being made, by this
    or another process, and whether there are any at all: an owner that leaves nothing removes its file, which is on stable storage
    before the first thing is made. The file says who made it: host, boot id, process id.

    Args:
        directory: must exist unless ``create`` is true; may be a symbolic link, what is below it may not.
        create: makes the directory, but not those above it.

    Raises:
        NotFoundError: no such directory.
    """

    can_replace = True

    def __init__(self, directory: Path | str, *, create: bool = False) -> None:
        self._directory = Path(directory).absolute()
        with named_errors(str(self._directory), "open the directory"):
            if create:
                with contextlib.suppress(FileExistsError):
                    self._directory.mkdir(mode=_DIRECTORY_MODE)
            self._root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.fs = OSFS(str(self._directory))
        self._lock = threading.Lock()
        self._owner: str | None = None
        self._owner_file = -1
        self._parts: set[str] = set()  # private names that this object made and did not see go
        self._closed = False

    def open(self, path: str) -> StoredFile:
        components, name = split_name(path)
        with named_errors(path, "open it"), self._directory_at(components) as directory:
            descriptor = os.open(name, READ, dir_fd=directory)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise NotFoundError(f"{path}: is not a regular file")
        return LocalFile(path, descriptor)

    def create(self, path: str) -> LocalLiveFile:
        components, name = split_name(path)
        with named_errors(path, "create it"):
            directory = self._make_directories(components)
            try:
                return LocalLiveFile(path, os.open(name, _CREATE, 0o600, dir_fd=directory), directory)
            except BaseException:
                os.close(directory)
                raise

    def open_live(self, path: str, *, writable: bool) -> LocalLiveFile:
        components, name = split_name(path)
        with named_errors(path, "open it"), self._directory_at(components) as directory:
            file = LocalLiveFile(path, os.open(name, READ | (os.O_RDWR if writable else 0), dir_fd=directory))
            try:
                file.lock(writable=writable)
            except BaseException:
                file.close()
                raise
        return file

    def create_unnamed(self, label: str) -> LocalLiveFile:
        self._check_open()
        with named_errors(label, "create it"), tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            return LocalLiveFile(label, os.dup(file.fileno()))

    def sync(self) -> None:
        with named_errors("", "put it on stable storage"), self._directory_at(()) as root:
            sync_file_system(root)

    def stage(self, directory: str, name: str) -> LocalStaging:
        components, name = split_path(directory), single_name(name)
        with named_errors(join_path(directory, name), "stage it"):
            above = self._make_directories(components)
            try:
                with self._making(name, above, os.rmdir) as part:
                    os.mkdir(part, 0o700, dir_fd=above)
                    private = os.open(part, _DIRECTORY, dir_fd=above)
            except BaseException:
                os.close(above)
                raise
        return LocalStaging(self, directory, name, above, part, private)

    def write_atomic(self, path: str, data: bytes) -> None:
        components, name = split_name(path)
        with named_errors(path, "write it"):
            above = self._make_directories(components)
            try:
                with self._making(name, above, os.unlink) as part:
                    descriptor = os.open(part, _CREATE, 0o644, dir_fd=above)
                    try:
                        pwrite_all(descriptor, 0, data)
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
                    os.rename(part, name, src_dir_fd=above, dst_dir_fd=above)
                self._end(part)
                os.fsync(above)
            finally:
                os.close(above)

    def write_many(self, directory: str, files: Sequence[tuple[str, bytes]]) -> None:
        names = [single_name(name) for name, _ in files]
        with named_errors(directory, "write into it"):
            above = self._make_directories(split_path(directory))
            try:
                with self._making("many", above, shutil.rmtree) as part:
                    os.mkdir(part, 0o700, dir_fd=above)
                    private = os.open(part, _DIRECTORY, dir_fd=above)
                    try:
                        for name, data in files:
                            descriptor = os.open(name, _CREATE, 0o644, dir_fd=private)
                            try:
                                pwrite_all(descriptor, 0, data)
                            finally:
                                os.close(descriptor)
                        sync_file_system(private)
                        _move_all(names, part, private, above)
                    finally:
                        os.close(private)
                self._end(part)
            finally:
                os.close(above)

    def exists(self, path: str) -> bool:
        components = split_path(path)
        if not components:
            return True
        try:
            with named_errors(path, "look it up"), self._directory_at(components[:-1]) as directory:
                os.stat(components[-1], dir_fd=directory, follow_symlinks=False)
        except NotFoundError:
            return False
        return True

    def list(self, path: str = "") -> list[str]:
        with named_errors(path, "list it"), self._directory_at(split_path(path)) as directory, os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if not is_private(entry.name))

    def remove_file(self, path: str) -> None:
        components, name = split_name(path)
        with named_errors(path, "remove it"), self._directory_at(components) as directory:
            os.unlink(name, dir_fd=directory)
            os.fsync(directory)

    def remove_tree(self, path: str) -> None:
        components, name = split_name(path)
        with named_errors(path, "remove it"), self._directory_at(components) as directory:
            os.close(os.open(name, _DIRECTORY, dir_fd=directory))
            with self._making(name, directory, os.rmdir) as part:
                os.rename(name, part, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            shutil.rmtree(part, dir_fd=directory)
        self._end(part)

    def usage(self, path: str = "") -> int:
        components = split_path(path)
        with named_errors(path, "measure it"):
            if not components:
                with self._directory_at(()) as root:
                    return _usage(root)
            with self._directory_at(components[:-1]) as directory:
                found = os.stat(components[-1], dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    return found.st_blocks * 512
            with self._directory_at(components) as directory:
                return _usage(directory)

    def usages(self, directory: str) -> dict[str, int]:
        found = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(named_errors(directory, "measure it"))
            try:
                entries = stack.enter_context(os.scandir(stack.enter_context(self._directory_at(split_path(directory)))))
            except FileNotFoundError:
                return {}
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False) and not is_private(entry.name):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_blocks * 512
                except FileNotFoundError:  # removed since
                    continue
        return found

    def sweep(self) -> Sequence[str]:
        with named_errors("", "sweep it"), self._directory_at(()) as root:
            return Sweep(root, self._owner).run()

    def local_path(self, path: str) -> Path:
        return self._directory.joinpath(*split_path(path))

    def space(self) -> Space:
        with named_errors(str(self._directory), "measure its file system"):
            found = shutil.disk_usage(self._directory)
        return Space(found.total, found.free)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._owner is not None:
                if not self._parts:  # otherwise the file is what tells a sweep that there is something to look for
                    with contextlib.suppress(OSError):
                        os.unlink(lock_name(self._owner), dir_fd=self._root)
                os.close(self._owner_file)
            os.close(self._root)
            self.fs.close()

    def _begin(self, name: str) -> str:
        """A new private name, on record until ``_end``; the lock file of this object is made and held."""
        with self._lock:
            self._check_open()
            if self._owner is None:
                with named_errors(str(self._directory), "lock it"):
                    self._owner, self._owner_file = take_owner(self._root)
            part = part_name(name, self._owner)
            self._parts.add(part)
            return part

    def _end(self, part: str) -> None:
        """Takes a private name off the record: nothing has it any more."""
        with self._lock:
            self._parts.discard(part)

    @contextlib.contextmanager
    def _making(self, name: str, directory: int, remove: Callable[..., None]) -> Iterator[str]:
        """A new private name to make something under; after an error that is removed, and stays on record if it cannot be."""
        part = self._begin(name)
        try:
            yield part
        except BaseException:
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileNotFoundError):
                    remove(part, dir_fd=directory)
                self._end(part)
            raise

    def _check_open(self) -> None:
        if self._closed:  # the number of its descriptor may be another file's by now
            raise ValueError(f"the datastore {self._directory} is closed")

    @contextlib.contextmanager
    def _directory_at(self, components: tuple[str, ...]) -> Iterator[int]:
        self._check_open()
        descriptor = os.dup(self._root)
        try:
            for component in components:
                below = os.open(component, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_directories(self, components: tuple[str, ...]) -> int:
        self._check_open()
        descriptor = os.dup(self._root)
        try:
            for component in components:
                try:
                    below = os.open(component, _DIRECTORY, dir_fd=descriptor)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(component, _DIRECTORY_MODE, dir_fd=descriptor)
                    os.fsync(descriptor)
                    below = os.open(component, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


class LocalStaging(Staging):
    """A private directory inside the one where its files will lie; takes over the descriptors of both."""

    def __init__(self, datastore: LocalDatastore, directory: str, name: str, above: int, part: str, private: int) -> None:
        self._datastore = datastore
        self._directory = directory
        self._label = join_path(directory, name)
        self._above = above
        self._part = part
        self._private = private
        self._files: dict[str, LocalStagedFile] = {}

    def create(self, filename: str) -> LocalStagedFile:
        path = join_path(self._directory, single_name(filename))
        with named_errors(path, "create it"):
            descriptor = os.open(filename, _CREATE, 0o600, dir_fd=self._private)
        file = self._files[filename] = LocalStagedFile(path, descriptor, open_direct(filename, self._private))
        return file

    def publish(self) -> None:
        with self._sealed():
            for filename, file in self._files.items():
                with contextlib.suppress(FileNotFoundError):
                    # rename(2) would take the place of a file without a word.
                    os.stat(filename, dir_fd=self._above, follow_symlinks=False)
                    raise AlreadyExistsError(f"{file.path}: exists already")
            _move_all(self._files, self._part, self._private, self._above)

    def replace(self) -> None:
        with self._sealed():
            _move_all(self._files, self._part, self._private, self._above, undo=False)

    def discard(self) -> None:
        if self._above < 0:
            return
        for file in self._files.values():
            file.close()
        try:
            with named_errors(self._label, "discard it"), contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._part, dir_fd=self._above)
        except BaseException:
            self._close_descriptors()
            raise
        self._close()

    @contextlib.contextmanager
    def _sealed(self) -> Iterator[None]:
        """Puts the files on stable storage for the block, which moves them; when that ends well there is nothing left to discard."""
        if self._above < 0:
            raise ValueError(f"{self._label} was published or discarded already")
        with named_errors(self._label, "publish it"):
            for filename, file in self._files.items():
                file.seal(self._private, filename)
            yield
        self._close()

    def _close(self) -> None:
        self._datastore._end(self._part)
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        os.close(self._private)
        os.close(self._above)
        self._above = -1


def _move_all(names: Iterable[str], part: str, private: int, above: int, *, undo: bool = True) -> None:
    """Moves all files of the directory ``part`` one up, durably, in this order, and removes it.

    Args:
        undo: on errors remove again, as far as possible, what was moved: for files that took nobody's place.
    """
    moved: list[str] = []
    try:
        for name in names:
            os.rename(name, name, src_dir_fd=private, dst_dir_fd=above)
            moved.append(name)
        os.rmdir(part, dir_fd=above)
        os.fsync(above)
    except BaseException:
        for name in reversed(moved) if undo else ():
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=above)
        with contextlib.suppress(OSError):
            os.fsync(above)
        raise


def _usage(directory: int) -> int:
    total = os.fstat(directory).st_blocks * 512
    for _, directories, files, descriptor in os.fwalk(".", dir_fd=directory, onerror=_raise):
        for name in directories + files:
            total += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
    return total


def _raise(error: OSError) -> None:
    raise error
