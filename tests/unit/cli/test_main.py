"""The command line as a whole, as far as it needs no store."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from imgstore.cli import main as cli
from imgstore.cli.main import main


def test_summaries_of_the_help_are_those_of_the_commands() -> None:
    context = click.Context(cli.imgstore)
    for name, (_, _, summary) in cli.COMMANDS.items():
        command = cli.imgstore.get_command(context, name)
        assert command is not None and command.name == name
        assert summary == (command.help or "").partition("\n")[0]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert list(cli.COMMANDS) == [line.split()[0] for line in listed]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: imgstore {name} " in capsys.readouterr().out


def test_help_imports_nothing_that_is_heavy() -> None:
    program = "import sys; from imgstore.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "click" in loaded
    assert not loaded & {
        "rich",
        "requests",
        "urllib3",
        "sqlalchemy",
        "fs",
        "logging",
        "json",
        "pathlib",
        "dataclasses",
        "asyncio",
    }


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: imgstore ")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["frobnicate"], "No such command 'frobnicate'.", "imgstore --help"),
        (["--frobnicate"], "No such option '--frobnicate'.", "imgstore --help"),
        (["pull"], "Missing argument 'REF'.", "imgstore pull --help"),
        (["rm"], "Missing argument 'REF...'.", "imgstore rm --help"),
        (["pull", "a", "b"], "Got unexpected extra argument (b)", "imgstore pull --help"),
        (
            ["images", "--format", "yaml"],
            "Invalid value for '--format': 'yaml' is not one of 'table', 'json'.",
            "imgstore images --help",
        ),
        (["--store", "", "images"], "--store: the name of the store is empty", ""),
    ],
)
def test_a_wrong_word_is_named(words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    expected = f"imgstore: {message}\n" + (f"hint: {hint}\n" if hint else "")
    assert expected == capsys.readouterr().err


def test_a_wrong_word_is_named_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--format", "json"]) == 2
    expected = {"code": "invalid", "message": "Missing argument 'REF'.", "hint": "imgstore pull --help"}
    assert expected == json.loads(capsys.readouterr().err)["error"]


def test_a_bad_disk_size_makes_no_store(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", f"{tmp_path}/store", "init", "--disk-size", "much"]) == 2
    assert "imgstore: size 'much': not a number of bytes\n" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("imgstore ")
