"""Many at once: pulls of the same layers in threads and processes, removals between them, interrupts in the middle."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgstore.errors import CorruptError, ImgstoreError, NotFoundError
from imgstore.progress import ProgressEvent, State
from imgstore.store import ImageStore
from tests.command_line import CommandLine, complaint, contents, litter
from tests.servers.images import BuiltImage, make_tar
from tests.servers.registry import Fault, Registry

WAIT_MAX = 30.0


def layer(name: str, size: int = 200_000) -> bytes:
    return make_tar({name: random.Random(name).randbytes(size)})


LAYERS = [layer("first"), layer("second"), layer("third")]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def image(registry: Registry) -> BuiltImage:
    return registry.add_image("app", "1", LAYERS)


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    cli = CommandLine(tmp_path / "store")
    with ImageStore.open(str(cli.store)):
        pass
    return cli


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_MAX
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def blob_requests(registry: Registry, image: BuiltImage) -> Counter[str]:
    """How often each layer was asked for."""
    return Counter({digest: len(registry.paths(f"/blobs/{digest}")) for digest in image.layer_digests})


def once_each(image: BuiltImage) -> Counter[str]:
    return Counter(image.layer_digests)


def assert_sound(store: Path, images: int) -> None:
    with ImageStore.open(str(store), create=False) as opened:
        assert len(opened.images()) == images
        assert list(opened.check(read_data=True)) == []
    assert litter(store) == []


def open_files() -> int:
    gc.collect()  # what urllib3 closes with its objects
    return len(list(Path("/proc/self/fd").iterdir()))


class TestPulls:
    def test_threads_of_one_store_and_of_several(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        released = threading.Event()
        for digest in image.layer_digests:
            registry.inject(f"/blobs/{digest}", Fault(hold=released))
        with ImageStore.open(str(cli.store)) as one, ImageStore.open(str(cli.store)) as two, ThreadPoolExecutor(4) as pool:
            pulls = [pool.submit(store.pull, f"{registry.host}/app:1") for store in (one, one, two, two)]
            wait_until(lambda: len(registry.paths("/blobs/")) >= 4)
            released.set()
            assert {pull.result(WAIT_MAX).image.id for pull in pulls} == {image.image_id}
        assert once_each(image) == blob_requests(registry, image)
        assert_sound(cli.store, 1)

    def test_processes(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        released = threading.Event()
        for digest in image.layer_digests:
            registry.inject(f"/blobs/{digest}", Fault(hold=released))
        processes = [cli.start("pull", f"{registry.host}/app:1") for _ in range(4)]
        wait_until(lambda: len(registry.paths("/manifests/")) == 4)
        time.sleep(0.5)  # the others come to wait for the one that has the layers
        released.set()
        told = [process.communicate(timeout=WAIT_MAX) for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, told
        assert {out for out, _ in told} == {f"{registry.host}/app:1\n".encode()}
        assert once_each(image) == blob_requests(registry, image)
        assert_sound(cli.store, 1)

    def test_the_second_shows_the_progress_of_the_first(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        released = threading.Event()
        big = registry.add_image("big", "1", [layer("big", 6_000_000)], compression="none")
        registry.inject(f"/blobs/{big.layer_digests[0]}", Fault(hold=released))
        seen: list[ProgressEvent] = []
        with ImageStore.open(str(cli.store)) as one, ImageStore.open(str(cli.store)) as two, ThreadPoolExecutor(2) as pool:
            first = pool.submit(one.pull, f"{registry.host}/big:1")
            wait_until(lambda: bool(registry.paths("/blobs/" + big.layer_digests[0])))
            second = pool.submit(two.pull, f"{registry.host}/big:1", progress=seen.append)
            wait_until(lambda: any(event.state in (State.DOWNLOADING, State.CONVERTING) for event in list(seen)))
            released.set()
            first.result(WAIT_MAX)
            second.result(WAIT_MAX)
        assert seen[-1].state is State.EXISTS
        assert len(registry.paths("/blobs/" + big.layer_digests[0])) == 1

    def test_images_that_share_layers(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        other = registry.add_image("other", "1", [*LAYERS[:2], layer("fourth")])
        with ImageStore.open(str(cli.store)) as store, ThreadPoolExecutor(2) as pool:
            list(pool.map(store.pull, [f"{registry.host}/app:1", f"{registry.host}/other:1"]))
            assert store.usage().disks == 4
        assert Counter({*image.layer_digests, *other.layer_digests}) == blob_requests(registry, image) | blob_requests(
            registry, other
        )
        assert_sound(cli.store, 2)

    def test_the_second_takes_over_from_the_killed(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        registry.inject(f"/blobs/{image.layer_digests[1]}", Fault(hold=threading.Event()))
        first = cli.start("pull", "-q", f"{registry.host}/app:1")
        wait_until(lambda: len(list(cli.store.glob("disks/*.json"))) == 1)
        second = cli.start("pull", "-q", f"{registry.host}/app:1")
        wait_until(lambda: len(registry.paths("/manifests/")) == 2)
        time.sleep(0.3)
        first.kill()
        first.communicate()
        out, told = second.communicate(timeout=WAIT_MAX)
        assert (second.returncode, out) == (0, f"{image.image_id}\n".encode()), told
        assert len(registry.paths(f"/blobs/{image.layer_digests[0]}")) == 1, "the first layer was complete"
        assert_sound(cli.store, 1)

    def test_a_failed_pull_gives_back_threads_and_files(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        registry.inject(f"/blobs/{image.layer_digests[1]}", Fault(damage_at=1000), times=99)

        def pull(store: ImageStore) -> None:
            with pytest.raises(CorruptError):
                store.pull(f"{registry.host}/app:1")

        with ImageStore.open(str(cli.store)) as store:
            pull(store)  # what is made once and kept is made
        before = open_files()
        with ImageStore.open(str(cli.store)) as store:  # keeps its connections as long as it is open
            for _ in range(5):
                pull(store)
            assert [thread.name for thread in threading.enumerate() if thread.name.startswith("imgstore")] == []
        wait_until(lambda: before >= open_files())  # the registry in this process sees later that we are gone

    def test_a_failure_does_not_wait_for_the_other_downloads(
        self, cli: CommandLine, registry: Registry, image: BuiltImage
    ) -> None:
        registry.inject(f"/blobs/{image.layer_digests[0]}", Fault(damage_at=1000))
        registry.inject(f"/blobs/{image.layer_digests[2]}", Fault(hold=threading.Event()))
        with ImageStore.open(str(cli.store)) as store, pytest.raises(CorruptError):
            store.pull(f"{registry.host}/app:1")
        assert_sound(cli.store, 0)


class TestRemovals:
    def test_while_another_pull_needs_the_layers(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        registry.add_image("other", "1", [*LAYERS, layer("fourth")])
        released = threading.Event()
        with ImageStore.open(str(cli.store)) as store, ThreadPoolExecutor(1) as pool:
            store.pull(f"{registry.host}/app:1")
            fourth = next(iter(set(registry.blobs) - set(image.blobs)))
            registry.inject("/v2/other/blobs/", Fault())  # the configuration
            registry.inject("/v2/other/blobs/", Fault(hold=released))
            pull = pool.submit(store.pull, f"{registry.host}/other:1")
            wait_until(lambda: len(registry.paths("/v2/other/blobs/")) == 2)
            store.remove(f"{registry.host}/app:1")
            released.set()
            assert len(pull.result(WAIT_MAX).image.layers) == 4
            assert fourth in registry.blobs
        assert len(registry.paths(f"/blobs/{image.layer_digests[0]}")) == 1, "it stayed"
        assert_sound(cli.store, 1)

    def test_readers_and_pulls_and_removals_at_once(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        name = f"{registry.host}/app:1"
        ended = threading.Event()
        wrong: list[BaseException] = []

        def read() -> None:
            with ImageStore.open(str(cli.store)) as store:
                while not ended.is_set():
                    try:
                        store.images()
                        assert b"".join(store.read_file(name, "first")) == random.Random("first").randbytes(200_000)
                    except NotFoundError:
                        pass
                    except BaseException as error:
                        wrong.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            with ImageStore.open(str(cli.store)) as store:
                for _ in range(10):
                    store.pull(name)
                    store.remove(name)
        finally:
            ended.set()
            for reader in readers:
                reader.join()
        assert wrong == []
        assert_sound(cli.store, 0)

    def test_processes_that_pull_and_remove(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        name = f"{registry.host}/app:1"

        def work(seed: int) -> None:
            chosen = random.Random(seed)
            with ImageStore.open(str(cli.store)) as store:
                for _ in range(8):
                    try:
                        if chosen.random() < 0.5:
                            store.pull(name)
                        else:
                            store.remove(name)
                    except NotFoundError:
                        pass

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))
        with ImageStore.open(str(cli.store)) as store:
            store.pull(name)
        assert_sound(cli.store, 1)


class TestInterrupts:
    def held_pull(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> subprocess.Popen[bytes]:
        """A pull that has the first layer complete and is in the middle of the second."""
        registry.inject(f"/blobs/{image.layer_digests[1]}", Fault(hold=threading.Event()))
        process = cli.start("pull", f"{registry.host}/app:1")
        wait_until(lambda: len(list(cli.store.glob("disks/*.json"))) == 1)
        return process

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_interrupted(
        self, cli: CommandLine, registry: Registry, image: BuiltImage, number: signal.Signals, code: int
    ) -> None:
        process = self.held_pull(cli, registry, image)
        sent = time.monotonic()
        process.send_signal(number)
        out, told = process.communicate(timeout=WAIT_MAX)
        assert (process.returncode, out) == (code, b""), told
        assert time.monotonic() - sent < 20, "it must not wait for a silent registry"
        assert "layers that were complete are kept" in complaint(told)
        assert told.endswith(b"hint: run the same command again\n")
        assert_sound(cli.store, 0)
        registry.requests.clear()
        done = cli.run("pull", f"{registry.host}/app:1")
        assert done.returncode == 0
        assert f"{image.layer_digests[0][7:19]}: Already exists" in done.stderr.decode()
        assert registry.paths(f"/blobs/{image.layer_digests[0]}") == []
        assert_sound(cli.store, 1)

    def test_twice(self, cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
        """Before the answer to a request has begun nothing can end it: the second Ctrl-C does not wait."""
        registry.inject(f"/blobs/{image.layer_digests[2]}", Fault(delay=8))
        process = self.held_pull(cli, registry, image)
        wait_until(lambda: bool(registry.paths(f"/blobs/{image.layer_digests[2]}")))
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=6)[1]
        assert process.returncode == 130
        assert b"Traceback" not in told
        assert cli.run("pull", "-q", f"{registry.host}/app:1").returncode == 0
        assert_sound(cli.store, 1)

    def test_at_any_time(self, cli: CommandLine, registry: Registry, image: BuiltImage, tmp_path: Path) -> None:
        chosen = random.Random(7)
        for _ in range(6):
            process = cli.start("pull", f"{registry.host}/app:1")
            time.sleep(chosen.uniform(0.3, 1.0))
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=WAIT_MAX)[1]
            assert process.returncode in (0, 130, -signal.SIGINT), told
            with ImageStore.open(str(cli.store)) as store:
                assert list(store.check(read_data=True)) == []
            assert litter(cli.store) == []
        cli.text("pull", f"{registry.host}/app:1")
        other = CommandLine(tmp_path / "other")
        other.text("pull", f"{registry.host}/app:1")
        assert contents(other.store) == contents(cli.store)


def test_what_a_thread_raises_is_typed(cli: CommandLine, registry: Registry, image: BuiltImage) -> None:
    """Whatever layer fails, and whenever the others do."""
    chosen = random.Random(11)
    with ImageStore.open(str(cli.store)) as store:
        for _ in range(10):
            for digest in image.layer_digests:
                registry.inject(
                    f"/blobs/{digest}", chosen.choice([Fault(damage_at=500), Fault(drop=3), Fault(status=404), Fault(delay=0.05)])
                )
            with contextlib.suppress(ImgstoreError):
                store.pull(f"{registry.host}/app:1")
            assert list(store.check(read_data=True)) == []
            registry._injected.clear()
            if store.images():
                store.remove(f"{registry.host}/app:1")
    assert litter(cli.store) == []
