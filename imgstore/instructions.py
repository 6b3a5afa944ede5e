"""Instructions of a Dockerfile that change an image's configuration, as ``docker import --change`` and ``docker commit`` take them.

CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR. Words, quotes and messages are docker's.
Source: moby ``builder/dockerfile`` (``builder.go`` BuildFromConfig, ``dispatchers.go``), buildkit ``frontend/dockerfile/parser`` and
``instructions``; go-connections ``nat`` for ports, moby/sys ``signal`` for signals.
"""

from __future__ import annotations

import copy
import json
import posixpath
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imgstore.errors import InvalidError
from imgstore.shell_words import ESCAPE, expand_word, expand_words

CHANGES_MAX = 1000
LENGTH_MAX = 64 << 10
"""Characters in all instructions; docker reads no longer line."""

_SHELL = ("/bin/sh", "-c")
_COMMENT = re.compile(r"\s*#")
_ESCAPE_DIRECTIVE = re.compile(r"#\s*escape\s*=\s*(\S+)\s*", re.IGNORECASE)
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)
_DURATION = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h)")
_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_INT64_MAX = (1 << 63) - 1
_HEALTH_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_SIGNALS = (
    {name.removeprefix("SIG") for name in signal.Signals.__members__}
    | {f"RTMIN+{number}" for number in range(1, 16)}
    | {f"RTMAX-{number}" for number in range(1, 15)}
)


def apply_changes(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The configuration, what an OCI image has under ``config``, with the instructions applied in their order.

    Args:
        config: stays as it is.
        changes: instructions; one may go on over several lines.

    Raises:
        InvalidError: not an instruction that may be used here, or its arguments are wrong; with docker's words.
    """
    result = copy.deepcopy(dict(config))
    if not changes:
        return result
    if len(changes) > CHANGES_MAX or sum(map(len, changes)) > LENGTH_MAX:
        raise InvalidError(f"changes: more than {CHANGES_MAX} instructions or {LENGTH_MAX} characters")
    escape, lines = _logical_lines("\n".join(changes))
    instructions = [_parse(line, escape) for line in lines]
    if not instructions:
        raise InvalidError("file with no instructions")
    for instruction in instructions:
        if instruction.name.lower() not in _APPLY:
            raise InvalidError(f"{instruction.name} is not a valid change command")
    cmd_set = False
    for instruction in instructions:
        name = instruction.name.lower()
        _APPLY[name](instruction, result)
        if name == "cmd":
            cmd_set = bool(result["Cmd"])
        elif name == "entrypoint" and not cmd_set:
            result.pop("Cmd", None)
    return {key: value for key, value in result.items() if value not in (None, "")}


@dataclass(slots=True)
class _Instruction:
    """One instruction, its arguments not taken apart."""

    name: str
    flags: list[str]
    rest: str
    line: str
    escape: str
    values: dict[str, str] = field(default_factory=dict)

    def parse_flags(self, known: Sequence[str] = ()) -> None:
        """Reads ``--name=value`` into ``values``."""
        for text in self.flags:
            name, equals, value = text.partition("=")
            if name.removeprefix("--") not in known:
                raise InvalidError(f"unknown flag: {name}")
            if name[2:] in self.values:
                raise InvalidError(f"duplicate flag specified: {name}")
            if not equals:
                raise InvalidError(f"missing a value on flag: {name}")
            self.values[name[2:]] = value

    def one_argument(self) -> str:
        """All that follows."""
        if not self.rest:
            raise InvalidError(f"{self.name.upper()} requires exactly one argument")
        self.parse_flags()
        return self.rest

    def expand(self, text: str, config: Mapping[str, Any]) -> str:
        """With the variables replaced that the configuration sets."""
        return expand_word(text, _variables(config), escape=self.escape)

    def needs_one(self, arguments: Sequence[Any]) -> None:
        """Refuses to go on without any."""
        if not arguments:
            raise InvalidError(f"{self.name.upper()} requires at least one argument")


def _variables(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in config.get("Env") or ())}


def _logical_lines(text: str) -> tuple[str, list[str]]:
    """The escape character, and the instructions with the lines joined over which they go."""
    escape = ESCAPE
    result = []
    pending = None
    at_top = True
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if at_top and (directive := _ESCAPE_DIRECTIVE.fullmatch(line.strip())):
            if directive[1] not in ("\\", "`"):
                raise InvalidError(f"invalid escape token '{directive[1]}' does not match ` or \\")
            escape = directive[1]
        at_top = at_top and line.lstrip().startswith("#")
        if _COMMENT.match(line) or not line.strip():
            continue
        body = re.sub(rf"(^|[^{re.escape(escape)}]){re.escape(escape)}[ \t]*$", r"\1", line)
        pending = (pending or "") + (body if pending is not None else body.lstrip())
        if body == line:
            result.append(pending)
            pending = None
    if pending:
        result.append(pending)
    return escape, result


def _parse(line: str, escape: str) -> _Instruction:
    name, *rest = re.split(r"[\t\v\f\r ]+", line.strip(), maxsplit=1)
    flags, arguments = _split_flags(rest[0] if rest else "", escape)
    return _Instruction(name, flags, arguments.strip(), line, escape)


def _split_flags(text: str, escape: str) -> tuple[list[str], str]:
    """The words at the beginning that begin with ``--``, quotes taken away, and what follows them."""
    flags: list[str] = []
    position = 0
    while True:
        while text[position : position + 1].isspace():
            position += 1
        if not text.startswith("--", position):
            return flags, text[position:]
        word, quote = "", ""
        while position < len(text):
            character = text[position]
            position += 1
            if character == escape:
                word += text[position : position + 1]
                position += 1
            elif quote:
                quote, word = ("", word) if character == quote else (quote, word + character)
            elif character in "'\"":
                quote = character
            elif character.isspace():
                break
            else:
                word += character
        if word == "--":
            return flags, text[position:]
        flags.append(word)


def _split_words(text: str, escape: str) -> Iterator[str]:
    """Words between spaces that are not quoted; quotes and escapes stay in them."""
    word, quote, begun = "", "", False
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == escape and quote != "'":
            if position < len(text):
                word += character + text[position]
                position += 1
            continue
        if not quote and character.isspace():
            if word or begun:
                yield word
            word, begun = "", False
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote, begun = character, True
        word += character
    if word or begun:
        yield word


def _json_list(text: str) -> list[str] | None:
    """The strings of a JSON array, or None where it is none."""
    if not text.lstrip().startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in values):
        raise InvalidError("when using JSON array syntax, arrays must be comprised of strings only")
    return list(values)


def _pairs(instruction: _Instruction, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``name=value …``, or the old ``name value``; variables are replaced."""
    name = instruction.name.upper()
    words = list(_split_words(instruction.rest, instruction.escape))
    instruction.needs_one(words)
    instruction.parse_flags()
    if "=" not in words[0]:
        parts = re.split(r"[\t\v\f\r ]+", instruction.rest, maxsplit=1)
        if len(parts) < 2:
            raise InvalidError(f"{name} must have two arguments")
        pairs = [(parts[0], parts[1])]
    else:
        for word in words:
            if "=" not in word:
                raise InvalidError(f'Syntax error - can\'t find = in "{word[:200]}". Must be of the form: name=value')
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in words)]
    if not all(key for key, _ in pairs):
        raise InvalidError(f"{name} names can not be blank")
    return [(instruction.expand(key, config), instruction.expand(value, config)) for key, value in pairs]


