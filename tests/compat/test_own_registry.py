"""skopeo copies into the registry of this process, and out again: the digests are equal, so what we test our client with is a registry."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import tools
from tests.servers.authority import Authority
from tests.servers.images import build_image, digest_of, make_tar, write_layout
from tests.servers.proxy import Proxy
from tests.servers.registry import Registry
from tests.servers.token_server import ALL, Account, TokenServer

THREE_LAYERS = Path("testdata/three-layers")


def digests(layout: Path) -> set[str]:
    return {path.name for path in (layout / "blobs/sha256").iterdir()}


def copy_in_and_out(
    registry: Registry, layout: Path, to: Path, *, cert_dir: Path | None = None, name: str = "team/app:1"
) -> None:
    """Asserts that all blobs and manifests come out as they went in."""
    tools.need("skopeo")
    secret = f"{registry.username}:{registry.password}"
    where = f"docker://{registry.host}/{name}"
    for words in (
        ["copy", "--all", "--preserve-digests", f"--dest-creds={secret}", "--dest-OPTION", f"oci:{layout}:latest", where],
        ["copy", "--all", "--preserve-digests", f"--src-creds={secret}", "--src-OPTION", where, f"oci:{to}:latest"],
    ):
        option = "tls-verify=false" if cert_dir is None else f"cert-dir={cert_dir}"
        tools.run("skopeo", *(word.replace("OPTION", option) for word in words))
    assert digests(to) == digests(layout)


@pytest.mark.parametrize("location", ["absolute", "relative", "opaque", "storage"])
@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
def test_image(tmp_path: Path, auth: str, location: str) -> None:
    with Registry(auth=auth) as registry:
        registry.uploads.location = location
        if location == "storage" and auth != "none":
            # skopeo takes its authorization along; the storage server refuses that, as S3 does.
            with pytest.raises(AssertionError, match="StatusCode: 400"):
                copy_in_and_out(registry, THREE_LAYERS, tmp_path / "out")
            return
        copy_in_and_out(registry, THREE_LAYERS, tmp_path / "out")
        assert not registry.uploads.unfinished
        assert registry.paths("uploads/", method="PATCH")


def test_index_of_several_platforms(tmp_path: Path) -> None:
    images = [build_image([make_tar({"name": name.encode()})], platform=name) for name in ("linux/amd64", "linux/arm64")]
    layout = write_layout(tmp_path / "layout", {"latest": images})
    with Registry() as registry:
        copy_in_and_out(registry, layout, tmp_path / "out")
        assert len(registry.paths("/manifests/", method="PUT")) == 3


def test_mount(tmp_path: Path) -> None:
    """skopeo mounts from the repository from which it remembers the blobs."""
    with Registry(auth="bearer") as registry:
        copy_in_and_out(registry, THREE_LAYERS, tmp_path / "out")
        uploaded = len(registry.paths("uploads/", method="PUT"))
        copy_in_and_out(registry, THREE_LAYERS, tmp_path / "out2", name="team/other:1")
        assert registry.paths("mount=", method="POST")
        assert len(registry.paths("uploads/", method="PUT")) == uploaded + 1, "the layers were mounted, the configuration was not"


def test_pushes_stay_in_their_repository() -> None:
    with Registry() as registry:
        digest = registry.add_blob("one", b"data")
        assert registry.blob("one", digest) == b"data"
        assert registry.blob("two", digest) is None
        registry.shared_blobs = True
        assert registry.blob("two", digest) == b"data"


def test_tls_with_client_certificates_and_real_tokens(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    accounts = {"robot$team+ci": Account("s3cret", {"team/*": ALL})}
    with (
        TokenServer(authority, accounts) as tokens,
        Registry(
            auth="bearer",
            username="robot$team+ci",
            password="s3cret",
            tls=authority.server_context(client_ca=authority.ca_file),
            token_server=tokens,
        ) as registry,
    ):
        certificates = authority.write_cert_dir(tmp_path / "certs", client=authority.client)
        copy_in_and_out(registry, THREE_LAYERS, tmp_path / "out", cert_dir=certificates)
        only_ca = authority.write_cert_dir(tmp_path / "only ca")
        with pytest.raises(AssertionError, match="certificate"):
            copy_in_and_out(registry, THREE_LAYERS, tmp_path / "out2", cert_dir=only_ca)
        assert b"Authorization: Bearer" in registry.everything_received("registry")
        assert b"Authorization: Basic" in tokens.everything_received()
        assert registry.everything_received("storage") == b""


def curl(*words: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    tools.need("curl")
    command = ["curl", "--silent", "--show-error", "--include", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})


@pytest.mark.parametrize("encrypted", [False, True])
def test_curl_through_the_proxy(tmp_path: Path, encrypted: bool) -> None:
    authority = Authority(tmp_path / "authority")
    context = authority.server_context(authority.issue("named", "registry.example.com")) if encrypted else None
    with (
        Registry(tls=context) as registry,
        Proxy(credentials=("user", "pa:ss"), names={"registry.example.com:5000": registry.host}) as proxy,
    ):
        digest = registry.add_blob("app", b"data")
        url = f"{registry.scheme}://registry.example.com:5000/v2/app/blobs/{digest}"
        options = ("--cacert", authority.ca_file, "--proxy", proxy.url)
        refused = curl(*options, url)
        assert "407" in refused.stdout + refused.stderr
        assert curl(*options, "--proxy-user", "user:pa:ss", url).stdout.endswith("\n\ndata")
        assert proxy.targets == ["registry.example.com:5000"]
        assert {request.method for request in proxy.requests} == {"CONNECT" if encrypted else "GET"}
        assert b"Proxy-Authorization: Basic" in proxy.everything_received()
        assert b"Proxy-Authorization" not in registry.everything_received()
        assert digest_of(b"data").encode() in registry.everything_received()
        assert (digest.encode() in proxy.everything_received()) == (not encrypted)
