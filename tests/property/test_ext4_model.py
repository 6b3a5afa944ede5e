"""Layers on an ext4 file system against a dict of files."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given

from imgstore.changes import Change, FileType
from imgstore.ext4.check import check_file_system
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.writer import LayerWriter
from tests.ext4_layers import apply_layer, contents, formatted
from tests.property.ext4_model import LAYERS, File, apply_model, describe_file_system, describe_model


@given(LAYERS)
def test_layers_do_what_the_model_says(layers: Sequence[Sequence[Change]]) -> None:
    device = formatted()
    tree = {b"": File(FileType.DIRECTORY, 0o755)}
    for layer in layers:
        possible = apply_model(tree, layer)
        before = contents(device)
        summary = apply_layer(device, possible)
        file_system = FileSystem(device)
        assert describe_file_system(file_system) == describe_model(tree)
        assert list(check_file_system(device)) == []
        assert summary.changed == (contents(device) != before)
        assert summary.free_blocks == file_system.super_block.free_blocks_count_lo


@given(LAYERS)
def test_a_read_tree_makes_the_same_tree(layers: Sequence[Sequence[Change]]) -> None:
    device = formatted()
    tree = {b"": File(FileType.DIRECTORY, 0o755)}
    for layer in layers:
        apply_layer(device, apply_model(tree, layer))
    copy = formatted()
    writer = LayerWriter(copy)
    for change in FileSystem(device).changes():
        writer.apply(change)
    writer.finish()
    assert describe_file_system(FileSystem(copy)) == describe_file_system(FileSystem(device))
    assert list(check_file_system(copy)) == []
