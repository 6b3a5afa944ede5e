"""``imgstore seed``, ``copy`` and ``ls-remote``: what one store has, on the datastores of others."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.cli.main import main
from imgstore.errors import CorruptError, InvalidError, NoSpaceError, UnsupportedError
from imgstore.progress import ProgressEvent, State
from imgstore.seed_files import SeedImage
from imgstore.stop import Stop, StoppedError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, complaint, contents, leftovers, litter
from tests.servers.images import make_tar
from tests.servers.registry import Fault, Registry
from tests.tools import need, need_root, run

BASE = make_tar({"etc/base": b"base" * 5000})
LAYERS = {
    "app": [BASE, make_tar({"app/run": b"run" * 9000})],
    "tool": [BASE, make_tar({"tool/run": b"tool" * 9000}), make_tar({"tool/conf": b"x"})],
}


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        for name, layers in LAYERS.items():
            registry.add_image(f"team/{name}", "1", layers)
        yield registry


@pytest.fixture
def images(registry: Registry) -> list[SeedImage]:
    registry.requests.clear()
    return [SeedImage(f"{registry.host}/team/{name}:1") for name in LAYERS]


@pytest.fixture
def list_file(images: list[SeedImage], tmp_path: Path) -> Path:
    path = tmp_path / "images.yaml"
    path.write_text(json.dumps({"images": [image.reference for image in images]}))
    return path


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one image of three layers; not to be changed."""
    place = tmp_path_factory.mktemp("source") / "store"
    with ImageStore.open(str(place)) as store:
        store.pull(REFERENCE)
    return place


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


def assert_same(source: Path, *targets: Path) -> None:
    """Each has all that the source has, byte for byte, and nothing else; another store that finds the datastore finds the images."""
    for target in targets:
        assert contents(source) == contents(target)
        assert litter(target) == []
        (target / "catalog.sqlite3").unlink()
        with ImageStore.open(str(source)) as ours, ImageStore.open(str(target), create=False) as theirs:
            assert {image.id: image.references for image in ours.images()} == {
                image.id: image.references for image in theirs.images()
            }
            assert theirs.rebuild().left_out == ()
            assert list(theirs.check(read_data=True)) == []


def test_seeding_two_datastores_and_again(cli: CommandLine, registry: Registry, list_file: Path, tmp_path: Path) -> None:
    places = (tmp_path / "one", tmp_path / "two")
    words = ("seed", "-f", list_file, "--datastore", places[0], "--datastore", places[1], "-q")
    dry = cli.json(*words, "--dry-run")
    assert not cli.store.exists()
    assert not any(place.exists() for place in places)
    assert [plan["layers_to_pull"] for plan in dry] == [2, 3]
    assert {copy["layers_to_copy"] for plan in dry for copy in plan["copies"]} == {2, 3}
    asked = [request.path for request in registry.requests]
    assert [path for path in asked if "/blobs/" in path and not is_config(path, registry)] == []

    report = cli.json(*words)
    assert [(copy["datastore"], copy["copied_layers"], copy["present_layers"]) for copy in report["copies"]] == [
        (str(places[0]), 2, 0),
        (str(places[0]), 2, 1),
        (str(places[1]), 2, 0),
        (str(places[1]), 2, 1),
    ]
    blobs = [request.path for request in registry.requests if "/blobs/" in request.path and not is_config(request.path, registry)]
    assert len(blobs) == 4, "each layer is fetched once, however many datastores and images want it"
    assert_same(cli.store, *places)

    before = [stamps(place) for place in places]
    registry.requests.clear()
    again = cli.json(*words)
    assert [(copy["copied_layers"], copy["copied_bytes"], copy["changed"]) for copy in again["copies"]] == [(0, 0, False)] * 4
    assert [pull["status"] for pull in again["pulls"]] == ["up-to-date"] * 2
    assert all("/blobs/" not in request.path for request in registry.requests)
    assert before == [stamps(place) for place in places]
    assert {plan["layers_to_pull"] for plan in cli.json(*words, "--dry-run")} == {0}

    lines = cli.text("ls-remote", places[0]).splitlines()
    assert sorted(line.split()[0] for line in lines[1:]) == sorted(json.loads(list_file.read_bytes())["images"])
    assert [line.split()[-1] for line in lines[1:]] in (["4", "3"], ["3", "4"])


def is_config(path: str, registry: Registry) -> bool:
    return b'"rootfs"' in registry.blobs.get(path.rpartition("/")[2], b"")