def _command(instruction: _Instruction, config: Mapping[str, Any]) -> list[str]:
    """The words of a JSON array, or a line for the shell."""
    instruction.parse_flags()
    words = _json_list(instruction.rest)
    if words is not None:
        return words
    shell = list(config.get("Shell") or _SHELL)
    return [*shell, instruction.rest] if instruction.rest else shell


def _apply_cmd(instruction: _Instruction, config: dict[str, Any]) -> None:
    config["Cmd"] = _command(instruction, config)


def _apply_entrypoint(instruction: _Instruction, config: dict[str, Any]) -> None:
    command = _command(instruction, config)
    config["Entrypoint"] = command if instruction.rest and command else None


def _apply_env(instruction: _Instruction, config: dict[str, Any]) -> None:
    environment = list(config.get("Env") or ())
    for name, value in _pairs(instruction, config):
        found = next((index for index, text in enumerate(environment) if text.partition("=")[0] == name), None)
        if found is None:
            environment.append(f"{name}={value}")
        else:
            environment[found] = f"{name}={value}"
    config["Env"] = environment


def _apply_label(instruction: _Instruction, config: dict[str, Any]) -> None:
    config["Labels"] = dict(config.get("Labels") or {}) | dict(_pairs(instruction, config))


def _apply_expose(instruction: _Instruction, config: dict[str, Any]) -> None:
    words = instruction.rest.split()
    instruction.needs_one(words)
    instruction.parse_flags()
    ports: dict[str, Any] = dict(config.get("ExposedPorts") or {})
    for word in sorted(words):
        for text in expand_words(word, _variables(config), escape=instruction.escape):
            ports |= {port: {} for port in _ports(text)}
    config["ExposedPorts"] = ports


def _ports(text: str) -> Iterator[str]:
    """``80``, ``80/udp``, ``8000-8010``; what stands before a colon, for a host, says nothing in an image."""
    port, _, protocol = text.rpartition(":")[2].partition("/")
    if not port:
        raise InvalidError(f"no port specified: {text}<empty>")
    first, dash, last = port.partition("-")
    bounds = first, last if dash else first
    if not all(bound.isascii() and bound.isdigit() and len(bound) <= 5 and int(bound) < 1 << 16 for bound in bounds):
        raise InvalidError(f"invalid containerPort: {port}")
    if int(bounds[1]) < int(bounds[0]):
        raise InvalidError(f"invalid containerPort: {port}")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidError(f"invalid proto: {protocol}")
    return (f"{number}/{protocol}" for number in range(int(bounds[0]), int(bounds[1]) + 1))


