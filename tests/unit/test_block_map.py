from __future__ import annotations

from array import array

from imgstore.blocks import BlockMap, Run


def table(**entries: int) -> array[int]:
    numbers = array("I", bytes(4 * BlockMap.SEGMENT))
    for position, sector in entries.items():
        numbers[int(position[1:])] = sector
    return numbers


def test_an_empty_map_is_one_hole_a_segment() -> None:
    assert list(BlockMap().runs(500, 20)) == [Run(500, 12, None, 0), Run(512, 8, None, 0)]
    assert BlockMap().find(0) is None


def test_a_child_hides_its_parent_grain_by_grain() -> None:
    parent = BlockMap().child(0, {0: table(g1=128, g2=256), 3: table(g0=384)})
    child = parent.child(1, {0: table(g2=640, g3=768)})
    assert list(child.runs(0, 5)) == [
        Run(0, 1, None, 0),
        Run(1, 1, 0, 128),
        Run(2, 2, 1, 640),
        Run(4, 1, None, 0),
    ]
    assert child.find(3 * 512) == (0, 384)
    assert parent.find(2) == (0, 256)
    assert parent.find(3) is None


def test_neighbours_on_the_disk_that_are_not_in_the_file_are_two_runs() -> None:
    block_map = BlockMap().child(0, {0: table(g0=128, g1=256, g2=128)})
    assert list(block_map.runs(0, 3)) == [Run(0, 2, 0, 128), Run(2, 1, 0, 128)]


def test_neighbours_in_two_files_are_two_runs() -> None:
    block_map = BlockMap().child(0, {0: table(g0=128)}).child(1, {0: table(g1=256)})
    assert list(block_map.runs(0, 2)) == [Run(0, 1, 0, 128), Run(1, 1, 1, 256)]


def test_what_is_assigned_to_a_copy_stays_there() -> None:
    original = BlockMap()
    original.assign(510, 4, 2, 1280)
    copy = original.copy()
    copy.assign(511, 1, 3, 128)
    original.assign(512, 1, 4, 256)
    assert list(original.runs(510, 4)) == [Run(510, 2, 2, 1280), Run(512, 1, 4, 256), Run(513, 1, 2, 1664)]
    assert list(copy.runs(510, 4)) == [Run(510, 1, 2, 1280), Run(511, 1, 3, 128), Run(512, 2, 2, 1536)]


def test_tables_are_those_of_one_disk() -> None:
    block_map = BlockMap().child(0, {0: table(g1=128), 1: table(g0=256)}).child(1, {1: table(g5=384)})
    assert list(block_map.tables(0)) == [(0, table(g1=128)), (1, table(g0=256))]
    assert list(block_map.tables(1)) == [(1, table(g5=384))]


def test_the_last_sector_that_a_table_can_name_and_many_disks_fit_an_entry() -> None:
    block_map = BlockMap()
    block_map.assign(7, 1, 1023, (1 << 32) - 128)
    assert block_map.find(7) == (1023, (1 << 32) - 128)