def stamps(place: Path) -> dict[str, int]:
    """When each file of disks, images and names was made or changed."""
    return {name: (place / name).stat().st_ctime_ns for name in contents(place)}


def test_only_what_lacks(registry: Registry, images: list[SeedImage], tmp_path: Path) -> None:
    with ImageStore.open(str(tmp_path / "store")) as store:
        (first,) = store.seed(images[:1], [str(tmp_path / "there")]).copies
        (second,) = store.seed(images[1:], [str(tmp_path / "there")]).copies
        disk = Path(store.image(images[1].reference).disks[-1]).stat().st_blocks * 512
    assert (first.copied_layers, second.copied_layers, second.present_layers) == (2, 2, 1)
    assert first.copied_bytes >= disk
    assert second.references[-1] == images[1].reference


def test_a_second_tag_costs_no_layer(seeded: Path, tmp_path: Path) -> None:
    shutil.copytree(seeded, tmp_path / "store")
    with ImageStore.open(str(tmp_path / "store")) as store, store.open_target(str(tmp_path / "there")) as target:
        assert store.copy_image("three-layers", target).changed
        store.tag("three-layers", "second:1")
        copied = store.copy_image("second:1", target)
        assert (copied.copied_layers, copied.copied_bytes, copied.changed) == (0, 0, True)
        assert set(target.image("three-layers").references) == {"second:1", "three-layers:latest"}
        assert not store.copy_image(store.image("second:1").id, target).changed


def test_a_name_goes_over(registry: Registry, images: list[SeedImage], tmp_path: Path) -> None:
    with ImageStore.open(str(tmp_path / "store")) as store, store.open_target(str(tmp_path / "there")) as target:
        store.seed(images, [])
        for image in images:
            store.tag(image.reference, "current")
            store.copy_image("current", target)
        assert [target.image("current").id] == [store.image(images[1].reference).id]
        assert len(target.images()) == 2


def test_all_tags(registry: Registry, images: list[SeedImage], tmp_path: Path) -> None:
    registry.add_image("team/many", "1", LAYERS["app"])
    registry.add_image("team/many", "2", LAYERS["tool"])
    with ImageStore.open(str(tmp_path / "store")) as store:
        every = SeedImage(f"{registry.host}/team/many", all_tags=True)
        plans = store.plan_seed([every, SeedImage(f"{registry.host}/team/none:1")], [str(tmp_path / "there")])
        assert [(plan.reference[-2:], plan.pulled_layers, plan.problem == "") for plan in plans] == [
            (":1", 2, True),
            (":2", 3, True),
            (":1", 0, False),
        ]
        report = store.seed([every], [str(tmp_path / "there")])
        assert [copy.references[-1][-2:] for copy in report.copies] == [":1", ":2"]


def test_a_removal_there_meanwhile(images: list[SeedImage], tmp_path: Path) -> None:
    """What a copy counts on is not collected."""
    removed: list[str] = []

    def remove(event: ProgressEvent) -> None:
        if event.state is State.COPYING and not removed:
            with ImageStore.open(str(tmp_path / "there")) as other:
                removed.extend(other.remove(images[0].reference).untagged)

    with ImageStore.open(str(tmp_path / "store")) as store:
        store.seed(images, [])
        with store.open_target(str(tmp_path / "there")) as target:
            store.copy_image(images[0].reference, target)
            copied = store.copy_image(images[1].reference, target, progress=remove)
            assert (copied.copied_layers, copied.present_layers) == (2, 1)
            assert removed
            assert [image.references for image in target.images()] == [(images[1].reference,)]
            assert list(target.check(read_data=True)) == []


def test_into_memory(seeded: Path) -> None:
    with ImageStore.open(str(seeded)) as store, store.open_target("mem://") as target:
        assert store.copy_image("three-layers", target).copied_layers == 3
        assert list(target.check(read_data=True)) == []


def test_merged_disks(seeded: Path, tmp_path: Path) -> None:
    """They are copied as they are; and a store that wants short chains merges what comes."""
    shutil.copytree(seeded, tmp_path / "store")
    with ImageStore.open(str(tmp_path / "store")) as store:
        store.flatten("three-layers", 2)
        with store.open_target(str(tmp_path / "there")) as target:
            store.copy_image("three-layers", target)
    assert_same(tmp_path / "store", tmp_path / "there")
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with ImageStore.open(str(seeded)) as store:
        with store.open_target(str(tmp_path / "short"), max_depth=2) as target:
            assert store.copy_image("three-layers", target).changed
            assert len(target.image("three-layers").disks) == 2
            assert not store.copy_image("three-layers", target).changed
        with store.open_target("mem://", max_depth=1) as target:
            store.copy_image("three-layers", target)
            assert list(target.check(read_data=True)) == []
            assert len(target.image("three-layers").disks) == 1
            assert b"".join(target.save(["three-layers"])) == b"".join(store.save(["three-layers"]))
        with pytest.raises(InvalidError, match="chains of 2 disks, not 3"):
            store.open_target(str(tmp_path / "short"), max_depth=3)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    assert_same(tmp_path / "store", tmp_path / "short")


