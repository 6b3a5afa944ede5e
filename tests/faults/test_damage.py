"""Damage to what lies in a store: ``check`` finds it, no command falls over it, and the documented way heals it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imgstore.cli.main import main
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, complaint, contents, litter

NAME = "three-layers"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with ImageStore.open(str(store)) as opened:
        opened.pull(REFERENCE)
    return store


@pytest.fixture
def store(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that store."""
    shutil.copytree(undisturbed, tmp_path / "store")
    return tmp_path / "store"


def flip(path: Path, offset: int) -> None:
    """Changes one byte; a negative offset counts from the end."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))


def cut(path: Path, size: int) -> None:
    path.chmod(0o600)
    os.truncate(path, size)


def disk(store: Path, number: int) -> Path:
    """The disk of a layer, 0 the lowest."""
    markers = [json.loads(path.read_text())["content"] for path in store.glob("disks/*.json")]
    chain: list[str] = []
    while len(chain) < len(markers):
        parent = chain[-1] if chain else None
        chain.append(next(marker["chain_id"] for marker in markers if marker["parent"] == parent))
    digits = chain[number].removeprefix("sha256:")
    return store / "disks" / f"{digits}.vmdk"


def marker(store: Path, number: int) -> Path:
    return disk(store, number).with_suffix(".json")


def recipe(store: Path, number: int) -> Path:
    return disk(store, number).with_suffix(".recipe")


def remove_layer(store: Path, number: int) -> None:
    path = disk(store, number)
    for suffix in (".vmdk", ".crc32c", ".recipe", ".json"):
        path.with_suffix(suffix).unlink()


def image_file(store: Path, name: str) -> Path:
    return next(store.glob(f"images/*/{name}"))


Damage = Callable[[Path], object]

HEALED_BY_PULL: dict[str, Damage] = {
    "disk empty": lambda store: cut(disk(store, 2), 0),
    "descriptor of a disk": lambda store: flip(disk(store, 2), 512 + 2),
    "all disks missing": lambda store: shutil.rmtree(store / "disks"),
    "scratch disk missing": lambda store: (store / "disks/scratch.vmdk").unlink(),
    "scratch disk cut": lambda store: cut(store / "disks/scratch.vmdk", 100),
    "top layer missing": lambda store: remove_layer(store, 2),
    "recipe of the top layer missing": lambda store: recipe(store, 2).unlink(),
    "recipe of the top layer cut": lambda store: cut(recipe(store, 2), 100),
    "marker of the top layer changed": lambda store: flip(marker(store, 2), 200),
}
"""``imgstore pull`` alone makes them whole again: it looks at the ends of a chain, and at what it converts on."""

HEALED_BY_REBUILD: dict[str, Damage] = {
    "disk missing": lambda store: disk(store, 1).unlink(),
    "disk cut": lambda store: cut(disk(store, 1), 1 << 20),
    "magic of a disk": lambda store: flip(disk(store, 0), 0),
    "version of a disk": lambda store: flip(disk(store, 0), 4),
    "lowest layer missing": lambda store: remove_layer(store, 0),
    "recipe missing": lambda store: recipe(store, 1).unlink(),
    "recipe longer": lambda store: cut(recipe(store, 0), 100_000),
    "marker of a layer changed": lambda store: flip(marker(store, 1), 200),
    "marker of a layer empty": lambda store: cut(marker(store, 1), 0),
    "marker of a layer missing": lambda store: marker(store, 0).unlink(),
    "marker of the image changed": lambda store: flip(image_file(store, "image.json"), 150),
    "marker of the image missing": lambda store: image_file(store, "image.json").unlink(),
    "config changed": lambda store: flip(image_file(store, "config.json"), 30),
    "manifest cut": lambda store: cut(image_file(store, "manifest.json"), 30),
    "image missing": lambda store: shutil.rmtree(store / "images"),
    "a name changed": lambda store: flip(sorted(store.glob("references/*"))[0], 120),
    "the other name changed": lambda store: flip(sorted(store.glob("references/*"))[1], 120),
    "names missing": lambda store: shutil.rmtree(store / "references"),
}
"""``imgstore rebuild`` leaves them out, and then ``imgstore pull`` makes them again."""

HEALED_BY_REMOVAL: dict[str, Damage] = {
    "data of a disk": lambda store: flip(disk(store, 1), -30_000),
    "checksums of a disk": lambda store: flip(disk(store, 1).with_suffix(".crc32c"), 0),
    "checksums missing": lambda store: disk(store, 1).with_suffix(".crc32c").unlink(),
    "bytes of a recipe": lambda store: flip(recipe(store, 1), 50),
    "grain table of a disk": lambda store: flip(disk(store, 1), first_entry(disk(store, 1))),
}
"""Only ``imgstore check --read-data`` reads so far; ``imgstore rm`` and ``imgstore pull`` make it anew."""


def first_entry(path: Path) -> int:
    """Where the first grain table of a disk has its first entry that is not zero: the directory says where that table is."""
    data = path.read_bytes()
    directory = int.from_bytes(data[56:64], "little") * 512
    table = int.from_bytes(data[directory : directory + 4], "little") * 512
    return next(at for at in range(table, len(data), 4) if data[at : at + 4] != bytes(4))


CATALOG: dict[str, Damage] = {
    "missing": lambda store: (store / "catalog.sqlite3").unlink(),
    "empty": lambda store: cut(store / "catalog.sqlite3", 0),
    "cut": lambda store: cut(store / "catalog.sqlite3", 5000),
    "text": lambda store: (store / "catalog.sqlite3").write_text("hello, world\n" * 100),
    "first byte": lambda store: flip(store / "catalog.sqlite3", 0),
    "older version": lambda store: flip(store / "catalog.sqlite3", 63),
    "every page": lambda store: [flip(store / "catalog.sqlite3", offset) for offset in range(4096, 36_000, 4096)],
    "second page": lambda store: (flip(store / "catalog.sqlite3", 4096), flip(store / "catalog.sqlite3", 4100)),
}


def run(store: Path, *words: str) -> int:
    return main(["--store", str(store), *words])


def assert_healed(store: Path, undisturbed: Path) -> None:
    assert run(store, "check", "--read-data") == 0
    assert contents(undisturbed) == contents(store)
    assert litter(store) == []


def assert_no_command_falls_over(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["images"], ["inspect", NAME], ["history", NAME], ["df"], ["ls", NAME], ["export", NAME, "-o", "/dev/null"]):
        capfd.readouterr()
        code = run(store, *words)
        assert code in (0, 4, 7, 11), words
        if code:
            complaint(capfd.readouterr().err.encode())


@pytest.mark.parametrize("name", HEALED_BY_PULL)
def test_healed_by_a_pull(store: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    HEALED_BY_PULL[name](store)
    assert run(store, "check") == 12
    assert capfd.readouterr().out != ""
    assert_no_command_falls_over(store, capfd)
    assert run(store, "pull", "-q", REFERENCE) == 0
    assert_healed(store, undisturbed)


@pytest.mark.parametrize("name", HEALED_BY_REBUILD)
def test_healed_by_a_rebuild(store: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    HEALED_BY_REBUILD[name](store)
    assert run(store, "check") == 12
    assert capfd.readouterr().out != ""
    assert_no_command_falls_over(store, capfd)
    assert run(store, "rebuild") == 0
    assert run(store, "pull", "-q", REFERENCE) == 0
    assert_healed(store, undisturbed)


@pytest.mark.parametrize("name", HEALED_BY_REMOVAL)
def test_healed_by_a_removal(store: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    HEALED_BY_REMOVAL[name](store)
    assert run(store, "check", "--read-data") == 12
    assert disk(store, 1).stem in capfd.readouterr().out
    assert_no_command_falls_over(store, capfd)
    assert run(store, "rm", NAME) == 0
    assert run(store, "pull", "-q", REFERENCE) == 0
    assert_healed(store, undisturbed)


@pytest.mark.parametrize("name", HEALED_BY_PULL | HEALED_BY_REBUILD)
def test_rebuild_leaves_out_what_is_damaged(store: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    (HEALED_BY_PULL | HEALED_BY_REBUILD)[name](store)
    assert run(store, "rebuild") == 0
    assert run(store, "images") == 0
    with ImageStore.open(str(store)) as opened:
        for image in opened.images():
            assert len(image.layers) == 3
            assert all(layer.disk and Path(layer.disk).exists() for layer in image.layers)


@pytest.mark.parametrize("name", CATALOG)
def test_catalog(store: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    CATALOG[name](store)
    code = run(store, "check")
    assert code in (0, 12)  # 0: seen at the start, and made again
    if code == 12:
        assert capfd.readouterr().out.startswith("catalog: ")
    assert run(store, "rebuild") == 0
    assert_healed(store, undisturbed)
    assert run(store, "inspect", NAME) == 0
