"""Routes: which endpoints are asked for a repository, in which order."""

from __future__ import annotations

from registry_client.endpoint import HTTP, HTTPS, Endpoint, TlsSettings
from registry_client.hosts import is_loopback
from registry_client.options import Options
from registry_client.reference import DEFAULT_REGISTRY

DOCKER_HUB_HOST = "registry-1.docker.io"


def find_endpoints(registry: str, repository: str, options: Options) -> tuple[Endpoint, ...]:
    return (find_primary(registry, repository, options),)


def find_primary(registry: str, repository: str, options: Options) -> Endpoint:
    host = DOCKER_HUB_HOST if registry == DEFAULT_REGISTRY else registry
    local = is_loopback(host.rpartition(":")[0] or host)
    return Endpoint(registry, host, repository, (HTTPS, HTTP) if local else (HTTPS,), tls_settings(host, options))


def tls_settings(host: str, options: Options) -> TlsSettings:
    return TlsSettings((options.ca_file,) if options.ca_file else ())