def test_one_disk_an_image(registry: Registry, images: list[SeedImage], tmp_path: Path) -> None:
    """Of the form that vSphere imports: the same bytes for all who read it, in one file; layers below are covered."""
    need("qemu-img")
    there = tmp_path / "there"
    with ImageStore.open(str(tmp_path / "store")) as store:
        first = store.seed(images, [str(there)], disk_format="stream-optimized")
        assert [(copy.copied_layers, copy.present_layers) for copy in first.copies] == [(2, 0), (2, 1)]
        before = stamps(there)
        again = store.seed(images, [str(there)], disk_format="stream-optimized")
        assert [(copy.copied_layers, copy.changed) for copy in again.copies] == [(0, False)] * 2
        assert stamps(there) == before
        registry.add_image("team/base", "1", LAYERS["app"][:1])
        base = SeedImage(f"{registry.host}/team/base:1")
        with pytest.raises(InvalidError, match="has not the form hosted"):
            store.seed([base], [str(there)])
        (copied,) = store.seed([base], [str(there)], disk_format="stream-optimized").copies
        assert copied.copied_layers == 1, "it was covered by the disks of the others, which show more"
        with ImageStore.open(str(there), create=False) as target:
            assert list(target.check(read_data=True)) == []
            for image in (*images, base):
                (disk,) = target.disk_paths(image.reference)
                run("qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", store.disk_paths(image.reference)[-1], disk)
                assert [name for name, _ in target.list_directory(image.reference, "/etc")] == [b"base"]
            with pytest.raises(UnsupportedError):
                target.create_container(images[0].reference)
            with pytest.raises(UnsupportedError, match="not on this datastore"):
                b"".join(target.save([images[1].reference]))
        with pytest.raises(InvalidError, match="has not the form hosted"):
            store.seed(images[:1], [str(there)])
        with pytest.raises(InvalidError, match="has not the form hosted"):
            registry.add_image("team/more", "1", [*LAYERS["app"], make_tar({"more": b"more"})])
            store.seed([SeedImage(f"{registry.host}/team/more:1")], [str(there)])
    (there / "catalog.sqlite3").unlink()
    with ImageStore.open(str(there), create=False) as target:
        assert len(target.images()) == 3
        with pytest.raises(UnsupportedError), target.open_target(str(tmp_path / "further")) as further:
            target.copy_image(images[0].reference, further)
        with pytest.raises(UnsupportedError):
            target.pull(f"{registry.host}/team/more:1")
        assert list(target.check(read_data=True)) == []


def test_disks_of_another_size(seeded: Path, tmp_path: Path) -> None:
    there = CommandLine(tmp_path / "there")
    there.text("init", "--disk-size", "64MiB")
    error = CommandLine(seeded).fails(2, "copy", "three-layers", "--to", there.store)
    assert "67108864" in error
    assert "34359738368" in error
    there.assert_empty()


def test_disks_that_another_version_converted(seeded: Path, tmp_path: Path) -> None:
    """They may hold the same files elsewhere: a disk that is copied onto them would show rubbish."""
    with ImageStore.open(str(seeded)) as store:
        with store.open_target(str(tmp_path / "there")) as target:
            store.copy_image("three-layers", target)
        top = store.image("three-layers").layers[-1].chain_id.removeprefix("sha256:")
        lowest = store.image("three-layers").layers[0].chain_id.removeprefix("sha256:")
        disks = tmp_path / "there/disks"
        (disks / f"{top}.json").unlink()
        reseal(disks / f"{lowest}.json", "grain_sums_digest", "sha256:" + "0" * 64)
        with store.open_target(str(tmp_path / "there")) as target, pytest.raises(InvalidError, match="another version"):
            store.copy_image("three-layers", target)
    assert not (disks / f"{top}.json").exists()


