"""Many that want one thing at once: each layer crosses the network once."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from imgstore.store import ImageStore
from tests.command_line import ROOT, CommandLine, litter
from tests.servers.images import make_tar
from tests.servers.registry import Registry

THREADS = (13, 13, 12, 12)
TIME_MAX = 120.0
LAYERS = [make_tar({name: random.Random(name).randbytes(300_000)}) for name in ("first", "second", "third")]


def test_fifty_threads_in_four_processes_fetch_each_layer_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        registry = stack.enter_context(Registry())
        image = registry.add_image("app", "1", LAYERS)
        with ImageStore.open(str(tmp_path / "store")):
            pass
        workers = [start(stack, tmp_path / "store", f"{registry.host}/app:1", threads) for threads in THREADS]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", worker.communicate()
        told = []
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in workers:
            told.append(worker.communicate(timeout=TIME_MAX))
        assert [worker.returncode for worker in workers] == [0, 0, 0, 0], told
        ids = [line for out, _ in told for line in out.split()]
        assert ids == [image.image_id] * sum(THREADS)
        assert {digest: len(registry.paths(f"/blobs/{digest}")) for digest in image.layer_digests} == dict.fromkeys(
            image.layer_digests, 1
        )
        # Documents are read by each for itself, at most once: before that nobody knows which image it is.
        assert 1 <= len(registry.paths("/manifests/")) <= sum(THREADS)
        assert 1 <= len(registry.paths(f"/blobs/{image.image_id}")) <= sum(THREADS)
    with ImageStore.open(str(tmp_path / "store"), create=False) as store:
        assert len(store.images()) == 1
        assert list(store.check(read_data=True)) == []
    assert litter(tmp_path / "store") == []


def start(stack: ExitStack, store: Path, reference: str, threads: int) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.functional.pull_worker", str(store), reference, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=CommandLine(store).environment,
    )
    stack.callback(worker.wait)
    stack.callback(worker.kill)
    return worker
