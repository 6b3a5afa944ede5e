"""Seed files: the lists of images that datastores are to have, in YAML. Described for users in ``docs/reference/seed-file.md``.

A list of references, with more words where one needs them, or what ``skopeo sync --src yaml`` reads, or both::

    images:
      - alpine:3.20
      - name: harbor.example/team/app
        tags: [1.0, 1.1]
        platform: linux/arm64

    harbor.example:
      images:
        team/base: ["7"]
        team/tools: []        # all tags

Scalars are taken as they are written: the tag ``3.10`` is no number. What the file does not need is refused, each with its line: anchors
and aliases (a small file can stand for a huge one), tags (``!!python/...``), a key twice, keys that nobody knows.

Source: YAML 1.1, as PyYAML parses it; skopeo-sync(1), "YAML file content".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from imgstore.errors import InvalidError
from imgstore.images import parse_reference
from registry_client.errors import RegistryError
from registry_client.platform import Platform
from registry_client.reference import Reference

LIMIT = 1 << 20
"""Longest seed file in bytes; ten thousand images need half of it."""

_DEPTH_MAX = 8
"""A list needs four levels."""

_WORD_MAX = 4096
"""A path of a layout has no more; what is refused is told whole."""

_IMAGES = "images"
_LAYOUTS = ("oci:", "oci-archive:", "docker-archive:")
_HOST = re.compile(
    r"localhost(:\d{1,5})?|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d{1,5})?|[A-Za-z0-9-]+:\d{1,5}|\[[0-9a-fA-F:.]+\](:\d{1,5})?"
)

_REFUSED = {
    "credentials": "log in with: imgstore login",
    "tls-verify": "use --insecure-registry",
    "cert-dir": "use --cert-dir",
    "images-by-tag-regex": "name the tags, or leave the list of tags empty for all of them",
    "images-by-semver": "name the tags, or leave the list of tags empty for all of them",
}
"""What skopeo's files can have and ours cannot, and what to do instead."""


@dataclass(frozen=True, slots=True)
class SeedImage:
    """An image of the list.

    Attributes:
        reference: as ``pull`` takes it; without tag and digest where ``all_tags`` is true.
        platform: that the list asks for, or None.
        all_tags: every tag of the repository is meant.
        line: of the file where it stands, from 1.
    """

    reference: str
    platform: str | None = None
    all_tags: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True)
class _Node:
    """A value, with its place in the file."""

    line: int
    value: str | list[_Node] | dict[str, _Entry]


@dataclass(frozen=True, slots=True)
class _Entry:
    line: int
    node: _Node


