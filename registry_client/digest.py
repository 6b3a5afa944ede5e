"""Digests: names of bytes, ``sha256:`` and 64 hexadecimal digits (or ``sha512:`` and 128).

Source: OCI image-spec, descriptor.md "Digests", config.md "Layer ChainID". Nothing else than these two algorithms is a digest
here, so a Digest may be used in a URL or a file name as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from registry_client.errors import InvalidDigestError

if TYPE_CHECKING:
    from hashlib import _Hash

_GRAMMAR = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Digest(str):
    """A checked digest. Is a ``str``, so it prints, compares and hashes as its text.

    Raises:
        InvalidDigestError: the text is not ``sha256:<64 hex>`` or ``sha512:<128 hex>``, lower case.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if _GRAMMAR.fullmatch(text) is None:
            raise InvalidDigestError(f"digest {text[:160]!r}: not sha256:<64 hex digits> or sha512:<128 hex digits>")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """Digest of ``data``."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``."""
        return self[:6]

    @property
    def hex(self) -> str:
        """The digits."""
        return self[7:]

    @property
    def short(self) -> str:
        """The first 12 digits, as docker shows them."""
        return self[7:19]

    def new_hash(self) -> _Hash:
        """An empty hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def names(self, data: bytes) -> bool:
        """Whether ``data`` has this digest."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex


class ImageId(Digest):
    """Digest of an image configuration's bytes: docker's image id."""

    __slots__ = ()


class DiffId(Digest):
    """Digest of a layer's uncompressed tar."""

    __slots__ = ()


class ChainId(Digest):
    """Digest of a stack of layers: of the DiffIds from the lowest up to one layer."""

    __slots__ = ()


def chain_ids(diff_ids: Iterable[DiffId]) -> tuple[ChainId, ...]:
    """Chain id of every layer, lowest first (OCI image-spec, config.md "Layer ChainID").

    The lowest layer's chain id is its diff id; each other is the SHA-256 of ``<chain id below> <diff id>``.
    """
    chain: list[ChainId] = []
    for diff_id in diff_ids:
        chain.append(ChainId.of(f"{chain[-1]} {diff_id}".encode()) if chain else ChainId(diff_id))
    return tuple(chain)
