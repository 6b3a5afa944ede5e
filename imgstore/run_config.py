"""Run configuration: what a container runs: what its creation says, over what its image says. In Docker's names (``Cmd``, ``Env``, …).

Source: moby ``daemon/commit.go`` (merge), ``daemon/container.go`` (verifyContainerSettings, mergeAndVerifyConfig).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import msgspec

from imgstore.errors import InvalidError
from imgstore.structs import prepare

_HEALTH_TIMES = ("Interval", "Timeout", "StartPeriod", "StartInterval")
_SHORTEST_HEALTH_TIME = 1_000_000
"""Nanoseconds."""


class _Healthcheck(msgspec.Struct, rename="pascal"):
    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class _Given(msgspec.Struct, rename="pascal"):
    """The fields that are merged or checked; any other is taken as it is."""

    user: str = ""
    working_dir: str = ""
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    entrypoint: list[str] | str | None = None
    labels: dict[str, str] | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    stop_signal: str = ""
    healthcheck: _Healthcheck | None = None


prepare(_Given)


def merge_run_config(image: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a container.

    Variables, labels, ports and volumes of the image stay where ``given`` does not say otherwise; its command is dropped where
    ``given`` has an entrypoint.

    Args:
        image: what the image has under ``config``; whatever is there, it was checked when the image came.
        given: what the creation says; stays as it is.

    Raises:
        InvalidError: a value is not what Docker takes, or there is nothing to run; docker's words.
    """
    check_run_config(given)
    config = {key: value for key, value in given.items() if value is not None}
    for name in ("User", "WorkingDir", "StopSignal"):
        if not config.get(name) and image.get(name):
            config[name] = image[name]
    if config.get("WorkingDir"):
        config["WorkingDir"] = posixpath.normpath(config["WorkingDir"])
    for name in ("ExposedPorts", "Volumes", "Labels"):
        config[name] = {**(image.get(name) or {}), **(config.get(name) or {})}
    config["Env"] = _merge_env(image.get("Env") or [], config.get("Env") or [])
    _merge_command(image, config)
    if (health := _merge_health(image.get("Healthcheck"), config.get("Healthcheck"))) is not None:
        config["Healthcheck"] = health
    return config


def check_run_config(given: Mapping[str, Any]) -> None:
    """Raises InvalidError, with docker's words, unless each value is one that Docker takes."""
    try:
        checked = msgspec.convert(given, _Given)
    except msgspec.ValidationError as error:
        raise InvalidError(f"config: {error}") from error
    if checked.working_dir and not posixpath.isabs(checked.working_dir):
        raise InvalidError(f"the working directory '{checked.working_dir}' is invalid, it needs to be an absolute path")
    for variable in checked.env or ():
        if not variable.partition("=")[0]:
            raise InvalidError(f"invalid environment variable: {variable}")
    if checked.healthcheck is not None:
        _check_health(checked.healthcheck)


def _check_health(health: _Healthcheck) -> None:
    for name in _HEALTH_TIMES:
        time = getattr(health, {"StartPeriod": "start_period", "StartInterval": "start_interval"}.get(name, name.lower()))
        if time != 0 and time < _SHORTEST_HEALTH_TIME:
            raise InvalidError(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidError("Retries in Healthcheck cannot be negative")


def _merge_env(image: list[str], given: list[str]) -> list[str]:
    names = {variable.partition("=")[0] for variable in given}
    return [*given, *(variable for variable in image if variable.partition("=")[0] not in names)]


def _merge_command(image: Mapping[str, Any], config: dict[str, Any]) -> None:
    for name in ("Cmd", "Entrypoint"):
        if isinstance(config.get(name), str):  # the API takes a lone word
            config[name] = [config[name]]
    if not config.get("Entrypoint"):
        if not config.get("Cmd"):
            config["Cmd"] = image.get("Cmd")
        if config.get("Entrypoint") is None:  # an empty list takes the image's away
            config["Entrypoint"] = image.get("Entrypoint")
    if config.get("Entrypoint") == [""]:
        config["Entrypoint"] = None
    if not config.get("Entrypoint") and not config.get("Cmd"):
        raise InvalidError("No command specified")


def _merge_health(image: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if image is None or given is None:
        return image if given is None else given
    return {**image, **{name: value for name, value in given.items() if value}}
