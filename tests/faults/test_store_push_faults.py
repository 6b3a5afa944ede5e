"""Pushes of a store that meet damage, refusals, cuts, a full disk, or others that change the store meanwhile."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgstore.errors import (
    CorruptError,
    DeniedError,
    ImgstoreError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from imgstore.progress import ProgressEvent, State
from imgstore.store import ImageStore
from registry_client.credentials import Credential
from registry_client.options import Options
from registry_client.retry import RetryPolicy
from tests.command_line import CommandLine
from tests.servers.faults import ALWAYS, ENDPOINTS, LOST_ANSWERS, REFUSED, TEMPORARY, Fault
from tests.servers.images import build_image, digest_of, make_tar, write_docker_archive, write_layout
from tests.servers.registry import Registry
from tests.tools import need, need_root, run

QUICK = Options(credential=Credential(), retry=RetryPolicy(tries=3, base=0.001), connect_timeout=2, read_timeout=2)
BIG = random.Random(3).randbytes(6_000_000)  # more than goes with one PUT
LAYERS = [make_tar({"one": b"1" * 100_000}), make_tar({"big": BIG}), make_tar({"three": b"3"})]
DISK_SIZE = 64 << 20


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def store(registry: Registry, tmp_path: Path) -> Iterator[ImageStore]:
    """Has an image with the name ``app:1`` of the registry, which has it not."""
    layout = write_layout(tmp_path / "layout", {"1": build_image(LAYERS)})
    ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE).close()
    with ImageStore.open(str(tmp_path / "store"), registries=QUICK) as store:
        store.tag(store.pull(f"oci:{layout}:1").reference, name(registry))
        yield store
        assert list(store.check()) == []
        assert [path for path in (tmp_path / "store").rglob(".*") if path.is_file() and path.suffix != ".lock"] == []
        assert list((tmp_path / "store/.leases").iterdir()) == []


def name(registry: Registry) -> str:
    return f"{registry.host}/team/app:1"


def spools(directory: Path) -> list[Path]:
    """Files without a name that this process has open below a directory."""
    targets = [each.readlink() for each in Path("/proc/self/fd").iterdir() if os.path.lexists(each)]
    return [target for target in targets if target.is_relative_to(directory) and target.name.endswith(" (deleted)")]


def fails(store: ImageStore, registry: Registry, kind: type[ImgstoreError], words: str) -> ImgstoreError:
    """A push that fails in good order: nothing of it is to be seen, and nothing is left open."""
    with pytest.raises(kind, match=words) as failed:
        store.push(name(registry))
    assert (("team/app", "1") in registry.manifests) is False
    assert not [digest for digest in store.image(name(registry)).digests if "team/app@" in digest]
    assert spools(Path(store.disk_paths(name(registry))[0]).parents[1]) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("imgstore", "push"))]
    return failed.value


def succeeds(store: ImageStore, registry: Registry) -> list[ProgressEvent]:
    """A push that goes well: the registry has all that the manifest names."""
    events: list[ProgressEvent] = []
    pushed = store.push(name(registry), progress=events.append)
    assert registry.manifests["team/app", "1"] == registry.manifests["team/app", pushed.digest]
    assert store.image(name(registry)).id in registry.blobs
    return events


@pytest.mark.parametrize("fault", ["hang-up", "reset-in-request-body", "503-empty", "429", "done-then-hang-up"])
@pytest.mark.parametrize("step", ["blob-head", "upload-start", "upload-chunk", "upload-end", "manifest-put"])
def test_what_passes(store: ImageStore, registry: Registry, step: str, fault: str) -> None:
    method, pattern = ENDPOINTS[step]
    struck = registry.inject(pattern, (TEMPORARY | dict(LOST_ANSWERS))[fault], times=2, method=method)
    events = succeeds(store, registry)
    assert struck.hits > 0
    begun = [event.layer for event in events if event.state is State.COMPRESSING and event.current == 0]
    assert len(begun) == len(set(begun)) == len(LAYERS), "what was compressed is sent again from the spool"


def test_a_blob_that_another_push_is_linking(store: ImageStore, registry: Registry) -> None:
    """Debian's registry, asked by two pushes at once, may say once that it has not what it has."""
    body = b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}]}'
    missing = Fault(status=400, headers={"Content-Type": "application/json"}, body=body)
    struck = registry.inject("/manifests/", missing, method="PUT")
    succeeds(store, registry)
    assert struck.hits == 1
    registry.inject("/manifests/", missing, times=ALWAYS, method="PUT")
    with pytest.raises(UnavailableError, match="blob unknown to registry"):
        store.push(name(registry))


