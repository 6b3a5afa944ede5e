"""BlockMap, SnapshotDevice and Chain against the simplest model there is: a list of grains, and a bytearray."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from imgstore.blocks import GRAIN, BlockMap, Extent, ExtentKind
from imgstore.datastores import MemoryDatastore
from imgstore.vmdk import HostedDiskWriter, SnapshotDevice, check_disk, derive_cid, open_chain
from tests.disks import path_of

GRAINS = 1100  # three grain tables, the last one cut
SIZE = 24 * GRAIN

runs = st.tuples(st.integers(0, GRAINS - 1), st.integers(1, 600), st.integers(0, 3), st.integers(1, 1 << 20))


@given(st.lists(st.lists(runs, max_size=6), min_size=1, max_size=4))
def test_a_map_is_a_list_of_grains(layers: list[list[tuple[int, int, int, int]]]) -> None:
    block_map, model = BlockMap(), [None] * GRAINS
    before: list[tuple[BlockMap, list[tuple[int, int] | None]]] = []
    for layer in layers:
        before.append((block_map, list(model)))
        block_map = block_map.copy()
        for grain, count, disk, place in layer:
            count = min(count, GRAINS - grain)
            block_map.assign(grain, count, disk, place * 128)
            model[grain : grain + count] = [(disk, (place + step) * 128) for step in range(count)]  # type: ignore[list-item]
    for checked, expected in [*before, (block_map, model)]:
        assert [checked.find(grain) for grain in range(GRAINS)] == expected
        listed: list[tuple[int, int] | None] = []
        for run in checked.runs(0, GRAINS):
            assert run.grain == len(listed)
            listed += [None if run.disk is None else (run.disk, run.sector + step * 128) for step in range(run.length)]
        assert listed == expected


@given(st.lists(st.lists(runs, max_size=4), min_size=1, max_size=4))
def test_a_child_made_of_tables_is_the_map_they_came_from(layers: list[list[tuple[int, int, int, int]]]) -> None:
    assigned, merged = BlockMap(), BlockMap()
    for disk, layer in enumerate(layers):
        own = BlockMap()
        for grain, count, _, place in layer:
            assigned.assign(grain, count, disk, place * 128)
            own.assign(grain, count, 0, place * 128)
        merged = merged.child(disk, dict(own.tables(0)))
    assert list(merged.runs(0, 2 * GRAINS)) == list(assigned.runs(0, 2 * GRAINS))


lengths = st.one_of(st.integers(1, 9000), st.integers(GRAIN - 3, GRAIN + 3), st.integers(1, 5).map(lambda count: count * GRAIN))
offsets = st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE // GRAIN - 1).map(lambda grain: grain * GRAIN))
operations = st.one_of(
    st.tuples(st.just("write"), offsets, lengths, st.integers(0, 255)),
    st.tuples(st.just("read"), offsets, lengths, st.just(0)),
    st.tuples(st.just("flush"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("extents"), offsets, lengths, st.just(0)),
)


@settings(max_examples=settings.default.max_examples // 2)  # type: ignore[union-attr]
@given(st.lists(st.lists(operations, max_size=15), min_size=1, max_size=4), st.sampled_from((GRAIN, 3 * GRAIN, 1 << 20)))
def test_a_chain_is_a_bytearray(layers: list[list[tuple[str, int, int, int]]], cache: int) -> None:
    datastore = MemoryDatastore()
    model, held = bytearray(SIZE), [False] * (SIZE // GRAIN)
    chain = None
    for number, layer in enumerate(layers):
        name = f"d{number}"
        staging = datastore.stage("disks", name)
        writer = HostedDiskWriter(
            staging.create(f"{name}.vmdk"),
            capacity=SIZE,
            cid=derive_cid(name),
            extent_name=f"{name}.vmdk",
            parent_cid=None if chain is None else chain.cid,
            parent_hint=None if chain is None else f"d{number - 1}.vmdk",
        )
        device = SnapshotDevice(writer, chain, cache_size=cache)
        for operation, offset, length, value in layer:
            end = min(SIZE, offset + length)
            match operation:
                case "write":
                    data = bytes((value + step) & 255 for step in range(7)) * (length // 7 + 1)
                    device.write(offset, data[: end - offset])
                    model[offset:end] = data[: end - offset]
                    first, last = offset // GRAIN, -(-end // GRAIN)
                    held[first:last] = [True] * (last - first)
                case "read":
                    assert device.read(offset, end - offset) == model[offset:end]
                case "flush":
                    device.flush()
                case "extents":
                    assert (
                        _grains(list(device.extents(offset, end - offset)), offset, end)
                        == held[offset // GRAIN : -(-end // GRAIN)]
                    )
        chain = device.chain()
        summary = device.seal()
        staging.publish()
        with datastore.open(path_of(name)) as file:
            assert file.size == summary.file_size
            assert check_disk(file) == []
        assert chain.read(0, SIZE) == model
    with open_chain(datastore.open, path_of(f"d{len(layers) - 1}")) as opened:
        assert opened.read(0, SIZE) == model
        assert _grains(list(opened.extents()), 0, SIZE) == held


def _grains(extents: list[Extent], offset: int, end: int) -> list[bool]:
    """Whether each grain of the range has data, after a look whether the extents tile it."""
    grains: list[bool] = []
    for extent in extents:
        assert extent.offset == offset and extent.length > 0
        offset += extent.length
        count = -(-offset // GRAIN) - extent.offset // GRAIN
        grains += [extent.kind is ExtentKind.DATA] * count
    assert offset == end
    return grains
