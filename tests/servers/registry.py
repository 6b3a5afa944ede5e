"""A registry in this process: a real HTTP server that speaks the distribution-spec 1.1 from memory, and misbehaves when told to.

::

    with Registry(auth="bearer") as registry:
        image = registry.add_image("library/busybox", "1.36", [make_tar({"hello": b"hello"})])
        registry.inject(r"/blobs/", Fault(cut_after=100), times=2)
        ... f"{registry.host}/library/busybox:1.36" ...
        assert [request.path for request in registry.requests] == [...]

What it does is judged by skopeo in ``tests/compat/test_own_registry.py``.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.servers.faults import ALWAYS, FAULTS, Fault
from tests.servers.http_server import Request, Service
from tests.servers.images import BuiltImage, build_image, build_index, digest_of
from tests.servers.registry_http import RegistryHandler, StorageHandler
from tests.servers.uploads import Upload, Uploads

if TYPE_CHECKING:
    from tests.servers.token_server import TokenServer

__all__ = ["ALWAYS", "FAULTS", "Fault", "Registry", "Request", "Upload"]


class Registry(Service):
    """See the module.

    Args:
        auth: ``none``, ``basic`` or ``bearer``.
        username, password: the only account, which may do everything.
        anonymous_pull: a bearer registry that gives tokens to pull to those without a password, too.
        token_lifetime: seconds, or None for an answer without ``expires_in``.
        token_field: ``token`` or ``access_token``.
        token_server: hands out the tokens, in the place of the registry's own ``/token``. It must run.
        tls: serve HTTPS with this context; it also says whether client certificates are demanded.

    Attributes:
        host: ``127.0.0.1:port``.
        storage_host: where ``Fault(redirect=True)`` leads.
        identity_token: a refresh token that the registry's own token server accepts.
        realm: what a challenge names, if not the true one.
        first_scope_only: the own token server overlooks all scopes but the first.
        api: path of the API's root.
        blobs: by digest.
        holdings: digests of the blobs of each repository.
        shared_blobs: a blob of one repository is there in all.
        manifests: bytes and content type, by repository, and digest or tag.
        tags: by repository.
        page_size: of tags and referrers, at most; None for all that are asked for.
        absolute_links: ``Link`` headers hold whole URLs.
        referrers: whether the referrers API is there.
        referrers_filter: whether it heeds ``artifactType``.
        deletes: manifests and blobs can be deleted; and tags, with ``tag_deletes``.
        checks_manifests: a manifest is refused as long as blobs and manifests that it names are missing.
        uploads: the unfinished ones, and how uploads go; see `Uploads`.
        searchable: what ``/v1/search`` looks through; None: there is no such path.
    """

    def __init__(
        self,
        *,
        auth: str = "none",
        username: str = "robot$project+puller",
        password: str = "pa$$:word",
        anonymous_pull: bool = False,
        token_lifetime: float | None = 300.0,
        token_field: str = "token",
        token_server: TokenServer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls)
        self.auth = auth
        self.username = username
        self.password = password
        self.anonymous_pull = anonymous_pull
        self.token_lifetime = token_lifetime
        self.token_field = token_field
        self.token_server = token_server
        self.identity_token = "identity-token"
        self.realm: str | None = None
        self.first_scope_only = False
        self.api = "/v2"
        self.blobs: dict[str, bytes] = {}
        self.holdings: dict[str, set[str]] = {}
        self.shared_blobs = False
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.tags: dict[str, list[str]] = {}
        self.page_size: int | None = None
        self.absolute_links = False
        self.referrers = True
        self.referrers_filter = True
        self.deletes = True
        self.tag_deletes = True
        self.checks_manifests = True
        self.uploads = Uploads()
        self.searchable: list[dict[str, Any]] | None = None
        self.tokens: dict[str, tuple[frozenset[str], float]] = {}
        self.host = self.listen("registry", RegistryHandler)
        self.storage_host = self.listen("storage", StorageHandler)

    def add_image(self, repository: str, tag: str | None, layers: Sequence[bytes], **options: Any) -> BuiltImage:
        """Builds an image (see `build_image` for the options) and serves it."""
        return self.add_built(repository, tag, build_image(layers, **options))

    def add_built(self, repository: str, tag: str | None, image: BuiltImage) -> BuiltImage:
        """Serves an image."""
        for data in image.blobs.values():
            self.add_blob(repository, data)
        self.add_manifest(repository, tag, image.manifest, image.media_type)
        return image

    def add_index(self, repository: str, tag: str | None, images: Sequence[BuiltImage]) -> str:
        """Serves these images for several platforms under one tag; returns the index's digest."""
        for image in images:
            self.add_built(repository, None, image)
        index = build_index([image.descriptor() for image in images])
        return self.add_manifest(repository, tag, index, "application/vnd.oci.image.index.v1+json")

    def add_blob(self, repository: str, data: bytes, digest: str | None = None) -> str:
        """Serves a blob; returns its digest."""
        digest = digest or digest_of(data)
        self.blobs[digest] = data
        self.holdings.setdefault(repository, set()).add(digest)
        return digest

    def add_manifest(self, repository: str, tag: str | None, data: bytes, content_type: str, digest: str | None = None) -> str:
        """Serves any bytes as a manifest; returns their digest."""
        digest = digest or digest_of(data)
        self.manifests[repository, digest] = data, content_type
        tags = self.tags.setdefault(repository, [])
        if tag is not None:
            self.manifests[repository, tag] = data, content_type
            if tag not in tags:
                tags.append(tag)
        return digest

    def blob(self, repository: str, digest: str) -> bytes | None:
        """A blob as this repository has it."""
        if self.shared_blobs or digest in self.holdings.get(repository, ()):
            return self.blobs.get(digest)
        return None

    def revoke_tokens(self) -> None:
        """From now on, all tokens that were given out by the registry's own token server are refused."""
        self.tokens.clear()

    def granted(self, token: str) -> frozenset[str] | None:
        """What a token allows, as ``repository:name:action``; None if it is not valid (any more)."""
        if self.token_server is not None:
            return self.token_server.granted(token)
        scopes, expires = self.tokens.get(token, (frozenset[str](), 0.0))
        return scopes if expires > time.monotonic() else None
