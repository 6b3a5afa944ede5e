"""``imgstore seed`` and ``copy`` to datastores of vSphere, against vcsim."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imgstore.errors import DeniedError, ImgstoreError, InvalidError, NotFoundError, UnavailableError
from imgstore.seed_files import SeedImage
from imgstore.seeding import default_form
from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, contents
from tests.servers.vcsim import Vcsim, vcsim
from tests.tools import need, run

IMAGE = SeedImage(REFERENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "server") as server:
        server.add_datastore("second")
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore.open(str(tmp_path_factory.mktemp("source") / "store")) as store:
        store.pull(REFERENCE)
        yield store


def test_two_datastores(server: Vcsim, source: ImageStore, tmp_path: Path) -> None:
    places = [server.url("two/images"), server.url("two/images", "second")]
    logins = dict.fromkeys(places, server.login)
    (plan,) = source.plan_seed([IMAGE], places, logins=logins)
    assert [(copy.layers, copy.problem) for copy in plan.copies] == [(3, "")] * 2
    report = source.seed([IMAGE], places, logins=logins)
    assert [(copy.copied_layers, copy.present_layers) for copy in report.copies] == [(3, 0)] * 2
    for directory in (server.directory(), server.directory("second")):
        assert contents(Path(source.location)) == contents(directory / "two/images")
    again = source.seed([IMAGE], places, logins=logins)
    assert [(copy.copied_layers, copy.changed) for copy in again.copies] == [(0, False)] * 2
    with ImageStore.open(places[1], create=False, vsphere=server.login) as found:
        assert found.rebuild().left_out == ()
        assert found.image("three-layers").references == ("three-layers:latest",)
        assert list(found.check()) == []
        with found.open_target(str(tmp_path / "back")) as target:
            assert found.copy_image("three-layers", target).copied_layers == 3
    assert contents(Path(source.location)) == contents(tmp_path / "back")
    remote = ImageStore.list_remote(places[0], vsphere=server.login)
    assert [image.references for image in remote.images] == [("three-layers:latest",)]
    assert remote.left_out == ()


def test_by_the_command_line(server: Vcsim, source: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    cli = CommandLine(Path(source.location))
    (tmp_path / "list").write_text(json.dumps({"images": [REFERENCE]}))
    place = "[LocalDS_0] by command"
    lines = cli.text("seed", "-q", "-f", tmp_path / "list", "--datastore", place).splitlines()
    assert lines[1].startswith(f"{place}   three-layers:latest")
    lines = cli.text("ls-remote", place).splitlines()
    assert lines[1].split()[0] == "three-layers:latest"
    assert "there is no store" in cli.fails(4, "ls-remote", "ds://LocalDS_0/nowhere")


def test_a_chain_that_would_be_too_deep(server: Vcsim, source: ImageStore) -> None:
    with source.open_target(server.url("short"), max_depth=2, vsphere=server.login) as target:
        source.copy_image("three-layers", target)
        assert len(target.image("three-layers").disks) == 2
        assert list(target.check()) == []
        assert list(target.list_directory("three-layers", "/")) == list(source.list_directory("three-layers", "/"))


def test_one_disk_an_image(server: Vcsim, source: ImageStore) -> None:
    need("qemu-img")
    with source.open_target(server.url("single"), disk_format="stream-optimized", vsphere=server.login) as target:
        assert source.copy_image("three-layers", target).copied_layers == 3
        assert not source.copy_image("three-layers", target).changed
        assert list(target.check(read_data=True)) == []
        assert b"".join(target.read_file("three-layers", "/etc/hostname")) == b"".join(
            source.read_file("three-layers", "/etc/hostname")
        )
    (disk,) = (server.directory() / "single/disks").glob("*.vmdk")
    run("qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", source.disk_paths("three-layers")[-1], disk)


def test_what_a_datastore_says_it_is() -> None:
    kinds = ("VMFS 3", "VMFS 5", "VMFS 6", "VMFS", "vsan", "VVOL", "NFS", "NFS41", "local", "")
    assert {kind: str(default_form(kind)) for kind in kinds} == {
        **dict.fromkeys(("VMFS 3", "VMFS 5", "NFS", "NFS41"), "vmfs-sparse"),
        **dict.fromkeys(("VMFS 6", "VMFS", "vsan", "VVOL"), "vmfs"),
        **dict.fromkeys(("local", ""), "hosted"),
    }


def test_going_on(server: Vcsim, source: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are not whole before their marker: what is there of a layer without one is made again."""
    with source.open_target(server.url("cut"), vsphere=server.login) as target:
        source.copy_image("three-layers", target)
    disks = server.directory() / "cut/disks"
    (top,) = [path for path in disks.glob("*.json") if path.stem == source.image("three-layers").layers[-1].chain_id[7:]]
    top.unlink()
    disk = top.with_suffix(".vmdk")
    disk.write_bytes(disk.read_bytes()[:5000])
    with source.open_target(server.url("cut"), vsphere=server.login) as target:
        assert target.images() == []
        copied = source.copy_image("three-layers", target)
        assert (copied.copied_layers, copied.present_layers) == (1, 2)
    assert contents(Path(source.location)) == contents(disks.parent)


