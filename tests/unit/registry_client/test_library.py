"""``import registry_client``: names that are imported when they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import registry_client

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", registry_client.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(registry_client, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        registry_client.nothing  # noqa: B018
    assert set(registry_client.__all__) <= set(dir(registry_client))


def test_it_imports_nothing_of_imgstore_and_no_http_before_it_is_needed() -> None:
    program = (
        "import sys, registry_client\n"
        "registry_client.Reference.parse('alpine')\n"
        "assert 'requests' not in sys.modules\n"
        "for name in registry_client.__all__: getattr(registry_client, name)\n"
        "print([name for name in sys.modules if name.startswith('imgstore')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
