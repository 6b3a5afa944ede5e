"""Credential files that we write are read by skopeo and docker, and the ones they write by us."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry_client.credentials import ANONYMOUS, Credential, erase_credential, find_credential, store_credential
from registry_client.errors import DeniedError
from registry_client.options import Options
from registry_client.source import open_source
from tests import tools
from tests.credential_helper import install_helper
from tests.servers.docker_registry import PASSWORD, USERNAME, DockerRegistry, docker_registry

ACCOUNT = Credential(USERNAME, PASSWORD)
INSECURE = "--tls-verify=false"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry"), password=True) as registry:
        registry.push("oci:testdata/three-layers:latest", "team/private:1", "--dest-creds", f"{USERNAME}:{PASSWORD}")
        yield registry


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which all programs, and we, look into empty directories."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_AUTH_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run").mkdir()
    for name, directory in [("HOME", "home"), ("XDG_RUNTIME_DIR", "run"), ("DOCKER_CONFIG", "docker")]:
        monkeypatch.setenv(name, str(tmp_path / directory))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-daemon")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return dict(os.environ)


@pytest.fixture
def authfile(tmp_path: Path, environment: dict[str, str]) -> Path:
    return tmp_path / "auth.json"


def skopeo_reads(registry: DockerRegistry, *options: str | Path) -> bool:
    image = f"docker://{registry.host}/team/private:1"
    done = tools.run("skopeo", "inspect", INSECURE, *options, image, check=False)
    assert done.returncode == 0 or b"authentication required" in done.stderr, done.stderr
    return done.returncode == 0


def skopeo_login(registry: DockerRegistry, *options: str | Path) -> None:
    command = ("skopeo", "login", INSECURE, *options, "--username", USERNAME, "--password-stdin", registry.host)
    tools.run(*command, input=PASSWORD.encode())


def docker_login(registry: DockerRegistry) -> None:
    """Docker asks the registry itself where there is no daemon."""
    tools.run("docker", "login", "--username", USERNAME, "--password-stdin", registry.host, input=PASSWORD.encode())


def docker_reads(registry: DockerRegistry) -> bool:
    done = tools.run("docker", "manifest", "inspect", "--insecure", f"{registry.host}/team/private:1", check=False)
    assert done.returncode == 0 or b"no basic auth credentials" in done.stderr, done.stderr
    return done.returncode == 0


def test_skopeo_reads_what_we_write(registry: DockerRegistry, authfile: Path) -> None:
    tools.need("skopeo")
    assert not skopeo_reads(registry, "--authfile", authfile)
    store_credential("other.example", Credential("someone", "else"), authfile=authfile)
    store_credential(registry.host, ACCOUNT, authfile=authfile)
    assert skopeo_reads(registry, "--authfile", authfile)
    said = tools.run("skopeo", "login", "--get-login", "--authfile", authfile, registry.host).stdout
    assert said.decode().strip() == USERNAME
    assert erase_credential(registry.host, authfile=authfile)
    assert not skopeo_reads(registry, "--authfile", authfile)
    assert find_credential("other.example", "a", authfile=authfile) == Credential("someone", "else")


def test_skopeo_reads_our_key_of_a_namespace(registry: DockerRegistry, authfile: Path) -> None:
    tools.need("skopeo")
    store_credential(registry.host, Credential("wrong", "wrong"), authfile=authfile)
    store_credential(f"{registry.host}/team", ACCOUNT, authfile=authfile)
    assert skopeo_reads(registry, "--authfile", authfile)
    assert find_credential(registry.host, "team/private", authfile=authfile) == ACCOUNT


def test_we_read_and_erase_what_skopeo_writes(registry: DockerRegistry, authfile: Path) -> None:
    tools.need("skopeo")
    skopeo_login(registry, "--authfile", authfile)
    written = authfile.read_bytes()
    assert find_credential(registry.host, "team/private", authfile=authfile) == ACCOUNT
    store_credential(registry.host, ACCOUNT, authfile=authfile)
    assert authfile.read_bytes() == written
    assert erase_credential(registry.host, authfile=authfile)
    done = tools.run("skopeo", "logout", "--authfile", authfile, registry.host, check=False)
    assert b"not logged in" in done.stdout + done.stderr
    store_credential(registry.host, ACCOUNT, authfile=authfile)
    assert authfile.read_bytes() == written
    tools.run("skopeo", "logout", "--authfile", authfile, registry.host)
    assert not erase_credential(registry.host, authfile=authfile)


def test_a_login_of_skopeo_without_a_name_of_a_file(
    registry: DockerRegistry, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.need("skopeo")
    monkeypatch.delenv("DOCKER_CONFIG")
    skopeo_login(registry)
    found = find_credential(registry.host, "team/private", environment=environment)
    assert (found, found.origin) == (ACCOUNT, f"{environment['XDG_RUNTIME_DIR']}/containers/auth.json: {registry.host}")
    with closing(open_source(f"{registry.host}/team/private:1")) as source:
        assert len(source.resolve(None).layers) == 3


@pytest.mark.if_present
def test_docker_and_skopeo_read_our_docker_config(registry: DockerRegistry, environment: dict[str, str]) -> None:
    tools.need("docker", "skopeo")
    path = Path(environment["DOCKER_CONFIG"], "config.json")
    assert store_credential(registry.host, ACCOUNT, environment=environment) == str(path)
    assert skopeo_reads(registry)
    assert docker_reads(registry)
    written = path.read_bytes()
    docker_login(registry)
    assert path.read_bytes() == written
    tools.run("docker", "logout", registry.host)
    assert json.loads(path.read_text()) == {"auths": {}}
    assert find_credential(registry.host, "team/private", environment=environment) == ANONYMOUS


@pytest.mark.if_present
def test_we_read_and_erase_what_docker_writes(registry: DockerRegistry, environment: dict[str, str]) -> None:
    tools.need("docker")
    path = Path(environment["DOCKER_CONFIG"], "config.json")
    path.parent.mkdir()
    path.write_text('{"psFormat": "{{.ID}}", "plugins": {"x": {"y": "z"}}}')
    docker_login(registry)
    written = path.read_bytes()
    assert find_credential(registry.host, "team/private", environment=environment) == ACCOUNT
    assert erase_credential(registry.host, environment=environment)
    assert b"psFormat" in path.read_bytes()
    assert not docker_reads(registry)
    store_credential(registry.host, ACCOUNT, environment=environment)
    assert json.loads(path.read_bytes()) == json.loads(written)


@pytest.fixture
def helper_file(registry: DockerRegistry, environment: dict[str, str]) -> Path:
    """Docker's file, which names a helper for the registry."""
    install_helper(Path(environment["HOME"]).parent / "bin")
    path = Path(environment["DOCKER_CONFIG"], "config.json")
    path.parent.mkdir()
    path.write_text(json.dumps({"credHelpers": {registry.host: "test"}}))
    return path


