"""govmomi's ``vcsim``: a vCenter that is simulated, but for its datastores, which are directories of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from imgstore.vsphere.login import VsphereLogin
from imgstore.vsphere.session import VsphereSession
from imgstore.vsphere.soap import vim
from tests import tools
from tests.servers.authority import Authority

USERNAME = "tester"  # vcsim takes none with an @
PASSWORD = "s3cret:with@signs"
DATACENTER = "DC0"
DATASTORE = "LocalDS_0"

_START_TIME_MAX = 20.0


class Vcsim:
    """A vcsim that runs: datacenter ``DC0`` with one cluster, one host beside it, and two machines of each.

    Attributes:
        host: ``127.0.0.1``.
        port: where it listens.
        ca_file: authority of its certificate.
        login: of its one user.
    """

    def __init__(self, directory: Path, port: int, ca_file: Path) -> None:
        self._directory = directory
        self.host = "127.0.0.1"
        self.port = port
        self.ca_file = ca_file
        self.login = VsphereLogin(self.host, port, USERNAME, PASSWORD, ca_file=str(ca_file))

    @property
    def environment(self) -> dict[str, str]:
        """govc's variables that lead there."""
        return {
            "GOVC_URL": f"https://{self.host}:{self.port}/sdk",
            "GOVC_USERNAME": USERNAME,
            "GOVC_PASSWORD": PASSWORD,
            "GOVC_TLS_CA_CERTS": str(self.ca_file),
            "GOVC_DATACENTER": DATACENTER,
        }

    def url(self, path: str = "", datastore: str = DATASTORE) -> str:
        """``vsphere://`` with a path of a datastore, percent-encoded."""
        return f"vsphere://{USERNAME}@{self.host}:{self.port}/{DATACENTER}/{datastore}/{path}"

    def directory(self, datastore: str = DATASTORE) -> Path:
        """Where the files of a datastore are on this machine."""
        with self.session() as session:
            found = session.datastore(session.datacenter(DATACENTER), datastore)
            return Path(session.properties([found], "info.url")[found]["info.url"])

    def session(self) -> VsphereSession:
        """A new session, not logged in."""
        return VsphereSession(self.login)

    def add_datastore(self, name: str, directory: Path | None = None) -> Path:
        """Makes a datastore of every host; returns where its files are.

        Args:
            directory: an existing one; by default a new one.
        """
        if directory is None:
            directory = self._directory / name
            directory.mkdir()
        with self.session() as session:
            hosts = session.content.viewManager.CreateContainerView(session.content.rootFolder, [vim.HostSystem], True).view
            for host in hosts:
                host.configManager.datastoreSystem.CreateLocalDatastore(name=name, path=str(directory))
        return directory

    def add_nfs_datastore(self, name: str, kind: str = "NFS") -> Path:
        """Makes a datastore that says it is NFS (or ``NFS41``); returns where its files are."""
        directory = self._directory / name
        directory.mkdir()
        spec = vim.host.NasVolume.Specification(
            remoteHost="nfs.example.com", remotePath="/export", localPath=str(directory), accessMode="readWrite", type=kind
        )
        with self.session() as session:
            hosts = session.content.viewManager.CreateContainerView(session.content.rootFolder, [vim.HostSystem], True).view
            hosts[0].configManager.datastoreSystem.CreateNasDatastore(spec)
        return directory

    def end_sessions(self) -> int:
        """Ends all sessions of others, as an administrator or a restart of the server does; returns how many they were."""
        with self.session() as session:
            manager = session.content.sessionManager
            others = [each.key for each in manager.sessionList if each.key != manager.currentSession.key]
            for key in others:
                with contextlib.suppress(vim.fault.NotFound):  # it has logged out meanwhile
                    manager.TerminateSession([key])
            return len(others)


@contextlib.contextmanager
def vcsim(directory: Path, *options: str) -> Iterator[Vcsim]:
    """Runs a vcsim until the end of the block. Skips or fails the test where there is none.

    Args:
        directory: for its datastores, its certificate and its log; made if it is missing, and removed at the end.
        options: more of its options: ``-dc 2``, ``-esx``.
    """
    tools.need("vcsim")
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority(directory / "authority")
    certificate, key = authority.server
    log = directory / "log"
    command = ["vcsim", "-l", "127.0.0.1:0", "-username", USERNAME, "-password", PASSWORD, "-host", "1", "-standalone-host", "1"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "-tlscert", str(certificate), "-tlskey", str(key), *options],
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        try:
            yield Vcsim(directory, _wait_for_port(server, log), authority.ca_file)
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(directory, ignore_errors=True)


def _wait_for_port(server: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + _START_TIME_MAX
    while time.monotonic() < deadline:
        if found := re.search(rb"export GOVC_URL=\S+:(\d+)/sdk", log.read_bytes()):
            return int(found[1])
        if server.poll() is not None:
            raise AssertionError(f"vcsim ended with {server.returncode}: {log.read_text()}")
        time.sleep(0.02)
    raise AssertionError(f"vcsim did not start within {_START_TIME_MAX:.0f} s: {log.read_text()}")
