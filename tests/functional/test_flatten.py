"""Images with fewer disks than layers: what they show, their layers, and the containers on them stay."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from imgstore import layout, markers
from imgstore.cli.main import main
from imgstore.datastores import LocalDatastore
from imgstore.disks import Disks
from imgstore.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from imgstore.flattening import Flattening
from imgstore.quota import QuotaExceededError
from imgstore.stop import Stop, StoppedError
from imgstore.store import ImageStore
from tests.command_line import complaint
from tests.servers.images import BuiltImage, make_tar, write_docker_archive
from tests.servers.registry import Registry

MIB = 1 << 20
SIZE = 64 * MIB


def layer(number: int) -> bytes:
    """A tar that adds files, and replaces and removes some of the layers below."""
    files = {f"d{number % 7}/f{number}": random.Random(number).randbytes(30_000), "last": b"%d" % number * 2000}
    return make_tar(files if number % 5 else {**files, f"d{(number - 3) % 7}/.wh.f{number - 3}": b""})


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as served:
        layers = [layer(number) for number in range(8)]
        served.add_image("six", "1", layers[:6])
        served.add_image("eight", "1", layers)
        served.add_image("four", "1", [*layers[:3], layer(99)])
        yield served


@pytest.fixture
def six(registry: Registry) -> str:
    return f"{registry.host}/six:1"


@pytest.fixture
def store(tmp_path: Path, six: str) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path / "store"), disk_size=SIZE) as opened:
        opened.pull(six)
        yield opened


def leftovers(store: ImageStore) -> list[str]:
    return [str(path) for path in Path(store.location).rglob("*") if path.suffix == ".part" or path.parent.name == ".leases"]


class _Digest(io.RawIOBase):
    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.hash.update(data)  # type: ignore[arg-type]
        return memoryview(data).nbytes  # type: ignore[arg-type]


def tree(store: ImageStore, reference: str) -> str:
    """Digest of the image's whole file tree."""
    digest = _Digest()
    store.export(reference, digest)  # type: ignore[arg-type]
    return digest.hash.hexdigest()


def saved(store: ImageStore, reference: str) -> str:
    """Digest of the image's archive, in which every layer is."""
    return hashlib.sha256(b"".join(bytes(piece) for piece in store.save([reference]))).hexdigest()


def depth(store: ImageStore, reference: str) -> int:
    paths = store.disk_paths(reference)
    assert list(store.image(reference).disks) == paths
    return len(paths)


def marker_of(store: ImageStore, reference: str, number: int) -> markers.LayerMarker:
    path = layout.layer_marker(store.image(reference).layers[number].chain_id)
    return markers.decode(markers.LayerMarker, (Path(store.location) / path).read_bytes(), path)


def files_of(layers: list[bytes]) -> dict[str, bytes]:
    """What layers, lowest first, show together."""
    shown: dict[str, bytes] = {}
    for each in layers:
        with tarfile.open(fileobj=io.BytesIO(each)) as tar:
            for member in tar:
                directory, _, name = member.name.rpartition("/")
                if name.startswith(".wh."):
                    shown.pop(f"{directory}/{name[4:]}", None)
                else:
                    shown[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return shown


def test_an_image_of_127_layers_in_a_store_of_depth_30(tmp_path: Path) -> None:
    layers = [layer(number) for number in range(127)]
    with Registry() as served, ImageStore.create(str(tmp_path / "store"), disk_size=SIZE, max_depth=30) as store:
        name = f"{served.host}/deep:1"
        served.add_image("deep", "1", layers, compression="none")
        store.pull(name)
        assert depth(store, name) == 30
        exported = io.BytesIO()
        store.export(name, exported)
        exported.seek(0)
        with tarfile.open(fileobj=exported) as tar:
            shown = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]
        assert shown == files_of(layers)
        assert list(store.check(read_data=True)) == [], "which makes every layer again, and compares its digest"
        assert store.info().max_depth == 30
        assert store.rebuild().left_out == ()
        assert depth(store, name) == 30


