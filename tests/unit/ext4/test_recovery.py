"""Replay of journals made by hand, and what is refused. That kernels see the same is tested with kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imgstore.blocks import Extent, ExtentKind, MemoryBlockDevice
from imgstore.errors import CorruptError, UnsupportedError
from imgstore.ext4 import checksums
from imgstore.ext4.check import check_file_system
from imgstore.ext4.geometry import SUPER_OFFSET, read_super_block, write_super_block
from imgstore.ext4.reader import FileSystem
from imgstore.ext4.recovery import RecoveredDevice, recover, recovered
from imgstore.ext4.structures import IncompatFeature, JournalSuperBlock, RoCompatFeature
from imgstore.ext4.writer import LayerWriter
from tests.ext4_journals import ASYNC, BIT64, BLOCK, CSUM_V2, CSUM_V3, DESCRIPTOR, FAST, MAGIC, REVOKE, JournalMaker
from tests.ext4_layers import MIB, apply_layer, contents, formatted, regular

FREE = 12_000
"""A block that nothing uses."""

FORMS = {
    "32 bit": 0,
    "64 bit": BIT64,
    "version 2": CSUM_V2,
    "version 2, 64 bit": CSUM_V2 | BIT64,
    "version 3": CSUM_V3,
    "version 3, 64 bit": CSUM_V3 | BIT64,
}


def data(text: bytes) -> bytes:
    return text.ljust(BLOCK, b".")


def shown(device: MemoryBlockDevice, block: int = FREE) -> bytes:
    """The beginning of a block after the replay."""
    return recovered(device).read(block * BLOCK, BLOCK).rstrip(b".\0")


@pytest.fixture(params=FORMS)
def features(request: pytest.FixtureRequest) -> int:
    return FORMS[request.param]


def test_nothing_to_do() -> None:
    device = formatted()
    before = contents(device)
    assert recovered(device) is device
    assert not recover(device)
    assert contents(device) == before


def test_later_transactions_win(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"old"), FREE + 1: data(b"one")})
    maker.transaction({FREE: data(b"new")})
    device = maker.finish()
    assert (shown(device), shown(device, FREE + 1)) == (b"new", b"one")


def test_escaped_block(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(MAGIC + b"behind the magic")})
    assert shown(maker.finish()) == MAGIC + b"behind the magic"


def test_descriptor_of_many_tags(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.describe({FREE + number: data(b"%d" % number) for number in range(200)})
    maker.describe({FREE + 200 + number: data(b"%d" % number) for number in range(60)}, same_uuid=False)
    maker.commit()
    device = maker.finish()
    assert [shown(device, FREE + number) for number in (0, 199, 200, 259)] == [b"0", b"199", b"0", b"59"]


def test_revoked_blocks(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"revoked"), FREE + 1: data(b"stays"), FREE + 2: data(b"again")})
    maker.transaction({FREE + 3: data(b"own")}, revoked=[FREE, FREE + 2, FREE + 3])
    maker.transaction({FREE + 2: data(b"written again")})
    device = maker.finish()
    assert [shown(device, FREE + number) for number in range(4)] == [b"", b"stays", b"written again", b""]


def test_revocation_without_a_commit_does_not_count(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"stays")})
    maker.revoke([FREE])
    assert shown(maker.finish()) == b"stays"


def test_log_goes_round(features: int) -> None:
    maker = JournalMaker(formatted(), features, length=40, start=36)
    maker.transaction({FREE + number: data(b"%d" % number) for number in range(10)})
    maker.transaction({FREE: data(b"last")})
    device = maker.finish()
    assert [shown(device, FREE + number) for number in (0, 1, 9)] == [b"last", b"1", b"9"]


def test_numbers_of_transactions_go_round(features: int) -> None:
    maker = JournalMaker(formatted(), features, sequence=0xFFFFFFFE)
    for number in range(4):
        maker.transaction({FREE + number: data(b"%d" % number), FREE + 9: data(b"at %d" % number)})
    maker.transaction({}, revoked=[FREE])
    device = maker.finish()
    assert [shown(device, FREE + number) for number in (0, 1, 3, 9)] == [b"", b"1", b"3", b"at 3"]
    recover(device)
    assert JournalSuperBlock.from_bytes(device.read(maker.base, BLOCK)).sequence == 4


def test_log_ends_where_the_last_transaction_is_torn(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"whole")})
    maker.describe({FREE: data(b"no commit block")})
    assert shown(maker.finish()) == b"whole"


def test_log_ends_at_an_old_transaction(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"new")})
    maker.sequence = 900
    maker.transaction({FREE: data(b"of the former round")})
    assert shown(maker.finish()) == b"new"


def test_log_ends_at_an_unknown_kind_of_block() -> None:
    maker = JournalMaker(formatted())
    maker.transaction({FREE: data(b"known")})
    maker.put(maker.head(7).ljust(BLOCK, b"\0"))
    maker.transaction({FREE: data(b"behind it")})
    assert shown(maker.finish()) == b"known"


def test_log_without_an_end() -> None:
    maker = JournalMaker(formatted(), length=20)
    for _ in range(19):
        maker.revoke([FREE])
    assert shown(maker.finish()) == b""


def flip(maker: JournalMaker, place: int) -> None:
    maker.device.write(place, bytes([maker.device.read(place, 1)[0] ^ 1]))


CHECKED = [CSUM_V2, CSUM_V3 | BIT64]


@pytest.mark.parametrize("features", CHECKED)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda maker, places: flip(maker, places[0] + 100), "transaction 2: a descriptor or revoke block has a wrong checksum"),
        (lambda maker, places: flip(maker, places[1] + 100), "transaction 2: checksum of block .* for block 12000 of"),
        (lambda maker, places: flip(maker, places[2] + 100), "transaction 2: a descriptor or revoke block has a wrong checksum"),
        (lambda maker, places: flip(maker, places[3] + 40), "transaction 2: its commit block has a wrong checksum"),
    ],
    ids=["descriptor", "data", "revoke", "commit"],
)
def test_damage_in_a_committed_transaction(features: int, damage: Callable[[JournalMaker, list[int]], None], words: str) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"one")})
    places = [*maker.describe({FREE: data(b"two")}), maker.revoke([FREE + 1]), maker.commit()]
    damage(maker, places)
    with pytest.raises(CorruptError, match=words) as raised:
        recovered(maker.finish())
    assert "e2fsck" in raised.value.hint


@pytest.mark.parametrize("features", CHECKED)
def test_damage_in_what_an_older_use_left(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"new")})
    maker.seconds = 1
    flip(maker, maker.describe({FREE: data(b"stale")})[0] + 100)
    maker.commit()
    assert shown(maker.finish()) == b"new"


@pytest.mark.parametrize("features", CHECKED)
def test_commit_block_of_an_older_use(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"new")})
    maker.seconds = 1
    maker.describe({FREE: data(b"stale")})
    flip(maker, maker.commit() + 40)
    assert shown(maker.finish()) == b"new"


@pytest.mark.parametrize("features", CHECKED)
def test_commit_block_of_which_one_sector_was_written(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.describe({FREE: data(b"committed")})
    maker.commit(rest=b"old bytes" * 100)
    assert shown(maker.finish()) == b"committed"


@pytest.mark.parametrize("features", [feature | ASYNC for feature in CHECKED])
def test_asynchronous_commit_that_did_not_arrive(features: int) -> None:
    maker = JournalMaker(formatted(), features)
    maker.transaction({FREE: data(b"one")})
    maker.describe({FREE: data(b"two")})
    flip(maker, maker.commit() + 40)
    maker.transaction({FREE: data(b"three")})
    assert shown(maker.finish()) == b"one"


class TestVersion1:
    def test_right_checksums(self) -> None:
        maker = JournalMaker(formatted(), version1=True)
        maker.transaction({FREE: data(b"one")})
        maker.describe({FREE: data(b"two")})
        maker.transaction({FREE + 1: data(MAGIC)}, revoked=[FREE + 2])
        device = maker.finish()
        assert (shown(device), shown(device, FREE + 1)) == (b"two", MAGIC)

    def test_commit_block_without_a_checksum(self) -> None:
        maker = JournalMaker(formatted())
        maker.transaction({FREE: data(b"one")})
        maker.version1 = True
        assert shown(maker.finish()) == b"one"

    def test_damage(self) -> None:
        maker = JournalMaker(formatted(), version1=True)
        flip(maker, maker.describe({FREE: data(b"one")})[1] + 7)
        maker.commit()
        with pytest.raises(CorruptError, match="transaction 1: its commit block has a wrong checksum"):
            recovered(maker.finish())

    def torn(self) -> JournalMaker:
        maker = JournalMaker(formatted(), ASYNC, version1=True)
        maker.transaction({FREE: data(b"one")})
        flip(maker, maker.describe({FREE: data(b"two")})[1] + 7)
        maker.commit()
        return maker

    def test_asynchronous_commit_before_its_blocks(self) -> None:
        assert shown(self.torn().finish()) == b"one"

    def test_asynchronous_commit_with_another_behind_it(self) -> None:
        maker = self.torn()
        maker.transaction({FREE: data(b"three")})
        with pytest.raises(CorruptError, match="transaction 3: is committed, and the one before it is damaged"):
            recovered(maker.finish())


@pytest.mark.parametrize("used", [4094, 0xFFFFFFFF])
def test_revoke_block_beyond_its_end(used: int) -> None:
    maker = JournalMaker(formatted(), CSUM_V3)
    maker.put(maker._sealed(maker.head(REVOKE) + used.to_bytes(4, "big")))
    maker.commit()
    with pytest.raises(CorruptError, match=f"revoke block 1 has {used} bytes, at most 4092"):
        recovered(maker.finish())


@pytest.mark.parametrize(
    ("target", "words"), [(16384, "is none of the 16384"), (1 << 40, "is none of"), (None, "lies in the journal")]
)
def test_target_that_no_file_system_logs(target: int | None, words: str) -> None:
    maker = JournalMaker(formatted(), BIT64)
    maker.transaction({maker.base // BLOCK + 1000 if target is None else target: data(b"x")})
    with pytest.raises(CorruptError, match=words):
        recovered(maker.finish())


@pytest.mark.parametrize(
    ("field", "value", "kind", "words"),
    [
        ("block_size", 1024, CorruptError, "1024 blocks of 1024 bytes"),
        ("max_length", 1025, CorruptError, "1025 blocks of 4096 bytes in a file of 1024"),
        ("first", 0, CorruptError, "the log is blocks 0 to 1023 of 1024, and starts at 1"),
        ("first", 1024, CorruptError, "the log is blocks 1024 to 1023"),
        ("start", 1024, CorruptError, "and starts at 1024"),
        ("feature_incompat", 0x40, UnsupportedError, "features 0x40"),
        ("feature_incompat", CSUM_V2 | CSUM_V3, CorruptError, "checksums of several versions"),
        ("feature_incompat", CSUM_V3, UnsupportedError, "checksum type is 0, not 4"),
        ("feature_ro_compat", 1, UnsupportedError, "0x1 .read-only."),
        ("block_type", 3, CorruptError, "block_type is 3, not 4"),
    ],
)
def test_superblock_of_the_journal(field: str, value: int, kind: type[Exception], words: str) -> None:
    maker = JournalMaker(formatted())
    device = maker.finish()
    place = maker.base + JournalSuperBlock.offset_of(field)
    device.write(place, value.to_bytes(4, "big"))
    with pytest.raises(kind, match=words):
        recovered(device)


def test_checksum_of_the_superblock_of_the_journal() -> None:
    maker = JournalMaker(formatted(), CSUM_V3)
    device = maker.finish()
    flip(maker, maker.base + 0x61)
    with pytest.raises(CorruptError, match="journal: checksum of its superblock is"):
        recovered(device)


def test_fast_commits() -> None:
    maker = JournalMaker(formatted(), FAST, start=760)
    maker.transaction({FREE + number: data(b"%d" % number) for number in range(20)})
    device = maker.finish()
    assert shown(device, FREE + 19) == b"19"
    device.write(maker.base + 769 * BLOCK, bytes.fromhex("09000800 00000000 02000000"))
    with pytest.raises(UnsupportedError, match="fast commits of transaction 2"):
        recovered(device)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"journal_dev": 0x801}, UnsupportedError, "the journal is device 0x801"),
        ({"journal_inum": 0}, UnsupportedError, "the journal is device 0x0"),
        ({"journal_inum": 3}, CorruptError, "inode 3"),
        ({"feature_compat": 0x228}, CorruptError, "must be replayed, and there is none"),
    ],
)
def test_where_the_journal_is(changes: dict[str, int], kind: type[Exception], words: str) -> None:
    device = JournalMaker(formatted()).finish()
    super_block = read_super_block(device)
    for field, value in changes.items():
        setattr(super_block, field, value)
    device.write(SUPER_OFFSET, write_super_block(super_block))
    with pytest.raises(kind, match=words):
        recovered(device)


class TestRecoveredDevice:
    def device(self) -> tuple[MemoryBlockDevice, RecoveredDevice]:
        maker = JournalMaker(formatted())
        maker.transaction({FREE: data(b"a"), FREE + 1: data(b"b"), FREE + 300: data(b"c")})
        view = recovered(maker.finish())
        assert isinstance(view, RecoveredDevice)
        return maker.device, view

    def test_changed(self) -> None:
        device, view = self.device()
        (run,) = FileSystem(view).runs(FileSystem(view).node(8))
        assert view.changed == [
            (0, BLOCK),
            (run.physical * BLOCK, BLOCK),
            (FREE * BLOCK, 2 * BLOCK),
            ((FREE + 300) * BLOCK, BLOCK),
        ]
        assert view.size == device.size

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 0), (1, 4095), (-5, 10), (BLOCK - 3, 7), (2 * BLOCK - 1, 2), (-BLOCK, 4 * BLOCK)]
    )
    def test_read(self, offset: int, length: int) -> None:
        _, view = self.device()
        around = bytes(BLOCK) + data(b"a") + data(b"b") + bytes(BLOCK)
        assert view.read(FREE * BLOCK + offset, length) == around[BLOCK + offset : BLOCK + offset + length]

    def test_extents(self) -> None:
        device, view = self.device()
        start = FREE * BLOCK - MIB
        found = list(view.extents(start, 2 * MIB))
        assert sum(extent.length for extent in found) == 2 * MIB
        assert Extent(FREE * BLOCK, BLOCK, ExtentKind.DATA) in found
        assert all(device.read(offset, 1) for offset, _, _ in found)
        for extent in found:
            if extent.kind is ExtentKind.HOLE:
                assert not any(view.read(extent.offset, extent.length))

    def test_file_system_is_at_rest(self) -> None:
        _, view = self.device()
        assert list(check_file_system(view)) == []
        assert not FileSystem(view).super_block.feature_incompat & IncompatFeature.RECOVER


def test_superblock_from_the_log(features: int) -> None:
    """Counts that a running kernel does not write are taken from the groups, errors that it wrote past the log are kept."""
    device = formatted()
    apply_layer(device, [regular(b"file", b"x" * 100_000)])
    right = read_super_block(device)
    first = bytearray(device.read(0, BLOCK))
    stale = read_super_block(device)
    stale.free_blocks_count_lo, stale.free_inodes_count, stale.volume_name = 1, 2, b"from the log"
    stale.feature_incompat |= int(IncompatFeature.RECOVER)
    first[SUPER_OFFSET:2048] = write_super_block(stale)
    maker = JournalMaker(device, features)
    maker.transaction({0: bytes(first)})
    maker.finish()
    super_block = read_super_block(device)
    super_block.rest = bytes(0x1E) + b"\7" + bytes(0xD1 - 0x1E)
    device.write(SUPER_OFFSET, write_super_block(super_block))
    found = read_super_block(recovered(device))
    assert found.volume_name == b"from the log".ljust(16, b"\0")
    assert (found.free_blocks_count_lo, found.free_inodes_count) == (right.free_blocks_count_lo, right.free_inodes_count)
    assert found.rest[0x1E] == 7
    assert recover(device)
    assert list(check_file_system(device)) == []


class TestRecover:
    def test_for_good(self, features: int) -> None:
        maker = JournalMaker(formatted(), features)
        maker.transaction({FREE: data(b"for good"), FREE + 1: data(MAGIC)})
        device = maker.finish()
        expected = recovered(device).read(0, device.size)
        assert recover(device)
        assert device.read(0, device.size) == expected
        assert not recover(device)
        assert list(check_file_system(device)) == []
        LayerWriter(device)
        journal = JournalSuperBlock.from_bytes(device.read(maker.base, BLOCK))
        assert (journal.start, journal.sequence) == (0, 3)

    def test_nothing_in_the_log(self) -> None:
        device = JournalMaker(formatted(), start=0, sequence=77).finish()
        assert recover(device)
        assert list(check_file_system(device)) == []

    def test_log_that_does_not_wait(self) -> None:
        """Without RECOVER the kernel throws the log away."""
        maker = JournalMaker(formatted(), CSUM_V3)
        maker.transaction({FREE: data(b"thrown away")})
        device = maker.finish()
        super_block = read_super_block(device)
        super_block.feature_incompat &= ~int(IncompatFeature.RECOVER)
        device.write(SUPER_OFFSET, write_super_block(super_block))
        assert recovered(device) is device
        assert recover(device)
        assert not any(device.read(FREE * BLOCK, BLOCK))
        journal = JournalSuperBlock.from_bytes(device.read(maker.base, BLOCK))
        assert (journal.start, journal.sequence) == (0, 3)
        assert list(check_file_system(device)) == []

    @pytest.mark.parametrize("where", ["before", "in the log", "journal"])
    def test_errors_that_the_kernel_noted(self, where: str) -> None:
        device = formatted()
        super_block = read_super_block(device)
        super_block.state = 3
        marked = bytearray(device.read(0, BLOCK))
        marked[SUPER_OFFSET:2048] = write_super_block(super_block)
        maker = JournalMaker(device)
        if where == "in the log":
            maker.transaction({0: bytes(marked)})
        if where == "before":
            maker.transaction({0: device.read(0, BLOCK)})
            device.write(0, marked)
        maker.error = 5 if where == "journal" else 0
        maker.finish()
        before = contents(device)
        assert read_super_block(recovered(device)).state == 3  # it can be read
        with pytest.raises(UnsupportedError, match="state is 3: the kernel has found damage") as raised:
            recover(device)
        assert "e2fsck" in raised.value.hint
        assert contents(device) == before


class TestOrphans:
    def test_list_that_leads_nowhere(self) -> None:
        for last, words in (
            (9, "goes on at inode 9"),
            (1 << 31, "goes on at inode 2147483648"),
            (4000, "inode 4000 at byte .*: checksum is 0x00000000"),
        ):
            device = formatted()
            super_block = read_super_block(device)
            super_block.last_orphan = last
            device.write(SUPER_OFFSET, write_super_block(super_block))
            with pytest.raises(CorruptError, match=words):
                recover(device)

    def test_list_that_goes_round(self) -> None:
        device = formatted()
        apply_layer(device, [regular(b"file")])
        number = FileSystem(device).lookup(b"file").number
        raw = bytearray(device.read(FileSystem(device).groups.inode_offset(number), 256))
        raw[0x14:0x18] = number.to_bytes(4, "little")
        seed = FileSystem(device).geometry.checksum_seed
        assert seed is not None
        value = checksums.inode(seed, number, raw)
        raw[124:126], raw[130:132] = (value & 0xFFFF).to_bytes(2, "little"), (value >> 16).to_bytes(2, "little")
        device.write(FileSystem(device).groups.inode_offset(number), raw)
        super_block = read_super_block(device)
        super_block.last_orphan = number
        device.write(SUPER_OFFSET, write_super_block(super_block))
        with pytest.raises(CorruptError, match=f"inode {number}: .*goes on at inode {number}, after 1 others"):
            recover(device)

    def test_file_system_that_is_not_written(self) -> None:
        device = formatted()
        apply_layer(device, [regular(b"file")])
        super_block = read_super_block(device)
        super_block.last_orphan = FileSystem(device).lookup(b"file").number
        super_block.feature_ro_compat &= ~int(RoCompatFeature.METADATA_CSUM)
        device.write(SUPER_OFFSET, write_super_block(super_block))
        before = contents(device)
        with pytest.raises(UnsupportedError, match="orphans start at inode 11") as raised:
            recover(device)
        assert "e2fsck" in raised.value.hint
        assert contents(device) == before

    def test_orphan_file(self) -> None:
        device = formatted()
        super_block = read_super_block(device)
        super_block.feature_ro_compat |= int(RoCompatFeature.ORPHAN_PRESENT)
        device.write(SUPER_OFFSET, write_super_block(super_block))
        with pytest.raises(UnsupportedError, match="orphan file"):
            recover(device)


def test_descriptor_alone_is_no_transaction() -> None:
    maker = JournalMaker(formatted())
    maker.put(maker.head(DESCRIPTOR).ljust(BLOCK, b"\0"))
    assert shown(maker.finish()) == b""
