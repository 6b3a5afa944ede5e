"""Commands that talk to registries and need no store: login, logout, tags, manifest."""

from __future__ import annotations

import contextlib
import sys

import click

from imgstore.cli import output
from imgstore.cli.prompts import ask, ask_password
from imgstore.cli.registry_options import credentials_option, options_of, path_of, registry_options
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
@output.format_option
@click.pass_obj
def login(session: Session, registry: str, username: str | None, password: str | None, password_stdin: bool) -> None:
    """Log in to a registry.

    REGISTRY is a host, or host:port; without it, Docker Hub. The registry is asked whether it takes the login, which is then written where
    docker, podman and skopeo find it, too.
    """
    if password is not None and password_stdin:
        raise InvalidError("--password and --password-stdin: only one of them can be")
    if password_stdin and not username:
        raise InvalidError("--password-stdin: needs --username")
    from imgstore.registries import translated
    from registry_client.credentials import Credential, store_credential
    from registry_client.login import check_login

    host = _parse_registry(registry)
    options = options_of(session)
    if password is not None:
        print("warning: others can see --password on the command line; use --password-stdin", file=sys.stderr)
    if not username:
        username = ask("user name", "Username: ", "give it with --username")
    if password_stdin:
        password = _read_password()
    elif password is None:
        password = ask_password("Password: ", "give it with --password-stdin")
    if not password:
        raise InvalidError("the password is empty")
    with translated():
        credential = check_login(host, Credential(username, password), options)
        kept_in = store_credential(host, credential, authfile=options.authfile)
    if session.json:
        output.print_json({"registry": host, "username": username, "kept_in": kept_in})
        return
    print("Login Succeeded", flush=True)
    print(f"The login is kept in {output.printable(kept_in)}", file=sys.stderr)


@click.command()
@click.argument("registry", metavar="[REGISTRY]", default=DOCKER_HUB)
@click.option("--authfile", metavar="FILE", help="The file to remove the login from; else docker's.")
@output.format_option
@click.pass_obj
def logout(session: Session, registry: str, authfile: str | None) -> None:
    """Remove the login to a registry.

    REGISTRY is a host, or host:port; without it, Docker Hub.
    """
    from imgstore.registries import translated
    from registry_client.credentials import erase_credential, find_credential
    from registry_client.errors import RegistryError

    host = _parse_registry(registry)
    path = path_of(authfile, "--authfile")
    with translated():
        removed = erase_credential(host, authfile=path)
    if session.json:
        output.print_json({"registry": host, "removed": removed})
    else:
        print(f"Removed login credentials for {host}" if removed else f"Not logged in to {host}")
    # It was removed from where we write. Another program's file may have one, too, and that is used from now on.
    with contextlib.suppress(RegistryError):
        if (left := find_credential(host, "", authfile=path)) and left.origin:
            print(f"There is another login, in {output.printable(left.origin)}", file=sys.stderr)


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
    from registry_client.source import list_tags

    with translated():
        found = list_tags(repository, options_of(session), companions=companions)
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
    output.print_json(value)


def _parse_registry(text: str) -> str:
    """The registry as references name it; a scheme, and docker's ``/v1/``, may be there."""
    from registry_client.errors import InvalidReferenceError
    from registry_client.hosts import name_registry, parse_host, same_host
    from registry_client.reference import Reference

    shown = text.rpartition("@")[2]  # what stands before it may be a password
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/").removesuffix("/v1").removesuffix("/v2")
    if parse_host(name) is None:
        raise InvalidError(f"{shown!r}: names no registry, which is a host, or host:port")
    try:
        found = Reference.parse(f"{name}/x/y").registry
    except InvalidReferenceError:
        raise InvalidError(f"{shown!r}: no reference can begin with it, so it is no registry") from None
    if not same_host(found, name):
        # The password would go to Docker Hub, or the login would never be used.
        raise InvalidError(
            f"{shown!r}: no registry: it has no dot and no port, so references take it for a part of Docker Hub",
            hint=f"write {name}:443, here and in references",
        )
    return name_registry(found)


def _read_password() -> str:
    """All of standard input; the end of the last line is no part of it."""
    data = sys.stdin.buffer.read(_PASSWORD_SIZE_MAX + 1)
    if len(data) > _PASSWORD_SIZE_MAX:
        raise InvalidError(f"--password-stdin: more than {_PASSWORD_SIZE_MAX} bytes")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidError("--password-stdin: is not UTF-8") from None
