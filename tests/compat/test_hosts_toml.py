"""The same hosts.toml leads containerd and us to the same URLs, with the same headers, in the same order.

No server is needed: ``ctr --debug`` says what it is about to send, and nobody listens where the files point to.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry_client.options import Options, Places
from registry_client.reference import Reference
from registry_client.routes import find_endpoints
from tests import tools
from tests.servers.images import digest_of

NO_PROXY = "http://127.0.0.1:9"
DIGEST = digest_of(b"any")
START_TIME_MAX = 30.0
Sent = tuple[str, dict[str, str]]


@pytest.fixture(scope="module")
def ctr() -> Iterator[Callable[..., list[Sent]]]:
    """Runs a pull that fails, and returns the URLs with the headers that begin with ``x-``."""
    tools.need("containerd", "ctr")
    tools.need_root()
    directory = Path(tempfile.mkdtemp(prefix="ctr"))  # a socket's name must be short
    socket, config = directory / "s", directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{socket}"\n[ttrpc]\naddress = "{directory}/t"\n'
    )
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(["containerd", "-c", config], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_TIME_MAX
            while tools.run("ctr", "-a", socket, "version", check=False).returncode != 0:
                assert daemon.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.05)

            def pull(hosts: Path, reference: str) -> list[Sent]:
                words = ["env", f"HTTPS_PROXY={NO_PROXY}", f"HTTP_PROXY={NO_PROXY}", "ctr", "--debug", "-a", str(socket)]
                done = tools.run(*words, "images", "pull", "--hosts-dir", hosts, reference, check=False)
                assert done.returncode != 0
                lines = [line for line in done.stderr.decode().splitlines() if 'msg="do request"' in line]
                return [(re.findall(r'url="?([^" ]+)"?', line)[0], _headers(line)) for line in lines if "/manifests/" in line]

            yield pull
        finally:
            daemon.terminate()
            daemon.wait()
            shutil.rmtree(directory)


def _headers(line: str) -> dict[str, str]:
    return {name: value.strip('"') for name, value in re.findall(r'request\.header\.(x-[^= ]+)=("[^"]*"|\S+)', line)}


def ours(hosts: Path, text: str) -> list[Sent]:
    reference = Reference.parse(text)
    endpoints = find_endpoints(reference.registry, reference.repository, Options(places=Places(hosts_toml=(hosts,))))
    sent: list[Sent] = []
    for endpoint in endpoints:
        if endpoint.serves_tags if reference.digest is None else endpoint.serves_digests:
            query = "" if endpoint.namespace is None else "?ns=" + endpoint.namespace.replace(":", "%3A")
            path = f"{endpoint.api}/{endpoint.repository}/manifests/{reference.digest or reference.tag}"
            headers: dict[str, str] = {}
            for name, value in endpoint.headers:
                count = sum(key.partition(".")[0] == name for key in headers)
                headers[f"{name}.{count}" if count else name] = value
            sent.append((f"{endpoint.schemes[0]}://{endpoint.host}{path}{query}", headers))
    return sent


MIRRORS = """
server = "https://upstream.invalid/base"
[header]
  x-top = "of the server"
[host."http://127.0.0.1:2/us"]
  capabilities = ["pull", "resolve"]
[host."https://pull.invalid"]
  capabilities = ["Pull"]
[host."https://resolve.invalid:8443"]
  capabilities = ["resolve"]
[host."https://v2.invalid/v2/upstream"]
  override_path = true
  dial_timeout = "1s"
[host."https://slashes.invalid//a/../b/"]
[host."https://in-v2.invalid/x/v2"]
[host."https://headers.invalid".header]
  x-one = "a b"
  x-two = ["1", "2"]
[host."no-scheme.invalid:5000/y"]
"""


@pytest.mark.parametrize(("reference", "count"), [("r.invalid/team/app:1", 7), (f"r.invalid/team/app@{DIGEST}", 8)])
def test_mirrors(reference: str, count: int, ctr: Callable[..., list[Sent]], tmp_path: Path) -> None:
    (tmp_path / "r.invalid").mkdir()
    (tmp_path / "r.invalid/hosts.toml").write_text(MIRRORS)
    assert ours(tmp_path, reference) == ctr(tmp_path, reference)
    assert len(ours(tmp_path, reference)) == count


@pytest.mark.parametrize(
    ("registry", "directories", "expected"),
    [
        ("r.invalid:5000", ["r.invalid_5000_", "r.invalid:5000", "r.invalid", "_default"], "r.invalid_5000_"),
        ("r.invalid:5000", ["r.invalid:5000", "r.invalid", "_default"], "r.invalid:5000"),
        ("r.invalid:5000", ["r.invalid", "_default"], "_default"),
        ("r.invalid", ["r.invalid", "_default"], "r.invalid"),
        ("docker.io", ["docker.io", "registry-1.docker.io"], "docker.io"),
        ("docker.io", ["_default"], "_default"),
        ("other.invalid", ["r.invalid"], None),
    ],
)
def test_directories(
    registry: str, directories: list[str], expected: str | None, ctr: Callable[..., list[Sent]], tmp_path: Path
) -> None:
    for name in directories:
        (tmp_path / name).mkdir()
        (tmp_path / name / "hosts.toml").write_text(
            f'[host."https://mirror.invalid/{name.strip("_").replace(":", "/").lower()}"]\n'
        )
    reference = f"{registry}/team/app:1"
    assert ours(tmp_path, reference) == ctr(tmp_path, reference)
    assert len(ours(tmp_path, reference)) == (1 if expected is None else 2)


def test_a_directory_without_the_file_hides_the_default(ctr: Callable[..., list[Sent]], tmp_path: Path) -> None:
    for name in ["r.invalid", "_default"]:
        (tmp_path / name).mkdir()
    (tmp_path / "_default/hosts.toml").write_text('server = "https://only.invalid"\n[host."https://mirror.invalid"]\n')
    for reference in ["r.invalid/app:1", "other.invalid/app:1"]:
        assert ours(tmp_path, reference) == ctr(tmp_path, reference)
