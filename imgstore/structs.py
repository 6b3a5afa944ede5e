"""Structs: those of msgspec, made ready before threads come."""

from __future__ import annotations

from typing import Any

import msgspec


def prepare(*types: Any) -> None:
    """Has msgspec look into types now, when they are imported.

    Else it does so when the first of them is decoded, without a lock: two threads that do so at once can meet a half made description, and
    the process dies (msgspec 0.22, ``StructInfo_Convert``). Whatever is decoded or converted to goes through here.
    """
    for type_ in types:
        msgspec.json.Decoder(type_)
