"""registries.conf: where podman, skopeo and buildah find registries and their mirrors.

Sources: containers-registries.conf(5), containers-registries.conf.d(5), and containers/image ``pkg/sysregistriesv2``. The same file means
the same here, but for names that containers/image would tell apart: upper and lower case, ``host`` and ``host:443``, and those of Docker
Hub. Search lists, aliases and credential helpers are not used: a short name is Docker Hub's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from registry_client.errors import DeniedError, InvalidReferenceError, MalformedError
from registry_client.hosts import list_spellings, same_host
from registry_client.reference import Reference
from registry_client.strict_json import Fields
from registry_client.strict_toml import fold, parse_toml, read_file

FILES_MAX = 1000
REGISTRIES_MAX = 10_000
MIRRORS_MAX = 100

_VERSION_2_KEYS = (
    "registry",
    "unqualified-search-registries",
    "credential-helpers",
    "short-name-mode",
    "additional-layer-store-auth-helper",
    "aliases",
)
_PULL_FROM_MIRROR = ("", "all", "digest-only", "tag-only")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A ``[[registry.mirror]]``.

    Attributes:
        location: what stands in the place of the prefix.
        by_tag: used for references with a tag alone.
        by_digest: used for references with a digest.
    """

    location: str
    insecure: bool = False
    by_tag: bool = True
    by_digest: bool = True


@dataclass(frozen=True, slots=True)
class ConfiguredRegistry:
    """A ``[[registry]]``.

    Attributes:
        prefix: ``host[:port][/path]`` or ``*.host``.
        location: what stands in the place of the prefix; empty: nothing does, which only ``*.host`` may.
        origin: the file.
    """

    prefix: str
    location: str
    origin: Path
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()

    @property
    def says_something(self) -> bool:
        """It differs from no entry at all."""
        return self.insecure or self.blocked or bool(self.mirrors) or self.location.lower() not in ("", self.prefix)

    def rewrite(self, name: str, location: str) -> tuple[str, str]:
        """Registry and repository at a location, for a ``registry/repository`` that the prefix matches.

        Raises:
            MalformedError: what comes out is no name of a repository.
        """
        length = _match(name, self.prefix)
        text = f"{location}{name[length:]}" if location else name
        registry, _, repository = text.partition("/")
        try:
            found = Reference.parse(text)
        except InvalidReferenceError:
            found = None
        # What docker's shorthand would add is not added here: docker.io stands with library/ or not at all.
        if found is None or not same_host(found.registry, registry) or found.repository != repository:
            raise MalformedError(
                f"{self.origin}: registry {self.prefix!r}: {name} becomes {text[:300]!r}, which is no repository"
            )
        return registry, repository


def read_registries_conf(paths: Sequence[Path]) -> tuple[ConfiguredRegistry, ...]:
    """All ``[[registry]]`` tables; of those with the same prefix the last file's first one.

    Args:
        paths: files, and directories whose ``*.conf`` are read by name, but not those below; what is not there is left out.

    Raises:
        MalformedError: a file is broken: names it and the key.
        DeniedError: a file may not be read.
    """
    registries: dict[str, ConfiguredRegistry] = {}
    for path, is_drop_in in _list_files(paths):
        data = read_file(path)
        if data is not None:
            registries |= {registry.prefix: registry for registry in parse_registries_conf(data, path, is_drop_in=is_drop_in)}
    return tuple(registries.values())


def parse_registries_conf(data: bytes, path: Path, *, is_drop_in: bool = False) -> tuple[ConfiguredRegistry, ...]:
    """Reads one file.

    Args:
        path: its name.
        is_drop_in: it comes from a ``registries.conf.d``, where the old version 1 is not allowed.

    Raises:
        MalformedError: it is broken.
    """
    fields = parse_toml(data, str(path))
    if fields.values.get("registries"):
        if is_drop_in:
            raise MalformedError(f"{path}: registries: version 1 of the format is not allowed in registries.conf.d")
        if mixed := [key for key in _VERSION_2_KEYS if key in fields]:
            raise MalformedError(f"{path}: registries is version 1 of the format and {mixed[0]} version 2; they do not mix")
        return _parse_version_1(fold(fields.nested("registries")), path)
    found: dict[str, ConfiguredRegistry] = {}
    flags: dict[str, ConfiguredRegistry] = {}
    for table in fields.objects("registry", maximum=REGISTRIES_MAX):
        registry = _parse_registry(fold(table), path)
        # Different prefixes may lead to one location, which then cannot be both.
        first = flags.setdefault(registry.location or registry.prefix, registry)
        for key in ("insecure", "blocked"):
            if getattr(first, key) != getattr(registry, key):
                raise MalformedError(f"{table.what}: {registry.location!r} is there twice, with and without {key}")
        found.setdefault(registry.prefix, registry)
    return tuple(found.values())


