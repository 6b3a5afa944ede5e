"""Logins: whether a registry takes a credential, before it is kept.

Source: docker/cli ``command/registry/login.go``, moby ``registry/auth.go``: a GET of ``/v2/`` with what the challenge asks for.
"""

from __future__ import annotations

from registry_client.credentials import Credential
from registry_client.errors import DeniedError, InvalidError, NotFoundError
from registry_client.options import Options
from registry_client.repository import Action, RemoteRepository
from registry_client.routes import find_primary
from registry_client.server import Connections


def check_login(registry: str, credential: Credential, options: Options) -> Credential:
    """Asks the registry itself, never a mirror, whether it takes the credential.

    A registry that asks nobody who they are takes any.

    Args:
        registry: as in a Reference: ``docker.io``, ``host:port``.

    Returns:
        What to keep: the credential, or the identity token that the registry gave for it.

    Raises:
        DeniedError: it does not take it, or a policy forbids the registry.
        NotFoundError: no registry is there.
        InvalidError: a user name with ``:``, which Basic cannot say (RFC 7617 §2).
        UnavailableError: it does not answer.
    """
    if ":" in credential.username:
        raise InvalidError(f"user name {credential.username!r}: a colon cannot be in it")
    endpoint = find_primary(registry, "", options)
    with Connections(options) as connections:
        repository = RemoteRepository(endpoint, registry, connections, options, credential)
        url = f"{repository.server.base}{endpoint.api}/"
        try:
            repository.request("GET", url, f"registry {registry}", action=Action.LOGIN).close()
        except NotFoundError as error:
            raise error.like(f"{registry}: no registry is at {url}, or it limits logins ({error})") from None
        except DeniedError as error:
            raise error.like(f"login to {registry} failed: {error}") from None
        if not repository.server.asks_who_we_are:
            return credential
        kept = repository.server.authorizer(credential).credential
    if kept.identity_token and not credential.identity_token:
        return Credential(credential.username, identity_token=kept.identity_token)
    return kept
