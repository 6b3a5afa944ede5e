"""How to reach registries, as the command line, the environment and ``config.toml`` say."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgstore import config
from imgstore.cli.output import printable
from imgstore.cli.prompts import ask_password
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

if TYPE_CHECKING:
    from registry_client.credentials import Credential
    from registry_client.options import Options, Policy, RegistryOptions

Command = TypeVar("Command", bound=Callable[..., Any])

CREDENTIALS_VARIABLE = "IMGSTORE_CREDS"
_CONFIG_SIZE_MAX = 1 << 20
_TABLES = frozenset({"policy", "registry"})


def registry_options(command: Command) -> Command:
    """Gives a command ``--authfile``, ``--cert-dir`` and ``--insecure-registry``, kept in the session."""
    for option in (
        click.option(
            "--insecure-registry",
            "insecure",
            multiple=True,
            metavar="HOST[:PORT]|CIDR",
            expose_value=False,
            callback=_keep("insecure_registries"),
            help="Take any certificate of this registry, and plain HTTP where it has no HTTPS. May be repeated.",
        ),
        click.option(
            "--cert-dir",
            metavar="DIR",
            expose_value=False,
            callback=_keep("cert_dir"),
            help="Directory with *.crt (authorities), *.cert and *.key (client certificate) for this registry.",
        ),
        click.option(
            "--authfile",
            metavar="FILE",
            expose_value=False,
            callback=_keep("authfile"),
            help="The only file of logins to read or write; else those of docker and podman.",
        ),
    ):
        command = option(command)
    return command


def credentials_option(command: Command) -> Command:
    """Gives a command ``--creds``, kept in the session."""
    return click.option(
        "--creds",
        metavar="USER[:PASSWORD]",
        expose_value=False,
        callback=_keep("creds"),
        help=f"Log in to the registry of REF as this user; others see a command line, so rather set {CREDENTIALS_VARIABLE}.",
    )(command)


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        ctx.ensure_object(Session).registry_words[name] = value

    return keep


def options_of(session: Session) -> Options:
    """The options for ``registry_client``; what it retries is told on standard error.

    Raises:
        InvalidError: a word makes no sense, or the configuration file is broken.
    """
    from registry_client.options import Options

    # The user said that any certificate will do; urllib3 would say on each run that this is no good idea.
    warnings.filterwarnings("ignore", message="Unverified HTTPS request")
    words = session.registry_words
    registries, policy = _configuration(session.environment)
    cert_dir = path_of(words.get("cert_dir"), "--cert-dir")
    if cert_dir is not None and not cert_dir.is_dir():
        raise InvalidError(f"--cert-dir {cert_dir}: no such directory")
    return Options(
        credential=_find_credential(session) if "creds" in words else None,
        authfile=path_of(words.get("authfile"), "--authfile"),
        cert_dir=cert_dir,
        insecure_registries=frozenset(words.get("insecure_registries", ())),
        registries=registries,
        policy=policy,
        on_retry=lambda message, delay: _tell(f"{message}; trying again in {delay:.0f} s"),
        on_fallback=_tell,
    )


def _tell(message: str) -> None:
    print(printable(message), file=sys.stderr)


def _find_credential(session: Session) -> Credential | None:
    """What ``--creds`` says, else the environment."""
    creds, origin = session.registry_words["creds"], "--creds"
    if creds is None:
        creds, origin = session.environment.get(CREDENTIALS_VARIABLE), CREDENTIALS_VARIABLE
        if not creds:
            return None
    from registry_client.credentials import Credential

    # A Harbor robot is robot$project+name: the user name ends at the first colon, and nothing in it is special.
    username, colon, password = creds.partition(":")
    if not username:
        raise InvalidError(f"{origin}: no user name")
    if not colon:
        password = ask_password(f"Password of {username}: ", f"write {origin} as USER:PASSWORD")
    return Credential(username, password, origin=origin)


def path_of(text: str | None, option: str) -> Path | None:
    """The path that an option gives, or None. Raises InvalidError if it is empty."""
    if text == "":
        raise InvalidError(f"{option}: the name is empty")
    return None if text is None else Path(text)


def _configuration(environment: Mapping[str, str]) -> tuple[Mapping[str, RegistryOptions], Policy]:
    from imgstore.registries import translated
    from registry_client.options import Policy
    from registry_client.registry_table import parse_registry_table

    places = config.config_files(environment)
    for place in places:
        path = Path(place)
        try:
            with path.open("rb") as file:
                data = file.read(_CONFIG_SIZE_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidError(f"{path}: {error.strerror}") from None
        with translated():
            return parse_registry_table(_decode(data, path), path.absolute().parent, str(path))
    if environment.get(config.CONFIG_VARIABLE):
        raise InvalidError(f"{places[0]}: no such file, though {config.CONFIG_VARIABLE} names it")
    return {}, Policy()


def _decode(data: bytes, path: Path) -> dict[str, Any]:
    import tomllib

    if len(data) > _CONFIG_SIZE_MAX:
        raise InvalidError(f"{path}: more than {_CONFIG_SIZE_MAX} bytes")
    try:
        tables = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path}: is not UTF-8, at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{path}: {error}") from None
    if unknown := sorted(tables.keys() - _TABLES):
        raise InvalidError(f"{path}: unknown table {unknown[0]!r}; there are: {', '.join(sorted(_TABLES))}")
    return tables