def find_registry(
    registries: Sequence[ConfiguredRegistry], registry: str, repository: str
) -> tuple[ConfiguredRegistry, str] | None:
    """The table with the longest prefix, and the ``registry/repository`` in the spelling that it matches; None if there is none.

    ``host`` is looked for as ``host:443`` too, and the other way round, if no prefix matches what was typed. A prefix without a
    port matches any port, as in containers/image.
    """
    for host in list_spellings(registry):
        name = f"{host}/{repository}" if repository else host
        matching = [item for item in registries if _match(name, item.prefix) >= 0]
        if matching:
            return max(matching, key=lambda item: len(item.prefix)), name
    return None


def _match(name: str, prefix: str) -> int:
    """How much of the name the prefix covers; -1 if it does not match."""
    lower = name.lower()
    if prefix.startswith("*."):
        start = lower.find(prefix[1:])
        if start < 0 or "/" in name[:start]:
            return -1
        end = start + len(prefix) - 1
    else:
        if not lower.startswith(prefix):
            return -1
        end = len(prefix)
    return end if end == len(name) or name[end] in ":/" else -1


def _list_files(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    for path in paths:
        try:
            names = sorted(found.name for found in islice(path.iterdir(), FILES_MAX + 1) if found.suffix == ".conf")
        except NotADirectoryError:
            yield path, False
            continue
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise DeniedError(f"{path}: {error.strerror}") from None
        except OSError as error:
            raise MalformedError(f"{path}: {error.strerror}") from None
        if len(names) > FILES_MAX:
            raise MalformedError(f"{path}: more than {FILES_MAX} files")
        for name in names:
            if not (path / name).is_dir():
                yield path / name, True


def _parse_registry(table: Fields, path: Path) -> ConfiguredRegistry:
    location = _location(table, "location")
    prefix = _location(table, "prefix").lower() or location.lower()
    if not prefix:
        raise MalformedError(f"{table.what}: neither location nor prefix is set")
    if prefix.startswith("*."):
        if any(mark in prefix for mark in "/@:"):
            raise MalformedError(f"{table.what}: prefix {prefix!r}: a wildcard must have the form *.example.com")
    elif not location:
        raise MalformedError(f"{table.what}: no location, which only a prefix of the form *.example.com can do without")
    if table.string("pull-from-mirror", ""):
        raise MalformedError(f"{table.what}: pull-from-mirror is for mirrors alone")
    digest_only = table.boolean("mirror-by-digest-only")
    mirrors = tuple(_parse_mirror(fold(mirror), digest_only) for mirror in table.objects("mirror", maximum=MIRRORS_MAX))
    return ConfiguredRegistry(prefix, location, path, table.boolean("insecure"), table.boolean("blocked"), mirrors)


def _parse_mirror(table: Fields, digest_only: bool) -> Mirror:
    location = _location(table, "location")
    if not location:
        raise MalformedError(f"{table.what}: no location")
    chosen = table.string("pull-from-mirror", "")
    if chosen not in _PULL_FROM_MIRROR:
        raise MalformedError(f"{table.what}: pull-from-mirror is {chosen[:64]!r}, not all, digest-only or tag-only")
    if chosen and digest_only:
        raise MalformedError(f"{table.what}: pull-from-mirror, though the registry has mirror-by-digest-only")
    return Mirror(
        location,
        table.boolean("insecure"),
        by_tag=not digest_only and chosen != "digest-only",
        by_digest=chosen != "tag-only",
    )


def _location(table: Fields, key: str) -> str:
    text = table.string(key, "").rstrip("/")
    if text.startswith(("http://", "https://")):
        raise MalformedError(f"{table.what}: {key} has a scheme, which does not belong there")
    return text


def _parse_version_1(tables: Fields, path: Path) -> tuple[ConfiguredRegistry, ...]:
    listed: dict[str, set[str]] = {}
    for key in ("block", "insecure"):
        if key in tables:
            table = fold(tables.nested(key))
            for text in table.strings("registries", maximum=REGISTRIES_MAX):
                listed.setdefault(_location(Fields({"registries": text}, table.what), "registries"), set()).add(key)
    return tuple(
        ConfiguredRegistry(text.lower(), text, path, "insecure" in keys, "block" in keys) for text, keys in listed.items() if text
    )