def reseal(path: Path, field: str, value: str) -> None:
    """Changes a layer's marker as another converter would have written it."""
    from imgstore import markers

    marker = json.loads(path.read_bytes())["content"]
    marker["disk"][field] = value
    changed = markers.LayerMarker(
        **{**marker, "disk": markers.DiskRecord(**marker["disk"]), "recipe": markers.RecipeRecord(**marker["recipe"])}
    )
    path.write_bytes(markers.encode(changed))


@pytest.mark.parametrize("suffix", ["vmdk", "crc32c", "recipe"])
def test_a_damaged_layer_is_not_copied(seeded: Path, tmp_path: Path, suffix: str) -> None:
    shutil.copytree(seeded, tmp_path / "store")
    with ImageStore.open(str(tmp_path / "store")) as store:
        top = store.image("three-layers").layers[-1].chain_id.removeprefix("sha256:")
        path = tmp_path / f"store/disks/{top}.{suffix}"
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with store.open_target(str(tmp_path / "there")) as target:
            with pytest.raises(CorruptError, match=rf"three-layers to .*/there: .*{top}.{suffix}"):
                store.copy_image("three-layers", target)
            assert target.images() == []
            assert list(target.check(read_data=True)) == []
    assert not (tmp_path / f"there/disks/{top}.json").exists()
    assert litter(tmp_path / "there") == []


def test_keep_going(cli: CommandLine, registry: Registry, list_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "in-the-way"
    file.write_text("")
    listed = json.loads(list_file.read_bytes())["images"]
    list_file.write_text(json.dumps({"images": [f"{registry.host}/team/missing:1", *listed]}))
    words = ("seed", "-f", list_file, "--datastore", file, "--datastore", tmp_path / "there", "-q")
    assert "in-the-way" in cli.fails(2, *words)
    assert not (tmp_path / "there").exists()
    done = cli.run(*words, "--keep-going", "--format", "json")
    assert done.returncode == 3
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "partial"
    assert error["message"].startswith("2 failed: ")
    assert str(file) in error["message"]
    assert "team/missing:1" in error["message"]
    report = json.loads(done.stdout)
    assert [(failure["datastore"], failure["code"]) for failure in report["failures"]] == [
        (str(file), "invalid"),
        (None, "not-found"),
    ]
    assert_same(cli.store, tmp_path / "there")


def test_the_first_failure_ends_it(cli: CommandLine, registry: Registry, list_file: Path, tmp_path: Path) -> None:
    registry.inject(r"/team/tool/blobs/", Fault(status=404), times=100)
    try:
        cli.fails(4, "seed", "-f", list_file, "--datastore", tmp_path / "there", "-q")
    finally:
        registry.clear_faults()
    CommandLine(tmp_path / "there").assert_empty()


def test_a_full_datastore(seeded: Path, tmp_path: Path) -> None:
    need("mount", "umount")
    need_root()
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small)
    try:
        with ImageStore.open(str(seeded)) as store:
            with store.open_target(str(small / "store")) as target, pytest.raises(NoSpaceError, match="small/store"):
                store.copy_image("three-layers", target)
            with ImageStore.open(str(small / "store"), create=False) as target:
                assert target.images() == []
                assert list(target.check(read_data=True)) == []
            run("mount", "-o", "remount,size=8m", small)
            with store.open_target(str(small / "store")) as target:
                store.copy_image("three-layers", target)
        assert_same(seeded, small / "store")
    finally:
        run("umount", small)


def test_a_quota(seeded: Path, tmp_path: Path) -> None:
    with ImageStore.open(str(seeded)) as store, store.open_target(str(tmp_path / "there")) as target:
        target.set_quota(300_000)
        with pytest.raises(NoSpaceError, match="quota"):
            store.copy_image("three-layers", target)
        assert [path for path in leftovers(tmp_path / "there") if path.startswith(("disks", "images"))] == []
        target.set_quota(None)
        store.copy_image("three-layers", target)


def test_stopped_and_gone_on(seeded: Path, tmp_path: Path) -> None:
    stop = Stop()

    def stop_after_one(event: ProgressEvent) -> None:
        if event.state is State.COPIED:
            stop.set()

    with ImageStore.open(str(seeded)) as store:
        with store.open_target(str(tmp_path / "there")) as target, pytest.raises(StoppedError):
            store.copy_image("three-layers", target, progress=stop_after_one, stop=stop)
        with store.open_target(str(tmp_path / "there")) as target:
            assert target.images() == []
            assert list(target.check(read_data=True)) == []
            copied = store.copy_image("three-layers", target)
    assert copied.present_layers >= 1
    assert copied.copied_layers + copied.present_layers == 3
    assert_same(seeded, tmp_path / "there")


