"""Routes: from the name of a repository to the servers that are asked for it, and how each is reached.

Nothing is sent and no name is resolved here. What decides, the stronger first, and field by field: what a stronger one leaves open, a
weaker one may say.

1. What the caller chose: ``Options.registries``, ``insecure_registries``, ``cert_dir``, ``ca_file``.
2. registries.conf, if it has an entry for the repository that says more than its name.
3. hosts.toml, otherwise.
4. The registry itself, with HTTPS; on this machine as it was typed (``localhost``, ``127.0.0.0/8``, ``::1``) with HTTP too.

Beside all of them: certs.d, which says whom to trust and what to show, host by host; and two prohibitions, ``Options.policy`` and
``blocked`` in registries.conf, that nothing lifts. A mirror that one of them forbids is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from registry_client import hosts_toml, registries_conf
from registry_client.certs_d import find_certificates, read_certificates
from registry_client.endpoint import HTTP, HTTPS, Endpoint, TlsSettings
from registry_client.errors import DeniedError, InvalidError, InvalidReferenceError, MalformedError
from registry_client.host_patterns import HostPattern
from registry_client.hosts import PORT_MAX, is_loopback, locate_registry, name_registry, parse_host, same_host
from registry_client.options import Options, RegistryOptions
from registry_client.policy import check_policy
from registry_client.registries_conf import ConfiguredRegistry
from registry_client.registry_options import check_registries, find_registry_options, split_location


def find_endpoints(registry: str, repository: str, options: Options, *, by_digest: bool = False) -> tuple[Endpoint, ...]:
    """The servers to ask for a repository, in their order: mirrors, then the registry itself or what its files put in its place.

    Mirrors of ``Options.registries`` replace those of the files. The API's namespace ``ns`` is told to hosts of hosts.toml alone.

    Args:
        registry, repository: as in a `Reference`.
        by_digest: what is pulled is named by a digest: mirrors that are for tags alone (``pull-from-mirror = "tag-only"``) are left
            out. Without it they also serve what the tag leads to.

    Raises:
        DeniedError: the policy forbids the registry, or registries.conf blocks it, or one of the files may not be read.
        MalformedError: one of the files is broken; names it and the key.
        InvalidError: the options make no sense.
    """
    return _Router(options, registry).list_endpoints(repository, by_digest)


def find_primary(registry: str, repository: str, options: Options) -> Endpoint:
    """The registry itself: for pushes, logins, lists of tags.

    ``location`` and mirrors of registries.conf are for pulls alone, as in containers/image. The ``server`` of hosts.toml takes the
    place of the registry if it may be pushed to, as in containerd.

    Args:
        repository: empty if the registry as a whole is meant.

    Raises:
        DeniedError, MalformedError, InvalidError: see `find_endpoints`.
    """
    return _Router(options, registry).find_primary(repository)


def tls_settings(host: str, options: Options) -> TlsSettings:
    """What is trusted and shown at a host that is nobody's registry or mirror: where a redirect or a token realm leads.

    ``Options.cert_dir`` is not used: it belongs to the registry of a reference.

    Raises:
        MalformedError, DeniedError, InvalidError: see `find_endpoints`.
    """
    return _Router(options, "").reach(host, "").tls


class _Router:
    """Everything that is known while the endpoints of one repository are made.

    Attributes:
        registry: of the reference; empty for none.
        configured: the entries of registries.conf.
    """

    def __init__(self, options: Options, registry: str) -> None:
        check_registries(options.registries)
        self.options = options
        self.registry = registry
        self.insecure = [_parse_insecure(text) for text in sorted(options.insecure_registries)]
        self.configured = registries_conf.read_registries_conf(options.places.registries_conf)

    def list_endpoints(self, repository: str, by_digest: bool) -> tuple[Endpoint, ...]:
        check_policy(self.registry, repository, self.options.policy)
        self._refuse_blocked(self.registry, repository)
        own = find_registry_options(self.registry, repository, self.options.registries)
        found = registries_conf.find_registry(self.configured, self.registry, repository)
        if found is not None and found[0].says_something:
            *mirrors, primary = self._follow_registries_conf(*found, by_digest)
        elif hosts := hosts_toml.find_hosts(self.registry, self.options.places.hosts_toml):
            *mirrors, primary = (self._follow_host(host, repository) for host in hosts)
        else:
            mirrors, primary = [], self.reach(self.registry, repository)
        if own.mirrors:
            mirrors = [self._reach_own_mirror(mirror, repository) for mirror in own.mirrors]
        self._check(primary)
        return (*(replace(mirror, is_mirror=True) for mirror in mirrors if self._is_allowed(mirror)), primary)

    def find_primary(self, repository: str) -> Endpoint:
        check_policy(self.registry, repository, self.options.policy)
        self._refuse_blocked(self.registry, repository)
        found = registries_conf.find_registry(self.configured, self.registry, repository)
        if found is None or not found[0].says_something:
            hosts = hosts_toml.find_hosts(self.registry, self.options.places.hosts_toml)
            if hosts and "push" in hosts[-1].capabilities:
                primary = self._follow_host(hosts[-1], repository)
                self._check(primary)
                return primary
        return self.reach(self.registry, repository)

    def reach(self, host: str, repository: str, *, insecure: bool | None = None) -> Endpoint:
        """An endpoint with all that is known of a host by itself.

        Args:
            insecure: what registries.conf says of it as a mirror or location; None looks for an entry of its own.
        """
        parsed = parse_host(host)
        if parsed is None or parsed.port > PORT_MAX:
            raise InvalidReferenceError(f"{host[:255]!r} is no host, or no port of one")
        own = find_registry_options(host, repository, self.options.registries)
        if insecure is None:
            found = registries_conf.find_registry(self.configured, host, repository)
            insecure = found is not None and found[0].insecure
        insecure = insecure or own.insecure or any(pattern.matches(parsed) for pattern in self.insecure)
        return Endpoint(
            registry=name_registry(host),
            host=locate_registry(host),
            repository=repository,
            schemes=(HTTPS, HTTP) if insecure or is_loopback(parsed.name) else (HTTPS,),
            tls=self._find_tls(host, own, verify=not insecure),
            proxy=own.proxy,
            realms=own.realms,
        )

    def _follow_registries_conf(self, configured: ConfiguredRegistry, name: str, by_digest: bool) -> Iterator[Endpoint]:
        for mirror in configured.mirrors:
            if by_digest and not mirror.by_digest:
                continue
            try:
                host, repository = configured.rewrite(name, mirror.location)
            except MalformedError:
                if by_digest or mirror.by_tag:
                    raise
                continue  # podman would not have looked at it: it is for digests alone
            yield replace(self.reach(host, repository, insecure=mirror.insecure), serves_tags=mirror.by_tag)
        host, repository = configured.rewrite(name, configured.location)
        # Where nothing is rewritten, the text that was typed stands: credentials are looked up for it.
        host = self.registry if same_host(host, self.registry) else host
        yield self.reach(host, repository, insecure=configured.insecure)

    def _follow_host(self, configured: hosts_toml.ConfiguredHost, repository: str) -> Endpoint:
        is_registry = configured.host is None or same_host(configured.host, self.registry)
        endpoint = self.reach(self.registry if configured.host is None or is_registry else configured.host, repository)
        schemes = configured.schemes or endpoint.schemes
        if schemes == (HTTPS,) and not endpoint.tls.verify:
            schemes = endpoint.schemes
        return replace(
            endpoint,
            schemes=schemes,
            tls=TlsSettings(
                ca_files=(*endpoint.tls.ca_files, *configured.tls.ca_files),
                client_certificates=configured.tls.client_certificates or endpoint.tls.client_certificates,
                verify=endpoint.tls.verify and configured.tls.verify,
            ),
            api=configured.api,
            namespace=None if is_registry else name_registry(self.registry),
            headers=configured.headers,
            connect_timeout=configured.connect_timeout,
            serves_tags=configured.capabilities >= {"pull", "resolve"},  # containerd asks none to name what it may not give
            serves_digests="pull" in configured.capabilities,
        )

    def _reach_own_mirror(self, mirror: str, repository: str) -> Endpoint:
        host, path = split_location(mirror, f"mirror {mirror!r}")
        return self.reach(host, f"{path}/{repository}" if path else repository)

    def _find_tls(self, host: str, own: RegistryOptions, *, verify: bool) -> TlsSettings:
        options = self.options
        if options.cert_dir is not None and same_host(host, self.registry):
            found = read_certificates(options.cert_dir, required=True)
        else:
            found = find_certificates(host, options.places.certs_d)
        chosen = tuple(path for path in (options.ca_file, own.ca_file) if path is not None)
        pairs = found.client_certificates
        if own.client_certificate is not None:
            pairs = ((own.client_certificate, own.client_key or own.client_certificate),)
        return TlsSettings((*chosen, *found.ca_files), pairs, verify)

    def _is_allowed(self, mirror: Endpoint) -> bool:
        try:
            self._check(mirror)
        except DeniedError:
            return False
        return True

    def _check(self, endpoint: Endpoint) -> None:
        check_policy(endpoint.host, endpoint.repository, self.options.policy)
        self._refuse_blocked(endpoint.registry, endpoint.repository)

    def _refuse_blocked(self, registry: str, repository: str) -> None:
        found = registries_conf.find_registry(self.configured, registry, repository)
        if found is not None and found[0].blocked:
            raise DeniedError(f"registry {found[0].prefix} is blocked in {found[0].origin}")


def _parse_insecure(text: str) -> HostPattern:
    pattern = HostPattern.parse(text, "insecure registry")
    if pattern.is_glob:
        raise InvalidError(f"insecure registry: {text!r} is a pattern; name each host, or a network")
    return pattern