def test_a_cut_upload_goes_on_where_it_was_cut(store: ImageStore, registry: Registry) -> None:
    cut = registry.inject("uploads/", Fault(hang_up=True, after=True, cut_request=1_500_000), times=3, method="PATCH")
    succeeds(store, registry)
    assert not registry.uploads.unfinished
    assert cut.hits == 3
    sent = sum(len(request.body) for request in registry.requests if request.method == "PATCH")
    assert sent == max(map(len, registry.blobs.values()))


@pytest.mark.parametrize(
    ("step", "fault", "kind", "words"),
    [
        ("upload-start", REFUSED["403"], DeniedError, "requested access to the resource is denied"),
        ("upload-start", REFUSED["404-upstream-login"], NotFoundError, "artifact proxy/library/node:20 not found"),
        ("upload-end", REFUSED["412-policy"], DeniedError, "cannot be pushed|cannot be pulled"),
        ("manifest-put", REFUSED["412-policy"], DeniedError, "due to configured policy"),
        ("upload-chunk", REFUSED["413-html"], UnsupportedError, "status 413"),
        ("manifest-put", REFUSED["400"], ImgstoreError, "invalid repository name"),
        ("manifest-put", REFUSED["404-html"], NotFoundError, "manifest for"),
        ("blob-head", Fault(status=503), UnavailableError, "status 503"),
        ("upload-chunk", Fault(status=503), UnavailableError, "status 503"),
    ],
)
def test_what_does_not_pass(
    store: ImageStore, registry: Registry, step: str, fault: Fault, kind: type[ImgstoreError], words: str
) -> None:
    method, pattern = ENDPOINTS[step]
    struck = registry.inject(pattern, fault, times=ALWAYS, method=method)
    fails(store, registry, kind, words)
    assert not registry.uploads.unfinished
    struck.times = 0
    succeeds(store, registry)
    assert not registry.uploads.unfinished


def test_no_login(store: ImageStore, tmp_path: Path) -> None:
    with Registry(auth="bearer") as closed:
        layers = [make_tar({"a": b"a"})]
        origin = closed.add_image("base", "1", layers)
        credential = Credential(closed.username, closed.password)
        store.pull(f"{closed.host}/base:1", credential=credential)
        store.tag(f"{closed.host}/base:1", name(closed))
        error = fails(store, closed, DeniedError, "team/app")
        assert error.hint == f"log in with: imgstore login {closed.host}"
        with pytest.raises(DeniedError):
            store.push(name(closed), credential=Credential("nobody", "wrong"))
        events: list[ProgressEvent] = []
        assert store.push(name(closed), credential=credential, progress=events.append).digest == origin.digest
        assert [event.message for event in events if event.state is State.MOUNTED] == ["base"]


def test_the_registry_is_down(store: ImageStore, registry: Registry) -> None:
    with Registry() as gone:
        pass
    store.tag(name(registry), name(gone))
    fails(store, gone, UnavailableError, gone.host)


