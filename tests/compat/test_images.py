"""Images from a real registry become chains of disks, and every judge outside agrees on what they hold."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imgstore.changes import FileType
from imgstore.datastores.local import LocalDatastore
from imgstore.ext4.reader import FileSystem
from imgstore.store import ImageStore
from imgstore.vmdk.chain import open_chain
from tests.images.layout import Image
from tests.judges import e2fsck, umoci, vmdk
from tests.judges.model import Model, model_of
from tests.judges.mount import exported, mounted
from tests.judges.tree import ContentDigest, Node, Tree, content_digest, data_runs, diff, tree_of
from tests.servers.docker_registry import DockerRegistry
from tests.tools import need, run

GIB = 1 << 30
SIZES = {
    "alpine": 32 * GIB,
    "beyond-umoci": 32 * GIB,
    "debian": 8 * GIB,
    "gnu-sparse": 8 * GIB,
    "kinds": 32 * GIB,
    "many-files": 8 * GIB,
    "many-layers": 1 * GIB,
    "sparse": 8 * GIB,
    "wide": 2 * GIB,
}
"""Capacity of the disks. QEMU asks each disk of a chain for each grain, so the deepest chain has the smallest disks."""

ALPINE = pytest.param("alpine", marks=pytest.mark.if_present)
OTHERS = sorted(SIZES.keys() - {"alpine"})
by_image = pytest.mark.parametrize("name", [ALPINE, *OTHERS])
by_image_for_umoci = pytest.mark.parametrize("name", [ALPINE, *sorted({*OTHERS} - {"beyond-umoci", "gnu-sparse"})])


@dataclass(frozen=True)
class Pulled:
    """An image in a store of its own.

    Attributes:
        chains: for each layer the disks that show it, scratch first.
    """

    image: Image
    reference: str
    store: Path
    chains: tuple[tuple[Path, ...], ...]

    @property
    def disks(self) -> tuple[Path, ...]:
        return self.chains[-1]


def pull(image: Image, reference: str, directory: Path) -> Pulled:
    with ImageStore.create(str(directory), disk_size=SIZES[image.name]) as store:
        result = store.pull(reference)
        scratch, *_ = disks = [Path(path) for path in store.disk_paths(result.reference)]
        chains: list[tuple[Path, ...]] = []
        for layer in result.image.layers:
            below = chains[-1] if chains else (scratch,)
            chains.append(below if layer.disk is None else (*below, Path(layer.disk)))
    assert len(chains) == len(image.layers)
    assert list(chains[-1]) == disks
    return Pulled(image, result.reference, directory, tuple(chains))


@pytest.fixture(scope="session")
def pull_image(
    build_image: Callable[[str], Image], registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Pulled]]:
    """A function from the name of an image to the image, pulled from the registry into a store of its own."""
    pulled: dict[str, Pulled] = {}
    root = tmp_path_factory.mktemp("stores")

    def get(name: str) -> Pulled:
        if name not in pulled:
            shutil.rmtree(root / name, ignore_errors=True)
            image = build_image(name)
            pulled[name] = pull(image, registry.push(image.source, image.repository), root / name)
        return pulled[name]

    yield get
    shutil.rmtree(root)


@pytest.fixture
def pulled(name: str, pull_image: Callable[[str], Pulled]) -> Pulled:
    return pull_image(name)


@pytest.fixture
def raw(pulled: Pulled, tmp_path: Path) -> Iterator[Path]:
    """What the top disk holds, by QEMU."""
    path = tmp_path / "top.raw"
    vmdk.convert(pulled.disks[-1], path)
    yield path
    path.unlink()


def digest(path: Path) -> tuple[int, str]:
    """Size and content of a sparse file."""
    content = ContentDigest()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start, length in data_runs(file.fileno(), size):
            for offset in range(start, start + length, 1 << 22):
                content.update(offset, os.pread(file.fileno(), min(1 << 22, start + length - offset), offset))
    return size, content.hexdigest()


@by_image
def test_every_disk_is_sound_and_sealed(pulled: Pulled) -> None:
    for disk in pulled.disks:
        vmdk.check(disk)
        assert disk.stat().st_mode & 0o7777 == 0o444


@by_image
def test_every_reader_reads_the_same_bytes(pulled: Pulled, raw: Path) -> None:
    datastore = LocalDatastore(pulled.store)
    ours = open_chain(datastore.open, str(pulled.disks[-1].relative_to(pulled.store)))
    with vmdk.libvmdk(pulled.disks) as libvmdk, vmdk.dissect(pulled.disks[-1]) as dissect:
        vmdk.assert_reads_equal(raw, pulled.disks, {"imgstore": ours.read, "libvmdk": libvmdk, "dissect": dissect})


@by_image
def test_our_own_check_agrees(pulled: Pulled) -> None:
    with ImageStore.open(str(pulled.store)) as store:
        assert list(store.check(read_data=True)) == []


@by_image
def test_each_layer_is_made_again(pulled: Pulled) -> None:
    """To the byte, whatever wrote it; and what that takes is little."""
    recipes = tars = 0
    with ImageStore.open(str(pulled.store)) as store:
        (image,) = store.images()
        chain_ids = [layer.chain_id for layer in image.layers]
        for number, layer in enumerate(pulled.image.layers):
            with layer.open("rb") as tar:
                for piece in store._disks.read_layer(chain_ids[: number + 1]):
                    assert piece == tar.read(len(piece)), layer.name
                assert tar.read(1) == b""
            tars += layer.stat().st_size
            recipes += (pulled.store / "disks" / chain_ids[number].replace("sha256:", "")).with_suffix(".recipe").stat().st_size
    if pulled.image.name in ("alpine", "debian"):
        assert recipes <= 0.01 * tars


@by_image
def test_each_layer_is_clean_and_shows_the_tree_it_means(pulled: Pulled, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    model = Model()
    vmdk.apply(pulled.disks[0], raw)
    e2fsck.gate(raw)
    applied = pulled.disks[:1]
    for layer, chain in zip(pulled.image.layers, pulled.chains, strict=True):
        for disk in chain[len(applied) :]:
            vmdk.apply(disk, raw)
        applied = chain
        model.apply(layer)
        e2fsck.gate(raw)
        with mounted(raw) as directory:
            assert diff(model.tree(), tree_of(directory)) == [], layer.name
    raw.unlink()


@by_image_for_umoci
def test_the_kernel_shows_what_umoci_unpacks(pulled: Pulled, raw: Path, tmp_path: Path) -> None:
    expected = tree_of(umoci.unpack(pulled.image.layout, pulled.image.tag, tmp_path / "rootfs"))
    with mounted(raw) as directory:
        actual = tree_of(directory)
    assert diff(expected, actual, without_mtime=model_of(pulled.image.layers).unsaid()) == []
    shutil.rmtree(tmp_path / "rootfs")


@by_image
def test_our_reader_sees_what_the_kernel_sees(pulled: Pulled, raw: Path) -> None:
    datastore = LocalDatastore(pulled.store)
    chain = open_chain(datastore.open, str(pulled.disks[-1].relative_to(pulled.store)))
    with mounted(raw) as directory:
        assert diff(tree_of(directory), tree_by_reader(FileSystem(chain))) == []


def tree_by_reader(file_system: FileSystem) -> Tree:
    tree: Tree = {}
    names: dict[int, list[bytes]] = {}
    inodes: dict[bytes, int] = {}
    stack = [(b"", file_system.lookup(b""))]
    while stack:
        path, node = stack.pop()
        status = file_system.status(node)
        regular = status.type is FileType.REGULAR
        tree[path] = Node(
            type=status.type << 12,
            mode=status.mode,
            uid=status.uid,
            gid=status.gid,
            mtime_ns=status.mtime_ns,
            size=status.size if regular or status.type is FileType.SYMLINK else 0,
            content=content_by_reader(file_system, status.inode, status.size) if regular else "",
            target=status.target,
            rdev=status.rdev,
            xattrs=dict(status.xattrs),
        )
        inodes[path] = status.inode
        names.setdefault(status.inode, []).append(path)
        if status.type is FileType.DIRECTORY:
            prefix = path + b"/" if path else b""
            stack += [(prefix + name, file_system.node(number)) for name, number, _ in file_system.list_directory(node)]
        else:
            assert status.links >= len(names[status.inode])
    return {path: replace(node, names=tuple(sorted(names[inodes[path]]))) for path, node in tree.items()}


def content_by_reader(file_system: FileSystem, number: int, size: int) -> str:
    content = ContentDigest()
    for offset in range(0, size, 1 << 22):
        content.update(offset, file_system.read(file_system.node(number), offset, min(1 << 22, size - offset)))
    return content.hexdigest()


@by_image
def test_the_kernel_writes_to_it(pulled: Pulled, raw: Path) -> None:
    del pulled
    e2fsck.kernel_gate(raw)


@by_image
def test_a_child_written_by_the_kernel_leaves_the_chain_as_it_is(pulled: Pulled, tmp_path: Path) -> None:
    before = [(digest(disk), disk.stat()) for disk in pulled.disks]
    child, raw = tmp_path / "child.vmdk", tmp_path / "child.raw"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", pulled.disks[-1], "-F", "vmdk", child)
    with exported(child) as disk, mounted(disk, writable=True) as directory:
        (directory / "written").mkdir()
        for number in range(100):
            (directory / "written" / f"{number}").write_bytes(b"%d" % number * 5000)
    assert [digest(disk) for disk in pulled.disks] == [content for content, _ in before]
    for disk, (_, status) in zip(pulled.disks, before, strict=True):
        now = disk.stat()
        assert (now.st_mtime_ns, now.st_ctime_ns, now.st_ino) == (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    vmdk.convert(child, raw)
    e2fsck.gate(raw)
    expected = model_of(pulled.image.layers).tree()
    with mounted(raw) as directory:
        actual = tree_of(directory)
    written = {path: actual.pop(path) for path in list(actual) if path.split(b"/")[0] == b"written"}
    assert len(written) == 101
    assert written[b"written/7"].content == content_digest(b"7" * 5000)
    assert diff(expected, actual, without_mtime=[b""]) == []


@by_image
def test_what_is_saved_loaded_pushed_and_pulled_again_has_the_same_bytes(
    pulled: Pulled, second_registry: DockerRegistry, tmp_path: Path
) -> None:
    archive, name = tmp_path / "saved.tar", f"{second_registry.host}/{pulled.image.repository}"
    with ImageStore.open(str(pulled.store)) as store, archive.open("wb") as out:
        store.tag(pulled.reference, name)
        original = store.image(name)
        out.writelines(store.save([name]))
    assert_archive_has_layers(archive, pulled.image.layers, [layer.diff_id for layer in original.layers])
    with ImageStore.create(str(tmp_path / "loaded"), disk_size=SIZES[pulled.image.name]) as store:
        (loaded,) = store.load(archive)
        assert (loaded.image.id, loaded.references) == (original.id, (name,))
        assert disks_of(tmp_path / "loaded") == disks_of(pulled.store)
        archive.unlink()
        store.push(name)
    shutil.rmtree(tmp_path / "loaded")
    again = pull(pulled.image, name, tmp_path / "again")
    with ImageStore.open(str(again.store)) as store:
        image = store.image(name)
        assert (image.id, [layer.diff_id for layer in image.layers]) == (
            original.id,
            [layer.diff_id for layer in original.layers],
        )
    assert disks_of(again.store) == disks_of(pulled.store)
    shutil.rmtree(again.store)


def assert_archive_has_layers(archive: Path, layers: Sequence[Path], diff_ids: Sequence[str]) -> None:
    """Compares the layers of an archive with the tars that the registry's blobs were made of."""
    with tarfile.open(archive, "r:") as tar:
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            saved = tar.extractfile(f"blobs/sha256/{diff_id.removeprefix('sha256:')}")
            assert saved is not None
            with saved, layer.open("rb") as original:
                while piece := original.read(1 << 20):
                    assert piece == saved.read(len(piece)), layer.name
                assert saved.read(1) == b"", layer.name


