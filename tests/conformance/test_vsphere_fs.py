"""PyFilesystem's own suite on a directory of a datastore that vcsim simulates, and what that suite does not ask."""

from __future__ import annotations

import itertools
import tomllib
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.datastores.vsphere_files import DatastoreFiles
from imgstore.datastores.vsphere_fs import VsphereFS, VsphereOpener
from imgstore.vsphere.locations import parse_datastore
from tests.servers.vcsim import DATASTORE, PASSWORD, USERNAME, Vcsim, vcsim

from fs import errors, open_fs  # isort: skip
from fs.base import FS  # isort: skip
from fs.opener import registry  # isort: skip
from fs.test import FSTestCases  # isort: skip

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def vsphere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "server") as server:
        yield server


@pytest.fixture(scope="class")
def _class_session(request: pytest.FixtureRequest, vsphere: Vcsim) -> Iterator[None]:
    with vsphere.session() as session:
        request.cls.vsphere, request.cls.session = vsphere, session
        yield


@pytest.fixture
def root(vsphere: Vcsim) -> Iterator[VsphereFS]:
    with vsphere.session() as session:
        files = DatastoreFiles(session, parse_datastore(vsphere.url(f"root {next(_NUMBERS)}")))
        files.make_directories("")
        with VsphereFS(files) as opened:
            yield opened


@pytest.mark.usefixtures("_class_session")
class TestVsphereFileSystem(FSTestCases, unittest.TestCase):
    # Python 3.12 dropped the old name, which fs 2.4.16 still uses.
    assertRaisesRegexp = unittest.TestCase.assertRaisesRegex  # noqa: N815

    def make_fs(self) -> FS:
        files = DatastoreFiles(self.session, parse_datastore(self.vsphere.url(f"case {next(_NUMBERS)}")))
        files.make_directories("")
        return VsphereFS(files)

    def destroy_fs(self, fs: FS) -> None:
        fs.close()


@pytest.mark.parametrize("name", ["with space", "ünï#?&=+.txt", "100%25 [x] *", "back\\slash", "dotted.vmdk", "a" * 200])
def test_a_name_of_any_letters_is_a_name(root: VsphereFS, vsphere: Vcsim, name: str) -> None:
    root.makedir(f"/{name}")
    root.writebytes(f"/{name}/{name}", b"data")
    root.writebytes(f"/{name}/other", b"other")
    assert root.readbytes(f"/{name}/{name}") == b"data"
    assert sorted(root.listdir(f"/{name}")) == sorted([name, "other"])
    assert root.getsize(f"/{name}/{name}") == 4
    directory = vsphere.directory() / root._files.location.path / name
    assert {each.name: each.read_bytes() for each in directory.iterdir()} == {name: b"data", "other": b"other"}
    root.remove(f"/{name}/{name}")
    assert root.listdir(f"/{name}") == ["other"]
    root.removetree(f"/{name}")
    assert not root.exists(f"/{name}")


def test_disks_are_moved_and_copied_by_their_bytes(root: VsphereFS, vsphere: Vcsim) -> None:
    data = bytes(range(256)) * 9000
    root.writebytes("/a.vmdk", data)
    root.copy("/a.vmdk", "/b.vmdk")
    root.move("/b.vmdk", "/c.vmdk")
    with pytest.raises(errors.DestinationExists):
        root.move("/a.vmdk", "/c.vmdk")
    root.move("/a.vmdk", "/a.vmdk", overwrite=True)
    assert sorted(root.listdir("/")) == ["a.vmdk", "c.vmdk"]
    assert root.readbytes("/a.vmdk") == root.readbytes("/c.vmdk") == data


def test_a_file_is_read_in_any_order(root: VsphereFS) -> None:
    data = bytes(range(256)) * 8192
    root.writebytes("/x", data)
    with root.openbin("/x") as file:
        assert file.seek(-5, 2) == len(data) - 5
        assert file.read() == data[-5:]
        file.seek(1_000_000)
        assert file.read(70_000) == data[1_000_000:1_070_000]
        assert file.seek(5 << 20) == 5 << 20
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="before the start"):
            file.seek(-1)


def test_what_another_sees_is_whole(root: VsphereFS) -> None:
    root.writebytes("/x", b"old")
    with root.openbin("/x", "w") as file:
        file.write(b"newer")
        assert root.readbytes("/x") == b"old"
        assert root.listdir("/") == ["x"]
    assert root.readbytes("/x") == b"newer"


@pytest.fixture
def opener() -> Iterator[None]:
    registry.install(VsphereOpener)  # an installed imgstore has it by its entry point
    yield
    registry._protocols.pop("vsphere")


@pytest.mark.usefixtures("opener")
class TestOpener:
    def url(self, vsphere: Vcsim, path: str, *, password: str = PASSWORD, query: str = "") -> str:
        credentials = f"{USERNAME}:{password.replace('@', '%40').replace(':', '%3A')}"
        place = f"{vsphere.host}:{vsphere.port}/DC0/{DATASTORE}/{path}"
        return f"vsphere://{credentials}@{place}{query or f'?ca_file={vsphere.ca_file}'}"

    def test_a_url_opens_a_directory(self, vsphere: Vcsim) -> None:
        with open_fs(self.url(vsphere, "by%20url"), create=True) as root:
            root.writetext("a", "text")
            assert str(root) == f"<vspherefs 'vsphere://{vsphere.host}:{vsphere.port}/DC0/{DATASTORE}/by%20url'>"
        with open_fs(self.url(vsphere, "by url")) as again:
            assert again.readtext("a") == "text"

    @pytest.mark.parametrize(
        ("path", "change", "words"),
        [
            ("none", {}, r"\[LocalDS_0\] none: no such directory"),
            ("none", {"password": "wrong"}, "wrong user name or password"),
            ("none", {"query": "?ca_file=/none.pem"}, "/none.pem: cannot be read"),
            ("..", {}, "component '..' is not a name"),
        ],
    )
    def test_what_cannot_be_opened_says_why(self, vsphere: Vcsim, path: str, change: dict[str, str], words: str) -> None:
        with pytest.raises(errors.CreateFailed, match=words) as caught:
            open_fs(self.url(vsphere, path, **change))
        assert PASSWORD not in str(caught.value)


def test_the_entry_point_names_the_opener() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, name = project["project"]["entry-points"]["fs.opener"]["vsphere"].partition(":")
    assert (module, name) == (VsphereOpener.__module__, VsphereOpener.__name__)
