"""Platforms: operating system, architecture, variant; their spellings, and which can run which.

Source: containerd/platforms (``database.go``, ``compare.go``), which docker uses.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from registry_client.errors import InvalidPlatformError

_COMPONENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OPERATING_SYSTEMS = {"macos": "darwin"}
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
}
_KNOWN_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", *_ARCHITECTURES}
)


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, spelled as Go spells it; variant is ``""`` where there is but one.

    Use `Platform.of` for values from outside: it normalises (``x86_64`` is ``amd64``, ``arm64/v8`` is ``arm64``,
    ``arm`` is ``arm/v7``, ``amd64/v1`` is ``amd64``).
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    @classmethod
    def of(cls, os: str, architecture: str, variant: str = "", os_version: str = "") -> Platform:
        """The normalised platform."""
        os = _OPERATING_SYSTEMS.get(os.lower(), os.lower())
        architecture, variant = architecture.lower(), variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = variant or implied
        if variant.isdigit():
            variant = f"v{variant}"
        if (architecture, variant) in {("arm64", "v8"), ("amd64", "v1")}:
            variant = ""
        elif (architecture, variant) == ("arm", ""):
            variant = "v7"
        return cls(os, architecture, variant, os_version)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Reads ``os/arch[/variant]``, or an architecture alone (``arm64`` is ``linux/arm64``).

        Raises:
            InvalidPlatformError: anything else.
        """
        parts = text.split("/")
        if len(parts) > 3 or not all(_COMPONENT.fullmatch(part) for part in parts):
            raise InvalidPlatformError(f"platform {text[:160]!r}: not os/architecture[/variant], as in linux/arm64/v8")
        if len(parts) == 1:
            if text.lower() not in _KNOWN_ARCHITECTURES:
                raise InvalidPlatformError(f"platform {text!r}: neither os/architecture nor a known architecture")
            return cls.of("linux", text)
        return cls.of(*parts)

    @classmethod
    def host(cls) -> Platform:
        """Linux on this machine's architecture: the images that a Linux guest on it runs."""
        return cls.of("linux", os.uname().machine)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def ladder(self) -> tuple[Platform, ...]:
        """The platforms whose images run on this one, best first.

        Variants downwards, then the 32-bit architecture that the processor also runs: ``arm/v7, v6, v5``;
        ``arm64, arm/v8, v7, v6, v5``; ``amd64/v3, v2, amd64, 386``.
        """
        found = [(self.architecture, self.variant)]
        step = int(self.variant[1:]) if re.fullmatch(r"v[1-9]", self.variant) else 0
        if self.architecture == "amd64":
            found += [("amd64", f"v{n}" if n > 1 else "") for n in range(step - 1, 0, -1)]
            found += [("386", "")]
        elif self.architecture == "arm":
            found += [("arm", f"v{n}") for n in range(step - 1, 4, -1)]
        elif self.architecture == "arm64":
            found += [("arm64", "")] if self.variant else []
            found += [("arm", f"v{n}") for n in (8, 7, 6, 5)]
        return tuple(Platform(self.os, architecture, variant, self.os_version) for architecture, variant in found)

    def agrees_with(self, other: Platform) -> bool:
        """Whether both name the same platform as far as both say; many configurations leave the variant out."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return not self.variant or not other.variant or self.variant == other.variant


def choose(wanted: Platform, offered: list[Platform]) -> int | None:
    """Index of the best of ``offered`` for ``wanted``; the first one among equals; None if none will do."""
    for step in wanted.ladder():
        for index, candidate in enumerate(offered):
            if (candidate.os, candidate.architecture, candidate.variant) == (step.os, step.architecture, step.variant) and (
                not wanted.os_version or candidate.os_version.startswith(wanted.os_version)
            ):
                return index
    return None
