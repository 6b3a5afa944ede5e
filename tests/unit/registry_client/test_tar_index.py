"""The index of a tar: what is read in place, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from registry_client import tar_index
from registry_client.errors import MalformedError, NotFoundError
from registry_client.tar_index import TarIndex


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    tar.addfile(member, io.BytesIO(data))


class Archive:
    """A tar in a file, to be indexed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def index(self) -> TarIndex:
        with self.path.open("rb") as file:
            return TarIndex(file.fileno(), "test.tar")

    def read(self, name: str) -> bytes:
        found = self.index().find(name)
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), found.size, found.offset)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "test.tar")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_formats(archive: Archive, format: int) -> None:
    names = ["short", "./dotted", "d/" * 40 + "n" * 90] + (
        [] if format == tarfile.USTAR_FORMAT else ["é" * 150 + "/" + "x" * 120]
    )
    with tarfile.open(archive.path, "w", format=format) as tar:
        for name in names:
            add(tar, name, name.encode() * 20)
    for name in names:
        assert name.encode() * 20 == archive.read(name)
    assert "nothing" not in archive.index()
    with pytest.raises(NotFoundError, match="has no file 'nothing'"):
        archive.index().find("nothing")


def test_links_are_followed(archive: Archive) -> None:
    with tarfile.open(archive.path, "w") as tar:
        add(tar, "a/layer.tar", b"layer")
        add(tar, "b/layer.tar", kind=tarfile.SYMTYPE, link="../a/layer.tar")
        add(tar, "c", kind=tarfile.LNKTYPE, link="b/layer.tar")
        add(tar, "x", kind=tarfile.SYMTYPE, link="y")
        add(tar, "y", kind=tarfile.SYMTYPE, link="x")
    assert archive.read("c") == b"layer"
    with pytest.raises(MalformedError, match="more than 8 links"):
        archive.read("x")


def test_the_last_of_one_name_counts(archive: Archive) -> None:
    with tarfile.open(archive.path, "w") as tar:
        add(tar, "a", b"first")
        add(tar, "a", b"second")
    assert archive.read("a") == b"second"


@pytest.mark.parametrize(("name", "link"), [("../x", ""), ("a/../../x", ""), ("x", "../y"), ("a/x", "../../y")])
def test_names_that_lead_out(archive: Archive, name: str, link: str) -> None:
    with tarfile.open(archive.path, "w") as tar:
        add(tar, name, kind=tarfile.SYMTYPE if link else tarfile.REGTYPE, link=link)
    with pytest.raises(MalformedError, match="leads out of the archive"):
        archive.index()


def damaged(archive: Archive, offset: int, data: bytes, *, fix: bool = True) -> None:
    """Changes a header, and its checksum with it."""
    with tarfile.open(archive.path, "w") as tar:
        add(tar, "a", b"data")
    header = bytearray(archive.path.read_bytes())
    header[offset : offset + len(data)] = data
    if fix:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
    archive.path.write_bytes(header)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (b"\x80" + b"\xff" * 11, "the archive ends at byte"),
        (b"\xff" * 12, "where a number should be"),
        (b"77777777777\0", "the archive ends at byte"),
        (b"-0000000001\0", "where a number should be"),
        (b"0x000000001\0", "where a number should be"),
        (b"\0" * 12, "where a number should be"),
    ],
)
def test_sizes_that_lie(archive: Archive, size: bytes, words: str) -> None:
    damaged(archive, 124, size)
    with pytest.raises(MalformedError, match=words):
        archive.index()


def test_damage(archive: Archive) -> None:
    damaged(archive, 0, b"b", fix=False)
    with pytest.raises(MalformedError, match="its checksum is wrong"):
        archive.index()
    archive.path.write_bytes(b"")
    with pytest.raises(MalformedError, match="holds no tar members"):
        archive.index()
    damaged(archive, 0, b"a")
    archive.path.write_bytes(archive.path.read_bytes()[:300])
    with pytest.raises(MalformedError, match="ends in the middle of a tar header"):
        archive.index()


@pytest.mark.parametrize(
    "record",
    [b"999 path=x\n", b"x path=x\n", b"10 path=x\n\0", b"8 path\n\n", b"20 size=999999999999\n", b"11 size=-1\n"],
)
def test_damaged_pax_headers(archive: Archive, record: bytes) -> None:
    with tarfile.open(archive.path, "w") as tar:
        add(tar, "header", record, kind=tarfile.XHDTYPE)
        add(tar, "a", b"data")
    with pytest.raises(MalformedError):
        archive.index()


def test_too_many_members(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MEMBERS_MAX", 10)
    with tarfile.open(archive.path, "w") as tar:
        for number in range(11):
            add(tar, str(number))
    with pytest.raises(MalformedError, match="more than 10 members"):
        archive.index()
