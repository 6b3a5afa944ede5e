"""Record: a binary structure declared once, read and written by the same declaration.

::

    class HostedHeader(Record, size=512):
        magic: bytes = raw(0x00, 4, default=b"KDMV", fixed=True)
        version: int = u32(0x04, default=1)

Offsets and the size are proved when the class is made: fields that overlap or leave the structure are a TypeError at import.
Numbers are little-endian unless the field says ``big=True``. Bytes between fields are written as zeros and not looked at on reading.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Self

from imgstore.blocks import Bytes
from imgstore.errors import CorruptError


class _Field:
    """Where one value lies, and how it is packed."""

    __slots__ = ("code", "count", "default", "fixed", "offset", "size")

    def __init__(self, offset: int, code: str, count: int, default: Any, fixed: bool) -> None:
        self.offset = offset
        self.code = code
        self.count = count
        self.size = struct.calcsize(code) * count
        self.default = default
        self.fixed = fixed


def _number(code: str, offset: int, default: int, count: int, fixed: bool, big: bool) -> Any:
    return _Field(offset, (">" if big else "<") + code, count, default if count == 1 else (default,) * count, fixed)


def u8(offset: int, *, default: int = 0, count: int = 1, fixed: bool = False) -> Any:
    """Unsigned 8-bit number at byte ``offset``; with ``count`` above 1 a tuple of them."""
    return _number("B", offset, default, count, fixed, False)


def u16(offset: int, *, default: int = 0, count: int = 1, fixed: bool = False, big: bool = False) -> Any:
    """Unsigned 16-bit number at byte ``offset``; with ``count`` above 1 a tuple of them."""
    return _number("H", offset, default, count, fixed, big)


def u32(offset: int, *, default: int = 0, count: int = 1, fixed: bool = False, big: bool = False) -> Any:
    """Unsigned 32-bit number at byte ``offset``; with ``count`` above 1 a tuple of them."""
    return _number("I", offset, default, count, fixed, big)


def u64(offset: int, *, default: int = 0, count: int = 1, fixed: bool = False, big: bool = False) -> Any:
    """Unsigned 64-bit number at byte ``offset``; with ``count`` above 1 a tuple of them."""
    return _number("Q", offset, default, count, fixed, big)


def raw(offset: int, length: int, *, default: bytes = b"", fixed: bool = False) -> Any:
    """``length`` bytes at byte ``offset``; a shorter value is padded with zeros on writing."""
    return _Field(offset, f"{length}s", 1, default.ljust(length, b"\0"), fixed)


class Record:
    """Base of the declared structures; see the module.

    A field declared ``fixed`` is checked on reading: another value is a CorruptError that names structure, byte and field.
    """

    SIZE: ClassVar[int]
    _fields: ClassVar[dict[str, _Field]]

    def __init_subclass__(cls, *, size: int) -> None:
        cls.SIZE = size
        cls._fields = {name: value for name, value in vars(cls).items() if isinstance(value, _Field)}
        end, last = 0, "the start"
        for name, declared in sorted(cls._fields.items(), key=lambda item: item[1].offset):
            if declared.offset < end:
                raise TypeError(f"{cls.__name__}.{name} at 0x{declared.offset:x} overlaps {last}")
            end, last = declared.offset + declared.size, name
            delattr(cls, name)
        if end > size:
            raise TypeError(f"{cls.__name__}.{last} ends at 0x{end:x}, after the structure's 0x{size:x} bytes")

    def __init__(self, **values: Any) -> None:
        for name, declared in self._fields.items():
            setattr(self, name, values.pop(name, declared.default))
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    @classmethod
    def from_bytes(cls, data: Bytes, offset: int = 0) -> Self:
        """Reads the structure that starts at ``offset`` of ``data``.

        Raises:
            CorruptError: ``data`` is too short, or a fixed field has another value.
        """
        if len(data) - offset < cls.SIZE:
            raise CorruptError(f"{cls.__name__} at byte {offset}: needs {cls.SIZE} bytes, {max(0, len(data) - offset)} are there")
        record = cls.__new__(cls)
        for name, declared in cls._fields.items():
            code = declared.code
            if declared.count > 1:
                code = f"{code[0]}{declared.count}{code[1]}"
            values = struct.unpack_from(code, data, offset + declared.offset)
            value: Any = values if declared.count > 1 else values[0]
            if declared.fixed and value != declared.default:
                raise CorruptError(
                    f"{cls.__name__} at byte {offset + declared.offset}: {name} is {value!r}, not {declared.default!r}"
                )
            setattr(record, name, value)
        return record

    def to_bytes(self) -> bytes:
        """The structure's bytes, ``SIZE`` of them.

        Raises:
            struct.error: a value does not fit its field.
        """
        out = bytearray(self.SIZE)
        for name, declared in self._fields.items():
            value = getattr(self, name)
            if declared.count > 1:
                struct.pack_into(f"{declared.code[0]}{declared.count}{declared.code[1]}", out, declared.offset, *value)
            else:
                struct.pack_into(declared.code, out, declared.offset, value)
        return bytes(out)

    @classmethod
    def offset_of(cls, name: str) -> int:
        """Byte offset of field ``name`` in the structure."""
        return cls._fields[name].offset

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields)})"
