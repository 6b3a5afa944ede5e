"""``imgstore push``: what it prints, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import REFERENCE, CommandLine
from tests.servers.images import make_tar
from tests.servers.registry import Registry


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    cli = CommandLine(tmp_path_factory.mktemp("push") / "store")
    cli.text("pull", "-q", REFERENCE)
    return cli


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def name(cli: CommandLine, registry: Registry) -> str:
    cli.text("tag", "three-layers", f"{registry.host}/team/app:1")
    return f"{registry.host}/team/app:1"


def test_lines_in_a_pipe(cli: CommandLine, registry: Registry, name: str) -> None:
    done = cli.run("push", name)
    assert (done.returncode, done.stdout.decode()) == (0, f"{name}\n")
    digest = next(digest for (_, digest) in registry.manifests if digest.startswith("sha256:"))
    size = len(registry.manifests["team/app", "1"][0])
    lines = done.stderr.decode().splitlines()
    assert lines[0] == f"The push refers to repository [{registry.host}/team/app]"
    layers = ["a3f4c07ec1dd", "3bf0d4253722", "0f851cf618e4"]
    assert lines[1:4] == [f"{layer}: Preparing" for layer in layers]
    for layer in layers:
        states = [line.partition(": ")[2] for line in lines if line.startswith(layer)]
        assert states == ["Preparing", "Compressing", "Pushing", "Pushed"]
    assert lines[-1] == f"1: digest: {digest} size: {size}"
    again = cli.run("push", name).stderr.decode().splitlines()
    assert sorted(again[4:7]) == sorted(f"{layer}: Layer already exists" for layer in layers)
    assert again[-1] == lines[-1]
    cli.text("tag", name, f"{registry.host}/copy:1")
    mounted = cli.run("push", f"{registry.host}/copy:1").stderr.decode().splitlines()
    assert sorted(mounted[4:7]) == sorted(f"{layer}: Mounted from team/app" for layer in layers)
    assert cli.run("pull", name).stderr.decode().splitlines()[-1] == f"Status: Image is up to date for {name}"
    assert [each for each in cli.json("images")[0]["digests"] if each.startswith(name)] == []
    assert f"{registry.host}/team/app@{digest}" in cli.json("images")[0]["digests"]


def test_quiet(cli: CommandLine, name: str) -> None:
    done = cli.run("push", "-q", f"docker://{name}")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{name}\n", b"")


def test_json(cli: CommandLine, registry: Registry, name: str) -> None:
    pushed = cli.json("push", "-q", name)
    data, _ = registry.manifests["team/app", "1"]
    assert pushed == {"reference": name, "digest": pushed["digest"], "size": len(data)}
    assert registry.manifests["team/app", pushed["digest"]][0] == data


def test_all_tags(cli: CommandLine, registry: Registry, name: str) -> None:
    cli.text("tag", name, f"{registry.host}/team/app:2")
    pushed = cli.json("push", "-q", "-a", f"{registry.host}/team/app")
    assert [each["reference"] for each in pushed] == [name, f"{registry.host}/team/app:2"]
    assert registry.tags["team/app"] == ["1", "2"]
    said = cli.fails(2, "push", "-a", name)
    assert said == f"imgstore: {name}: tag can't be used with --all-tags/-a"


def test_nothing_of_that_name(cli: CommandLine, registry: Registry, name: str) -> None:
    """Docker's words."""
    said = cli.fails(4, "push", f"{registry.host}/nosuch:1")
    assert said == f"imgstore: An image does not exist locally with the tag: {registry.host}/nosuch"
    assert cli.fails(4, "push", "-a", f"{registry.host}/nosuch") == said
    assert cli.fails(4, "push", f"{registry.host}/team/app:2") == f"imgstore: tag does not exist: {registry.host}/team/app:2"
    assert cli.fails(4, "push", "nosuch") == "imgstore: An image does not exist locally with the tag: nosuch"
    assert not registry.requests


def test_what_is_no_name(cli: CommandLine, name: str) -> None:
    digest = f"{name}@sha256:{64 * '0'}"
    assert cli.fails(2, "push", digest) == f"imgstore: {digest}: cannot push a digest reference"
    assert "invalid reference format" in cli.fails(2, "push", "-a", "UPPER")
    assert "cannot specify 64-byte hexadecimal strings" in cli.fails(2, "push", 64 * "a")


def test_a_login(cli: CommandLine, tmp_path: Path) -> None:
    with Registry(auth="bearer") as registry:
        registry.add_image("base", "1", [make_tar({"a": b""})])
        name = f"{registry.host}/team/app:1"
        cli.text("tag", "three-layers", name)
        done = cli.run("push", name)
        assert done.returncode == 5
        assert done.stderr.decode().splitlines()[-1] == f"hint: log in with: imgstore login {registry.host}"
        assert cli.text("push", "-q", "--creds", f"{registry.username}:{registry.password}", name) == f"{name}\n"
