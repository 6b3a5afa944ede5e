"""registries.conf. That it means the same as for skopeo is shown in tests/compat; here are the edges that skopeo does not tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_client.errors import DeniedError, MalformedError
from registry_client.registries_conf import ConfiguredRegistry, find_registry, parse_registries_conf, read_registries_conf
from registry_client.strict_toml import SIZE_MAX

PATH = Path("/etc/containers/registries.conf")


def parse(text: str) -> tuple[ConfiguredRegistry, ...]:
    return parse_registries_conf(text.encode(), PATH)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[registry]", "not valid TOML"),
        ("registry = {}", "registry is an object, not a list"),
        ("registry = [2024-01-01]", r"registry\[0\]: a date, not an object"),
        ('[[registry]]\nlocation = "r.io"\ninsecure = 1', r"registry\[0\]: insecure is a number, not a boolean"),
        ('[[registry]]\nlocation = "r.io"\n[[registry.mirror]]\nlocation = ""', r"registry\[0\]: mirror\[0\]: no location"),
        ('[[registry]]\nlocation = "http://r.io"', r"registry\[0\]: location has a scheme"),
        ('[registries.block]\nregistries = "r.io"', "registries: block: registries is a string, not a list"),
        ("[registries.block]\nregistries = [1]", r"registries\[0\] is a number"),
        ("x = " + "[" * 5000, "nested too deep|not valid TOML"),
    ],
)
def test_errors_name_file_and_key(text: str, words: str) -> None:
    with pytest.raises(MalformedError, match=words) as caught:
        parse(text)
    assert str(caught.value).startswith(str(PATH))


def test_files(tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    assert read_registries_conf([conf, tmp_path / "registries.conf.d", conf / "below a file"]) == ()
    conf.write_bytes(b"#" * SIZE_MAX)
    assert read_registries_conf([conf]) == ()
    conf.write_bytes(b"#" * (SIZE_MAX + 1))
    with pytest.raises(MalformedError, match=f"{conf}: more than {SIZE_MAX} bytes"):
        read_registries_conf([conf])
    conf.write_bytes(b"\xff")
    with pytest.raises(MalformedError, match=f"{conf}: not valid TOML"):
        read_registries_conf([conf])


def test_spellings_of_one_host_are_one() -> None:
    registries = parse(
        '[[registry]]\nlocation = "r.io:443"\nblocked = true\n[[registry]]\nlocation = "Hub.docker.io"\ninsecure = true\n'
    )
    for host in ["r.io", "R.IO", "r.io:443"]:
        found = find_registry(registries, host, "team/app")
        assert found is not None and found[0].blocked
    assert find_registry(registries, "r.io:5000", "team/app") is None
    found = find_registry(registries, "HUB.docker.io", "a")
    assert found is not None and found[0].insecure


def test_the_spelling_that_was_typed_comes_first() -> None:
    registries = parse('[[registry]]\nlocation = "r.io:443"\nblocked = true\n[[registry]]\nlocation = "r.io"\n')
    typed = find_registry(registries, "r.io", "app")
    assert typed is not None and not typed[0].blocked
    other = find_registry(registries, "r.io:443", "app")
    assert other is not None and other[0].blocked


def test_an_entry_that_says_nothing() -> None:
    (registry,) = parse('[[registry]]\nprefix = "r.io"\nlocation = "R.io"\n')
    assert not registry.says_something
    for line in ["insecure = true", "blocked = true", '[[registry.mirror]]\nlocation = "m.io"']:
        (registry,) = parse(f'[[registry]]\nlocation = "r.io"\n{line}\n')
        assert registry.says_something


def test_an_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal has to be played.
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    conf = tmp_path / "registries.conf"
    conf.touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DeniedError, match=f"{conf}: Permission denied"):
        read_registries_conf([conf])
