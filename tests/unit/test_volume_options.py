"""What a volume may be called, and its options: the words of vSphere Integrated Containers."""

from __future__ import annotations

import pytest

from imgstore.errors import InvalidError, NotFoundError
from imgstore.volume_options import check_name, new_name, parse_capacity, parse_options

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024 * MIB),
        ("1", 64 * MIB),
        ("+65", 65 * MIB),
        ("100MB", 100_007_936),
        ("100m", 100_007_936),
        ("0.1 gB", 100_007_936),
        ("10GiB", 10 << 30),
        ("10Gi", 10 << 30),
        ("1.5tib", 3 << 39),
        ("67108865B", 64 * MIB + 65536),
        ("2097151", 2097151 * MIB),
    ],
)
def test_a_capacity_is_never_less_than_asked_for(text: str, size: int) -> None:
    assert size == parse_capacity(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0", "Invalid size: 0"),
        ("-5", "Invalid size: -5"),
        ("0.1B", "Invalid size: 0.1B"),
        ("2097152", "Capacity value too large: 2097152"),
        ("9999PB", "Capacity value too large: 9999PB"),
        ("", "invalid size: ''"),
        ("lots", "invalid size: 'lots'"),
        ("1e3", "invalid size: '1e3'"),
        ("10iB", "invalid size: '10iB'"),
        ("99999999999999999999", "invalid size: '99999999999999999999'"),
        ("٣", "invalid size: '٣'"),
    ],
)
def test_a_capacity_that_is_none(text: str, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_capacity(text)
    assert problem == str(caught.value)


def test_options_in_any_case() -> None:
    given = {"CAPACITY": "100", "volumeStore": "fast"}
    options = parse_options("vsphere", given)
    assert (options.driver, options.options, options.store, options.capacity) == ("vsphere", given, "fast", 100 * MIB)
    assert (parse_options("local", {}).store, parse_options("local", {}).capacity) == ("default", None)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"Size": "1"}, "bad driver value - Size is not a supported option"),
        ({"Capacity": "0"}, "bad driver value - Invalid size: 0"),
        ({"Capacity": "1EB"}, "bad driver value - invalid size: '1EB'"),
        ({"capacity": "3000000"}, "bad driver value - Capacity value too large: 3000000"),
        ({"capacity": "1", "Capacity": "1"}, "bad driver value - Capacity is given twice"),
    ],
)
def test_options_that_are_none(options: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_options("local", options)
    assert problem == str(caught.value)


def test_a_driver_that_is_none() -> None:
    with pytest.raises(NotFoundError) as caught:
        parse_options("nfs", {})
    assert str(caught.value) == "error looking up volume plugin nfs: plugin not found"


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_D", "x" * 255])
def test_names(name: str) -> None:
    check_name(name)


def test_names_that_are_made_up() -> None:
    check_name(new_name())


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "a@b", "a\n", "ä", "../x"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_name(name)
    wanted = f'volume name "{name}" includes invalid characters, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'
    assert wanted == str(caught.value)


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(InvalidError, match="volume name of 256 characters: more than 255"):
        check_name("x" * 256)
