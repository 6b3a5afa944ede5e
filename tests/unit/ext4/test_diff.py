from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from imgstore.blocks import Extent, MemoryBlockDevice
from imgstore.changes import Change, Entry, FileType, HardLink, Whiteout
from imgstore.errors import CorruptError, InvalidError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.diff import Difference, Kind, diff, layer_changes
from imgstore.ext4.inode_table import InodeTable
from imgstore.ext4.pages import WritablePageCache
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.structures import BLOCK_SIZE
from tests.ext4_layers import MIB, apply_layer, contents, directory, formatted, regular

LAYER: list[Change] = [
    directory(b"a"),
    directory(b"a/b"),
    regular(b"a/b/file", b"x"),
    regular(b"a/one", b"linked"),
    directory(b"c"),
    HardLink(b"c/two", b"a/one"),
    regular(b"c/other", b"y"),
]
WHOLE = [(0, 64 * MIB)]


@pytest.fixture
def device() -> MemoryBlockDevice:
    device = formatted()
    apply_layer(device, LAYER)
    return device


def copy_of(device: MemoryBlockDevice) -> MemoryBlockDevice:
    copy = MemoryBlockDevice(device.size)
    for offset, page in contents(device).items():
        copy.write(offset, page)
    return copy


def change_inode(device: MemoryBlockDevice, path: bytes, change: Callable[[bytearray], object]) -> None:
    """Changes the bytes of an inode, and its checksum with them."""
    file_system = FileSystem(device)
    seed = file_system.geometry.checksum_seed
    assert seed is not None
    pages = WritablePageCache(device)
    table = InodeTable(pages, file_system.groups, seed)
    number = file_system.lookup(path).number
    raw = table.read(number)
    change(raw)
    table.change(number, raw)
    pages.flush()


def touch(raw: bytearray) -> None:
    """Sets change and modification time."""
    struct.pack_into("<II", raw, 12, 1_800_000_000, 1_800_000_000)


def change_directory(device: MemoryBlockDevice, path: bytes, change: Callable[[bytearray], object]) -> None:
    """Changes the bytes of a directory of one block, and its checksum with them; its inode is touched."""
    change_inode(device, path, touch)
    file_system = FileSystem(device)
    node = file_system.lookup(path)
    (run,) = file_system.runs(node)
    offset = run.physical * BLOCK_SIZE
    block = bytearray(device.read(offset, BLOCK_SIZE))
    change(block)
    seed = file_system.inode_seed(node)
    assert seed is not None
    block[-4:] = checksums.update(seed, bytes(block[:-12])).to_bytes(4, "little")
    device.write(offset, block)


def point_to(name: bytes, number: int) -> Callable[[bytearray], None]:
    """Lets a name mean another inode."""

    def change(block: bytearray) -> None:
        place = block.index(name) - 8
        block[place : place + 4] = number.to_bytes(4, "little")

    return change


def listed(before: MemoryBlockDevice, after: MemoryBlockDevice, *, exact: bool = False) -> list[str]:
    found = diff(FileSystem(before), FileSystem(after), WHOLE, exact=exact)
    return [f"{kind.letter} {path.decode()}" for path, kind, _ in found]


def test_letters_and_numbers_are_those_of_docker() -> None:
    assert [(int(kind), kind.letter) for kind in Kind] == [(0, "C"), (1, "A"), (2, "D")]


