"""Disks in the forms that ESXi runs, seeded to a vcsim behind which disks are made as an ESXi makes them; read by QEMU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgstore.attach.vsphere import find_vm
from imgstore.errors import InvalidError, NotFoundError, UnsupportedError
from imgstore.store import ImageStore
from imgstore.vsphere.locations import VmLocation
from imgstore.vsphere.soap import vim
from tests.command_line import REFERENCE, CommandLine
from tests.servers.authority import Authority
from tests.servers.esx_disks import NEVER_WRITTEN, EsxDisks
from tests.servers.vcsim import DATACENTER, DATASTORE, Vcsim, vcsim
from tests.tools import need, run

IMAGE = "three-layers"
VM = "DC0_H0_VM0"
CAPACITY = 1 << 26


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcsim]:
    with vcsim(tmp_path_factory.mktemp("vcsim") / "run") as running:
        yield running


@pytest.fixture
def esx(server: Vcsim, tmp_path: Path) -> Iterator[EsxDisks]:
    need("qemu-img")
    with EsxDisks(server, Authority(tmp_path / "authority")) as running:
        yield running
    for name in ("redo", "made"):
        shutil.rmtree(running.directory / name, ignore_errors=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore.create(str(tmp_path_factory.mktemp("source") / "store"), disk_size=CAPACITY) as store:
        store.pull(REFERENCE)
        yield store


def copied(source: ImageStore, esx: EsxDisks, path: str, form: str, *, max_depth: int | None = None) -> int:
    with source.open_target(esx.url(path), disk_format=form, max_depth=max_depth, vsphere=esx.login) as target:
        return source.copy_image(IMAGE, target).copied_layers


def assert_same(source: ImageStore, disk: Path) -> None:
    run("qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", source.disk_paths(IMAGE)[-1], disk)


def top_of(source: ImageStore, directory: Path) -> Path:
    return directory / "disks" / Path(source.image(IMAGE).disks[-1]).name


def descriptor_of(disk: Path) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in disk.read_text().splitlines() if "=" in line)
    return {key.strip(): value.strip(' "') for key, value in pairs}


def assert_readable(source: ImageStore, esx: EsxDisks, path: str) -> None:
    with ImageStore.open(esx.url(path), create=False, vsphere=esx.login) as store:
        assert list(store.check(read_data=True)) == []
        assert list(store.list_directory(IMAGE, "/")) == list(source.list_directory(IMAGE, "/"))
        assert b"".join(store.read_file(IMAGE, "/etc/hostname")) == b"".join(source.read_file(IMAGE, "/etc/hostname"))
        with pytest.raises(UnsupportedError, match="is a descriptor with its data beside it, and no disk can be put on that"):
            store.flatten(IMAGE, 1)
    remote = ImageStore.list_remote(esx.url(path), vsphere=esx.login)
    assert ([image.references for image in remote.images], remote.left_out) == ([(f"{IMAGE}:latest",)], ())


def remove_image(esx: EsxDisks, path: str) -> None:
    with ImageStore.open(esx.url(path), create=False, vsphere=esx.login) as store:
        store.remove(IMAGE)
        assert list(store.check()) == []


def test_a_redo_log_for_each_layer(source: ImageStore, esx: EsxDisks) -> None:
    assert (copied(source, esx, "redo", "vmfs-sparse"), esx.calls) == (3, ["create thin"])
    disks = esx.directory / "redo/disks"
    assert_same(source, top_of(source, disks.parent))
    chain = run("qemu-img", "info", "--backing-chain", "-f", "vmdk", top_of(source, disks.parent)).stdout.decode()
    assert chain.count("create type: vmfs\n") == 1 and chain.count("create type: vmfsSparse\n") == 4

    blank = descriptor_of(disks / "blank.vmdk")
    assert blank["CID"] not in (NEVER_WRITTEN, "ffffffff") and blank["ddb.uuid"].startswith("60 00")
    assert descriptor_of(disks / "scratch.vmdk")["parentCID"] == blank["CID"]
    descriptors = [path for path in disks.glob("*.vmdk") if "-" not in path.name]
    assert [descriptor_of(path)["ddb.deletable"] for path in descriptors] == ["false"] * 5

    assert_readable(source, esx, "redo")
    before = {path: path.stat().st_mtime_ns for path in disks.iterdir()}
    assert copied(source, esx, "redo", "vmfs-sparse") == 0
    assert {path: path.stat().st_mtime_ns for path in disks.iterdir()} == before
    remove_image(esx, "redo")
    left = {"blank.vmdk", "blank-flat.vmdk", "scratch.vmdk", "scratch-delta.vmdk", "scratch.crc32c"}
    assert {path.name for path in disks.iterdir()} == left


def test_what_is_damaged_comes_again(source: ImageStore, esx: EsxDisks) -> None:
    copied(source, esx, "redo", "vmfs-sparse")
    top = top_of(source, esx.directory / "redo")
    delta = top.with_name(f"{top.stem}-delta.vmdk")
    data = delta.read_bytes()
    delta.write_bytes(data[:-1] + b"x")
    with ImageStore.open(esx.url("redo"), create=False, vsphere=esx.login) as store:
        assert [finding.problem.partition(" is ")[0] for finding in store.check(read_data=True)] == ["its digest"]
    delta.write_bytes(data[:-512])
    (top.parent / "scratch-delta.vmdk").unlink()
    assert copied(source, esx, "redo", "vmfs-sparse") == 1
    assert delta.read_bytes() == data
    top.parent.joinpath("scratch.vmdk").unlink()
    assert copied(source, esx, "redo", "vmfs-sparse") == 0
    assert_readable(source, esx, "redo")


def test_the_lowest_redo_logs_in_one(source: ImageStore, esx: EsxDisks) -> None:
    copied(source, esx, "redo", "vmfs-sparse", max_depth=3)
    top = top_of(source, esx.directory / "redo")
    assert_same(source, top)
    assert run("qemu-img", "info", "--backing-chain", "-f", "vmdk", top).stdout.count(b"create type:") == 3
    assert_readable(source, esx, "redo")


def test_one_disk_that_the_platform_makes(source: ImageStore, esx: EsxDisks) -> None:
    assert (copied(source, esx, "made", "vmfs"), esx.calls) == (3, ["copy thin", "copy"])
    disks = esx.directory / "made/disks"
    top = top_of(source, disks.parent)
    assert sorted(path.name for path in disks.glob("*.vmdk")) == [f"{top.stem}-flat.vmdk", top.name]
    assert descriptor_of(top)["ddb.deletable"] == "false"
    assert_same(source, top)
    assert_readable(source, esx, "made")
    assert copied(source, esx, "made", "vmfs") == 0
    top.write_text(top.read_text().replace("12c0ffee", "12c0ffef"))  # somebody wrote to it
    with ImageStore.open(esx.url("made"), create=False, vsphere=esx.login) as store:
        assert store.images() == []
        (finding,) = [each for each in store.check() if each.object.endswith(top.name)]
        assert "its content id is 12c0ffef, its marker says 12c0ffee" in finding.problem
    assert copied(source, esx, "made", "vmfs") == 1
    remove_image(esx, "made")
    assert list(disks.iterdir()) == []


@pytest.mark.parametrize("way", ["it fails", "it is copied as it is"])
def test_nothing_is_left_of_an_import_that_fails(source: ImageStore, esx: EsxDisks, way: str) -> None:
    esx.imports, esx.verbatim = way != "it fails", way == "it is copied as it is"
    with pytest.raises(
        NotFoundError if way == "it fails" else UnsupportedError, match=r"cannot make|made no disk that can be used"
    ):
        copied(source, esx, "made", "vmfs")
    assert list((esx.directory / "made/disks").glob("*.vmdk")) == []
    top = top_of(source, esx.directory / "made")
    top.with_suffix(".import.vmdk").touch()  # as a crash leaves them
    top.with_name(f"{top.stem}-flat.vmdk").touch()
    esx.imports, esx.verbatim = True, False
    assert copied(source, esx, "made", "vmfs") == 1
    assert_same(source, top)
    assert sorted(path.name for path in top.parent.glob("*.vmdk")) == [f"{top.stem}-flat.vmdk", top.name]


def test_a_platform_without_disks(source: ImageStore, server: Vcsim) -> None:
    """vcsim alone: what it makes has no content id."""
    with source.open_target(server.url("none"), disk_format="vmfs-sparse", vsphere=server.login) as target:
        with pytest.raises(UnsupportedError, match=r"disks/blank\.vmdk: is no empty disk that others can stand on"):
            source.copy_image(IMAGE, target)
        assert list((server.directory() / "none/disks").iterdir()) == []


@pytest.mark.parametrize(("path", "form"), [("redo", "vmfs-sparse"), ("made", "vmfs")])
def test_on_machines(source: ImageStore, esx: EsxDisks, path: str, form: str) -> None:
    copied(source, esx, path, form)
    top = top_of(source, esx.directory / path)
    top.with_name(f"{top.stem}-flat.vmdk").touch()  # of a redo log, too, vcsim wants to see one
    with ImageStore.open(esx.url(path), create=False, vsphere=esx.login) as store, esx.vcsim.session() as session:
        store.create_container(IMAGE, name="web")
        store.attach_to_vm(["container/web", f"image/{IMAGE}"], VM, protect=False)
        vm = find_vm(session, VmLocation(esx.vcsim.host, esx.vcsim.port, DATACENTER, VM))
        devices = [each for each in vm.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]
        backings = [each.backing for each in devices if f" {path}/" in each.backing.fileName]
        ours = f"[{DATASTORE}] {path}/disks/{top.name}"
        assert sorted(backing.parent.fileName if backing.parent else backing.fileName for backing in backings) == [ours, ours]
        store.detach_from_vm(["container/web"], VM)
        store.remove_container("web")
        store.remove(IMAGE)
        store.prune()
        assert top.exists(), "the machine has it"
        store.detach_from_vm([ours], VM)
        store.prune()
        assert not top.exists() and not list(top.parent.glob(f"{top.stem}*"))


def test_one_form_for_all(source: ImageStore, esx: EsxDisks, tmp_path: Path) -> None:
    program = CommandLine(Path(source.location))
    program.text("copy", "-q", IMAGE, "--to", tmp_path / "to", "--disk-format", "vmfs-sparse")
    with ImageStore.open(str(tmp_path / "to")) as store:
        assert [Path(disk).stem for disk in store.disk_paths(IMAGE)[:2]] == ["blank", "scratch"]
        assert_same(source, Path(store.disk_paths(IMAGE)[-1]))
        assert b"".join(store.save([IMAGE])) == b"".join(source.save([IMAGE]))
        store.remove(IMAGE)
    assert "there in the form vmfs-sparse" in program.fails(2, "copy", IMAGE, "--to", tmp_path / "to")
    assert "are made by vSphere" in program.fails(11, "copy", IMAGE, "--to", tmp_path / "new", "--disk-format", "vmfs")
    with pytest.raises(InvalidError, match="have at least 2 disks, not 1"):
        source.open_target(str(tmp_path / "new"), disk_format="vmfs-sparse", max_depth=1)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UnsupportedError, match="has no place for a flat disk"):
        source.open_target("mem://", disk_format="vmfs-sparse")
    copied(source, esx, "redo", "vmfs-sparse")
    with pytest.raises(InvalidError, match="its disk there has not the form vmfs"):
        copied(source, esx, "redo", "vmfs")
