from __future__ import annotations

import dataclasses
import re

import pytest

from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.vmdk import Descriptor, derive_cid
from imgstore.vmdk.descriptor import MAX_DESCRIPTOR, describe_disk

CHILD = describe_disk(131072, 0xB6460296, 0x542EBCA8, "../base/base.vmdk", "child.vmdk")


def text(**changes: str) -> bytes:
    lines = {
        "first": "# Disk DescriptorFile",
        "version": "version=1",
        "cid": "CID=b6460296",
        "parent": "parentCID=542ebca8",
        "type": 'createType="monolithicSparse"',
        "hint": 'parentFileNameHint="base.vmdk"',
        "extent": 'RW 131072 SPARSE "child.vmdk"',
    }
    return "\n".join(line for line in {**lines, **changes}.values() if line).encode()


def test_what_is_written_is_read_again() -> None:
    data = CHILD.to_bytes()
    assert len(data) == MAX_DESCRIPTOR
    assert Descriptor.from_bytes(data, "child.vmdk") == CHILD


def test_the_text_is_what_other_programs_need() -> None:
    lines = CHILD.to_bytes().rstrip(b"\0").decode().splitlines()
    assert lines[:9] == [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        "CID=b6460296",
        "parentCID=542ebca8",
        'createType="monolithicSparse"',
        'parentFileNameHint="../base/base.vmdk"',
        "# Extent description",
        'RW 131072 SPARSE "child.vmdk"',
    ]
    assert "# The Disk Data Base" in lines and "#DDB" in lines
    [content] = [line for line in lines if line.startswith("ddb.longContentID")]
    assert re.fullmatch(r'ddb\.longContentID = "[0-9a-f]{24}b6460296"', content)


def test_a_disk_without_parent_says_so() -> None:
    data = describe_disk(128, 1, None, None, "base.vmdk").to_bytes()
    assert b"\nparentCID=ffffffff\n" in data
    assert b"parentFileNameHint" not in data
    assert Descriptor.from_bytes(data, "base.vmdk").parent_cid is None


def test_the_descriptor_that_qemu_makes_is_read() -> None:
    data = text(
        extent='\n# Extent description\nRW 131072 SPARSE "child.vmdk"\n\n# The Disk Data Base\n#DDB\n\nddb.geometry.heads = "16"'
    )
    read = Descriptor.from_bytes(data.replace(b"\n", b"\r\n") + bytes(100), "child.vmdk")
    assert read == Descriptor(0xB6460296, 0x542EBCA8, "base.vmdk", 131072, "child.vmdk", {"geometry.heads": "16"})


@pytest.mark.parametrize("name", ["", ".", "..", ".child", "a/b.vmdk", 'a".vmdk', "a\n.vmdk", "ä.vmdk", " a", "a ", "a\tb"])
def test_only_plain_extent_names_are_written(name: str) -> None:
    with pytest.raises(InvalidError, match="extent name"):
        describe_disk(128, 1, None, None, name).to_bytes()


@pytest.mark.parametrize("hint", ["", "/base.vmdk", "a/../b", "http://a", "a//b", "a\\b", 'a"b', "a/", "..", "a\nCID=1"])
def test_only_plain_relative_hints_are_written(hint: str) -> None:
    with pytest.raises(InvalidError, match="hint"):
        describe_disk(128, 1, 2, hint, "a.vmdk").to_bytes()


@pytest.mark.parametrize("cid", [0, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, -1])
def test_reserved_content_ids_are_not_written(cid: int) -> None:
    with pytest.raises(InvalidError, match="content id"):
        describe_disk(128, cid, None, None, "a.vmdk").to_bytes()


def test_a_parent_needs_both_content_id_and_hint() -> None:
    with pytest.raises(InvalidError, match="both"):
        describe_disk(128, 1, 2, None, "a.vmdk").to_bytes()
    with pytest.raises(InvalidError, match="both"):
        describe_disk(128, 1, None, "b.vmdk", "a.vmdk").to_bytes()


def test_the_extent_line_stays_in_the_first_sector() -> None:
    long = dataclasses.replace(CHILD, parent_hint="a" * 170, extent_name="b" * 150)
    assert long.to_bytes().index(b"SPARSE") < 512
    with pytest.raises(InvalidError, match=r"extent line ends at byte 5[0-9][0-9]"):
        dataclasses.replace(CHILD, parent_hint="a" * 200, extent_name="b" * 200).to_bytes()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"first": "# Disk"}, CorruptError, "starts with"),
        ({"cid": ""}, CorruptError, "CID is missing"),
        ({"cid": "CID=x"}, CorruptError, "CID is 'x'"),
        ({"cid": "CID=123456789"}, CorruptError, "CID is"),
        ({"cid": "CID=1\nCID=2"}, CorruptError, "twice"),
        ({"parent": ""}, CorruptError, "parentCID is missing"),
        ({"parent": "parentCID=ffffffff"}, CorruptError, "one of them is missing"),
        ({"hint": ""}, CorruptError, "one of them is missing"),
        ({"type": 'createType="vmfs"'}, UnsupportedError, "createType"),
        ({"type": ""}, UnsupportedError, "createType"),
        ({"extent": ""}, UnsupportedError, "0 extents"),
        ({"extent": 'RW 1 SPARSE "a"\nRW 1 SPARSE "b"'}, UnsupportedError, "2 extents"),
        ({"extent": 'RDONLY 1 SPARSE "a"'}, UnsupportedError, "RDONLY SPARSE"),
        ({"extent": 'RW 1 FLAT "/etc/shadow" 0'}, UnsupportedError, "RW FLAT"),
        ({"extent": 'RW 1 SPARSE "/etc/shadow"'}, CorruptError, "base name"),
        ({"extent": 'RW 1 SPARSE "../a.vmdk"'}, CorruptError, "base name"),
        ({"extent": 'RW 1 SPARSE ".."'}, CorruptError, "base name"),
        ({"extent": 'RW 1 SPARSE "nbd:host"'}, CorruptError, "base name"),
        ({"extent": "RW 1 SPARSE"}, CorruptError, "base name"),
        ({"extent": f'RW {"9" * 20} SPARSE "a"'}, CorruptError, "neither a key nor an extent"),
        ({"extent": 'RW 1 SPARSE "a\u2028RW 1 SPARSE b"'}, CorruptError, "base name"),
        ({"version": "what is this"}, CorruptError, "neither a key nor an extent"),
    ],
)
def test_hostile_descriptors_are_refused(changes: dict[str, str], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"descriptor of a.vmdk at byte 512: .*{words}"):
        Descriptor.from_bytes(text(**changes), "a.vmdk")


def test_a_descriptor_that_is_not_text_is_refused() -> None:
    with pytest.raises(CorruptError, match="byte 22 is not UTF-8"):
        Descriptor.from_bytes(b"# Disk DescriptorFile\n\xff", "a.vmdk")


def test_content_ids_follow_from_the_identity_alone() -> None:
    ids = {derive_cid(f"sha256:{number:064x}") for number in range(1000)}
    assert len(ids) == 1000
    assert derive_cid("sha256:00") == derive_cid("sha256:00") == 0x5026E4CF
    assert not ids & {0, 0xFFFFFFFE, 0xFFFFFFFF}
