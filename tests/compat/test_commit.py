"""Commits of what a kernel wrote to a container's disk: the images are like any other, to us, to registries and to other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imgstore import layout
from imgstore.errors import InUseError, InvalidError, NoSpaceError, NotFoundError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine
from tests.judges.mount import exported, mounted
from tests.judges.tree import Tree, tree_of
from tests.servers.registry import Registry
from tests.tools import need, need_root, run

pytestmark = [pytest.mark.usefixtures("programs")]


@pytest.fixture(scope="module")
def programs() -> None:
    need("qemu-storage-daemon", "skopeo", "umoci")
    need_root()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as opened:
        opened.pull(REFERENCE)
        yield opened


@pytest.fixture
def container(store: ImageStore) -> str:
    return store.create_container("three-layers", name="c1").id


def guest(store: ImageStore, container: str, work: Callable[[Path], object]) -> None:
    """Lets the kernel of this machine do what a guest's would."""
    with exported(Path(store.container(container).disk)) as disk, mounted(disk, writable=True) as root:
        work(root)


def edit(root: Path) -> None:
    (root / "etc/motd").write_text("changed\n")
    (root / "etc/passwd").unlink()
    (root / "new").mkdir()
    (root / "new/file").write_bytes(b"x" * 100_000)
    os.link(root / "new/file", root / "new/link")
    (root / "new/symlink").symlink_to("/etc/motd")
    os.setxattr(root / "new/file", "user.colour", b"red")
    with (root / "new/sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.seek(3_000_000)
        file.write(b"y")


def without_times(tree: Tree) -> dict[bytes, object]:
    return {path: replace(node, mtime_ns=None) for path, node in tree.items() if path}


def test_the_image_has_what_the_container_had(store: ImageStore, container: str, tmp_path: Path) -> None:
    guest(store, container, edit)
    image = store.commit_container(
        container, reference="committed:1", message="edited", author="me", changes=['CMD ["run", "it"]']
    )
    assert (len(image.layers), image.references, image.parent) == (4, ("committed:1",), store.image("three-layers").id)
    step = store.history("committed:1")[0]
    assert (step.comment, step.created_by, step.empty) == ("edited", "/bin/greet", False)
    assert (image.config["config"]["Cmd"], image.config["author"]) == (["run", "it"], "me")
    trees = []
    for disk in (image.disks[-1], store.container(container).disk):
        with exported(Path(disk)) as exposed, mounted(exposed) as root:
            trees.append(tree_of(root))
            del trees[-1][b""]  # the root is in no layer of docker's, either
    assert trees[0] == trees[1]
    assert list(store.check(read_data=True)) == []


def test_the_layer_is_one_for_other_programs(store: ImageStore, container: str, tmp_path: Path) -> None:
    guest(store, container, edit)
    store.commit_container(container, reference="committed:1")
    archive = tmp_path / "committed.tar"
    with archive.open("wb") as file:
        for piece in store.save(["committed:1"]):
            file.write(piece)
    run("skopeo", "copy", "-q", f"docker-archive:{archive}", f"oci:{tmp_path}/layout:1")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:1", tmp_path / "bundle")
    with exported(Path(store.container(container).disk)) as disk, mounted(disk) as root:
        expected = tree_of(root)
    unpacked = tree_of(tmp_path / "bundle/rootfs")
    # umoci, as LayerWriter's documentation says, touches a directory that gets or loses a name in a layer that does not have it.
    assert without_times(expected) == without_times(unpacked)


def test_pushed_pulled_and_committed_again(store: ImageStore, container: str, tmp_path: Path) -> None:
    guest(store, container, edit)
    with Registry() as registry, ImageStore.open(str(tmp_path / "other")) as other:
        name = f"{registry.host}/committed:1"
        image = store.commit_container(container, reference=name)
        store.push(name)
        pulled = other.pull(name).image
        assert (pulled.id, [layer.diff_id for layer in pulled.layers]) == (image.id, [layer.diff_id for layer in image.layers])
        assert Path(pulled.disks[-1]).read_bytes() == Path(image.disks[-1]).read_bytes()
        second = other.create_container(name, name="c2")
        guest(other, second.id, lambda root: (root / "new/file").unlink())
        again = other.commit_container("c2")
        assert [layer.diff_id for layer in again.layers[:4]] == [layer.diff_id for layer in image.layers]
        assert [difference.path for difference in other.diff_container("c2")] == [b"new", b"new/file"]
        assert list(other.check(read_data=True)) == []


def test_nothing_changed(store: ImageStore, container: str) -> None:
    guest(store, container, lambda root: (root / "etc/motd").read_bytes())  # a mount writes its time into the superblock
    assert store.diff_container(container) == []
    image = store.commit_container(container, changes=["ENV A=b"])
    parent = store.image("three-layers")
    assert (image.layers, image.parent) == (parent.layers, parent.id)
    assert store.history(image.id)[0].empty and image.id != parent.id
    with pytest.raises(InUseError, match="has dependent child images"):
        store.remove(parent.id, force=True)


def test_what_cannot_be(store: ImageStore, container: str) -> None:
    for error, options in [
        (InvalidError, {"reference": "UPPER"}),
        (InvalidError, {"reference": f"a@sha256:{'0' * 64}"}),
        (InvalidError, {"changes": ["FROM x"]}),
        (InvalidError, {"config": {"Cmd": 5}}),
    ]:
        with pytest.raises(error):
            store.commit_container(container, **options)
    with pytest.raises(NotFoundError, match="No such container: nobody"):
        store.commit_container("nobody")
    with exported(Path(store.container(container).disk)), pytest.raises(InUseError, match="container c1: "):
        store.commit_container(container)
    store.set_quota(store.quota().used + 50_000)
    guest(store, container, edit)
    before = store.quota().images
    with pytest.raises(NoSpaceError, match="Storage quota exceeds"):
        store.commit_container(container)
    store.set_quota(None)
    assert store.quota().images == before
    store.remove("three-layers", force=True)
    with pytest.raises(NotFoundError, match="No such image"):
        store.commit_container(container)
    assert len(store.images()) == 0 and list(store.check()) == []
    store.remove_container(container)
    assert store.usage().disks == 0


def test_command_line(store: ImageStore, container: str) -> None:
    guest(store, container, edit)
    cli = CommandLine(Path(store.location))
    told = cli.json("container", "commit", "-m", "edited", "-a", "me", "-c", "ENV A=b", "c1", "committed:2")
    assert told["references"] == ["committed:2"]
    assert json.loads(cli.text("inspect", "committed:2"))[0]["config"]["config"]["Env"][-1] == "A=b"
    assert cli.text("cat", "committed:2", "/new/symlink") == "changed\n"
    assert "No such container: x" in cli.fails(4, "container", "commit", "x")
    assert layout.CONTAINERS in store.container(container).disk
