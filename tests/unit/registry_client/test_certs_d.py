"""certs.d: authorities and client certificates of a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_client.certs_d import FILES_MAX, find_certificates, read_certificates
from registry_client.endpoint import TlsSettings
from registry_client.errors import InvalidError, MalformedError


def write_all(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).touch()
    return directory


def test_what_the_files_are(tmp_path: Path) -> None:
    found = write_all(tmp_path / "r.io", "b.crt", "a.crt", "me.cert", "me.key", "README", "old.crt.bak")
    assert find_certificates("r.io", [tmp_path]) == TlsSettings(
        (found / "a.crt", found / "b.crt"), ((found / "me.cert", found / "me.key"),)
    )


@pytest.mark.parametrize(
    ("directory", "hosts"),
    [
        ("r.io", ["r.io", "R.io", "r.io:443"]),
        ("r.io:443", ["r.io", "r.io:443"]),
        ("r.io:5000", ["r.io:5000"]),
        ("docker.io", ["docker.io", "registry-1.docker.io"]),
        ("registry-1.docker.io", ["docker.io", "index.docker.io"]),
        ("[::1]:5000", ["[::1]:5000"]),
    ],
)
def test_names_of_directories(directory: str, hosts: list[str], tmp_path: Path) -> None:
    found = write_all(tmp_path / directory, "ca.crt")
    for host in hosts:
        assert find_certificates(host, [tmp_path]).ca_files == (found / "ca.crt",)
    for host in ["r.io:80", "x.io", "..", ".", "", "a/../r.io", "a" * 255]:
        assert find_certificates(host, [tmp_path]) == TlsSettings()


def test_the_first_directory_that_knows_the_host_counts(tmp_path: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    write_all(system / "r.io", "system.crt")
    assert find_certificates("r.io", [user, system]).ca_files == (system / "r.io/system.crt",)
    write_all(user / "r.io:443")
    assert find_certificates("r.io", [user, system]) == TlsSettings()


@pytest.mark.parametrize(("name", "other"), [("me.cert", "me.key"), ("me.key", "me.cert")])
def test_half_a_pair_is_an_error(name: str, other: str, tmp_path: Path) -> None:
    write_all(tmp_path / "r.io", name, "ca.crt")
    with pytest.raises(MalformedError, match=f"{tmp_path}/r.io/{name}: missing .* {other}"):
        find_certificates("r.io", [tmp_path])


def test_a_chosen_directory_must_be_there(tmp_path: Path) -> None:
    assert read_certificates(tmp_path / "missing") == TlsSettings()
    with pytest.raises(InvalidError, match="missing: No such file"):
        read_certificates(tmp_path / "missing", required=True)


def test_too_many_files(tmp_path: Path) -> None:
    write_all(tmp_path / "r.io", *(f"{number}.crt" for number in range(FILES_MAX + 1)))
    with pytest.raises(MalformedError, match=f"more than {FILES_MAX} files"):
        find_certificates("r.io", [tmp_path])
