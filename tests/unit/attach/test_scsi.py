"""Which unit of which controller a disk gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgstore.attach.scsi import CONTROLLERS_MAX, UNITS, Controller, NoFreeUnitError, choose_slots

PVSCSI = Controller(1000, 0)
LSI = Controller(1000, 0, paravirtual=False)
FULL = {(1000, unit) for unit in range(UNITS)}


@pytest.mark.parametrize(
    ("controllers", "taken", "count", "added", "slots"),
    [
        pytest.param([], set(), 1, [0], ["0:0"], id="a machine without controllers gets one"),
        pytest.param([PVSCSI], set(), 2, [], ["0:0", "0:1"], id="the lowest units"),
        pytest.param([PVSCSI], {(1000, 0), (1000, 2)}, 2, [], ["0:1", "0:3"], id="gaps are filled"),
        pytest.param([PVSCSI], {(1000, unit) for unit in range(7)}, 1, [], ["0:8"], id="7 is the controller's own"),
        pytest.param([Controller(1000, 0, own_unit=0)], set(), 1, [], ["0:1"], id="a controller that sits elsewhere"),
        pytest.param([PVSCSI], FULL - {(1000, 15)}, 1, [], ["0:15"], id="15 is the last"),
        pytest.param([PVSCSI], FULL - {(1000, 15)}, 2, [1], ["0:15", "1:0"], id="over two controllers"),
        pytest.param([PVSCSI], {(200, 0), (200, 1)}, 1, [], ["0:0"], id="units of IDE are other units"),
        pytest.param([PVSCSI], {(1000, 16), (1000, 64)}, 1, [], ["0:0"], id="disks on units that are not handed out"),
        pytest.param([LSI], set(), 1, [1], ["1:0"], id="LSI is left alone"),
        pytest.param([LSI, Controller(1001, 2)], set(), 1, [], ["2:0"], id="the paravirtual one of two kinds"),
        pytest.param([Controller(1001, 3), Controller(1000, 1)], set(), 1, [], ["1:0"], id="the lowest bus, in any order"),
        pytest.param(
            [Controller(1001, 1)], {(1001, unit) for unit in range(16)}, 1, [0], ["0:0"], id="the lowest bus that is free"
        ),
        pytest.param([], set(), 60, [0, 1, 2, 3], None, id="all that a machine takes"),
        pytest.param([], set(), 0, [], [], id="nothing wanted"),
    ],
)
def test_slots(
    controllers: list[Controller], taken: set[tuple[int, int]], count: int, added: list[int], slots: list[str] | None
) -> None:
    new, chosen = choose_slots("web", controllers, taken, count)
    assert [controller.bus for controller in new] == added
    assert len({controller.key for controller in (*controllers, *new)}) == len(controllers) + len(added)
    if slots is not None:
        assert [str(slot) for slot in chosen] == slots


@pytest.mark.parametrize(
    ("controllers", "count", "numbers"),
    [
        (
            [],
            61,
            "61 more disks do not fit: its 0 paravirtual SCSI controllers have 0 free units, and 4 controllers can be added to the 0 of 4",
        ),
        (
            [PVSCSI],
            61,
            "61 more disks do not fit: its 1 paravirtual SCSI controllers have 15 free units, and 3 controllers can be added",
        ),
        (
            [Controller(key, key, paravirtual=False) for key in range(4)],
            1,
            "and 0 controllers can be added to the 4 of 4 that it has",
        ),
    ],
)
def test_more_than_fit(controllers: list[Controller], count: int, numbers: str) -> None:
    with pytest.raises(NoFreeUnitError, match=r"^VM web: ") as caught:
        choose_slots("web", controllers, set(), count)
    assert numbers in str(caught.value)


_controllers = st.lists(st.integers(0, 5), max_size=5, unique=True).flatmap(
    lambda buses: st.tuples(
        *(st.builds(Controller, st.just(1000 + bus), st.just(bus), st.booleans(), st.integers(0, 15)) for bus in buses)
    )
)
_taken = st.sets(st.tuples(st.integers(1000, 1005), st.integers(0, 64)), max_size=90)


@given(_controllers, _taken, st.integers(0, 70))
def test_any_machine(controllers: tuple[Controller, ...], taken: set[tuple[int, int]], count: int) -> None:
    before = {controller.key for controller in controllers}
    usable = [controller for controller in controllers if controller.paravirtual]
    free = sum((c.key, unit) not in taken and unit != c.own_unit for c in usable for unit in range(UNITS))
    spare = min(CONTROLLERS_MAX - len(controllers), len(set(range(4)) - {controller.bus for controller in controllers}))
    try:
        added, slots = choose_slots("web", controllers, taken, count)
    except NoFreeUnitError:
        assert count > free + max(spare, 0) * (UNITS - 1)
        return
    assert len(slots) == count == len({(slot.controller.key, slot.unit) for slot in slots})
    assert all((slot.controller.key, slot.unit) not in taken and slot.unit != slot.controller.own_unit for slot in slots)
    assert all(slot.controller.paravirtual and slot.controller.bus < 6 for slot in slots)
    assert {slot.controller.key for slot in slots} - before == {controller.key for controller in added}
    assert len({controller.bus for controller in (*controllers, *added)}) == len(controllers) + len(added)
    assert not added or len(controllers) + len(added) <= CONTROLLERS_MAX
    assert not added or count > free
