"""What a kernel changed on a file system: judged by a walk through both trees, by dockerd, and by who unpacks the layer made of it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imgstore.blocks import GRAIN
from imgstore.changes import FileType
from imgstore.ext4.check import check_file_system
from imgstore.ext4.diff import Difference, diff, layer_changes
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import RecoveredDevice, recovered
from imgstore.layers.tar_reader import read_changes
from imgstore.layers.tar_writer import write_tar
from tests.ext4_layers import MIB, FileBlockDevice, apply_layer, formatted_file
from tests.file_edits import EDITS, edit_at_random, make_tree
from tests.images.layout import write_layout
from tests.judges import moby_changes, tree, umoci
from tests.judges.mount import mounted
from tests.judges.tree import Tree, data_runs, tree_of
from tests.servers.dockerd import DockerDaemon, docker_daemon
from tests.tools import need, run

SIZE = 128 * MIB
COMBINED = ["link", "make_nodes", "set_capability", "remake", "replace_types"]
BY_CONTAINER = [
    ["nothing"],
    ["hide", "create", "append", "modify_in_place", "modify_deep", "touch_many", "fill_directory", "link", "make_nodes"],
    ["truncate", "change_attributes", "set_capability", "touch", "unlink"],
    ["rename", "modify_linked"],
    ["exchange_directories"],
    ["nest"],
    COMBINED,
]


@dataclass(frozen=True)
class Base:
    """A file system, the layer it was made of, and what the kernel sees in it."""

    image: Path
    layer: Path
    tree: Tree


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    directory = tmp_path_factory.mktemp("base")
    layer, image = directory / "layer.tar", directory / "image"
    make_tree(layer)
    with formatted_file(image, SIZE) as device:
        apply_layer(device, read_changes([layer.read_bytes()], capacity=SIZE))
    with mounted(image) as root:
        return Base(image, layer, tree_of(root))


def edited(base: Base, image: Path, *names: str) -> Tree:
    """Makes ``image`` a copy of the base with edits by the kernel; what the kernel sees then."""
    copy(base.image, image)
    with mounted(image, writable=True) as root:
        for name in names:
            EDITS[name](root)
        return tree_of(root)


def copy(source: Path, target: Path) -> None:
    """A copy with the same holes."""
    with source.open("rb") as old, target.open("wb") as new:
        os.truncate(new.fileno(), SIZE)
        for offset, length in data_runs(old.fileno(), SIZE):
            os.pwrite(new.fileno(), os.pread(old.fileno(), length, offset), offset)


def changed_grains(before: Path, after: Path) -> list[tuple[int, int]]:
    """What a child disk would have."""
    with before.open("rb") as old, after.open("rb") as new:
        offsets = {
            offset
            for file in (old, new)
            for start, length in data_runs(file.fileno(), os.fstat(file.fileno()).st_size)
            for offset in range(start, start + length, GRAIN)
        }
        return [
            (offset, GRAIN)
            for offset in sorted(offsets)
            if os.pread(old.fileno(), GRAIN, offset) != os.pread(new.fileno(), GRAIN, offset)
        ]


@contextmanager
def differences(base: Base, image: Path, *, exact: bool) -> Iterator[tuple[FileSystem, list[Difference]]]:
    """The file system as a guest finds it now, and its differences."""
    with FileBlockDevice(base.image) as old, FileBlockDevice(image) as new:
        device = recovered(new)
        changed = changed_grains(base.image, image)
        if isinstance(device, RecoveredDevice):
            changed += device.changed
        after = FileSystem(device)
        yield after, diff(FileSystem(old), after, changed, exact=exact)


def write_layer(after: FileSystem, found: list[Difference], path: Path) -> Path:
    with path.open("wb") as file:
        write_tar(layer_changes(after, found), file.write)
    return path


def listed(found: list[Difference]) -> list[tuple[bytes, int]]:
    return [(path, int(kind)) for path, kind, _ in found]


def held_by_a_layer(nodes: Tree) -> Tree:
    """What a layer can say of a tree: no sockets, nothing of the root, and not which older files a new name belongs to."""
    return {path: replace(node, names=()) for path, node in nodes.items() if path and node.type != FileType.SOCKET << 12}


def assert_told(base: Base, image: Path, tree_after: Tree, directory: Path) -> None:
    """Proves the differences of ``image``, and that the layer made of them gives what the kernel sees in it."""
    with differences(base, image, exact=False) as (_, found):
        assert moby_changes.changes(base.tree, tree_after) == listed(found)
    with differences(base, image, exact=True) as (after, found):
        assert moby_changes.changes(base.tree, tree_after, exact=True) == listed(found)
        layer = write_layer(after, found, directory / "layer.tar")
    copy(base.image, directory / "unpacked")
    with FileBlockDevice(directory / "unpacked") as device:
        apply_layer(device, read_changes([layer.read_bytes()], capacity=SIZE))
        assert list(check_file_system(device)) == []
    with mounted(directory / "unpacked") as root:
        assert tree.diff(held_by_a_layer(tree_after), held_by_a_layer(tree_of(root))) == []


@pytest.mark.parametrize("names", [[name] for name in EDITS] + [COMBINED], ids="-".join)
def test_edits_by_the_kernel(base: Base, tmp_path: Path, names: list[str]) -> None:
    image = tmp_path / "after"
    tree_after = edited(base, image, *names)
    assert_told(base, image, tree_after, tmp_path)


@pytest.fixture(scope="module")
def daemon(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerDaemon]:
    root = tmp_path_factory.mktemp("d")
    with docker_daemon(root) as running:
        docker(running, "import", base.layer, "base")
        yield running
    shutil.rmtree(root, ignore_errors=True)


def docker(daemon: DockerDaemon, *words: str | Path) -> str:
    done = daemon.run(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def container_root(daemon: DockerDaemon, container: str) -> Path:
    """Where the storage driver ``vfs`` has a container's files."""
    vfs = daemon.root / "data/vfs/dir"
    mount = (daemon.root / "data/image/vfs/layerdb/mounts" / container / "mount-id").read_text()
    return vfs / mount


