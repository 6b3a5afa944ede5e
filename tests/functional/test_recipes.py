"""The tars of an image's layers, out of its disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.errors import CorruptError, NotFoundError
from imgstore.store import ImageStore
from tests.command_line import contents
from tests.raw_tar import END, file, header, pax
from tests.servers.images import build_image, make_tar, write_layout

CHANGES_NOTHING = pax((b"comment", b"nothing"), flag=b"g") + header(b".wh.missing") + END
LAYERS = [
    make_tar({"usr/file": b"file" * 50_000, "usr/zeros": bytes(100_000), "usr/other": b"x"}),
    CHANGES_NOTHING,
    file(b"usr/file", b"twice" * 9000) + file(b"usr/file", b"changed" * 9000) + file(b"usr/.wh.other") + bytes(20_000),
    END,
    file(b".wh.usr") + END,
]


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return f"oci:{write_layout(tmp_path / 'layout', {'1': build_image(LAYERS)})}:1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path / "store"), disk_size=64 << 20) as store:
        yield store


def chain_ids(store: ImageStore) -> list[str]:
    (image,) = store.images()
    return [layer.chain_id for layer in image.layers]


def read_layer(store: ImageStore, number: int) -> bytes:
    return b"".join(store._disks.read_layer(chain_ids(store)[: number + 1]))


def file_of(store: ImageStore, tmp_path: Path, number: int, suffix: str) -> Path:
    return tmp_path / "store/disks" / (chain_ids(store)[number].removeprefix("sha256:") + suffix)


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_each_layer_is_made_again(store: ImageStore, reference: str, number: int) -> None:
    store.pull(reference)
    assert read_layer(store, number) == LAYERS[number]


def test_a_layer_that_changes_nothing_has_a_recipe_alone(store: ImageStore, reference: str, tmp_path: Path) -> None:
    store.pull(reference)
    for number in (1, 3):
        assert not file_of(store, tmp_path, number, ".vmdk").exists()
        assert file_of(store, tmp_path, number, ".recipe").stat().st_mode & 0o7777 == 0o444
        assert store._disks.read_marker(chain_ids(store)[number]).disk is None
    assert list(store.check(read_data=True)) == []
    assert [path.name for path in (tmp_path / "store/disks").iterdir() if path.name.startswith(".")] == []


def test_in_memory(reference: str) -> None:
    with ImageStore.create("mem://", disk_size=64 << 20) as store:
        store.pull(reference)
        assert [read_layer(store, number) for number in range(len(LAYERS))] == LAYERS


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_a_missing_recipe_is_made_by_a_pull(store: ImageStore, reference: str, tmp_path: Path, number: int) -> None:
    store.pull(reference)
    before = contents(tmp_path / "store")
    file_of(store, tmp_path, number, ".recipe").unlink()
    with pytest.raises(NotFoundError, match=r"\.recipe"):
        read_layer(store, number)
    assert [finding.object for finding in store.check()] == [
        str(file_of(store, tmp_path, number, ".recipe").relative_to(tmp_path / "store"))
    ]
    store.rebuild()
    store.pull(reference)
    assert contents(tmp_path / "store") == before


def test_a_removed_image_leaves_no_recipe(store: ImageStore, reference: str, tmp_path: Path) -> None:
    result = store.pull(reference)
    store.remove(result.image.id)
    assert sorted(path.name for path in (tmp_path / "store/disks").iterdir()) == ["scratch.crc32c", "scratch.vmdk"]


def test_a_damaged_disk_is_found(store: ImageStore, reference: str, tmp_path: Path) -> None:
    store.pull(reference)
    disk = file_of(store, tmp_path, 0, ".vmdk")
    disk.chmod(0o600)
    data = disk.read_bytes()
    disk.write_bytes(data.replace(b"filefilefile", b"filefikefile", 1))
    pieces = store._disks.read_layer(chain_ids(store)[:1])
    with pytest.raises(
        CorruptError, match=f"layer {store._disks.read_marker(chain_ids(store)[0]).diff_id}: .* has digest sha256:"
    ):
        for _ in pieces:
            pass
    assert any("made again" in finding.problem for finding in store.check(read_data=True))


def test_files_are_closed_when_a_reader_gives_up(store: ImageStore, reference: str) -> None:
    store.pull(reference)
    before = len(list(Path("/proc/self/fd").iterdir()))
    pieces = store._disks.read_layer(chain_ids(store)[:1])
    next(iter(pieces))
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    pieces.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(Path("/proc/self/fd").iterdir())) == before