def disks_of(store: Path) -> dict[str, tuple[int, str]]:
    """Size and content of all disks of a store, and of what lies beside them."""
    return {path.name: digest(path) for path in sorted((store / "disks").iterdir())}


@by_image
def test_gnu_tar_extracts_what_we_export(pulled: Pulled, tmp_path: Path) -> None:
    need("tar")
    archive, directory = tmp_path / "rootfs.tar", tmp_path / "rootfs"
    directory.mkdir()
    with ImageStore.open(str(pulled.store)) as store, archive.open("wb") as out:
        store.export(pulled.reference, out)
    # With --acls GNU tar reads ACLs from records of its own alone; as xattrs it takes them in the form that docker and Go write.
    options = ("--preserve-permissions", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*")
    run("tar", "--extract", *options, "--file", archive, "--directory", directory)
    # As docker export, ours says nothing of the root directory itself.
    assert diff(model_of(pulled.image.layers).tree(), tree_of(directory), without_mtime=[b""]) == []
    archive.unlink()
    shutil.rmtree(directory)


@pytest.mark.parametrize(("name", "layers"), [("debian", 2), ("many-files", 1)])
def test_disks_take_little_more_than_the_contents(pulled: Pulled, layers: int) -> None:
    """Of an image whose layers add files. A layer of a few edits all over a large tree takes a grain for each place that it touches."""
    contents = sum(contents_of(layer) for layer in pulled.image.layers[:layers])
    taken = sum(disk.stat().st_blocks * 512 for disk in pulled.chains[layers - 1][1:])
    assert taken <= 1.03 * contents + layers * (512 << 10), f"{taken} bytes for {contents} of contents"


def contents_of(layer: Path) -> int:
    """What a layer's files and directories take in blocks of 4 KiB."""
    total = 0
    with tarfile.open(layer, "r:", errors="surrogateescape") as tar:
        for member in tar:
            if member.isreg():
                total += member.size + -member.size % 4096
            elif member.isdir():
                total += 4096
    return total
