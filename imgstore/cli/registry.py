"""Commands that talk to registries and need no store: login, logout, tags, manifest."""

from __future__ import annotations

import contextlib
import sys

import click

from imgstore.cli import output
from imgstore.cli.registry_options import ask_password, credentials_option, options_of, registry_options
from imgstore.cli.session import Session
from imgstore.errors import InvalidError

DOCKER_HUB = "docker.io"
_PASSWORD_SIZE_MAX = 64 << 10


@click.command()
@click.argument("registry", metavar="[REGISTRY]", default=DOCKER_HUB)
@click.option("-u", "--username", metavar="USER", help="Account, or robot account; asked for if it is not given.")
@click.option("-p", "--password", metavar="PASSWORD", help="Others see a command line: rather use --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@registry_options
@click.pass_obj
def login(session: Session, registry: str, username: str | None, password: str | None, password_stdin: bool) -> None:
    """Log in to a registry.

    REGISTRY is a host, or host:port; without it, Docker Hub. The registry is asked whether it takes the login, which is then written where
    docker, podman and skopeo find it, too.
    """
    if password is not None and password_stdin:
        raise InvalidError("--password and --password-stdin: only one of them can be")
    from imgstore.registries import translated
    from registry_client.credentials import Credential, store_credential
    from registry_client.login import check_login

    options = options_of(session)
    host = _host(registry)
    if password_stdin:
        if not username:
            raise InvalidError("--password-stdin: needs --username")
        password = _read_password()
    elif password is not None:
        print("imgstore: --password can be seen by others; use --password-stdin", file=sys.stderr)
    if not username:
        username = _ask_username()
    if password is None:
        password = ask_password("Password: ")
    if not password:
        raise InvalidError(f"login to {host}: the password is empty")
    with translated():
        credential = check_login(host, Credential(username, password), options)
        where = store_credential(host, credential, authfile=options.authfile)
    print("Login Succeeded")
    print(f"the login is kept in {output.printable(where)}", file=sys.stderr)


@click.command()
@click.argument("registry", metavar="[REGISTRY]", default=DOCKER_HUB)
@click.option("--authfile", metavar="FILE", help="The file to remove the login from; else docker's.")
@click.pass_obj
def logout(session: Session, registry: str, authfile: str | None) -> None:
    """Remove the login to a registry.

    REGISTRY is a host, or host:port; without it, Docker Hub.
    """
    from pathlib import Path

    from imgstore.registries import translated
    from registry_client.credentials import erase_credential

    host = _host(registry)
    with translated():
        removed = erase_credential(host, authfile=None if authfile is None else Path(authfile))
    print(f"Removed login credentials for {host}" if removed else f"Not logged in to {host}")


@click.command()
@click.argument("repository", metavar="REPOSITORY")
@click.option("-a", "--all", "companions", is_flag=True, help="With the tags that hold signatures of other images.")
@credentials_option
@registry_options
@output.format_option
@click.pass_obj
def tags(session: Session, repository: str, companions: bool) -> None:
    """List the tags of a repository.

    REPOSITORY is a name without a tag (harbor.example/project/app), or one of oci:DIR, oci-archive:FILE, docker-archive:FILE.
    """
    from imgstore.registries import translated
    from registry_client.client import RepositoryClient
    from registry_client.reference import Reference
    from registry_client.source import is_registry_name, open_source

    with translated():
        if is_registry_name(repository):
            name = repository.removeprefix("docker://")
            if set(":@") & set(name.rpartition("/")[2]):
                raise InvalidError(f"{repository}: the name of a repository has no tag and no digest")
            with RepositoryClient.of(Reference.parse(name), options_of(session)) as client:
                found = list(client.tags(companions=companions))
        else:
            with contextlib.closing(open_source(repository)) as source:
                found = source.tags()
    if session.json:
        output.print_json(found)
        return
    for tag in found:
        output.print_line(tag)


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--raw", is_flag=True, help="The bytes as they came, whose digest is the manifest's.")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="The manifest of this platform, not the index.")
@credentials_option
@registry_options
@output.format_option
@click.pass_obj
def manifest(session: Session, reference: str, raw: bool, platform: str | None) -> None:
    """Show the manifest or index of an image, as JSON.

    REF is what pull takes, but a docker-archive, which has none. Nothing is pulled.
    """
    import json

    from imgstore.registries import translated
    from registry_client.errors import UnsupportedError
    from registry_client.platform import Platform
    from registry_client.source import open_source
    from registry_client.strict_json import parse_json

    with translated(), contextlib.closing(open_source(reference, options_of(session))) as source:
        if platform is None:
            document = source.root()
        else:
            found = source.resolve(Platform.parse(platform)).manifest_document
            if found is None:
                raise UnsupportedError(f"{reference}: has no manifest")
            document = found
        if raw:
            with output.binary_output() as out:
                out.write(document.data)
            return
        value = parse_json(document.data, f"manifest of {reference}")
    print(json.dumps(value, indent=3))


def _host(registry: str) -> str:
    """The registry as references name it; a scheme, and docker's ``/v1/``, may be there."""
    from imgstore.registries import translated
    from registry_client.reference import Reference

    name = registry.partition("://")[2] or registry
    name = name.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    if "/" in name:
        raise InvalidError(f"{registry}: name a registry, without a repository")
    with translated():
        return Reference.parse(f"{name}/x").registry


def _read_password() -> str:
    """One line, or all, of standard input; the end of the line is no part of it."""
    data = sys.stdin.buffer.read(_PASSWORD_SIZE_MAX + 1)
    if len(data) > _PASSWORD_SIZE_MAX:
        raise InvalidError(f"--password-stdin: more than {_PASSWORD_SIZE_MAX} bytes")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidError("--password-stdin: is not UTF-8") from None


def _ask_username() -> str:
    if not sys.stdin.isatty():
        raise InvalidError("no user name, and standard input is no terminal to ask on", hint="give it with --username")
    name = input("Username: ").strip()
    if not name:
        raise InvalidError("the user name is empty")
    return name
