"""Debian's dockerd and containerd, started for the bench with all their data in a directory of its own, as one would use them on a server.

Both need root. Neither makes a network for containers, as no container runs. They are given the file system that imgstore is given.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

DOCKER, DOCKERD = "/usr/bin/docker", "/usr/sbin/dockerd"  # Debian's docker.io, whatever else is on the PATH
CONTAINERD, CTR = "/usr/bin/containerd", "/usr/bin/ctr"


class Engine(ABC):
    """A daemon that can pull. It runs from ``with`` on, and is gone with its data when that ends.

    Attributes:
        name: of its program for users.
        stores: with what it keeps images.
    """

    name: str
    stores: str
    programs: tuple[str, ...]

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def installed(cls) -> bool:
        """Whether all its programs are on this machine."""
        return all(Path(program).exists() for program in cls.programs)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        self._log = (self.directory / "log").open("wb")
        self._daemon = subprocess.Popen(self._daemon_command(), stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while subprocess.run([*self._client(), "version"], capture_output=True).returncode != 0:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start:\n{(self.directory / 'log').read_text()[-3000:]}")
            time.sleep(0.1)
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._daemon.terminate()
        self._daemon.wait(60)
        self._log.close()
        shutil.rmtree(self.directory)

    @property
    @abstractmethod
    def version(self) -> str:
        """The daemon's version, as its package has it."""

    @abstractmethod
    def pull_command(self, reference: str) -> list[str]:
        """The command that pulls, to be measured."""

    @abstractmethod
    def clear(self) -> None:
        """Forgets all images and frees all that they took, so that the next pull starts anew."""

    @property
    def pull_title(self) -> str:
        """What it does when it pulls, in words."""
        return f"{self.name} pull ({self.stores})"

    @abstractmethod
    def _daemon_command(self) -> list[str]: ...

    @abstractmethod
    def _client(self) -> list[str]: ...

    @abstractmethod
    def _check(self) -> None:
        """Raises RuntimeError unless images would go where the bench says they go."""

    def _ask(self, *words: str) -> str:
        return subprocess.run([*self._client(), *words], check=True, capture_output=True, text=True).stdout.strip()


class Docker(Engine):
    """dockerd with the overlay2 storage driver."""

    name = "docker"
    stores = "overlay2"
    programs = (DOCKER, DOCKERD)

    @property
    def version(self) -> str:
        return "docker.io " + self._ask("version", "--format", "{{.Server.Version}}")

    def pull_command(self, reference: str) -> list[str]:
        return [*self._client(), "pull", "-q", reference]

    def save_command(self, reference: str) -> list[str]:
        """The command that writes the image to standard output."""
        return [*self._client(), "save", reference]

    def load_command(self, archive: Path) -> list[str]:
        """The command that loads an archive."""
        return [*self._client(), "load", "-q", "-i", str(archive)]

    def push_command(self, reference: str) -> list[str]:
        """The command that pushes the image that has this name."""
        return [*self._client(), "push", "-q", reference]

    def tag(self, image: str, reference: str) -> None:
        """Gives an image a name."""
        self._ask("tag", image, reference)

    def clear(self) -> None:
        self._ask("image", "prune", "-af")
        if left := self._ask("image", "ls", "-aq"):
            raise RuntimeError(f"docker still has images: {left}")

    def _daemon_command(self) -> list[str]:
        return [
            DOCKERD,
            *("--data-root", str(self.directory / "data")),
            *("--exec-root", str(self.directory / "exec")),
            *("--pidfile", str(self.directory / "pid")),
            *("--host", f"unix://{self.directory}/socket"),
            *("--config-file", str(self._empty_configuration())),
            *("--storage-driver", "overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"),
        ]

    def _empty_configuration(self) -> Path:
        path = self.directory / "daemon.json"
        path.write_text("{}")
        return path

    def _client(self) -> list[str]:
        return [DOCKER, "--host", f"unix://{self.directory}/socket"]

    def _check(self) -> None:
        driver = self._ask("info", "--format", "{{.Driver}}")
        if driver != "overlay2":
            raise RuntimeError(f"docker stores with {driver}, not overlay2")


class Containerd(Engine):
    """containerd with the overlayfs snapshotter, driven by its own ``ctr``."""

    name = "ctr"
    stores = "overlayfs"
    programs = (CONTAINERD, CTR)

    @property
    def version(self) -> str:
        return (
            "containerd "
            + subprocess.run([CONTAINERD, "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
        )

    def pull_command(self, reference: str) -> list[str]:
        return [*self._client(), "images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference]

    def clear(self) -> None:
        if images := self._ask("images", "ls", "-q").split():
            self._ask("images", "rm", "--sync", *images)
        if (
            left := self._ask("content", "ls", "-q")
            + self._ask("snapshots", "--snapshotter", "overlayfs", "ls").partition("\n")[2]
        ):
            raise RuntimeError(f"containerd still has {left}")

    def _daemon_command(self) -> list[str]:
        configuration = self.directory / "config.toml"
        configuration.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        return [
            CONTAINERD,
            *("--config", str(configuration)),
            *("--root", str(self.directory / "data")),
            *("--state", str(self.directory / "state")),
            *("--address", f"{self.directory}/socket"),
        ]

    def _client(self) -> list[str]:
        return [CTR, "--address", f"{self.directory}/socket"]

    def _check(self) -> None:
        plugins = self._ask("plugins", "ls")
        if not any(line.split()[1] == "overlayfs" and line.split()[-1] == "ok" for line in plugins.splitlines()):
            raise RuntimeError(f"containerd's overlayfs snapshotter does not work here:\n{plugins}")


ENGINES: tuple[type[Engine], ...] = (Docker, Containerd)