@pytest.mark.parametrize(
    ("place", "password", "kind"),
    [("LocalDS_0", "wrong", DeniedError), ("nowhere", None, NotFoundError), ("LocalDS_0", None, InvalidError)],
)
def test_where_it_cannot_go(
    server: Vcsim, source: ImageStore, place: str, password: str | None, kind: type[ImgstoreError]
) -> None:
    login = server.login if password is None else replace(server.login, password=password)
    if kind is InvalidError:  # something else lies there
        (server.directory() / "occupied").mkdir()
        (server.directory() / "occupied/file").touch()
    url = server.url("occupied", place)
    with pytest.raises(kind):
        source.open_target(url, vsphere=login)
    report = source.seed([IMAGE], [url], logins={url: login}, keep_going=True)
    assert [(failure.location, type(failure.error)) for failure in report.failures] == [(url, kind)]


def test_one_directory_by_several_names(server: Vcsim, source: ImageStore) -> None:
    place = server.url("aliases")
    others = [
        f"{place}/",
        "ds://LocalDS_0/aliases",
        "[LocalDS_0] aliases",
        f"vsphere://127.0.0.1:{server.port}//LocalDS_0/aliases",
    ]
    for other in others:
        logins = dict.fromkeys((place, other), server.login)
        with pytest.raises(InvalidError, match="is named twice"):
            source.seed([IMAGE], [place, other], logins=logins)
        with pytest.raises(InvalidError, match="is named twice"):
            source.plan_seed([IMAGE], [place, other], logins=logins)
    assert not (server.directory() / "aliases").exists()
    with source.open_target(place, vsphere=server.login) as store:
        for other in others:
            with pytest.raises(InvalidError, match="is the store that is copied from"):
                store.open_target(other, vsphere=server.login)


@pytest.mark.parametrize(("datacenter", "datastore"), [("DC9", "LocalDS_0"), ("DC0", "nowhere")])
def test_a_look_at_what_is_missing(server: Vcsim, source: ImageStore, datacenter: str, datastore: str) -> None:
    """It is not a datastore where a store can be made."""
    url = f"vsphere://127.0.0.1:{server.port}/{datacenter}/{datastore}/x"
    words = "no datacenter 'DC9'; it has DC0|has no datastore 'nowhere'; it has "
    with pytest.raises(NotFoundError, match=words):
        ImageStore.list_remote(url, vsphere=server.login)
    (plan,) = source.plan_seed([IMAGE], [url], logins={url: server.login})
    assert [re.search(words, copy.problem) is not None for copy in plan.copies] == [True]


def test_a_lost_session(server: Vcsim, source: ImageStore) -> None:
    with source.open_target(server.url("lost"), vsphere=server.login) as target:
        server.end_sessions()
        assert source.copy_image("three-layers", target).copied_layers == 3


def test_nobody_answers(source: ImageStore, server: Vcsim) -> None:
    url = "vsphere://127.0.0.1:1/DC0/LocalDS_0/x"
    with pytest.raises(UnavailableError):
        source.open_target(url, vsphere=server.login)
