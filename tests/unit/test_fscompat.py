from __future__ import annotations

import os
import subprocess
import sys

import pytest

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pkg_resources", "setuptools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("before", ["", BLOCK, "import sys; sys.modules['pkg_resources'] = None"])
def test_datastores_are_imported_and_opened_whatever_setuptools_is_there(before: str) -> None:
    code = """
from imgstore.datastores import MemoryDatastore
MemoryDatastore().write_atomic("a", b"data")
from fs import open_fs
open_fs("mem://").close()
try:
    open_fs("nonesuch://x")
except Exception as error:
    print(type(error).__name__)
"""
    assert run(f"{before}\n{code}") == "UnsupportedProtocol"


def test_who_asks_for_pkg_resources_afterwards_sees_the_truth() -> None:
    code = """
from imgstore.datastores import MemoryDatastore
try:
    import pkg_resources
except ModuleNotFoundError:
    print("not there")
"""
    assert run(f"{BLOCK}\n{code}") == "not there"


def test_entry_points_of_other_packages_are_still_found() -> None:
    code = """
import importlib.metadata, sys, types
from unittest import mock
from imgstore.datastores import MemoryDatastore
from fs import memoryfs, open_fs
from fs.opener import Opener

class OurOpener(Opener):
    protocols = ["ours"]

    def open_fs(self, fs_url, parse_result, writeable, create, cwd):
        return memoryfs.MemoryFS()

sys.modules["ours"] = types.SimpleNamespace(OurOpener=OurOpener)
point = importlib.metadata.EntryPoint("ours", "ours:OurOpener", "fs.opener")
with mock.patch("importlib.metadata.entry_points", lambda group: [point] if group == "fs.opener" else []):
    assert isinstance(open_fs("ours://"), memoryfs.MemoryFS)
"""
    assert run(code) == ""
