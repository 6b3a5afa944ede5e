from __future__ import annotations

import pytest

from imgstore.errors import InvalidError
from imgstore.shell_words import expand_word, expand_words

VARIABLES = {"A": "1", "EMPTY": "", "SPACES": "x  y", "_u8": "u", "1": "one"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain  text", "plain  text"),
        ("$A${A}b", "11b"),
        ("$NONE.", "."),
        ("$_u8-$1x$", "u-onex$"),
        ("$ $$ $%", "$  $%"),
        ("'$A \"\\'", '$A "\\'),
        ('"$A \'b\' \\" \\$A \\x \\\\"', "1 'b' \" $A \\x \\"),
        ("\\$A \\\\ \\' a\\", "$A \\ ' a"),
        ("${A:-x}${NONE:-x}${EMPTY:-x}", "1xx"),
        ("${A-x}${NONE-x}${EMPTY-x}", "1x"),
        ("${A:+x}${NONE:+x}${EMPTY:+x}", "x"),
        ("${A+x}${NONE+x}${EMPTY+x}", "xx"),
        ("${A:?x}${EMPTY?x}", "1"),
        ("${NONE:-${A}'}'}", "1}"),
        ("a'b'\"c\"", "abc"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expected == expand_word(text, VARIABLES)


def test_another_escape() -> None:
    assert expand_word("`$A \\$A", VARIABLES, escape="`") == "$A \\1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  a  b ", ["a", "b"]),
        ("$SPACES", ["x", "y"]),
        ('"$SPACES"', ["x  y"]),
        ("a\\ b 'c d'e", ["a b", "c de"]),
        ("$NONE a", ["a"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert expected == expand_words(text, VARIABLES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("'a", "looking for matching single-quote"),
        ('"a', "looking for matching double-quote"),
        ('"a\\', "looking for matching double-quote"),
        ("${", "missing '}'"),
        ("${A", "missing '}'"),
        ("${A:-x", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${{A}}", "bad substitution"),
        ("${A!x}", r"unsupported modifier \(!\)"),
        ("${A:x}", r"unsupported modifier \(:x\)"),
        ("${NONE?}", "NONE: is not allowed to be unset"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
        ("${NONE:?say so}", "NONE: say so"),
        ("${NONE:-'x}", "single-quote|missing"),
    ],
)
def test_what_is_no_text(text: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words) as error:
        expand_word(text, VARIABLES)
    assert str(error.value).startswith(f'failed to process "{text}"')