@pytest.mark.parametrize("what", [".vmdk", ".recipe"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_layer_that_cannot_be_read(what: str, compressed: bool, registry: Registry, tmp_path: Path) -> None:
    """Whether it is compressed into a spool, or goes as it is."""
    built = build_image(LAYERS, compression="gzip" if compressed else "none")
    layout = write_layout(tmp_path / "layout", {"1": built})
    ImageStore.create(str(tmp_path / "store"), disk_size=DISK_SIZE).close()
    with ImageStore.open(str(tmp_path / "store"), registries=QUICK) as store:
        store.tag(store.pull(f"oci:{layout}:1").reference, name(registry))
        disk = store.image(name(registry)).layers[1].disk
        assert disk is not None
        damaged = Path(disk).with_suffix(what)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.chmod(0o644)
        damaged.write_bytes(content)
        fails(store, registry, CorruptError, f"{built.diff_ids[1]}|{damaged.name}")
        assert digest_of(LAYERS[1]) not in registry.blobs
        assert not registry.uploads.unfinished


def during(registry: Registry, act: Callable[[], object], push: Callable[[], object]) -> None:
    """Does something while the registry keeps the push waiting for the manifest to be taken."""
    registry.inject("/manifests/1", Fault(delay=1.0), method="PUT")
    pushing = threading.Thread(target=push)
    pushing.start()
    while not [request for request in registry.requests if request.method == "PUT" and "uploads" in request.path]:
        time.sleep(0.01)
    act()
    pushing.join()


def test_the_image_is_removed_meanwhile(store: ImageStore, registry: Registry) -> None:
    image = store.image(name(registry))
    during(registry, lambda: store.remove(image.id, force=True), lambda: store.push(name(registry)))
    assert ("team/app", "1") in registry.manifests
    assert store.images() == []


def test_the_name_is_given_to_another_image_meanwhile(store: ImageStore, registry: Registry) -> None:
    registry.add_image("other", "1", [make_tar({"other": b""})])
    other = store.pull(f"{registry.host}/other:1").image
    during(registry, lambda: store.tag(other.id, name(registry)), lambda: store.push(name(registry)))
    assert store.image(name(registry)).id == other.id
    assert not [digest for digest in store.image(other.id).digests if "team/app" in digest]


def test_a_registry_that_mounts_nothing(store: ImageStore, registry: Registry) -> None:
    """It answers a mount with an upload; that is given up, and no other is left."""
    registry.add_image("base", "1", LAYERS)
    store.pull(f"{registry.host}/base:1")
    for fault in (Fault(status=405), Fault(status=403)):
        registry.inject("mount=", fault, times=2, method="POST")
    succeeds(store, registry)
    registry.holdings["base"].clear()
    store.tag(name(registry), f"{registry.host}/again:1")
    registry.holdings["team/app"].clear()
    assert store.push(f"{registry.host}/again:1")
    assert not registry.uploads.unfinished
    assert len(registry.holdings["again"]) == 1 + len(LAYERS)


def test_no_space_for_what_is_compressed(registry: Registry, tmp_path: Path) -> None:
    need("mount", "umount")
    need_root()
    small = tmp_path / "small"
    small.mkdir()
    layout = write_layout(tmp_path / "layout", {"1": build_image(LAYERS)})
    run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", small)
    try:
        ImageStore.create(str(small / "store"), disk_size=DISK_SIZE).close()
        with ImageStore.open(str(small / "store"), registries=QUICK) as store:
            store.tag(store.pull(f"oci:{layout}:1").reference, name(registry))
            with (small / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
                while ballast.write(bytes(4096)):
                    pass
            os.truncate(small / "ballast", (small / "ballast").stat().st_size - (2 << 20))
            error = fails(store, registry, NoSpaceError, "cannot hold layer [0-9a-f]{12} compressed: No space left on device")
            assert str(small / "store") in str(error)
            (small / "ballast").unlink()
            succeeds(store, registry)
    finally:
        run("umount", small)


def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path / "store")
    archive = write_docker_archive(tmp_path / "app.tar", {"app:1": build_image(LAYERS)})
    cli.text("pull", "-q", f"docker-archive:{archive}")
    with Registry() as registry:
        cli.text("tag", "app:1", name(registry))
        before = sorted(cli.store.rglob("*"))
        registry.inject("uploads/", Fault(delay=30), times=ALWAYS, method="PATCH")
        process = cli.start("push", name(registry))
        while not [request for request in registry.requests if request.method == "PATCH"]:
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)  # who waits for an answer that does not come is not waited for
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
    with Registry() as registry:
        cli.text("tag", "app:1", name(registry))
        cli.text("push", "-q", name(registry))
        after = [path for path in sorted(cli.store.rglob("*")) if "references" not in path.parts]
        extra = {path.name.partition(".")[2] for path in set(after) - set(before)}
        assert extra <= {"blobs.json"}
        assert cli.json("check") == []