def test_copies_and_a_pull_at_once(seeded: Path, tmp_path: Path) -> None:
    """Of all who want a layer there one makes it; who waited finds it."""
    errors: list[BaseException] = []
    copied: list[int] = []

    def copy() -> None:
        try:
            with ImageStore.open(str(seeded)) as store, store.open_target(str(tmp_path / "there")) as target:
                copied.append(store.copy_image("three-layers", target).copied_layers)
        except BaseException as error:
            errors.append(error)

    def pull() -> None:
        try:
            with ImageStore.open(str(tmp_path / "there")) as target:
                target.pull(REFERENCE)
        except BaseException as error:
            errors.append(error)

    ImageStore.create(str(tmp_path / "there")).close()
    threads = [threading.Thread(target=act) for act in (copy, pull, copy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(copied) <= 3
    assert_same(seeded, tmp_path / "there")


def test_a_look_changes_nothing(seeded: Path, tmp_path: Path) -> None:
    place = tmp_path / "there"
    shutil.copytree(seeded, place)
    (place / "catalog.sqlite3").unlink()
    (marker,) = [path for path in (place / "disks").glob("*.json") if json.loads(path.read_bytes())["content"]["parent"] is None]
    before = stamps(place)
    remote = ImageStore.list_remote(str(place))
    assert [image.references for image in remote.images] == [("three-layers:latest",)]
    assert Path(remote.images[0].disks[0]).name == "scratch.vmdk"
    assert before == stamps(place)
    assert not (place / "catalog.sqlite3").exists()
    marker.unlink()
    remote = ImageStore.list_remote(str(place))
    assert remote.images == ()
    assert any("its layer" in sentence for sentence in remote.left_out)
    assert litter(place) == []


@pytest.mark.parametrize(
    ("code", "words", "problem"),
    [
        (4, ("seed", "-f", "nothing", "--datastore", "there"), "nothing: no such file"),
        (2, ("seed", "-f", "/dev/null", "--datastore", "there"), "/dev/null: is empty"),
        (2, ("seed", "-f", "list", "--datastore", "there", "--datastore", "x/../there"), "is named twice"),
        (2, ("seed", "-f", "list", "--datastore", "there", "--jobs", "0"), "--jobs"),
        (2, ("seed", "-f", "list", "--datastore", "there", "--dry-run", "--disk-format", "vhd"), "disk format 'vhd': is none of"),
        (2, ("seed", "-f", "list", "--datastore", "there", "--dry-run", "--max-depth", "1025"), "depth 1025: a chain has"),
        (11, ("seed", "-f", "list", "--datastore", "https://me:s3cret@h/x"), "https://: a store is a directory"),
        (2, ("copy", "three-layers", "--to", "x/../store"), "is the store that is copied from"),
        (2, ("copy", "three-layers", "--to", "store/there"), "is in the store that is copied from"),
        (2, ("copy", "three-layers", "--to", "store/.there/below"), "is in the store that is copied from"),
        (2, ("copy", "three-layers", "--to", 300 * "a"), "cannot look for a store: File name too long"),
        (
            4,
            ("copy", "nothing", "nowhere", "--to", "there"),
            "2 of 2 failed: No such image: nothing:latest; No such image: nowhere",
        ),
        (4, ("copy", "three-layers", "--to", "loop"), "loop: cannot look for a store: Too many levels of symbolic links"),
        (2, ("ls-remote", 300 * "a"), "cannot look for a store: File name too long"),
        (2, ("copy", "three-layers", "--to", "mem://"), "gone when the command ends"),
        (2, ("copy", "three-layers", "--to", ""), "the name of the datastore is empty"),
        (2, ("copy", "--to", "there"), "name the images"),
        (4, ("copy", "nothing", "--to", "there"), "No such image: nothing:latest"),
        (4, ("ls-remote", "there"), "there is no store"),
    ],
)
def test_words_that_make_no_sense(
    seeded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    words: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").symlink_to(seeded)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "list").write_text("images: ['oci:nowhere']")
    assert main(["--store", str(seeded), *words]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert problem in told.err
    assert "s3cret" not in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list", "loop", "store"]
    assert not (seeded / "there").exists() and not (seeded / ".there").exists()


def test_some_of_several(seeded: Path, tmp_path: Path) -> None:
    done = CommandLine(seeded).run("copy", "three-layers", "nothing", "--to", tmp_path / "there", "-q")
    assert done.returncode == 3
    assert "nothing:latest" in complaint(done.stderr)
    assert_same(seeded, tmp_path / "there")
