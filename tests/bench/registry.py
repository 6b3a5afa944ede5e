"""Debian's docker-registry on a free loopback port, and what it was asked."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

CONFIGURATION = """\
version: 0.1
log: {{accesslog: {{disabled: false}}, level: error}}
storage:
  filesystem: {{rootdirectory: {directory}/data}}
  cache: {{blobdescriptor: inmemory}}
http: {{addr: "{host}"}}
"""


class DockerRegistry:
    """A registry process that keeps its data below ``directory``; there from ``with`` on, gone when it ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = f"127.0.0.1:{_free_port()}"
        self._log = directory / "access.log"

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def clear(self) -> None:
        """Makes it forget all that it has; what it was asked, too."""
        self._stop()
        shutil.rmtree(self.directory)
        self._start()

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "config.yml"
        configuration.write_text(CONFIGURATION.format(directory=self.directory, host=self.host))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(["docker-registry", "serve", configuration], stdout=log, stderr=subprocess.STDOUT)
        host, port = self.host.split(":")
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"docker-registry does not answer at {self.host}:\n{self._log.read_text()}") from error
                time.sleep(0.05)

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def push(self, layout: Path, name: str) -> str:
        """Copies an OCI layout's image here, blob by blob as it is, and returns its reference."""
        reference = f"{self.host}/{name}"
        copy = [
            "skopeo",
            "copy",
            "-q",
            "--insecure-policy",
            "--dest-tls-verify=false",
            f"oci:{layout}:latest",
            f"docker://{reference}",
        ]
        subprocess.run(copy, check=True, env={**os.environ, "TMPDIR": str(self.directory)})
        return reference

    def requests(self) -> list[str]:
        """All requests so far, such as ``GET /v2/bench/manifests/1``, oldest first."""
        lines = self._log.read_text().splitlines()
        return [line.split('"')[1].rsplit(" ", 1)[0] for line in lines if '" ' in line and " HTTP/1." in line]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
