"""Containers through the library and the command line: made, found, shown, renamed, removed; and what they keep from being removed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore import layout
from imgstore.answers import Container, Mount
from imgstore.datastores.local import LocalDatastore
from imgstore.errors import AlreadyExistsError, InUseError, InvalidError, NoSpaceError, NotFoundError
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, litter

IMAGE = "three-layers"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path / "store")) as store:
        store.pull(REFERENCE)
        yield store
        assert list(store.check()) == []


def files(store: ImageStore) -> list[str]:
    return sorted(path.name for path in (Path(store.location) / layout.CONTAINERS).iterdir())


def test_a_container_is_a_disk_and_a_marker(store: ImageStore) -> None:
    made = store.create_container(
        IMAGE, name="web", config={"Cmd": ["/x"], "Labels": {"a": "b"}}, host_config={"Privileged": True}
    )
    image = store.image(IMAGE)
    assert (made.name, made.image, made.image_id, made.capacity) == ("web", IMAGE, image.id, store.info().capacity)
    assert (made.platform, made.read_only, made.mounts) == ("linux/amd64", False, ())
    assert made.labels == {"org.opencontainers.image.title": "three-layers", "a": "b"}
    assert (made.config["Cmd"], made.config["Env"], made.config["Hostname"]) == (["/x"], ["PATH=/bin:/usr/bin"], made.id[:12])
    assert made.host_config == {"Privileged": True}
    assert files(store) == [f"{made.id}.json", f"{made.id}.vmdk"]
    assert store.container_disk_paths("web") == [*image.disks, made.disk]
    for reference in (made.id, made.id[:5], "web", "/web"):
        assert made == store.container(reference)
    assert 0 < made.size_rw < 64 << 10
    assert store.image(IMAGE).containers == store.images()[0].containers == 1


def test_names_and_ids_that_are_none(store: ImageStore) -> None:
    store.create_container(IMAGE, name="web")
    for reference, kind, words in (
        ("nosuch", NotFoundError, "No such container: nosuch"),
        ("f" * 64, NotFoundError, f"No such container: {'f' * 64}"),
        ("", InvalidError, 'invalid name or ID supplied: ""'),
    ):
        with pytest.raises(kind) as caught:
            store.container(reference)
        assert words == str(caught.value)
    for made in store.create_containers(IMAGE, 17):  # two of seventeen begin with one digit
        assert made == store.container(made.id[:32])
    first = [one.id[0] for one in store.containers()]
    digit = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(InvalidError, match=f"^Multiple IDs found with provided prefix: {digit}$"):
        store.container(digit)
    with pytest.raises(NotFoundError, match=r"^No such image: nosuch:latest$"):
        store.create_container("nosuch")
    with pytest.raises(NotFoundError, match=r"does not match the specified platform: wanted linux/s390x, actual: linux/amd64$"):
        store.create_container(IMAGE, platform="linux/s390x")


def test_a_name_is_one_container_s(store: ImageStore) -> None:
    web = store.create_container(IMAGE, name="/web")
    words = re.escape(
        f'Conflict. The container name "/web" is already in use by container "{web.id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    with pytest.raises(AlreadyExistsError, match=f"^{words}$"):
        store.create_container(IMAGE, name="web")
    other = store.create_container(IMAGE, name="other")
    with pytest.raises(AlreadyExistsError, match=f"^{words}$"):
        store.rename_container("other", "web")
    for new, words in (
        ("other", "Renaming a container with the same name as its current name"),
        ("", "Neither old nor new names may be empty"),
        ("_", "Invalid container name (_), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    ):
        with pytest.raises(InvalidError) as caught:
            store.rename_container("other", new)
        assert words == str(caught.value)
    assert store.rename_container(other.id[:12], "third").name == "third"
    store.rebuild()
    assert [one.name for one in store.containers()] == ["third", "web"]


def test_of_those_who_want_one_name_one_gets_it(store: ImageStore) -> None:
    made: list[Container] = []
    refused: list[AlreadyExistsError] = []

    def make() -> None:
        try:
            made.append(store.create_container(IMAGE, name="web"))
        except AlreadyExistsError as error:
            refused.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    assert files(store) == [f"{made[0].id}.json", f"{made[0].id}.vmdk"]


def test_many_at_once(store: ImageStore) -> None:
    made = store.create_containers(IMAGE, 100, name_prefix="n")
    assert [one.name for one in made] == [f"n-{number}" for number in range(1, 101)]
    assert store.containers() == made[::-1]
    assert len({one.id for one in made}) == 100 and len(files(store)) == 200
    with pytest.raises(AlreadyExistsError, match=r"The container name ./n-[1-5]. is"):
        store.create_containers(IMAGE, 5, name_prefix="n")
    for count in (0, 100_001):
        with pytest.raises(InvalidError, match=f"^{count} containers: from 1 to 100000 can be made at once$"):
            store.create_containers(IMAGE, count)
    removed, reclaimed = store.prune_containers()
    assert ({one.id for one in removed}, files(store)) == ({one.id for one in made}, [])
    assert reclaimed == sum(one.size_rw for one in made)


def test_the_image_stays_as_long_as_a_container_is_there(store: ImageStore) -> None:
    made = store.create_container(IMAGE)
    image_id = store.image(IMAGE).id.removeprefix("sha256:")
    store.tag(IMAGE, "again:1")
    assert store.remove("again:1").deleted == ()
    with pytest.raises(InUseError) as caught:
        store.remove(IMAGE)
    assert str(caught.value) == (
        f'conflict: unable to remove repository reference "{IMAGE}" (must force) - '
        f"container {made.id[:12]} is using its referenced image {image_id[:12]}"
    )
    with pytest.raises(InUseError) as caught:
        store.remove(image_id)
    assert str(caught.value) == (
        f"conflict: unable to delete {image_id[:12]} (must be forced) - image is being used by stopped container {made.id[:12]}"
    )
    assert store.prune({"dangling": ["false"]}).removals == ()
    assert store.remove(IMAGE, force=True).deleted == (f"sha256:{image_id}",)
    store.rebuild()
    assert len(store.container_disk_paths(made.id)) == 5
    assert [one.image_id for one in store.containers()] == [f"sha256:{image_id}"]
    assert list(store.check()) == []
    store.remove_container(made.id)
    assert sorted(path.name for path in (Path(store.location) / layout.DISKS).iterdir()) == ["scratch.crc32c", "scratch.vmdk"]


def test_a_disk_that_a_guest_has_open_stays(store: ImageStore) -> None:
    made = store.create_container(IMAGE, name="web")
    with (
        LocalDatastore(store.location) as datastore,
        datastore.open_live(layout.container_disk(made.id), writable=True),
        pytest.raises(InUseError, match=r"^container web: .*is in use"),
    ):
        store.remove_container("web")
    assert (store.container("web"), store.prune_containers()[0]) == (made, [made])


def test_sizes(store: ImageStore) -> None:
    capacity = store.info().capacity
    with pytest.raises(InvalidError, match=f"^size of 1048576 bytes: the disk of the image has {capacity}, "):
        store.create_container(IMAGE, size=1 << 20)
    assert store.create_container(IMAGE, size=capacity).capacity == capacity
    assert store.create_container(IMAGE, size=capacity + 1).capacity == capacity + (64 << 10)


def test_the_quota_counts_containers(store: ImageStore) -> None:
    store.set_quota(store.quota().used + 4096)
    with pytest.raises(NoSpaceError, match=r"^Storage quota exceeds\. Storage quota: "):
        store.create_container(IMAGE)
    store.set_quota(store.quota().used + (1 << 20))
    made = store.create_containers(IMAGE, 2)
    assert store.quota().containers >= sum(one.size_rw for one in made)
    assert store.containers() == made[::-1]


def test_volumes(store: ImageStore) -> None:
    made = store.create_container(
        IMAGE, mounts=[Mount("data", "/usr/lib", read_only=True), Mount("", "/new")], config={"Volumes": {"/etc": {}}}
    )
    volumes = {mount.destination: store.volume(mount.volume) for mount in made.mounts}
    assert {path: volume.anonymous for path, volume in volumes.items()} == {"/usr/lib": False, "/new": True, "/etc": True}
    assert [mount.read_only for mount in made.mounts] == [True, False, False]
    with pytest.raises(InUseError, match=f"volume data in use by {made.id}"):
        store.remove_volume("data")
    tars = {path: b"".join(store.export_volume(volume.name)) for path, volume in volumes.items()}
    assert b"numbers.again" in tars["/usr/lib"] and b"numbers" not in tars["/new"]
    other = store.create_container(IMAGE, mounts=[Mount("data", "/srv"), Mount(volumes["/new"].name, "/kept")])
    assert b"".join(store.export_volume("data")) == tars["/usr/lib"]
    store.remove_container(made.id, volumes=True)
    assert {volume.name for volume in store.volumes()[0]} == {"data", volumes["/new"].name}
    store.remove_container(other.id, volumes=True)
    assert [volume.name for volume in store.volumes()[0]] == ["data"]


def test_what_fails_leaves_nothing(store: ImageStore) -> None:
    with pytest.raises(InvalidError, match=r"^cannot mount volume over existing file, file exists /bin/greet$"):
        store.create_containers(IMAGE, 2, mounts=[Mount("", "/new"), Mount("", "/bin/greet")])
    with pytest.raises(InvalidError, match=r"^Duplicate mount point: /new$"):
        store.create_container(IMAGE, mounts=[Mount("v", "/new"), Mount("w", "/new/")])
    with pytest.raises(InvalidError, match=r'^volume name "_" includes invalid characters'):
        store.create_container(IMAGE, mounts=[Mount("_", "/new")])
    assert (store.containers(), store.volumes()[0]) == ([], [])
    assert not (Path(store.location) / layout.CONTAINERS).exists()


def test_a_marker_that_is_damaged_hides_no_other(store: ImageStore) -> None:
    good, bad = store.create_containers(IMAGE, 2)
    marker = Path(bad.disk).with_suffix(".json")
    kept = marker.read_bytes()
    marker.write_bytes(kept.replace(b"three", b"seven"))
    assert [found.object for found in store.check()] == [f"containers/{bad.id}.json"]
    (reason,) = store.rebuild().left_out
    assert reason.startswith(f"container {bad.id}: containers/{bad.id}.json: checksum is ")
    assert store.containers() == [good]
    marker.write_bytes(kept)
    Path(good.disk).unlink()
    assert store.rebuild().left_out == (f"container {good.id}: containers/{good.id}.vmdk: is missing",)
    Path(good.disk).with_suffix(".json").unlink()


def test_two_markers_of_one_name(store: ImageStore, tmp_path: Path) -> None:
    first = store.create_container(IMAGE, name="web")
    other = tmp_path / "kept.json"
    marker = Path(first.disk).with_suffix(".json")
    other.write_bytes(marker.read_bytes())
    store.rename_container("web", "renamed")
    second = store.create_container(IMAGE, name="web")
    other.replace(marker)  # as if the crash of a machine had taken the renaming back
    (reason,) = store.rebuild().left_out
    assert reason.endswith("this one is found by its id")
    assert {one.id for one in store.containers()} == {first.id, second.id}
    late = max(first.id, second.id)
    assert store.container(late).name == late
    store.rename_container(late, "renamed")


def test_on_the_command_line(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path / "store")
    cli.text("pull", "-q", REFERENCE)
    id = cli.text(
        *(
            "container",
            "create",
            "--name",
            "web",
            "-e",
            "A=1",
            "-l",
            "tier=web",
            "-v",
            "data:/data:ro",
            "--read-only",
            "-w",
            "/srv",
        ),
        *("--entrypoint", "/bin/sh", "-u", "1000", "--vic-base", IMAGE, "-c", "exec --name"),
    ).strip()
    (shown,) = cli.json("container", "inspect", "web")
    assert (shown["id"], shown["name"], shown["read_only"]) == (id, "web", True)
    assert shown["mounts"] == [{"volume": "data", "destination": "/data", "read_only": True}]
    config = shown["config"]
    assert (config["Entrypoint"], config["Cmd"], config["User"]) == (["/bin/sh"], ["-c", "exec --name"], "1000")
    assert (config["WorkingDir"], config["Env"]) == ("/srv", ["A=1", "PATH=/bin:/usr/bin"])
    assert shown["chain"][-1] == shown["disk"]
    assert cli.text("container", "create", "--name", "n", "--count", "2", IMAGE).count("\n") == 2
    heading, *rows = cli.text("container", "ls").splitlines()
    assert heading.split("   ")[0] == "CONTAINER ID" and [row.split()[-1] for row in rows] == ["n-2", "n-1", "web"]
    assert rows[-1].startswith(f"{id[:12]}   three-layers   /bin/sh -c 'exec --…   ")
    assert cli.text("container", "ls", "-aq", "--no-trunc", "--filter", "label=tier=web") == f"{id}\n"
    assert [one["name"] for one in cli.json("container", "ls", "--filter", "name=^n-")] == ["n-2", "n-1"]
    assert "invalid filter 'bogus'" in cli.fails(2, "container", "ls", "--filter", "bogus=1")
    assert "Conflict. The container name" in cli.fails(10, "container", "create", "--name", "web", IMAGE)
    assert "mounting directories as a data volume" in cli.fails(2, "container", "create", "-v", "/etc:/etc", IMAGE)
    assert cli.text("container", "rename", "web", "db") == ""
    done = cli.run("container", "rm", "-v", "db", "web")
    assert (done.returncode, done.stdout) == (3, b"db\n")
    used = json.loads(cli.run("df", "--format", "json").stdout)
    assert used["containers"] == 2 and used["container_bytes"] >= 2 * 4096
    assert cli.json("container", "prune", "-f", "--filter", "until=2020-01-01")["deleted"] == []
    pruned = cli.text("container", "prune", "--force").splitlines()
    assert len(pruned) == 3 and pruned[-1].startswith("Total reclaimed space: ")
    assert cli.json("container", "ls") == [] and litter(cli.store) == []