def test_file_of_a_directory_that_did_not_change(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_inode(after, b"a/b/file", touch)
    assert listed(device, after) == ["C a", "C a/b", "C a/b/file"]


def test_every_name_of_a_file(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_inode(after, b"c/two", touch)
    found = diff(FileSystem(device), FileSystem(after), WHOLE)
    assert [path for path, _, _ in found] == [b"a", b"a/one", b"c", b"c/two"]
    changes = list(layer_changes(FileSystem(after), found))
    assert [change.path for change in changes if isinstance(change, Entry)] == [b"a", b"a/one", b"c"]
    assert changes[-1] == HardLink(b"c/two", b"a/one")


def test_new_name_of_an_old_file_comes_whole(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    apply_layer(after, [HardLink(b"three", b"a/one")])
    found = diff(FileSystem(device), FileSystem(after), WHOLE)
    assert [(path, kind) for path, kind, _ in found] == [(b"three", Kind.ADDED)]
    (entry,) = layer_changes(FileSystem(after), found)
    assert isinstance(entry, Entry)
    assert (entry.type, b"".join(entry.data)) == (FileType.REGULAR, b"linked")


def test_last_access_is_no_difference(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_inode(after, b"a/b/file", lambda raw: struct.pack_into("<I", raw, 8, 1_800_000_000))
    assert contents(device) != contents(after)
    assert listed(device, after, exact=True) == []


def test_times_of_one_second_are_equal_to_docker_if_one_has_no_fraction(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_inode(after, b"c/other", lambda raw: raw.__setitem__(slice(0x88, 0x8C), bytes(4)))
    assert listed(device, after) == []
    assert listed(device, after, exact=True) == ["C c", "C c/other"]


def test_content_under_an_old_time(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    file_system = FileSystem(after)
    (run,) = file_system.runs(file_system.lookup(b"c/other"))
    change_inode(after, b"c/other", lambda raw: struct.pack_into("<I", raw, 12, 1_800_000_000))
    assert listed(device, after, exact=True) == []
    after.write(run.physical * BLOCK_SIZE, b"z")
    assert listed(device, after) == []
    assert listed(device, after, exact=True) == ["C c", "C c/other"]


def test_the_root_is_never_listed(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    apply_layer(after, [directory(b"", 0o700), regular(b"new"), Whiteout(b"c")])
    assert listed(device, after, exact=True) == ["D c", "A new"]


def test_socket_is_left_out_and_what_it_replaced_is_removed(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    apply_layer(after, [Entry(b"new", FileType.SOCKET, 0o755), Entry(b"c/other", FileType.SOCKET, 0o755)])
    found = diff(FileSystem(device), FileSystem(after), WHOLE)
    assert [path for path, _, _ in found] == [b"c", b"c/other", b"new"]
    entry, whiteout = layer_changes(FileSystem(after), found)
    assert entry.path == b"c"
    assert whiteout == Whiteout(b"c/other")


class CountingDevice:
    """Counts the bytes that are read."""

    def __init__(self, device: MemoryBlockDevice) -> None:
        self._device = device
        self.size = device.size
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return self._device.read(offset, length)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        return self._device.extents(offset, length)


def test_reads_what_is_near_the_change() -> None:
    before = formatted(256 * MIB)
    apply_layer(before, [regular(b"%d/%d" % (number // 8, number)) for number in range(8000)])
    after = copy_of(before)
    change_inode(after, b"812/6500", touch)
    former = contents(before)
    changed = [(offset, 1 << 16) for offset, page in contents(after).items() if former[offset] != page]
    assert len(changed) == 1
    counting = CountingDevice(after)
    assert len(diff(FileSystem(before), FileSystem(counting), changed)) == 2
    # The inode tables take 2.2 MiB, the directories 4.
    assert counting.bytes_read < MIB


def test_name_far_from_its_inode() -> None:
    """The directories were all made before the files, and the first has the last file."""
    before = formatted()
    apply_layer(before, [*(directory(b"%d" % number) for number in range(2000)), regular(b"0/file")])
    after = copy_of(before)
    change_inode(after, b"0/file", touch)
    assert listed(before, after) == ["C 0", "C 0/file"]


def test_other_file_system(device: MemoryBlockDevice) -> None:
    after = formatted(1024 * MIB)
    if FileSystem(after).geometry.inodes_per_group == FileSystem(device).geometry.inodes_per_group:
        pytest.fail("both have groups of one size")
    with pytest.raises(InvalidError, match="not the same file system"):
        diff(FileSystem(device), FileSystem(after), WHOLE)


def test_directory_with_two_names(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_directory(after, b"c", point_to(b"two", FileSystem(after).lookup(b"a/b").number))
    change_directory(after, b"c", lambda block: block.__setitem__(block.index(b"two") - 1, 2))
    change_inode(after, b"a/b/file", touch)
    with pytest.raises(CorruptError, match="has a second name"):
        diff(FileSystem(device), FileSystem(after), WHOLE)


@pytest.mark.parametrize("parent", [b"a/b", b"c", b""])
def test_parent_that_is_none(device: MemoryBlockDevice, parent: bytes) -> None:
    """``..`` leads in a circle, or elsewhere: the file is not found on the way down."""
    after = copy_of(device)
    change_directory(after, b"a/b", point_to(b"..", FileSystem(after).lookup(parent).number))
    with pytest.raises(CorruptError, match="no directory that leads to it has its name"):
        diff(FileSystem(device), FileSystem(after), WHOLE)


def test_directory_without_parent(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_directory(after, b"a/b", lambda block: block.__setitem__(slice(block.index(b".."), block.index(b"..") + 2), b"xx"))
    with pytest.raises(CorruptError, match="has no \\.\\."):
        diff(FileSystem(device), FileSystem(after), WHOLE)


def test_fewer_names_than_links(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_inode(after, b"a/one", lambda raw: raw.__setitem__(26, 5))
    with pytest.raises(CorruptError, match="3 of its 5 names are in no directory"):
        diff(FileSystem(device), FileSystem(after), WHOLE)


def test_name_of_a_directory_that_is_none(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    change_inode(after, b"a/one", touch)
    change_directory(after, b"a", lambda block: block.__setitem__(block.index(b"one") - 1, 2))
    with pytest.raises(CorruptError, match="is named as a directory"):
        diff(FileSystem(device), FileSystem(after), WHOLE)


def test_path_that_is_too_long(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    apply_layer(after, [directory(b"/".join([b"n" * 255] * 16))])
    assert len(diff(FileSystem(device), FileSystem(after), WHOLE)) == 16
    apply_layer(after, [directory(b"/".join([b"n" * 255] * 17))])
    with pytest.raises(UnsupportedError, match="a path of more than 4096 bytes"):
        diff(FileSystem(device), FileSystem(after), WHOLE)


def test_unchanged() -> None:
    device = formatted()
    apply_layer(device, LAYER)
    assert diff(FileSystem(device), FileSystem(device), WHOLE, exact=True) == []
    assert diff(FileSystem(device), FileSystem(device), []) == []


def test_inode_of_a_difference(device: MemoryBlockDevice) -> None:
    after = copy_of(device)
    apply_layer(after, [Whiteout(b"a/one"), regular(b"c/new")])
    number = FileSystem(after).lookup(b"c/new").number
    assert Difference(b"c/new", Kind.ADDED, number) in diff(FileSystem(device), FileSystem(after), WHOLE)
    assert Difference(b"a/one", Kind.DELETED, 0) in diff(FileSystem(device), FileSystem(after), WHOLE)