def _apply_healthcheck(instruction: _Instruction, config: dict[str, Any]) -> None:
    kind, *rest = re.split(r"\s+", instruction.rest, maxsplit=1)
    instruction.needs_one(kind)
    command = rest[0] if rest else ""
    if kind.upper() == "NONE":
        if command:
            raise InvalidError("HEALTHCHECK NONE takes no arguments")
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    instruction.parse_flags([*_HEALTH_TIMES, "retries"])
    if kind.upper() != "CMD":
        raise InvalidError(f'Unknown type "{kind.upper()[:80]}" in HEALTHCHECK (try CMD)')
    words = _json_list(command)
    test = ["CMD-SHELL", command] if words is None else ["CMD", *words]
    if not (words or command.strip()) or words == []:
        raise InvalidError("Missing command after HEALTHCHECK CMD")
    check: dict[str, Any] = {"Test": test}
    for flag, key in _HEALTH_TIMES.items():
        if nanoseconds := _duration(flag, instruction.values.get(flag, "")):
            check[key] = nanoseconds
    retries = instruction.values.get("retries", "")
    if retries:
        if re.fullmatch(r"[+-]?\d{1,10}", retries, re.ASCII) is None or abs(int(retries)) >= 1 << 31:
            raise InvalidError(f'--retries: "{retries[:80]}" is no number of 32 bits')
        if int(retries) < 0:
            raise InvalidError(f"--retries cannot be negative ({int(retries)})")
        if int(retries):
            check["Retries"] = int(retries)
    config["Healthcheck"] = check


def _duration(flag: str, text: str) -> int:
    """Nanoseconds of ``1m30s``; 0 for nothing."""
    if text in ("", "0", "+0", "-0"):
        return 0
    parts = _DURATION.findall(text)
    if "".join(parts) != text or any(part[0] in "+-" for part in parts[1:]):
        known = re.fullmatch(r"[+-]?[\d.]+", text)
        raise InvalidError(f'time: {"missing unit in" if known else "invalid"} duration "{text[:80]}"')
    total = 0
    for part in parts:
        unit = part.lstrip("+-.0123456789")
        whole, _, fraction = part.lstrip("+-").removesuffix(unit).partition(".")
        if len(whole) > 19:
            raise InvalidError(f'time: invalid duration "{text[:80]}"')
        scale = _NANOSECONDS[unit]
        total += int(whole or 0) * scale + int((fraction or "0")[:18]) * scale // 10 ** len((fraction or "0")[:18])
    if total > _INT64_MAX:
        raise InvalidError(f'time: invalid duration "{text[:80]}"')
    if text[0] == "-" or 0 < total < _NANOSECONDS["ms"]:
        raise InvalidError(f'Interval "{flag}" cannot be less than 1ms')
    return total


def _apply_onbuild(instruction: _Instruction, config: dict[str, Any]) -> None:
    instruction.needs_one(instruction.rest)
    instruction.parse_flags()
    trigger = instruction.rest.split()[0].upper()
    if trigger == "ONBUILD":
        raise InvalidError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidError(f"{trigger} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or ()), _ONBUILD.sub("", instruction.line, count=1)]


def _apply_stopsignal(instruction: _Instruction, config: dict[str, Any]) -> None:
    name = instruction.expand(instruction.one_argument(), config)
    number = re.fullmatch(r"[+-]?\d{1,9}", name, re.ASCII)
    if int(name) == 0 if number else name.upper().removeprefix("SIG") not in _SIGNALS:
        raise InvalidError(f"invalid signal: {name[:80]}")
    config["StopSignal"] = name


def _apply_user(instruction: _Instruction, config: dict[str, Any]) -> None:
    config["User"] = instruction.expand(instruction.one_argument(), config)


def _apply_volume(instruction: _Instruction, config: dict[str, Any]) -> None:
    words = _json_list(instruction.rest)
    paths = [path.strip() for path in (instruction.rest.split() if words is None else words)]
    instruction.needs_one(paths)
    instruction.parse_flags()
    paths = [instruction.expand(path, config) for path in paths]
    if not all(paths):
        raise InvalidError("VOLUME specified can not be an empty string")
    config["Volumes"] = dict(config.get("Volumes") or {}) | {path: {} for path in paths}


def _apply_workdir(instruction: _Instruction, config: dict[str, Any]) -> None:
    path = instruction.expand(instruction.one_argument(), config)
    if not path:
        raise InvalidError("cannot normalize nothing")
    joined = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "", path))
    config["WorkingDir"] = "/" + joined.lstrip("/")


_APPLY: dict[str, Callable[[_Instruction, dict[str, Any]], None]] = {
    "cmd": _apply_cmd,
    "entrypoint": _apply_entrypoint,
    "env": _apply_env,
    "expose": _apply_expose,
    "healthcheck": _apply_healthcheck,
    "label": _apply_label,
    "onbuild": _apply_onbuild,
    "stopsignal": _apply_stopsignal,
    "user": _apply_user,
    "volume": _apply_volume,
    "workdir": _apply_workdir,
}
