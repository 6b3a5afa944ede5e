"""Where a copy goes and what it is called there: the rules of ``docker cp``."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgstore.cli.copy_paths import (
    Destination,
    Source,
    absolute,
    find_destination,
    find_source,
    place_copy,
    split_argument,
)
from imgstore.errors import ImgstoreError, InvalidError, NotFoundError

FILE, DIRECTORY, CONTENTS = Source("/s/f", False, "f"), Source("/s/d", True, "d"), Source("/s/d/.", True, ".")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("one:/etc", ("one", "/etc")),
        ("one:etc:x", ("one", "etc:x")),
        ("one:", ("one", "")),
        ("/one:/etc", (None, "/one:/etc")),
        ("./one:x", (None, "./one:x")),
        ("../one:x", (None, "../one:x")),
        ("file", (None, "file")),
        ("-", (None, "-")),
    ],
)
def test_arguments(argument: str, expected: tuple[str | None, str]) -> None:
    assert expected == split_argument(argument)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a/../b/", "/b/"), ("/a/.", "/a/."), ("/a/./", "/a/"), ("/", "/"), ("/.", "/."), ("//a", "/a"), ("/a/..", "/")],
)
def test_absolute_paths_keep_their_end(path: str, expected: str) -> None:
    assert expected == absolute(path).replace("//", "/")


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (FILE, Destination("/t", True), ("/t", "f")),
        (DIRECTORY, Destination("/t", True), ("/t", "d")),
        (CONTENTS, Destination("/t", True), ("/t", ".")),
        (FILE, Destination("/t/x", False), ("/t", "x")),
        (FILE, Destination("/t/new", None), ("/t", "new")),
        (FILE, Destination("new", None), ("/", "new")),
        (DIRECTORY, Destination("/t/new", None), ("/t", "new")),
        (DIRECTORY, Destination("/t/new/", None), ("/t", "new")),
        (CONTENTS, Destination("/t/new", None), ("/t", "new")),
        (CONTENTS, Destination("/t/new/.", None), ("/t/new", ".")),
        (FILE, Destination("/new", None), ("/", "new")),
    ],
)
def test_places(source: Source, destination: Destination, expected: tuple[str, str]) -> None:
    assert expected == place_copy(source, destination)


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        (DIRECTORY, Destination("/t/x", False), "cannot copy directory"),
        (CONTENTS, Destination("/t/x", False), "cannot copy directory"),
        (FILE, Destination("/t/new/", None), "no such directory"),
        (FILE, Destination("/t/new/.", None), "no such directory"),
    ],
)
def test_places_that_cannot_be(source: Source, destination: Destination, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        place_copy(source, destination)


def test_sources_and_destinations_of_this_machine(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "to-file").symlink_to("real/file")
    (tmp_path / "dangling").symlink_to("real/none")
    (tmp_path / "loop").symlink_to("loop")
    at = str(tmp_path)
    assert find_source(f"{at}/link", follow=False) == Source(f"{at}/link", False, "link")
    assert find_source(f"{at}/link/", follow=False) == Source(f"{at}/real/", True, "link")
    assert find_source(f"{at}/link/.", follow=False) == Source(f"{at}/real/.", True, ".")
    assert find_source(f"{at}/to-file", follow=True) == Source(f"{at}/real/file", False, "to-file")
    assert find_destination(f"{at}/link") == Destination(f"{at}/real", True)
    assert find_destination(f"{at}/to-file") == Destination(f"{at}/real/file", False)
    assert find_destination(f"{at}/dangling") == Destination(f"{at}/real/none", None)
    assert find_destination(f"{at}/new") == Destination(f"{at}/new", None)
    wrong: list[tuple[str, type[ImgstoreError]]] = [
        ("loop", InvalidError),
        ("none/new", NotFoundError),
        ("real/file/new", InvalidError),
    ]
    for path, kind in wrong:
        with pytest.raises(kind):
            find_destination(f"{at}/{path}")
    with pytest.raises(InvalidError, match="not a directory"):
        find_source(f"{at}/real/file/", follow=False)
    with pytest.raises(InvalidError, match="must be a directory or a regular file"):
        find_destination("/dev/null")
