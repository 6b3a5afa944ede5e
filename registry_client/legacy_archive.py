"""Images in the archives that ``docker save`` wrote before Docker 1.10: ``<id>/{VERSION,json,layer.tar}`` a layer, and ``repositories``.

Their images have no configuration in today's sense: it is made from the JSON of each layer, by the rules by which docker makes it, so that
the image gets the id that docker gives it. Source: moby ``image/tarexport/load.go`` (``legacyLoad``), ``image/v1/imagev1.go``; the image
specification of Docker 1.1 (``image/spec/v1.md``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from registry_client.digest import Digest
from registry_client.docker_archive import IMAGES_MAX, TAGS_MAX, ArchivedImage
from registry_client.errors import InvalidReferenceError, MalformedError
from registry_client.files import ArchiveFiles, read_file
from registry_client.manifest import LAYERS_MAX
from registry_client.reference import Reference
from registry_client.strict_json import SIZE_MAX, Fields, parse_object

REPOSITORIES = "repositories"

_RAW_SINCE = (1, 8, 3)
"""The version of docker from which on it keeps the JSON of a layer as it is; what older ones wrote gets all fields that docker knows."""

_DROPPED = frozenset({"id", "parent", "Size", "parent_id", "layer_id", "throwaway"})
_LAYER_JSON = re.compile(r"([^/]+)/json")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)")
_HASH_CHUNK = 1 << 20

_CONFIG_FIELDS: tuple[tuple[str, Any], ...] = (
    ("Hostname", ""),
    ("Domainname", ""),
    ("User", ""),
    ("AttachStdin", False),
    ("AttachStdout", False),
    ("AttachStderr", False),
    ("ExposedPorts", ...),
    ("Tty", False),
    ("OpenStdin", False),
    ("StdinOnce", False),
    ("Env", None),
    ("Cmd", None),
    ("Healthcheck", ...),
    ("ArgsEscaped", ...),
    ("Image", ""),
    ("Volumes", None),
    ("WorkingDir", ""),
    ("Entrypoint", None),
    ("NetworkDisabled", ...),
    ("MacAddress", ...),
    ("OnBuild", None),
    ("Labels", None),
    ("StopSignal", ...),
    ("StopTimeout", ...),
    ("Shell", ...),
)
"""moby's ``container.Config``, as Go writes it: each field and its zero value, or an ellipsis where a zero value is left out."""


def is_legacy(files: ArchiveFiles) -> bool:
    """Whether the archive has the form that this module reads; those with ``manifest.json`` can have it as well."""
    return REPOSITORIES in files or any(_LAYER_JSON.fullmatch(name) for name in files.names())


def read_legacy_images(path: PurePath, files: ArchiveFiles) -> list[ArchivedImage]:
    """The images of the archive: those that ``repositories`` names, and those that no other stands on.

    Reads every layer once: the configurations need their digests.

    Raises:
        NotFoundError: a layer that another stands on, or its file, is not there.
        MalformedError: a document breaks its specification, or layers stand on each other in a circle.
    """
    return list(_LegacyArchive(path, files).images())


