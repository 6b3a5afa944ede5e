"""Image filters: which images a list shows and a prune removes, in docker's words.

Source: moby ``daemon/images/image_list.go`` and ``image_prune.go``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from imgstore.answers import Image
from imgstore.errors import InvalidError
from imgstore.filters import Filters, Labels, check_filters, has_labels, parse_boolean, parse_labels
from imgstore.timestamps import parse_timestamp

LIST_FILTERS = frozenset({"dangling", "label", "before", "since", "reference", "until"})
PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})

_PATTERN_LENGTH_MAX = 1024


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """What an image must be; every attribute that is set narrows it down.

    Attributes:
        dangling: True: it has no tag; False: it has a name, with a tag or a digest.
        labels: all of these: (name, value), or (name, None) for any value.
        without_labels: not all of these.
        before: created earlier than that; an image that does not say when is none.
        since: created later.
        references: patterns, of which one matches one of its names; those that no pattern matches are not shown.
    """

    dangling: bool | None = None
    labels: Labels = ()
    without_labels: Labels = ()
    before: datetime | None = None
    since: datetime | None = None
    references: tuple[re.Pattern[str], ...] = ()

    def select(self, images: Iterable[Image]) -> list[Image]:
        """Those of the images that are meant, with the names that are."""
        return [shown for image in images if (shown := self._shown(image)) is not None]

    def _shown(self, image: Image) -> Image | None:
        if self.before is not None and (image.created is None or image.created >= self.before):
            return None
        if self.since is not None and (image.created is None or image.created <= self.since):
            return None
        if not has_labels(image.labels, self.labels) or (self.without_labels and has_labels(image.labels, self.without_labels)):
            return None
        if self.references:
            image = replace(image, references=self._matching(image.references), digests=self._matching(image.digests))
        has_name = bool(image.references or image.digests)
        if self.dangling is True and image.references:
            return None
        if not has_name and (self.dangling is False or self.references):
            return None
        return image

    def _matching(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if any(_matches(pattern, name) for pattern in self.references))


def parse_list_filters(given: Filters, find: Callable[[str], Image]) -> ImageFilter:
    """The filters of a list; several values of ``before``, ``until`` and ``since`` must all hold.

    Args:
        find: gives the image that ``before`` or ``since`` names.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
        Whatever ``find`` raises.
    """
    check_filters(given, LIST_FILTERS)
    before = [parse_timestamp(value) for value in given.get("until", ())]
    before += [created for value in given.get("before", ()) if (created := find(value).created) is not None]
    since = [created for value in given.get("since", ()) if (created := find(value).created) is not None]
    return ImageFilter(
        dangling=parse_boolean(given, "dangling"),
        labels=parse_labels(given, "label"),
        before=min(before, default=None),
        since=max(since, default=None),
        references=tuple(compile_pattern(value) for value in given.get("reference", ())),
    )


def parse_prune_filters(given: Filters) -> ImageFilter:
    """The filters of a prune: images without a tag, unless ``dangling=false`` says all.

    Raises:
        InvalidError: an unknown filter, or a value that makes no sense.
    """
    check_filters(given, PRUNE_FILTERS)
    until = given.get("until", ())
    if len(until) > 1:
        raise InvalidError("more than one until filter specified")
    return ImageFilter(
        dangling=True if parse_boolean(given, "dangling") in (None, True) else None,
        labels=parse_labels(given, "label"),
        without_labels=parse_labels(given, "label!"),
        before=parse_timestamp(until[0]) if until else None,
    )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern as Go's ``path.Match`` reads it: ``*`` and ``?`` stop at a slash.

    Takes time linear in the name for each ``*``: what was matched before one is not tried again.

    Raises:
        InvalidError: it is malformed.
    """
    if len(pattern) > _PATTERN_LENGTH_MAX:
        raise InvalidError(f"pattern of {len(pattern)} characters: more than {_PATTERN_LENGTH_MAX}")
    first, *chunks = _chunks(pattern)
    expression = first + "".join(f"(?>[^/]*?{chunk})" for chunk in chunks[:-1])
    if chunks:
        expression += f"[^/]*{chunks[-1]}"
    return re.compile(expression, re.DOTALL)


def _chunks(pattern: str) -> list[str]:
    """The expressions between the stars."""
    chunks = [""]
    rest = iter(pattern)
    for letter in rest:
        if letter == "*":
            chunks.append("")
        elif letter == "?":
            chunks[-1] += "[^/]"
        elif letter == "[":
            chunks[-1] += _character_class(rest)
        else:
            chunks[-1] += re.escape(_escaped(rest) if letter == "\\" else letter)
    return chunks


def _character_class(rest: Iterable[str]) -> str:
    rest = iter(rest)
    negated, ranges = "", ""
    letter = _next(rest)
    if letter == "^":
        negated, letter = "^", _next(rest)
    while letter != "]" or not ranges:
        if letter in "-]":
            raise InvalidError("syntax error in pattern")
        low = high = _escaped(rest) if letter == "\\" else letter
        letter = _next(rest)
        if letter == "-":
            high = _next(rest)
            if high in "-]":
                raise InvalidError("syntax error in pattern")
            high = _escaped(rest) if high == "\\" else high
            letter = _next(rest)
        ranges += f"{re.escape(low)}-{re.escape(high)}" if low <= high else ""
        if letter == "]":
            break
    return f"[{negated}{ranges}]" if ranges else ("." if negated else "(?!)")


def _escaped(rest: Iterable[str]) -> str:
    return _next(rest)


def _next(rest: Iterable[str]) -> str:
    letter = next(iter(rest), None)
    if letter is None:
        raise InvalidError("syntax error in pattern")
    return letter


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    """Whether the pattern matches the name as docker shows it, or its repository alone."""
    above, slash, last = name.partition("@")[0].rpartition("/")
    repository = above + slash + last.partition(":")[0]
    return pattern.fullmatch(name) is not None or pattern.fullmatch(repository) is not None
