"""Debian's dockerd, with a directory of its own and no network: what the endpoint is compared with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import tools

_START_TIME_MAX = 60.0


@contextlib.contextmanager
def dockerd(*options: str) -> Iterator[str]:
    """Runs a daemon until the end of the block; yields what DOCKER_HOST is to be. Skips or fails the test without dockerd or root.

    Its storage driver is ``vfs``, which works on any file system.

    Args:
        options: further ones: ``--registry-mirror=…``, ``--insecure-registry=…``.
    """
    tools.need("dockerd", "docker")
    tools.need_root()
    with tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        host = f"unix://{directory}/docker.sock"
        words = ["--iptables=false", "--ip6tables=false", "--bridge=none", "-s", "vfs", "-H", host]
        places = ["--data-root", directory / "data", "--exec-root", directory / "exec", "-p", directory / "pid"]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        with (directory / "log").open("wb") as log:
            daemon = subprocess.Popen(["dockerd", *words, *places, *options], stdout=log, stderr=log, env=environment)
            try:
                deadline = time.monotonic() + _START_TIME_MAX
                while subprocess.run(["docker", "-H", host, "version"], capture_output=True).returncode != 0:
                    assert daemon.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
                    time.sleep(0.2)
                yield host
            finally:
                daemon.terminate()
                daemon.wait(60)