class _LegacyArchive:
    def __init__(self, path: PurePath, files: ArchiveFiles) -> None:
        self._path = path
        self._files = files
        self._documents: dict[str, tuple[bytes, Fields]] = {}
        self._diff_ids: dict[str, Digest] = {}

    def images(self) -> Iterator[ArchivedImage]:
        found = [match[1] for match in map(_LAYER_JSON.fullmatch, self._files.names()) if match]
        parents = {self._parent(identifier) for identifier in found}
        references = self._references()
        tops = dict.fromkeys([*references, *(identifier for identifier in found if identifier not in parents)])
        if len(tops) > IMAGES_MAX:
            raise MalformedError(f"{self._path}: {len(tops)} images, more than {IMAGES_MAX}")
        for top in tops:
            chain = self._chain(top)
            layers = tuple(f"{identifier}/layer.tar" for identifier in chain)
            yield ArchivedImage(f"{top}/json", layers, tuple(references.get(top, ())), self._config(chain))

    def _references(self) -> dict[str, list[Reference]]:
        """The names that the file ``repositories`` gives, by the id of the top layer."""
        references: dict[str, list[Reference]] = {}
        if REPOSITORIES not in self._files:
            return references
        what = f"{self._path}: {REPOSITORIES}"
        repositories = parse_object(read_file(self._files, REPOSITORIES, SIZE_MAX), what)
        for name in repositories.values:
            for tag, identifier in repositories.string_map(name).items():
                if f"{identifier}/json" not in self._files:
                    raise MalformedError(f"{what}: invalid target ID: {identifier[:80]}")
                try:
                    references.setdefault(identifier, []).append(Reference.parse(f"{name}:{tag}"))
                except InvalidReferenceError as error:
                    raise MalformedError(f"{what}: {error}") from None
        if sum(map(len, references.values())) > TAGS_MAX:
            raise MalformedError(f"{what}: more than {TAGS_MAX} names")
        return references

    def _chain(self, top: str) -> list[str]:
        """Ids from the lowest layer up to this one."""
        chain = [top]
        while parent := self._parent(chain[-1]):
            if len(chain) == LAYERS_MAX:
                raise MalformedError(f"{self._path}: {top[:80]} stands on more than {LAYERS_MAX} layers, or on itself")
            chain.append(parent)
        return chain[::-1]

    def _parent(self, identifier: str) -> str:
        return self._document(identifier)[1].string("parent", "")

    def _document(self, identifier: str) -> tuple[bytes, Fields]:
        if identifier not in self._documents:
            name = f"{identifier}/json"
            data = read_file(self._files, name, SIZE_MAX)
            self._documents[identifier] = data, parse_object(data, f"{self._path}: {name}")
        return self._documents[identifier]

    def _diff_id(self, identifier: str) -> Digest:
        if identifier not in self._diff_ids:
            body = self._files.open(f"{identifier}/layer.tar")
            running = Digest.of(b"").new_hash()
            while piece := body.read(_HASH_CHUNK):
                running.update(piece)
            self._diff_ids[identifier] = Digest(f"sha256:{running.hexdigest()}")
        return self._diff_ids[identifier]

    def _config(self, chain: list[str]) -> bytes:
        """The configuration that docker makes of the layers' JSON: that of the top one, with the diff ids and a history."""
        data, top = self._document(chain[-1])
        history = [_history(self._document(identifier)[1]) for identifier in chain]
        root_fs = {"type": "layers", "diff_ids": [self._diff_id(identifier) for identifier in chain]}
        if _version(top.string("docker_version", "")) < _RAW_SINCE:
            data = _go_json(_v1_image(top))
        values = {key: _compact(value) for key, value in msgspec.json.decode(data, type=dict[str, msgspec.Raw]).items()}
        values |= {"rootfs": _go_json(root_fs), "history": _go_json(history)}
        return b"{%b}" % b",".join(
            b"%b:%b" % (_go_json(key), value) for key, value in sorted(values.items()) if key not in _DROPPED
        )


def _version(text: str) -> tuple[int, ...]:
    """A version, as docker compares them: what is no number counts as 0."""
    parts = re.split(r"[.-]", text)[:3]
    numbers = [int(part) if part.isascii() and part.isdigit() and len(part) < 10 else 0 for part in parts]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _history(layer: Fields) -> dict[str, str]:
    container = layer.nested("container_config") if "container_config" in layer else Fields({}, layer.what)
    values = {
        "created": _go_time(layer.string("created", ""), layer.what),
        "created_by": " ".join(container.strings("Cmd", maximum=LAYERS_MAX)),
        "author": layer.string("author", ""),
        "comment": layer.string("comment", ""),
    }
    return {key: value for key, value in values.items() if value}


def _v1_image(layer: Fields) -> dict[str, Any]:
    """The JSON of a layer with all the fields that docker's ``V1Image`` has, and no others."""
    strings = ("comment", "container", "docker_version", "author", "architecture", "variant", "os")
    image: dict[str, Any] = {name: text for name in strings if (text := layer.string(name, ""))}
    image["created"] = _go_time(layer.string("created", ""), layer.what) or None
    container = layer.nested("container_config").values if "container_config" in layer else {}
    image["container_config"] = _container_config(container)
    if "config" in layer:
        image["config"] = _container_config(layer.nested("config").values)
    return image


def _container_config(values: Mapping[str, Any]) -> dict[str, Any]:
    config = {}
    for name, zero in _CONFIG_FIELDS:
        value = values.get(name)
        if zero is not ...:
            config[name] = zero if value is None else value
        elif value:
            config[name] = value
    for name in ("ExposedPorts", "Volumes", "Labels"):
        if isinstance(members := config.get(name), dict):
            config[name] = dict(sorted(members.items()))
    return config


def _go_time(text: str, what: str) -> str:
    """A time as Go writes it again: without zeros at the end of the fraction, and ``Z`` for UTC."""
    if not text:
        return ""
    found = _TIME.fullmatch(text)
    if found is None:
        raise MalformedError(f"{what}: created is {text[:80]!r}, which is no time")
    seconds, fraction, zone = found.groups()
    fraction = (fraction or "").rstrip("0")
    return f"{seconds}{'.' if fraction else ''}{fraction}{'Z' if zone in ('+00:00', '-00:00') else zone}"


def _go_json(value: Any) -> bytes:
    return _escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _compact(raw: msgspec.Raw) -> bytes:
    """JSON as it was written, but for the spaces between its parts."""
    return _escaped(msgspec.json.format(bytes(raw), indent=-1))


def _escaped(data: bytes) -> bytes:
    """With the characters escaped that Go's encoder escapes for the sake of HTML and JavaScript; only strings can hold them."""
    for character in "<>&\u2028\u2029":
        data = data.replace(character.encode(), b"\\u%04x" % ord(character))
    return data
