"""Debian's ``docker-registry``, the reference implementation, on a free port of the loopback interface."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools import need


@contextmanager
def docker_registry(directory: Path) -> Iterator[str]:
    """Runs an empty registry that keeps its blobs under ``directory``; gives ``127.0.0.1:PORT``."""
    need("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "config.yml"
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": host},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    with (directory / "registry.log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait(host, server, directory / "registry.log")
        yield host
    finally:
        server.terminate()
        server.wait(30)


def _wait(host: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
        except (urllib.error.URLError, ConnectionError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"docker-registry does not answer at {host}: {log.read_text()}") from error
            time.sleep(0.02)
        else:
            return
