"""A store that is open in a process of its own, as a program has it that imports imgstore, and what its methods take there.

A program, so that the bench itself stays small: what it starts would seem to take as much memory. It is told what to do by lines of JSON,
and answers with such lines.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from imgstore import layout
from imgstore.changes import FileType
from imgstore.datastores.local import LocalDatastore
from imgstore.ext4.inode_table import InodeTable
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import recovered
from imgstore.ext4.structures import ROOT_INODE
from imgstore.live_disks import LiveDisks
from imgstore.store import ImageStore
from imgstore.vmdk.chain import open_chain
from imgstore.volume_options import parse_capacity
from tests.bench import floor
from tests.bench.measure import Run, peak_of, reset_peak


class Answer(NamedTuple):
    """What a verb returned, and what it took; of the process, which is there before and afterwards."""

    value: Any
    run: Run


class Library:
    """The store of a directory, open from ``with`` on."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.bench.library", str(self.store)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate(timeout=60)

    def run(self, verb: str, *words: object) -> Run:
        """Runs one of the functions below, and tells what it took.

        Raises:
            RuntimeError: it failed; its words are on standard error.
        """
        return self.ask(verb, *words).run

    def ask(self, verb: str, *words: object) -> Answer:
        """As ``run``, and tells what it returned."""
        assert self._process.stdin is not None and self._process.stdout is not None
        reset_peak(self._process.pid)
        self._process.stdin.write(json.dumps([verb, *map(str, words)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{verb} {' '.join(map(str, words))}: failed")
        value, seconds, cpu_seconds = json.loads(line)
        return Answer(value, Run(seconds, cpu_seconds, peak_of(self._process.pid)))


def pull(store: ImageStore, reference: str) -> None:
    """An image."""
    store.pull(reference)


def top_disk(store: ImageStore, reference: str) -> str:
    """Path of the disk of an image."""
    return store.disk_paths(reference)[-1]


def create(store: ImageStore, image: str, count: str) -> None:
    """Containers, all at once."""
    store.create_containers(image, int(count))


def create_one_by_one(store: ImageStore, image: str, count: str) -> str:
    """Containers, each durable before the next. The id of the last."""
    for _ in range(int(count)):
        container = store.create_container(image)
    return container.id


def create_disks(store: ImageStore, image: str, count: str) -> None:
    """Disks as those of containers, each durable before the next; in a directory of their own, which no store knows."""
    parent = Path(store.disk_paths(image)[-1]).relative_to(store.location)
    with LocalDatastore(store.location) as datastore, open_chain(datastore.open, str(parent)) as chain:
        live_disks = LiveDisks(datastore)
        for _ in range(int(count)):
            live_disks.create(f"bench/{secrets.token_hex(16)}.vmdk", chain.size, chain)


def remove(store: ImageStore, container: str) -> None:
    """A container."""
    store.remove_container(container)


def create_volumes(store: ImageStore, prefix: str, count: str) -> None:
    """Volumes, each durable before the next."""
    for number in range(int(count)):
        store.create_volume(f"{prefix}-{number}")


def clone(store: ImageStore, volume: str, count: str) -> None:
    """Clones of one volume, each durable before the next."""
    for _ in range(int(count)):
        store.clone_volume(volume)


def snapshot(store: ImageStore, prefix: str, count: str) -> None:
    """One snapshot of each of these volumes, each durable before the next."""
    for number in range(int(count)):
        store.snapshot_volume(f"{prefix}-{number}", "first")


def fill_volume(store: ImageStore, name: str, capacity: str, tar: str) -> str:
    """A new volume, in place of one of that name, with the contents of a tar. Path of its disk."""
    store.remove_volume(name, force=True)
    store.create_volume(name, options={"Capacity": capacity})
    store.import_volume(name, Path(tar))
    return store.volume(name).disk


def grow(store: ImageStore, volume: str, capacity: str) -> None:
    """A volume to this capacity."""
    store.grow_volume(volume, parse_capacity(capacity))


def diff(store: ImageStore, container: str) -> None:
    """What a container changed."""
    if not store.diff_container(container):
        raise RuntimeError(f"{container}: nothing changed")


def walk(store: ImageStore, container: str) -> None:
    """The same, found by a walk over all of the container's tree and all of its image's, with our own reader."""
    disk = layout.container_disk(container)
    with LocalDatastore(store.location) as datastore, LiveDisks(datastore).read(disk) as chain:
        before, after = _attributes_of(FileSystem(chain.below)), _attributes_of(FileSystem(recovered(chain)))
    if not [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]:
        raise RuntimeError(f"{container}: nothing changed")


def copy_in(store: ImageStore, container: str, tar: str) -> None:
    """A tar, into the root directory of a container."""
    with Path(tar).open("rb") as body:
        store.copy_to_container(container, "/", body)


def copy_out(store: ImageStore, container: str, path: str, tar: str) -> None:
    """A directory of a container, into a tar that is durable."""
    with Path(tar).open("wb", buffering=0) as file:
        for piece in store.copy_from_container(container, path)[1]:
            file.write(piece)
        os.fsync(file.fileno())


def commit(store: ImageStore, container: str) -> str:
    """An image of what a container changed. Its id."""
    return store.commit_container(container).id


def floor_of_commit(store: ImageStore, mode: str, container: str, directory: str) -> None:
    """What a commit cannot leave out, in a directory that is not there yet."""
    floor.commit(mode, Path(store.location) / layout.container_disk(container), Path(directory))


def remove_image(store: ImageStore, image_id: str) -> None:
    """An image."""
    store.remove(image_id)


def touch(store: ImageStore, container: str, path: str) -> None:
    """The times of a file of a container become those of now, in its inode, as if it had been written in place."""
    disk = layout.container_disk(container)
    with LocalDatastore(store.location) as datastore, LiveDisks(datastore).edit(disk) as device:
        pages = WritablePageCache(device)
        file_system = FileSystem(pages)
        number = file_system.lookup(os.fsencode(path)).number
        table = InodeTable(pages, file_system.groups, file_system.geometry.checksum_seed or 0)
        inode = table.read(number)
        inode[12:20] = int(time.time()).to_bytes(4, "little") * 2  # i_ctime, i_mtime
        table.change(number, inode)
        pages.flush()


VERBS: dict[str, Callable[..., object]] = {
    verb.__name__: verb
    for verb in (
        pull,
        top_disk,
        create,
        create_one_by_one,
        create_disks,
        remove,
        create_volumes,
        clone,
        snapshot,
        fill_volume,
        grow,
        diff,
        walk,
        copy_in,
        copy_out,
        commit,
        floor_of_commit,
        remove_image,
        touch,
    )
}


def main() -> None:
    """Does what each line of standard input says, on the store that its argument names."""
    with ImageStore.open(sys.argv[1]) as store:
        for line in sys.stdin:
            verb, *words = json.loads(line)
            start, before = time.perf_counter(), time.process_time()
            value = VERBS[verb](store, *words)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - before
            print(json.dumps([value, seconds, cpu_seconds]), flush=True)


def _attributes_of(file_system: FileSystem) -> dict[bytes, tuple[int, ...]]:
    """Path to what a diff compares at least."""
    found: dict[bytes, tuple[int, ...]] = {}
    pending = [(b"", ROOT_INODE)]
    while pending:
        path, number = pending.pop()
        node = file_system.node(number)
        found[path] = (node.type, node.mode, node.uid, node.gid, node.size, node.mtime_ns)
        if node.type is FileType.DIRECTORY:
            pending.extend((path + b"/" + name, child) for name, child, _ in file_system.list_directory(node))
    return found


if __name__ == "__main__":
    main()
