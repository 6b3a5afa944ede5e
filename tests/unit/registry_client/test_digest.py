"""Digests and chain ids."""

from __future__ import annotations

import hashlib

import pytest

from registry_client.digest import ChainId, DiffId, Digest, chain_ids
from registry_client.errors import InvalidDigestError


def test_of_and_parts() -> None:
    digest = Digest.of(b"abc")
    assert digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (digest.algorithm, digest.hex, digest.short) == ("sha256", digest[7:], "ba7816bf8f01")
    assert digest.names(b"abc")
    assert not digest.names(b"abd")
    assert Digest.of(b"abc", "sha512").new_hash().name == "sha512"


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha1:" + "a" * 40, "sha256:" + "a" * 64 + "\n", "../" * 20],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidDigestError, match="not sha256"):
        Digest(text)


def test_chain_ids() -> None:
    layers = [DiffId.of(name) for name in (b"one", b"two", b"three")]
    second = "sha256:" + hashlib.sha256(f"{layers[0]} {layers[1]}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {layers[2]}".encode()).hexdigest()
    assert chain_ids(layers) == (layers[0], second, third)
    assert all(isinstance(chain_id, ChainId) for chain_id in chain_ids(layers))
    assert chain_ids([]) == ()
