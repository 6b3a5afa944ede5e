"""Tables, JSON, and text that cannot steer a terminal."""

from __future__ import annotations

import json

import pytest

from imgstore.cli import output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name", "plain name"),
        ("naïve 文件", "naïve 文件"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x7f\x9b1m", "\\x7f\\x9b1m"),
        ("\u202egpj", "\\u202egpj"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert expected == output.printable(text)


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["NAME", "SIZE"], [["a", "5.58MB"], ["much\x1blonger", ""]])
    assert capsys.readouterr().out == "NAME             SIZE\na                5.58MB\nmuch\\x1blonger\n"


def test_a_table_without_rows_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["NAME", "SIZE"], [])
    assert capsys.readouterr().out == "NAME   SIZE\n"


def test_json_loses_no_byte_of_a_name_and_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    name = b"\xff\x1b\xc2\x9b\xe6\x96\x87".decode(errors="surrogateescape")
    output.print_json({"name": name})
    text = capsys.readouterr().out
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text)["name"].encode(errors="surrogateescape") == b"\xff\x1b\xc2\x9b\xe6\x96\x87"


def test_names_go_byte_for_byte_into_a_pipe(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.print_names([b"\xff\x1b[m", b"b"])
    assert capfdbinary.readouterr().out == b"\xff\x1b[m\nb\n"
