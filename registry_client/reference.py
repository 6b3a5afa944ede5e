"""References: names of images in registries, with docker's grammar and defaults.

``alpine`` is ``docker.io/library/alpine:latest``. Source: the grammar in distribution/reference (``reference.go``, ``normalize.go``);
errors have the words that docker prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from registry_client.digest import Digest
from registry_client.errors import InvalidDigestError, InvalidReferenceError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
NAME_LENGTH_MAX = 255

_ALPHANUMERIC = r"[a-z0-9]+"
_COMPONENT = rf"{_ALPHANUMERIC}(?:(?:\.|_|__|-+){_ALPHANUMERIC})*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<name>(?P<registry>{_DOMAIN})/(?P<repository>{_PATH}))(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_TAG_ONLY = re.compile(_TAG)

# Longer than any valid reference; keeps the regular expressions away from megabytes.
_TEXT_LENGTH_MAX = 1024


@dataclass(frozen=True, slots=True)
class Reference:
    """Name of an image: registry, repository, and a tag or a digest or both (the digest then decides).

    ``str()`` gives the full form, ``docker.io/library/alpine:latest``. Make one with `Reference.parse`.

    Attributes:
        registry: host, with the port if one was given: ``docker.io``, ``127.0.0.1:5000``.
        repository: path in the registry: ``library/alpine``.
        tag: or None, if there is only a digest. Neither is there only in what `without_tag` gives.
        digest: or None.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Reads a reference as docker does, and puts in what it leaves out.

        Raises:
            InvalidReferenceError: with docker's words.
        """
        if len(text) > _TEXT_LENGTH_MAX:
            raise InvalidReferenceError(f"{text[:64]!r}…: invalid reference format: {len(text)} characters")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReferenceError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        registry, rest = _split_registry(text)
        if not rest:
            raise InvalidReferenceError(f"{text!r}: invalid reference format: repository name must have at least one component")
        path = re.split("[:@]", rest, maxsplit=1)[0]
        if path != path.lower():
            raise InvalidReferenceError(f"{text!r}: invalid reference format: repository name must be lowercase")
        found = _REFERENCE.fullmatch(f"{registry}/{rest}")
        if found is None:
            raise InvalidReferenceError(f"{text!r}: invalid reference format")
        if len(found["name"]) > NAME_LENGTH_MAX:
            raise InvalidReferenceError(f"{text[:64]!r}…: repository name must not be more than {NAME_LENGTH_MAX} characters")
        tag, digest = found["tag"], None
        if found["digest"] is not None:
            try:
                digest = Digest(found["digest"])
            except InvalidDigestError as error:
                raise InvalidReferenceError(f"{text!r}: invalid reference format: {error}") from None
        elif tag is None:
            tag = DEFAULT_TAG
        return cls(found["registry"], found["repository"], tag, digest)

    def __str__(self) -> str:
        return self._suffixed(self.name)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest: ``docker.io/library/alpine``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """The name as docker shows it: ``alpine`` for ``docker.io/library/alpine``."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        path = self.repository.removeprefix("library/")
        return self.repository if "/" in path else path

    @property
    def familiar(self) -> str:
        """The reference as docker shows it: ``alpine:latest``, ``alpine@sha256:…``."""
        return self._suffixed(self.familiar_name)

    def with_tag(self, tag: str) -> Reference:
        """The same repository with this tag and no digest.

        Raises:
            InvalidReferenceError: no valid tag.
        """
        if _TAG_ONLY.fullmatch(tag) is None:
            raise InvalidReferenceError(f"tag {tag[:160]!r}: invalid tag format")
        return replace(self, tag=tag, digest=None)

    def without_tag(self) -> Reference:
        """The repository alone, with neither tag nor digest."""
        return replace(self, tag=None, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository with this digest and no tag."""
        return replace(self, tag=None, digest=digest)

    def _suffixed(self, name: str) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{name}{tag}{digest}"


def is_tag(text: str) -> bool:
    """Whether the text is a valid tag by itself."""
    return _TAG_ONLY.fullmatch(text) is not None


def _split_registry(text: str) -> tuple[str, str]:
    """Splits off the registry: a first component with ``.`` or ``:`` or an upper-case letter in it, or ``localhost``."""
    first, slash, rest = text.partition("/")
    is_registry = slash and (any(mark in first for mark in ".:") or first == "localhost" or first.lower() != first)
    registry, rest = (first, rest) if is_registry else (DEFAULT_REGISTRY, text)
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and rest and "/" not in rest:
        rest = f"library/{rest}"
    return registry, rest
