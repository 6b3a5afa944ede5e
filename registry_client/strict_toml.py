"""TOML from other programs' configuration: bounded, with the errors of `strict_json`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from registry_client.errors import DeniedError, MalformedError
from registry_client.strict_json import Fields

SIZE_MAX = 1 << 20


def read_file(path: Path) -> bytes | None:
    """The bytes of a small file; None if it is not there.

    Raises:
        DeniedError: it may not be read. Going on without it could mean going where it forbids.
        MalformedError: it is too big, or no file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise DeniedError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise MalformedError(f"{path}: {error.strerror}") from None
    if len(data) > SIZE_MAX:
        raise MalformedError(f"{path}: more than {SIZE_MAX} bytes")
    return data


def parse_toml(data: bytes, what: str) -> Fields:
    """Parses one document.

    Args:
        what: name of the document, for messages.

    Raises:
        MalformedError: no TOML.
    """
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise MalformedError(f"{what}: nested too deep") from None
    except ValueError as error:
        raise MalformedError(f"{what}: not valid TOML: {error}") from None
    return fold(Fields(values, what))


def fold(fields: Fields) -> Fields:
    """The same fields with lower-case names: Go's TOML readers take ``Insecure`` for ``insecure``, and the file was written for them."""
    folded: dict[str, Any] = {}
    for name, value in fields.values.items():
        if isinstance(name, str) and (name == name.lower() or name.lower() not in fields.values):
            folded[name.lower()] = value
    return Fields(folded, fields.what)