def test_one_helper_for_skopeo_and_us(registry: DockerRegistry, helper_file: Path, environment: dict[str, str]) -> None:
    tools.need("skopeo")
    assert store_credential(registry.host, ACCOUNT, environment=environment) == "credential helper docker-credential-test"
    assert skopeo_reads(registry)
    assert erase_credential(registry.host, environment=environment)
    assert not skopeo_reads(registry)
    skopeo_login(registry, "--authfile", helper_file)
    assert find_credential(registry.host, "team/private", environment=environment) == ACCOUNT
    assert b'auth"' not in helper_file.read_bytes()
    tools.run("skopeo", "logout", "--authfile", helper_file, registry.host)
    assert find_credential(registry.host, "team/private", environment=environment) == ANONYMOUS


@pytest.mark.if_present
def test_one_helper_for_docker_and_us(registry: DockerRegistry, helper_file: Path, environment: dict[str, str]) -> None:
    tools.need("docker")
    store_credential(registry.host, ACCOUNT, environment=environment)
    assert docker_reads(registry)
    written = helper_file.read_bytes()
    docker_login(registry)
    assert json.loads(helper_file.read_bytes()) == json.loads(written)
    tools.run("docker", "logout", registry.host)
    assert find_credential(registry.host, "team/private", environment=environment) == ANONYMOUS
    docker_login(registry)
    assert find_credential(registry.host, "team/private", environment=environment) == ACCOUNT
    assert erase_credential(registry.host, environment=environment)
    assert not docker_reads(registry)


def test_docker_hub_has_dockers_key(authfile: Path) -> None:
    tools.need("skopeo")
    store_credential("docker.io", ACCOUNT, authfile=authfile)
    assert list(json.loads(authfile.read_text())["auths"]) == ["https://index.docker.io/v1/"]
    said = tools.run("skopeo", "login", "--get-login", "--authfile", authfile, "docker.io").stdout
    assert said.decode().strip() == USERNAME
    assert erase_credential("registry-1.docker.io", authfile=authfile)


def test_a_wrong_password_is_told(registry: DockerRegistry, environment: dict[str, str]) -> None:
    store_credential(registry.host, replace(ACCOUNT, password="canary"), environment=environment)
    with (
        closing(open_source(f"{registry.host}/team/private:1", Options())) as source,
        pytest.raises(DeniedError, match="is not accepted") as caught,
    ):
        source.resolve(None)
    assert "canary" not in str(caught.value)


def test_the_owner_of_a_file_keeps_it(authfile: Path) -> None:
    tools.need_root()
    store_credential("r.io", ACCOUNT, authfile=authfile)
    os.chown(authfile, 12345, 23456)
    store_credential("s.io", ACCOUNT, authfile=authfile)
    status = authfile.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12345, 23456, 0o600)


def test_a_file_that_may_not_be_read(tmp_path: Path, environment: dict[str, str]) -> None:
    tools.need_root()
    for place in ("run/containers/auth.json", "docker/config.json"):
        path = tmp_path / place
        store_credential("r.io", ACCOUNT, authfile=path)
        if place.startswith("docker"):
            os.chown(path, 12345, 12345)
    for directory in (tmp_path, *(each for each in tmp_path.parents if each.name.startswith(("pytest-", "popen-")))):
        directory.chmod(0o755)  # those that pytest made, of which xdist has one more
    for directory in (tmp_path / "run", tmp_path / "run/containers", tmp_path / "docker"):
        directory.chmod(0o755)
    os.seteuid(12345)
    try:
        found = find_credential("r.io", "a", environment=environment)
        assert found.origin.startswith(str(tmp_path / "docker/config.json"))
        with pytest.raises(DeniedError, match=r"run/containers/auth\.json: Permission denied"):
            find_credential("r.io", "a", authfile=tmp_path / "run/containers/auth.json", environment=environment)
        with pytest.raises(DeniedError, match=r"docker/config\.json: Permission denied"):
            store_credential("s.io", ACCOUNT, environment=environment)
    finally:
        os.seteuid(0)
