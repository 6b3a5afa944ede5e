from __future__ import annotations

import gzip
import io
import lzma
import os
import threading
from pathlib import Path

import pytest

from imgstore import inputs
from imgstore.errors import CorruptError, ImgstoreError, InvalidError, NoSpaceError, NotFoundError
from imgstore.inputs import open_input
from tests.raw_tar import END, file

TAR = file(b"a", b"content") + END


def content(source: Path | io.BufferedIOBase, directory: Path) -> bytes:
    with open_input(source, "the input", directory) as opened:  # type: ignore[arg-type]
        assert opened.tell() == 0
        assert opened.fileno() >= 0
        return opened.read()


def test_a_plain_file_is_used_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(TAR)
    with path.open("rb") as body, open_input(body, "a.tar", tmp_path / "not there") as opened:
        assert body is opened
    assert content(path, tmp_path / "not there") == TAR


@pytest.mark.parametrize("data", [TAR, gzip.compress(TAR, mtime=0), lzma.compress(TAR)])
def test_all_else_becomes_a_file_without_a_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before" + data)
    with path.open("rb") as body:
        body.seek(6)
        assert content(body, tmp_path) == TAR
        assert not body.closed
    assert content(io.BytesIO(data), tmp_path) == TAR
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, data), os.close(writing)))
    writer.start()
    with os.fdopen(reading, "rb") as pipe:
        assert content(pipe, tmp_path) == TAR
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the input: is empty: it has 0 bytes"),
        (gzip.compress(b"", mtime=0), "the input: is empty"),
        (gzip.compress(TAR, mtime=0)[:-1], "the input: gzip member 1 at byte 0: the archive ends"),
    ],
)
def test_what_is_damaged(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for source in (path, io.BytesIO(data)):
        with pytest.raises(CorruptError, match=words):
            content(source, tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    cases: list[tuple[Path, type[ImgstoreError], str]] = [
        (tmp_path / "none", NotFoundError, "the input: no such file"),
        (tmp_path, InvalidError, "the input: cannot be read: Is a directory"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind, match=words):
            content(path, tmp_path)


def test_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SIZE_MAX", 10 << 20)
    assert len(content(io.BytesIO(gzip.compress(bytes(10 << 20), mtime=0)), tmp_path)) == 10 << 20
    with pytest.raises(NoSpaceError, match="has more than the 10485760 uncompressed bytes"):
        content(io.BytesIO(gzip.compress(bytes(11 << 20), mtime=0)), tmp_path)