def committed_names(daemon: DockerDaemon, container: str, directory: Path) -> list[str]:
    """What is in the layer that dockerd makes of a container, sorted; nothing where it makes none."""
    image = docker(daemon, "commit", container).strip()
    docker(daemon, "save", "-o", directory / "saved.tar", image)
    with tarfile.open(directory / "saved.tar") as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        _, *layers = json.load(manifest)[0]["Layers"]
        layer = archive.extractfile(layers[-1]) if layers else io.BytesIO()
        assert layer is not None
        return names_of(layer.read())


def names_of(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer or bytes(tarfile.RECORDSIZE))) as tar:
        return sorted(f"{member.type.decode()} {member.name} {member.linkname}" for member in tar)


@pytest.mark.parametrize("names", BY_CONTAINER, ids="-".join)
def test_docker_lists_and_commits_the_same(base: Base, daemon: DockerDaemon, tmp_path: Path, names: list[str]) -> None:
    container = docker(daemon, "create", "base", "/bin/sh").strip()
    for name in names:
        EDITS[name](container_root(daemon, container))
    edited(base, tmp_path / "after", *names)
    with differences(base, tmp_path / "after", exact=False) as (after, found):
        ours = [f"{kind.letter} /{os.fsdecode(path)}" for path, kind, _ in found]
        layer = write_layer(after, found, tmp_path / "layer.tar").read_bytes()
    theirs = docker(daemon, "diff", container).splitlines()
    assert sorted(theirs, key=lambda line: line[2:]) == ours
    assert committed_names(daemon, container, tmp_path) == names_of(layer)
    docker(daemon, "rm", container)


def test_umoci_unpacks_the_layer(base: Base, tmp_path: Path) -> None:
    tree_after = edited(base, tmp_path / "after", *COMBINED)
    with differences(base, tmp_path / "after", exact=True) as (after, found):
        layer = write_layer(after, found, tmp_path / "layer.tar")
    write_layout(tmp_path / "layout", [base.layer, layer])
    unpacked = umoci.unpack(tmp_path / "layout", "latest", tmp_path / "unpacked")
    assert tree.diff(held_by_a_layer(tree_after), held_by_a_layer(tree_of(unpacked))) == []


@pytest.mark.parametrize("seed", range(4))
def test_random_edits_by_the_kernel(base: Base, tmp_path: Path, seed: int) -> None:
    image = tmp_path / "after"
    copy(base.image, image)
    with mounted(image, writable=True) as root:
        edit_at_random(root, random.Random(seed), 200)
        tree_after = tree_of(root)
    assert_told(base, image, tree_after, tmp_path)


def test_what_is_only_in_the_journal(base: Base, tmp_path: Path) -> None:
    """The power fails: the image is taken while it is mounted, with a file that is open and has no name any more."""
    mounted_image, image, replayed = (tmp_path / name for name in ("mounted", "after", "replayed"))
    copy(base.image, mounted_image)
    with mounted(mounted_image, writable=True) as root:
        for name in COMBINED:
            EDITS[name](root)
        with (root / "nameless").open("wb") as file:
            file.write(b"x" * 100_000)
            (root / "nameless").unlink()
            run("sync", "--file-system", root)
            copy(mounted_image, image)
    copy(image, replayed)
    with mounted(replayed, writable=True) as root:
        tree_after = tree_of(root)
    with FileBlockDevice(image) as device:
        assert isinstance(recovered(device), RecoveredDevice)
    assert_told(base, image, tree_after, tmp_path)


def test_file_system_that_grew(base: Base, tmp_path: Path) -> None:
    """resize2fs puts inode tables elsewhere."""
    need("resize2fs")
    image = tmp_path / "after"
    copy(base.image, image)
    os.truncate(image, 512 * SIZE)  # so many group descriptors that the first table must make way
    run("resize2fs", "-f", image)
    with mounted(image, writable=True) as root:
        EDITS["create"](root)
        EDITS["modify_deep"](root)
        tree_after = tree_of(root)
    for exact in (False, True):
        with differences(base, image, exact=exact) as (_, found):
            assert moby_changes.changes(base.tree, tree_after, exact=exact) == listed(found)
    with FileBlockDevice(base.image) as old, FileBlockDevice(image) as new:
        assert FileSystem(old).groups.inode_table[0] != FileSystem(new).groups.inode_table[0]