@pytest.mark.parametrize("wanted", [1, 3, 6])
def test_what_is_shown_saved_and_pushed_stays(store: ImageStore, registry: Registry, six: str, wanted: int) -> None:
    before = tree(store, six), saved(store, six), store.image(six).id
    files = sorted(path.name for path in (Path(store.location) / "disks").glob("*.vmdk"))
    planned = store.flatten(six, wanted, dry_run=True)
    assert (planned.before, planned.after, depth(store, six)) == (7, wanted, 7)
    done = store.flatten(six, wanted)
    assert (done.before, done.after, done.written) == (7, wanted, planned.written)
    assert depth(store, six) == wanted
    assert (tree(store, six), saved(store, six), store.image(six).id) == before
    assert sorted(path.name for path in (Path(store.location) / "disks").glob("*.vmdk")) == files
    assert list(store.check(read_data=True)) == []
    again = store.flatten(six, wanted)
    assert (again.before, again.after, again.written) == (wanted, wanted, 0)
    copy = f"{registry.host}/copy{wanted}:1"
    store.tag(six, copy)
    store.push(copy)
    assert registry.manifests[f"copy{wanted}", "1"][0] == registry.manifests["six", "1"][0]
    with ImageStore.create("mem://", disk_size=SIZE) as other:
        other.pull(copy)
        assert tree(other, copy) == before[0]
    store.remove(six)
    store.remove(store.image(copy).id, force=True)
    assert [path.name for path in (Path(store.location) / "disks").iterdir() if not path.name.startswith("scratch")] == []


def test_merging_twice_gives_the_bytes_of_merging_once(store: ImageStore, six: str, tmp_path: Path) -> None:
    store.flatten(six, 4)
    store.flatten(six, 2)
    with ImageStore.create(str(tmp_path / "other"), disk_size=SIZE, max_depth=2) as other:
        other.pull(six)
        ours, theirs = store.disk_paths(six), other.disk_paths(six)
        assert [Path(path).read_bytes() for path in ours] == [Path(path).read_bytes() for path in theirs]
        assert marker_of(store, six, 4) == marker_of(other, six, 4)
    assert marker_of(store, six, 2).disk.merged, "where it was merged first"  # type: ignore[union-attr]


def test_containers_from_before_and_after(store: ImageStore, six: str) -> None:
    config = {"Cmd": ["/last"]}
    store.create_container(six, name="early", config=config)
    store.copy_to_container("early", "/", io.BytesIO(make_tar({"new": b"new", "last": b"changed"})))
    differences = store.diff_container("early")
    exported = hashlib.sha256(b"".join(bytes(piece) for piece in store.export_container("early"))).digest()
    assert len(store.container_disk_paths("early")) == 8
    store.flatten(six)
    assert len(store.container_disk_paths("early")) == 2
    assert store.diff_container("early") == differences != []
    assert hashlib.sha256(b"".join(bytes(piece) for piece in store.export_container("early"))).digest() == exported
    store.create_container(six, name="later", size=2 * SIZE, config=config)
    assert store.diff_container("later") == []
    store.copy_to_container("later", "/", io.BytesIO(make_tar({"new": b"new", "last": b"changed"})))
    assert [each.path for each in store.diff_container("later")] == [each.path for each in differences]
    committed = store.commit_container("early", reference="committed:1")
    assert len(committed.layers) == 7 and depth(store, "committed:1") == 2
    assert b"".join(map(bytes, store.read_file("committed:1", "/last"))) == b"changed"
    assert list(store.check(read_data=True)) == []


def test_images_that_share_layers(store: ImageStore, registry: Registry, six: str) -> None:
    eight, four = (f"{registry.host}/{name}:1" for name in ("eight", "four"))
    store.pull(eight)
    store.pull(four)
    trees = tree(store, eight), tree(store, four)
    store.flatten(six, 2)
    assert (depth(store, six), depth(store, eight), depth(store, four)) == (2, 4, 5)
    assert (tree(store, eight), tree(store, four)) == trees
    store.remove(six)
    assert (tree(store, eight), tree(store, four)) == trees
    store.remove(eight)
    assert (depth(store, four), tree(store, four)) == (5, trees[1])
    assert list(store.check(read_data=True)) == []


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_damaged_disk_is_made_again(registry: Registry, six: str, tmp_path: Path, number: int) -> None:
    eight = f"{registry.host}/eight:1"
    with ImageStore.create(str(tmp_path / "shallow"), disk_size=SIZE, max_depth=3) as store:
        store.pull(six)
        before = tree(store, six), saved(store, six)
        assert marker_of(store, six, 3).disk.merged  # type: ignore[union-attr]
        disk = Path(store.image(six).layers[number].disk or "")
        disk.chmod(0o644)
        with disk.open("r+b") as file:
            file.truncate(disk.stat().st_size - 65536)
        assert f"disks/{disk.name}" in {finding.object for finding in store.check()}
        store.pull(eight)  # has these layers, and looks at all of them
        assert (tree(store, six), saved(store, six)) == before
        assert depth(store, eight) <= 3 and depth(store, six) <= 3
        assert list(store.check(read_data=True)) == []


