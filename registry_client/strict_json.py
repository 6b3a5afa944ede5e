"""JSON from outside: bounded, strict, and typed when a field is asked for.

What is refused, and a lenient reader takes: duplicate keys (readers differ in which one wins), NaN and infinities, numbers too long to
convert, nesting beyond 64, lone surrogates (they cannot be printed), and a document that is no object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from registry_client.digest import Digest
from registry_client.errors import InvalidDigestError, MalformedError

SIZE_MAX = 4 << 20  # distribution-spec: clients should support manifests of 4 MiB; containers/image has the same bound
DEPTH_MAX = 64
INTEGER_MAX = (1 << 63) - 1  # sizes are int64 in the specifications


def parse_json(data: bytes, what: str, *, size_max: int = SIZE_MAX) -> Any:
    """Parses one document.

    Args:
        what: name of the document, for messages.

    Raises:
        MalformedError: too big, no JSON, or one of the refused oddities.
    """
    if len(data) > size_max:
        raise MalformedError(f"{what}: {len(data)} bytes, more than {size_max}")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_parse_finite_float
        )
    except RecursionError:
        raise MalformedError(f"{what}: nested deeper than {DEPTH_MAX}") from None
    except ValueError as error:
        raise MalformedError(f"{what}: not valid JSON: {error}") from None
    _check(value, what)
    return value


def parse_object(data: bytes, what: str, *, size_max: int = SIZE_MAX) -> Fields:
    """Parses a document that must be an object; see `parse_json`."""
    return Fields(parse_json(data, what, size_max=size_max), what)


class Fields:
    """The fields of a JSON object, with their types checked when asked for.

    A missing field and ``null`` are the same: Go writes an empty list as ``null``. Every method raises MalformedError
    with the path of the field.
    """

    __slots__ = ("values", "what")

    def __init__(self, values: object, what: str) -> None:
        if not isinstance(values, dict):
            raise MalformedError(f"{what}: {_kind(values)}, not an object")
        self.values: Mapping[str, Any] = values
        self.what = what

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def string(self, name: str, default: str | None = None) -> str:
        """A string; the default if it is not there, an error if there is no default either."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self._wrong(name, value, "a string")
        return value

    def integer(self, name: str, *, maximum: int = INTEGER_MAX) -> int:
        """An integer from 0 to ``maximum``."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            self._wrong(name, value, "an integer")
        if not 0 <= value <= maximum:
            raise MalformedError(f"{self.what}: {name} is {value}, not from 0 to {maximum}")
        return value

    def boolean(self, name: str) -> bool:
        """A boolean; False if it is not there."""
        value = self.values.get(name, False)
        if value is not None and not isinstance(value, bool):
            self._wrong(name, value, "a boolean")
        return bool(value)

    def digest(self, name: str) -> Digest:
        """A digest."""
        try:
            return Digest(self.string(name))
        except InvalidDigestError as error:
            raise MalformedError(f"{self.what}: {name}: {error}") from None

    def items(self, name: str, *, maximum: int) -> list[Any]:
        """A list of at most ``maximum`` values; empty if it is not there."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self._wrong(name, value, "a list")
        if len(value) > maximum:
            raise MalformedError(f"{self.what}: {name} has {len(value)} elements, more than {maximum}")
        return value

    def strings(self, name: str, *, maximum: int) -> list[str]:
        """A list of strings."""
        values = self.items(name, maximum=maximum)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self._wrong(f"{name}[{index}]", value, "a string")
        return values

    def objects(self, name: str, *, maximum: int) -> Iterator[Fields]:
        """The objects in a list, one after the other."""
        for index, value in enumerate(self.items(name, maximum=maximum)):
            yield Fields(value, f"{self.what}: {name}[{index}]")

    def nested(self, name: str) -> Fields:
        """An object."""
        return Fields(self.values.get(name), f"{self.what}: {name}")

    def string_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings; empty if it is not there."""
        if name not in self:
            return {}
        values = self.nested(name).values
        for key, value in values.items():
            if not isinstance(value, str):
                self._wrong(f"{name}.{key}", value, "a string")
        return dict(values)

    def _wrong(self, name: str, value: object, wanted: str) -> NoReturn:
        raise MalformedError(f"{self.what}: {name} is {_kind(value)}, not {wanted}")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), "a date")  # TOML has dates and times


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} is there twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _parse_finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:32]} is too big")
    return value


def _check(value: object, what: str) -> None:
    """Refuses what lies too deep, and strings that no output can encode."""
    level: list[object] = [value]
    for _ in range(DEPTH_MAX):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise MalformedError(f"{what}: a string holds half of a surrogate pair") from None
        if not below:
            return
        level = below
    raise MalformedError(f"{what}: nested deeper than {DEPTH_MAX}")
