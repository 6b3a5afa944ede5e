"""Differences of file systems against a comparison of their whole trees, and on damaged disks."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from imgstore.blocks import GRAIN, MemoryBlockDevice
from imgstore.changes import Change
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.ext4.diff import diff, layer_changes
from imgstore.ext4.reader import FileSystem
from tests.ext4_layers import apply_layer, contents, formatted
from tests.judges import moby_changes
from tests.judges.tree import Node as TreeNode
from tests.judges.tree import Tree, content_digest
from tests.property.ext4_model import LAYERS, File, FileType, apply_model, describe_file_system
from tests.property.test_ext4_damage import DAMAGES, damaged


def copy_of(device: MemoryBlockDevice) -> MemoryBlockDevice:
    copy = MemoryBlockDevice(device.size)
    for offset, page in contents(device).items():
        copy.write(offset, page)
    return copy


def changed(before: MemoryBlockDevice, after: MemoryBlockDevice) -> list[tuple[int, int]]:
    old, new = contents(before), contents(after)
    return [(offset, GRAIN) for offset in sorted(old.keys() | new.keys()) if old.get(offset) != new.get(offset)]


def tree_of(device: MemoryBlockDevice) -> Tree:
    """What can be told by a walk, without names of one file."""
    return {
        path: TreeNode(kind << 12, mode, uid, 0, mtime, len(target or data), content_digest(data), (), target, (0, 0), xattrs)
        for path, (kind, mode, uid, mtime, data, target, xattrs, _) in describe_file_system(FileSystem(device)).items()
    }


@given(LAYERS, LAYERS)
def test_differences_are_those_of_the_trees(below: Sequence[Sequence[Change]], above: Sequence[Sequence[Change]]) -> None:
    before = formatted()
    tree = {b"": File(FileType.DIRECTORY, 0o755)}
    for layer in below:
        apply_layer(before, apply_model(tree, layer))
    after = copy_of(before)
    for layer in above:
        apply_layer(after, apply_model(tree, layer))
    ranges = changed(before, after)
    for exact in (False, True):
        found = diff(FileSystem(before), FileSystem(after), ranges, exact=exact)
        expected = moby_changes.changes(tree_of(before), tree_of(after), exact=exact)
        assert expected == [(path, int(kind)) for path, kind, _ in found]
    apply_layer(before, layer_changes(FileSystem(after), found))
    unpacked, wanted = tree_of(before), tree_of(after)
    del unpacked[b""], wanted[b""]
    assert wanted == unpacked


@given(st.booleans(), DAMAGES, st.booleans())
def test_damage_is_a_typed_error(checksums: bool, damages: list[tuple[int, int, bytes]], exact: bool) -> None:
    before, after = damaged(checksums, []), damaged(checksums, damages)
    try:
        file_systems = FileSystem(before), FileSystem(after)
        for old, new in (file_systems, file_systems[::-1]):
            for _ in layer_changes(new, diff(old, new, changed(before, after), exact=exact)):
                pass
    except (CorruptError, InvalidError, UnsupportedError):
        pass