def test_what_is_loaded_imported_and_committed_keeps_to_the_depth(registry: Registry, tmp_path: Path) -> None:
    built: BuiltImage = registry.add_image("built", "1", [layer(number) for number in range(5)])
    archive = write_docker_archive(tmp_path / "archive.tar", {"loaded:1": built})
    with ImageStore.create("mem://", disk_size=SIZE, max_depth=4) as store:
        list(store.load(archive))
        assert depth(store, "loaded:1") == 4
        store.import_image(io.BytesIO(layer(1)), reference="imported:1")
        assert depth(store, "imported:1") == 2
        name, depths = "imported:1", []
        for number in range(12):
            container = store.create_container(name, config={"Cmd": ["/last"]}).id
            store.copy_to_container(container, "/", io.BytesIO(make_tar({f"f{number}": b"new"})))
            name = f"step{number}:1"
            store.commit_container(container, reference=name)
            depths.append(depth(store, name))
        copies = sum(store._disks.read_marker(each.chain_id).disk.merged for each in store.image(name).layers)  # type: ignore[union-attr]
        assert depths == [3, 4, 4, 2, 3, 4, 2, 3, 4, 2, 3, 4]
        assert copies == 4
        assert list(store.check(read_data=True)) == []


def test_a_damaged_grain_is_not_copied(store: ImageStore, six: str) -> None:
    disk = Path(store.disk_paths(six)[2])
    disk.chmod(0o644)
    at = disk.stat().st_size - 1000
    data = bytearray(disk.read_bytes())
    data[at] ^= 1
    disk.write_bytes(data)
    before = {path.name: path.stat().st_ino for path in disk.parent.glob("*.vmdk")}
    with pytest.raises(CorruptError, match=rf"disks/{disk.name} at byte \d+: grain has CRC-32C"):
        store.flatten(six)
    assert {path.name: path.stat().st_ino for path in disk.parent.glob("*.vmdk")} == before
    assert depth(store, six) == 7 and leftovers(store) == []


def test_what_a_check_finds(store: ImageStore, six: str) -> None:
    store.flatten(six, 2)
    marker = marker_of(store, six, 4)
    path = Path(store.location) / layout.layer_marker(marker.chain_id)
    disk = marker.disk
    assert disk is not None and disk.merged
    whole = path.read_bytes()
    path.write_bytes(markers.encode(msgspec.structs.replace(marker, disk=msgspec.structs.replace(disk, merged=False))))
    found = {finding.object: finding.problem for finding in store.check()}
    assert found[f"disks/{disk.file}"] == "has no parent, but its marker says that it was not merged"
    path.write_bytes(whole)
    below = Path(store.image(six).layers[2].disk or "")
    below.chmod(0o644)
    below.write_bytes(below.read_bytes().replace(b"\nCID=", b"\nCID=0", 1).replace(b'"lsilogic"', b'"lsilogi"', 1))
    assert f"chain below disks/{disk.file}" in {finding.object for finding in store.check()}


def test_a_copy_that_the_quota_has_no_room_for(store: ImageStore, six: str, tmp_path: Path) -> None:
    before = store.quota().used
    store.set_quota(before + 100_000)
    with pytest.raises(QuotaExceededError):
        store.flatten(six)
    assert (depth(store, six), store.quota().used, leftovers(store)) == (7, before, [])
    with ImageStore.create(str(tmp_path / "small"), disk_size=SIZE, max_depth=2) as small:
        small.set_quota(before + 100_000)
        with pytest.raises(QuotaExceededError):
            small.pull(six)
        assert small.images() == [] and list(small.check()) == []
        small.set_quota(None)
        small.pull(six)
        assert depth(small, six) == 2


def test_it_can_be_stopped(store: ImageStore, six: str) -> None:
    stop = Stop()
    with pytest.raises(StoppedError):
        store.flatten(six, progress=lambda event: stop.set(), stop=stop)
    assert depth(store, six) == 7 and leftovers(store) == []
    assert list(store.check(read_data=True)) == []


def test_a_datastore_that_cannot_replace_files(store: ImageStore, six: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDatastore, "can_replace", False)
    with pytest.raises(UnsupportedError, match="cannot be replaced"):
        store.flatten(six)
    assert store.flatten(six, 7).written == 0
    assert depth(store, six) == 7


def test_who_reads_meanwhile_reads_on(store: ImageStore, six: str) -> None:
    pieces = store.read_file(six, "/last")
    opened = next(iter(pieces))
    with store._chain(six) as chain:
        expected = chain.read(0, 4 * MIB)
        store.flatten(six)
        assert chain.read(0, 4 * MIB) == expected
    assert bytes(opened).startswith(b"5")