def parse_seed_file(data: bytes, name: str) -> list[SeedImage]:
    """The images that a seed file lists, in its order.

    Args:
        name: of the file, for errors.

    Raises:
        InvalidError: it is longer than ``LIMIT``, no YAML, or not what a seed file may be; the message has the line.
    """
    if len(data) > LIMIT:
        raise InvalidError(f"{name}: is longer than {LIMIT} bytes, which is more than a list of images has")
    return _Reader(name).read(data)


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[str, int] = {}

    def read(self, data: bytes) -> list[SeedImage]:
        try:
            root = self._parse(data)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._fail((mark.line if mark else 0) + 1, f"no YAML: {error.problem or error.context}")
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets numbers through that Python then refuses
            raise InvalidError(f"{self._name}: no YAML: {' '.join(str(error).split())}") from error
        images: list[SeedImage] = []
        for key, entry in self._mapping(root, "the file").items():
            if key == _IMAGES:
                for node in self._list(entry.node, f"{_IMAGES!r}"):
                    images.extend(self._image(node))
            elif _HOST.fullmatch(key):
                images.extend(self._registry(key, entry.node))
            else:
                self._fail(entry.line, f"unknown key {key!r}: there are 'images', and names of registries")
        if not images:
            self._fail(root.line, "lists no image")
        return images

    def _image(self, node: _Node) -> Iterator[SeedImage]:
        """An element of ``images``: a reference, or a mapping with name, tags, platform."""
        if isinstance(node.value, str):
            yield self._listed(node.value, None, node.line)
            return
        fields = self._mapping(node, "an image")
        for key, entry in fields.items():
            if key not in ("name", "tags", "platform"):
                self._fail(entry.line, f"unknown key {key!r} of an image: there are 'name', 'tags', 'platform'")
        if "name" not in fields:
            self._fail(node.line, "an image without 'name'")
        name = self._text(fields["name"].node, "'name'")
        platform = self._platform(fields["platform"].node) if "platform" in fields else None
        if "tags" not in fields:
            yield self._listed(name, platform, node.line)
        else:
            yield from self._tagged(name, fields["tags"].node, platform)

    def _registry(self, host: str, node: _Node) -> Iterator[SeedImage]:
        """What skopeo's files have under the name of a registry."""
        for key, entry in self._mapping(node, f"registry {host}").items():
            if key in _REFUSED:
                self._fail(entry.line, f"registry {host}: {key!r} is not for this file", hint=_REFUSED[key])
            if key != _IMAGES:
                self._fail(entry.line, f"unknown key {key!r} of registry {host}: there is 'images'")
            for repository, tags in self._mapping(entry.node, f"'images' of registry {host}").items():
                yield from self._tagged(f"{host}/{repository}", tags.node, None)

    def _tagged(self, name: str, node: _Node, platform: str | None) -> Iterator[SeedImage]:
        """The tags and digests of a repository; an empty list stands for all tags."""
        repository = self._repository(name, node.line)
        tags = self._list(node, f"the tags of {name}")
        if not tags:
            yield self._new(SeedImage(repository, platform, all_tags=True, line=node.line))
        for tag in tags:
            text = self._text(tag, f"a tag of {name}")
            yield self._listed(f"{repository}{'@' if ':' in text else ':'}{text}", platform, tag.line)

    def _repository(self, name: str, line: int) -> str:
        reference = self._reference(name, line)
        if reference.digest is not None or ":" in name.rpartition("/")[2]:
            self._fail(line, f"{name}: has a tag or digest beside its list of tags")
        return reference.name

    def _listed(self, text: str, platform: str | None, line: int) -> SeedImage:
        if not text.startswith(_LAYOUTS):
            self._reference(text, line)
        return self._new(SeedImage(text, platform, line=line))

    def _new(self, image: SeedImage) -> SeedImage:
        """The image, unless the list has it already: a store has one image under a name, and so one platform of it."""
        is_layout = image.reference.startswith(_LAYOUTS)
        key = image.reference if is_layout or image.all_tags else str(self._reference(image.reference, image.line))
        if key in self._seen:
            self._fail(image.line, f"{image.reference}: is listed twice, first in line {self._seen[key]}")
        self._seen[key] = image.line
        return image

    def _reference(self, text: str, line: int) -> Reference:
        try:
            return parse_reference(text.removeprefix("docker://"))
        except InvalidError as error:
            self._fail(line, f"{text!r}: {error}")

    def _platform(self, node: _Node) -> str:
        text = self._text(node, "'platform'")
        try:
            return str(Platform.parse(text))
        except RegistryError as error:
            self._fail(node.line, str(error))

    def _text(self, node: _Node, what: str) -> str:
        if not isinstance(node.value, str) or not node.value:
            self._fail(node.line, f"{what} is not a word")
        return node.value

    def _list(self, node: _Node, what: str) -> list[_Node]:
        if not isinstance(node.value, list):
            self._fail(node.line, f"{what}: must be a list")
        return node.value

    def _mapping(self, node: _Node, what: str) -> dict[str, _Entry]:
        if not isinstance(node.value, dict):
            self._fail(node.line, f"{what}: must have keys with values")
        return node.value

    def _fail(self, line: int, problem: str, *, hint: str = "") -> NoReturn:
        raise InvalidError(f"{self._name}, line {line}: {problem}", hint=hint)

    def _parse(self, data: bytes) -> _Node:
        """The one document of the file, as a tree of texts: nothing is made a number, and nothing is referred to twice."""
        events = yaml.parse(data, Loader=yaml.SafeLoader)
        document: _Node | None = None
        for event in events:
            if isinstance(event, StreamEndEvent):
                break
            if isinstance(event, DocumentStartEvent):
                if document is not None:
                    self._fail(_line(event), "a second document")
                document = self._node(next(events), events, 1)
        if document is None:
            raise InvalidError(f"{self._name}: is empty")
        return document

    def _node(self, event: Event, events: Iterator[Event], depth: int) -> _Node:
        line = _line(event)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            self._fail(line, f"anchors and aliases are not for this file: {event.anchor}")
        if depth > _DEPTH_MAX:
            self._fail(line, f"more than {_DEPTH_MAX} levels")
        if isinstance(event, (ScalarEvent, SequenceStartEvent, MappingStartEvent)) and event.tag not in (None, "!"):
            self._fail(line, f"types are not for this file: {event.tag}")
        if isinstance(event, ScalarEvent):
            if len(event.value) > _WORD_MAX:
                self._fail(line, f"a word of {len(event.value)} letters; the longest that makes sense has {_WORD_MAX}")
            return _Node(line, event.value)
        if isinstance(event, SequenceStartEvent):
            items = []
            while not isinstance(event := next(events), SequenceEndEvent):
                items.append(self._node(event, events, depth + 1))
            return _Node(line, items)
        entries: dict[str, _Entry] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key = self._text(self._node(event, events, depth + 1), "a key")
            if key in entries:
                self._fail(_line(event), f"key {key!r} stands here twice, first in line {entries[key].line}")
            entries[key] = _Entry(_line(event), self._node(next(events), events, depth + 1))
        return _Node(line, entries)


def _line(event: Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1
