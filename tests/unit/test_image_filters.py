from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from imgstore.answers import Image
from imgstore.errors import InvalidError, NotFoundError
from imgstore.filters import parse_boolean
from imgstore.image_filters import compile_pattern, parse_list_filters, parse_prune_filters


def image(name: str, day: int | None = 1, **options: object) -> Image:
    fields: dict[str, object] = {
        "id": f"sha256:{name:0>64}",
        "references": (f"{name}:1",),
        "digests": (),
        "created": None if day is None else datetime(2024, 5, day, tzinfo=UTC),
        "os": "linux",
        "architecture": "amd64",
        "variant": "",
        "size": 0,
        "layers": (),
        "disks": (),
        "labels": {},
        "parent": None,
        "tagged": None,
        "manifest_digest": None,
        "manifest_bytes": b"",
        "config_bytes": b"{}",
    }
    return Image(**(fields | options))  # type: ignore[arg-type]


IMAGES = [
    image("late", 20, labels={"tier": "web", "v": "2"}),
    image("middle", 10, labels={"tier": "db"}),
    image("early", 1, references=("127.0.0.1:5000/team/early:1", "early:latest"), digests=("early@sha256:" + "0" * 64,)),
    image("untagged", 5, references=(), digests=("app@sha256:" + "1" * 64,)),
    image("nameless", 6, references=()),
    image("timeless", None),
]


def find(text: str) -> Image:
    for each in IMAGES:
        if text in each.id:
            return each
    raise NotFoundError(f"No such image: {text}")


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({}, "late middle early untagged nameless timeless"),
        ({"dangling": ["true"]}, "untagged nameless"),
        ({"dangling": ["1"]}, "untagged nameless"),
        ({"dangling": ["false"]}, "late middle early untagged timeless"),
        ({"label": ["tier"]}, "late middle"),
        ({"label": ["tier=db"]}, "middle"),
        ({"label": ["tier", "v=2"]}, "late"),
        ({"label": ["tier="]}, ""),
        ({"before": ["middle"]}, "early untagged nameless"),
        ({"since": ["middle"]}, "late"),
        ({"before": ["late", "untagged"]}, "early"),
        ({"since": ["early", "untagged"]}, "late middle nameless"),
        ({"before": ["timeless"]}, "late middle early untagged nameless timeless"),
        ({"until": ["2024-05-06T00:00:00Z"]}, "early untagged"),
        ({"until": ["2024-05-06T00:00:00Z"], "before": ["untagged"]}, "early"),
        ({"reference": ["late"]}, "late"),
        ({"reference": ["late:1", "middle"]}, "late middle"),
        ({"reference": ["127.0.0.1:5000/*/early"]}, "early"),
        ({"reference": ["*"]}, "late middle early untagged timeless"),
        ({"reference": ["app"]}, "untagged"),
        ({"reference": ["app@sha256:*"]}, "untagged"),
        ({"reference": ["la"]}, ""),
    ],
)
def test_list(filters: dict[str, list[str]], expected: str) -> None:
    selected = parse_list_filters(filters, find).select(IMAGES)
    assert expected.split() == [each.id.lstrip("sha256:").lstrip("0") for each in selected]


def test_a_reference_leaves_the_names_that_match() -> None:
    (early,) = parse_list_filters({"reference": ["early"]}, find).select(IMAGES)
    assert (early.references, len(early.digests)) == (("early:latest",), 1)
    (early,) = parse_list_filters({"reference": ["127.0.0.1:5000/team/early:*"]}, find).select(IMAGES)
    assert (early.references, early.digests) == (("127.0.0.1:5000/team/early:1",), ())


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({}, "untagged nameless"),
        ({"dangling": ["true"]}, "untagged nameless"),
        ({"dangling": ["false"]}, "late middle early untagged nameless timeless"),
        ({"dangling": ["false"], "label": ["tier=web"]}, "late"),
        ({"dangling": ["false"], "label!": ["tier"]}, "early untagged nameless timeless"),
        ({"dangling": ["false"], "label!": ["tier", "v"]}, "middle early untagged nameless timeless"),
        ({"dangling": ["false"], "until": ["2024-05-07"]}, "early untagged nameless"),
    ],
)
def test_prune(filters: dict[str, list[str]], expected: str) -> None:
    selected = parse_prune_filters(filters).select(IMAGES)
    assert expected.split() == [each.id.lstrip("sha256:").lstrip("0") for each in selected]


@pytest.mark.parametrize(
    "filters, message",
    [
        ({"bogus": ["1"]}, "invalid filter 'bogus'"),
        ({"label!": ["x"]}, "invalid filter 'label!'"),
        ({"dangling": ["maybe"]}, "invalid filter 'dangling=[maybe]'"),
        ({"dangling": ["true", "false"]}, "invalid filter 'dangling=[true false]'"),
        ({"dangling": []}, "invalid filter 'dangling'"),
        ({"until": ["yesterday"]}, 'failed to parse value as time or duration: "yesterday"'),
        ({"reference": ["["]}, "syntax error in pattern"),
        ({"before": ["nope"]}, "No such image: nope"),
    ],
)
def test_what_makes_no_sense(filters: dict[str, list[str]], message: str) -> None:
    with pytest.raises((InvalidError, NotFoundError), match=r"^" + re.escape(message) + "$"):
        parse_list_filters(filters, find)


def test_what_makes_no_sense_for_a_prune() -> None:
    with pytest.raises(InvalidError, match=r"^invalid filter 'reference'$"):
        parse_prune_filters({"reference": ["x"]})
    with pytest.raises(InvalidError, match="more than one until filter specified"):
        parse_prune_filters({"until": ["1h", "2h"]})
    assert parse_boolean({}, "dangling") is None


@pytest.mark.parametrize(
    "pattern, name, expected",
    [  # from path/match_test.go of Go
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*", "abc", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", False),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^b-d]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("[a-ζ]*", "δ", True),
        ("*[a-ζ]", "A", False),
        ("a?b", "a/b", False),
        ("a*b", "a/b", False),
        ("[\\]a]", "]", True),
        ("[\\-]", "-", True),
        ("[x\\-]", "-", True),
        ("[x\\-]", "z", False),
        ("[\\-x]", "-", True),
        ("[\\-x]", "a", False),
        ("[]a]", "]", None),
        ("[-]", "-", None),
        ("[x-]", "x", None),
        ("[-x]", "x", None),
        ("\\", "a", None),
        ("[a-b-c]", "a", None),
        ("[", "a", None),
        ("[^", "a", None),
        ("[^bc", "a", None),
        ("a[", "ab", None),
        ("*x", "xxx", True),
        ("[b-a]", "a", False),
        ("", "", True),
        ("a.c", "abc", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(InvalidError, match=r"^syntax error in pattern$"):
            compile_pattern(pattern)
    else:
        assert expected == (compile_pattern(pattern).fullmatch(name) is not None)


def test_a_pattern_that_is_hard_to_match_is_soon_done_with() -> None:
    assert compile_pattern("*a" * 300 + "b").fullmatch("a" * 4000) is None
    with pytest.raises(InvalidError, match="2000 characters"):
        compile_pattern("*" * 2000)