def overtaken(patch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], object]) -> None:
    """Does something right before the next call of a method, once."""
    method = getattr(owner, name)

    def called(*arguments: Any, **options: Any) -> Any:
        patch.undo()
        act()
        return method(*arguments, **options)

    patch.setattr(owner, name, called)


def test_a_look_at_a_layer_whose_disk_is_replaced_meanwhile(store: ImageStore, six: str) -> None:
    with ImageStore.open(store.location) as other, pytest.MonkeyPatch.context() as patch:
        chain_id = store.image(six).layers[-1].chain_id
        overtaken(patch, Disks, "_has_recipe", lambda: other.flatten(six))
        found = store._disks.find(chain_id)
        assert found == marker_of(store, six, -1)
        assert found is not None and found.disk is not None and found.disk.merged


def test_a_merge_of_disks_that_are_merged_meanwhile(store: ImageStore, six: str) -> None:
    before = tree(store, six)
    with ImageStore.open(store.location) as other, pytest.MonkeyPatch.context() as patch:
        overtaken(patch, Flattening, "_grain_sums", lambda: other.flatten(six, 5))
        assert store.flatten(six, 2).after == 2
    assert marker_of(store, six, 1).disk.merged and marker_of(store, six, 4).disk.merged  # type: ignore[union-attr]
    assert tree(store, six) == before
    assert list(store.check(read_data=True)) == []


def test_several_at_once(store: ImageStore, registry: Registry, six: str) -> None:
    eight = f"{registry.host}/eight:1"
    expected = tree(store, six)

    def come_and_go(other: ImageStore) -> None:
        for _ in range(3):
            other.pull(eight)
            other.flatten(eight, 5)
            other.remove(eight)
            other.rebuild()

    with ImageStore.open(store.location) as other, ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(store.flatten, six, wanted) for wanted in (5, 3, 2)]
        tasks.append(pool.submit(other.flatten, six, 2))
        tasks.append(pool.submit(come_and_go, other))
        for task in tasks:
            task.result()
        assert depth(store, six) == 2
        assert tree(store, six) == expected
        assert list(store.check(read_data=True)) == []
    assert leftovers(store) == []


def test_the_command(six: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*words: str, code: int = 0) -> str:
        assert main(["--store", str(tmp_path / "store"), *words]) == code
        return capfd.readouterr().out

    def run_json(*words: str) -> Any:
        return json.loads(run(*words, "--format", "json"))

    def fails(code: int, *words: str) -> str:
        assert main(["--store", str(tmp_path / "store"), *words]) == code
        out, error = capfd.readouterr()
        assert out == ""
        return complaint(error.encode())

    for wrong in ("0", "-1", "1025"):
        assert f"depth {wrong}: a chain has 1 to 1024 disks" in fails(2, "init", "--max-depth", wrong)
    assert not (tmp_path / "store").exists()
    described = {"store": str(tmp_path / "store"), "disk_size": SIZE, "max_depth": 5}
    assert run_json("init", "--disk-size", "64MiB", "--max-depth", "5") == described
    run("pull", "-q", six)
    assert len(run_json("disk", six)["chain"]) == 5
    assert main(["--store", str(tmp_path / "store"), "flatten", six]) == 0
    assert capfd.readouterr().err == "5 disks: nothing to merge\n"
    planned = run_json("flatten", six, "--depth", "2", "--dry-run")
    assert (planned["disks_before"], planned["disks_after"], planned["dry_run"]) == (5, 2, True)
    assert main(["--store", str(tmp_path / "store"), "flatten", six, "--depth", "2"]) == 0
    out, error = capfd.readouterr()
    lines = error.splitlines()
    assert lines[0] == "Merging the lowest 4 disks into one"
    assert lines[1].startswith("5 disks are 2 now, ") and lines[1].endswith(" copied")
    assert out.splitlines() == [run_json("disk", six)["disk"]]
    assert run_json("flatten", six, "--depth", "1")["disks_after"] == 1
    for wrong in ("0", "-1", "1025"):
        assert f"depth {wrong}: a chain has 1 to 1024 disks" in fails(2, "flatten", six, "--depth", wrong)
    fails(2, "flatten", six, "--depth", "many")
    fails(4, "flatten", "none:1")


def test_what_makes_no_sense(store: ImageStore, six: str) -> None:
    with pytest.raises(InvalidError, match="depth 0"):
        store.flatten(six, 0)
    with pytest.raises(NotFoundError):
        store.flatten("none:1")
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w"):
        pass
    store.import_image(io.BytesIO(empty.getvalue()), reference="empty:1")
    done = store.flatten("empty:1")
    assert (done.before, done.after, done.written) == (1, 1, 0)
