"""The names that ``import imgstore`` gives: all there, typed, and none of them imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import imgstore
from imgstore import errors, store


@pytest.mark.parametrize("name", imgstore.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(imgstore, name)
    if isinstance(found, type):
        assert name == found.__name__


def test_the_names_are_those_of_the_modules() -> None:
    assert imgstore.ImageStore is store.ImageStore
    assert imgstore.NotFoundError is errors.NotFoundError


def test_every_kind_of_error_is_public() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert kinds == {name for name in imgstore.__all__ if name.endswith("Error")}


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        imgstore.__getattr__("nothing")  # type: ignore[attr-defined]  # what the interpreter calls


def test_dir_names_them() -> None:
    assert set(imgstore.__all__) <= set(dir(imgstore))


def test_import_imports_nothing_else() -> None:
    program = (
        "import sys, imgstore; print([name for name in sys.modules if name.startswith(('imgstore.', 'sqlalchemy', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
