"""A store on a vSphere datastore, through the command line; vcsim simulates the vCenter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imgstore.store import ImageStore
from tests.command_line import REFERENCE, CommandLine, contents
from tests.servers.vcsim import DATASTORE, PASSWORD, Vcsim, vcsim


@dataclass(frozen=True)
class VsphereCommandLine(CommandLine):
    """The program with a store that a location names, and with govc's variables."""

    location: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in super().environment.items() if not name.startswith("GOVC_")}
        return {**kept, **self.variables, "IMGSTORE_STORE": self.location}


@pytest.fixture(scope="module")
def vsphere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "server") as server:
        yield server


def command_line(vsphere: Vcsim, location: str, **changes: str) -> VsphereCommandLine:
    return VsphereCommandLine(Path("unused"), location, {**vsphere.environment, **changes})


def test_images_are_pulled_looked_at_and_removed(vsphere: Vcsim, tmp_path: Path) -> None:
    cli = command_line(vsphere, vsphere.url("my images"))
    cli.text("init", "--disk-size", "64MiB")
    cli.text("pull", "-q", REFERENCE)
    directory = vsphere.directory() / "my images"
    cli = command_line(vsphere, f"[{DATASTORE}] my images")
    ImageStore.create(str(tmp_path / "local"), disk_size=64 << 20).close()
    with ImageStore.open(str(tmp_path / "local")) as local:
        local.pull(REFERENCE)
        assert disks(directory) == disks(tmp_path / "local")
        [image], [ours] = cli.json("images"), local.images()
        assert (image["id"], image["references"]) == (ours.id, list(ours.references))
        paths = [path.replace(f"{local.location}/", f"[{DATASTORE}] my images/") for path in local.disk_paths(ours.id)]
        assert cli.text("disk", "--chain", "three-layers").splitlines() == paths
        assert cli.text("cat", "three-layers", "/etc/hostname").encode() == b"".join(local.read_file(ours.id, "/etc/hostname"))
    assert cli.json("check", "--read-data") == []
    assert "disks that guests write cannot be made on a vSphere datastore" in cli.fails(11, "volume", "create", "data")
    assert "on this datastore no volumes are made" in cli.fails(11, "container", "create", "-v", "data:/data", "three-layers")
    cli.text("rm", "three-layers")
    assert sorted(path.name for path in (directory / "disks").iterdir()) == ["scratch.crc32c", "scratch.vmdk"]
    assert list((directory / "images").iterdir()) == list((directory / "references").iterdir()) == []


def disks(store: Path) -> dict[str, str]:
    """Digests of the files that are the same wherever the layers are the same."""
    return {name: digest for name, digest in contents(store).items() if not name.endswith(".json")}


@pytest.mark.parametrize(
    ("location", "variables", "code", "words"),
    [
        ("ds://LocalDS_0/x", {"GOVC_PASSWORD": "wrong"}, 5, "cannot log in: wrong user name or password"),
        ("ds://LocalDS_0/x", {"GOVC_PASSWORD": ""}, 5, "cannot log in: there is no password"),
        ("ds://LocalDS_0/x", {"GOVC_TLS_CA_CERTS": ""}, 6, "cannot log in: certificate not trusted"),
        ("ds://LocalDS_0/x", {"GOVC_TLS_CA_CERTS": "/none.pem"}, 2, "/none.pem: cannot be read"),
        ("ds://LocalDS_0/x", {"GOVC_INSECURE": "maybe"}, 2, "GOVC_INSECURE: 'maybe' is neither true nor false"),
        ("ds://LocalDS_0/x", {"GOVC_URL": ""}, 2, "names no server"),
        ("ds://LocalDS_0/x", {"GOVC_URL": "https://127.0.0.1:1"}, 6, "vSphere 127.0.0.1:1: cannot log in: Connection refused"),
        ("ds://LocalDS_0/x", {"GOVC_DATACENTER": "DC9"}, 4, "no datacenter 'DC9'; it has DC0"),
        ("ds://None/x", {}, 4, "datacenter DC0 has no datastore 'None'; it has LocalDS_0"),
        ("[LocalDS_0]", {}, 2, "is not a store (it has no store.json), and not empty: DC0_"),
        ("vsphere://tester:s3cret@host/DC0/x", {}, 2, "a password has no place in a URL"),
    ],
)
def test_what_cannot_be_reached_says_why(vsphere: Vcsim, location: str, variables: dict[str, str], code: int, words: str) -> None:
    said = command_line(vsphere, location, **variables).fails(code, "images")
    assert words in said
    assert PASSWORD not in said
    assert "s3cret" not in said


def test_an_unverified_server_is_used_without_a_word_if_that_is_said(vsphere: Vcsim) -> None:
    cli = command_line(vsphere, "ds://LocalDS_0/unverified", GOVC_TLS_CA_CERTS="", GOVC_INSECURE="1")
    done = cli.run("images", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_depth_cannot_be_kept_there(vsphere: Vcsim) -> None:
    said = command_line(vsphere, "ds://LocalDS_0/depth").fails(11, "init", "--max-depth", "30")
    assert "no disk can be replaced there in one step" in said


def test_without_pyvmomi_it_says_what_to_install() -> None:
    lines = (
        "import sys",
        "sys.modules['pyVmomi'] = None",  # as if it were not installed
        "from imgstore.cli.main import main",
        "sys.exit(main(['--store', 'vsphere://host/DC0/DS/x', 'images']))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, timeout=60)
    assert done.returncode == 11
    assert done.stderr.decode().splitlines()[-1] == "hint: pip install 'imgstore[vsphere]'"
