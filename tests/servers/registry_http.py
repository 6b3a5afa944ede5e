"""The HTTP side of the registry in this process: the endpoints of the distribution-spec 1.1, and of its token server."""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, quote

from tests.servers.http_server import Answer, Handler, error_answer, json_answer
from tests.servers.images import OCI_INDEX, digest_of
from tests.servers.uploads import Upload, digest_matches, invalid_digest

if TYPE_CHECKING:
    from tests.servers.registry import Registry

SERVICE = "registry.test"
_REPOSITORY = r"(?P<repository>[a-z0-9][a-z0-9._/-]*)"
_DIGEST = r"(?P<digest>sha(?:256|512):[0-9a-f]+)"
_MANIFEST = re.compile(rf"/v2/{_REPOSITORY}/manifests/(?P<reference>[^/]+)")
_BLOB = re.compile(rf"/v2/{_REPOSITORY}/blobs/{_DIGEST}")
_START = re.compile(rf"/v2/{_REPOSITORY}/blobs/uploads/?")
_UPLOAD = re.compile(rf"/v2/{_REPOSITORY}/blobs/uploads/(?P<upload>[0-9a-f]+)")
_OPAQUE_UPLOAD = re.compile(r"/artifacts-uploads/(?P<upload>[0-9a-f]+)")
_STORAGE_UPLOAD = re.compile(r"/storage/uploads/(?P<upload>[0-9a-f]+)")
_TAGS = re.compile(rf"/v2/{_REPOSITORY}/tags/list")
_REFERRERS = re.compile(rf"/v2/{_REPOSITORY}/referrers/{_DIGEST}")
_MANIFEST_SIZE_MAX = 4 << 20

Query = Mapping[str, list[str]]


class _RegistryPart(Handler):
    """What registry and storage server share."""

    @property
    def registry(self) -> Registry:
        return cast("Registry", self.server.service)

    def serve_bytes(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        """A blob or a document, or the range of it that was asked for."""
        data = self.fault.change(data)
        total = len(data)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if found is None or self.fault.ignore_range:
            return Answer(200, data, headers)
        start, end = int(found[1]), min(int(found[2] or total), total - 1)
        if start >= total:
            return Answer(416, b"", {"Content-Range": f"bytes */{total}"})
        return Answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{total}"})

    def serve_blob(self, digest: str, data: bytes | None) -> Answer:
        if data is None:
            return error_answer(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return self.serve_bytes(data, {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest})

    def serve_upload(self, identifier: str, query: Query) -> Answer:
        """The next request of an upload: how far it is, a chunk, the end, or that it is given up."""
        uploads = self.registry.uploads
        upload = uploads.find(identifier, first(query, "_state"), only_asks=self.command == "GET")
        if isinstance(upload, Answer):
            return upload
        if self.command == "GET":
            return Answer(204, b"", self._upload_headers(upload))
        if self.command == "DELETE":
            uploads.cancel(upload)
            return Answer(204)
        if self.command not in ("PATCH", "PUT"):
            return error_answer(405, "UNSUPPORTED", "The operation is unsupported.")
        last = self.command == "PUT"
        wrong = uploads.append(upload, self.seen.body, self.headers.get("content-range"), last=last, truncated=self.truncated)
        if wrong is not None:
            return Answer(wrong.status, wrong.body, {**self._upload_headers(upload), **wrong.headers})
        if last and not self.truncated:
            return self.finish_upload(upload, first(query, "digest") or "")
        return Answer(202, b"", self._upload_headers(upload))

    def start_upload(self, repository: str) -> Answer:
        uploads = self.registry.uploads
        headers = self._upload_headers(uploads.start(repository))
        if uploads.chunk_size_min is not None:
            headers["OCI-Chunk-Min-Length"] = str(uploads.chunk_size_min)
        return Answer(202, b"", headers)

    def finish_upload(self, upload: Upload, digest: str) -> Answer:
        wrong = self.registry.uploads.finish(upload, digest)
        if wrong is not None:
            return wrong
        self.registry.add_blob(upload.repository, bytes(upload.data), digest)
        return self.created(f"/v2/{upload.repository}/blobs/{digest}", digest)

    def created(self, path: str, digest: str) -> Answer:
        return Answer(201, b"", {"Location": self._location(path), "Docker-Content-Digest": digest})

    def _upload_headers(self, upload: Upload) -> dict[str, str]:
        location = self._location(self.registry.uploads.path(upload))
        return {"Location": location, "Range": upload.range, "Docker-Upload-UUID": upload.identifier}

    def _location(self, path: str) -> str:
        registry = self.registry
        host = registry.storage_host if path.startswith("/storage/") else registry.host
        if path.startswith("/v2/"):
            path = registry.api + path.removeprefix("/v2")
        relative = registry.uploads.location == "relative" and host == registry.host
        return path if relative else f"{registry.scheme}://{host}{path}"


class StorageHandler(_RegistryPart):
    """Another host that has the blobs. Those who come are to bring no authorization: the URL is signed."""

    def serve(self, path: str, query: Query) -> Answer:
        if found := _STORAGE_UPLOAD.fullmatch(path):
            if "authorization" in self.headers:
                return Answer(
                    400, b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
                )
            return self.serve_upload(found["upload"], query)
        digest = path.removeprefix("/storage/")
        return self.serve_blob(digest, self.registry.blobs.get(digest))


class RegistryHandler(_RegistryPart):
    """All endpoints."""

    def serve(self, path: str, query: Query) -> Answer:
        registry = self.registry
        if path == "/token":
            return self._serve_token(query)
        if path.startswith(registry.api + "/"):
            path = "/v2" + path.removeprefix(registry.api)
        refusal = self._refusal(path, query)
        if refusal is not None:
            return refusal
        if path == "/v2/":
            return json_answer(200, {}, {"Docker-Distribution-Api-Version": "registry/2.0"})
        if path == "/v1/search" and registry.searchable is not None:
            word, limit = first(query, "q") or "", int(first(query, "n") or "25")
            found = [each for each in registry.searchable if word in each["name"]]
            return json_answer(200, {"num_results": len(found), "query": word, "results": found[:limit]})
        if path == "/v2/_catalog":
            return self._serve_page("repositories", sorted(registry.tags), query, "/v2/_catalog", {})
        for pattern, serve in self._routes():
            if found := pattern.fullmatch(path):
                return serve(found, query)
        return error_answer(404, "UNSUPPORTED", f"no such path: {path}")

    def _routes(self) -> Sequence[tuple[re.Pattern[str], Callable[[re.Match[str], Query], Answer]]]:
        return (
            (_MANIFEST, self._serve_manifest),
            (_START, self._start_upload),
            (_UPLOAD, lambda found, query: self.serve_upload(found["upload"], query)),
            (_OPAQUE_UPLOAD, lambda found, query: self.serve_upload(found["upload"], query)),
            (_BLOB, self._serve_blob),
            (_TAGS, self._serve_tags),
            (_REFERRERS, self._serve_referrers),
        )

    # Manifests

    def _serve_manifest(self, found: re.Match[str], query: Query) -> Answer:
        repository, reference = found["repository"], found["reference"]
        if self.command == "PUT":
            return self._put_manifest(repository, reference)
        stored = self.registry.manifests.get((repository, reference))
        if stored is None:
            code = "MANIFEST_UNKNOWN" if repository in self.registry.tags else "NAME_UNKNOWN"
            return error_answer(404, code, code.lower().replace("_", " "))
        if self.command == "DELETE":
            return self._delete_manifest(repository, reference)
        digest = reference if ":" in reference else digest_of(stored[0])
        return self.serve_bytes(stored[0], {"Content-Type": stored[1], "Docker-Content-Digest": digest})

    def _put_manifest(self, repository: str, reference: str) -> Answer:
        data, media_type = self.seen.body, self.headers.get("content-type", "")
        if len(data) > _MANIFEST_SIZE_MAX:
            return error_answer(413, "MANIFEST_INVALID", f"manifest of more than {_MANIFEST_SIZE_MAX} bytes")
        if ":" in reference and not digest_matches(data, reference):
            return invalid_digest(reference)
        try:
            document = json.loads(data)
            if document.get("mediaType", media_type) != media_type:
                raise ValueError(f"Content-Type {media_type!r}, mediaType {document['mediaType']!r}")
            missing = self._missing(repository, document) if self.registry.checks_manifests else []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return error_answer(400, "MANIFEST_INVALID", f"manifest invalid: {error}")
        if missing:
            errors = [
                {"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry", "detail": each} for each in missing
            ]
            return json_answer(400, {"errors": errors})
        digest = reference if ":" in reference else digest_of(data)
        self.registry.add_manifest(repository, None if ":" in reference else reference, data, media_type, digest)
        answer = self.created(f"/v2/{repository}/manifests/{digest}", digest)
        if self.registry.referrers and "subject" in document:
            return Answer(answer.status, b"", {**answer.headers, "OCI-Subject": document["subject"]["digest"]})
        return answer

    def _missing(self, repository: str, document: Mapping[str, Any]) -> list[str]:
        """Digests of what the manifest names and the repository does not have. The subject need not be there."""
        registry = self.registry
        named = [document["config"]] if "config" in document else []
        named += [layer for layer in document.get("layers", ()) if not layer.get("urls")]
        blobs = [each["digest"] for each in named if registry.blob(repository, each["digest"]) is None]
        manifests = [each["digest"] for each in document.get("manifests", ())]
        return blobs + [digest for digest in manifests if (repository, digest) not in registry.manifests]

    def _delete_manifest(self, repository: str, reference: str) -> Answer:
        registry = self.registry
        if not registry.deletes or (":" not in reference and not registry.tag_deletes):
            return error_answer(405, "UNSUPPORTED", "The operation is unsupported.")
        data = registry.manifests.pop((repository, reference))[0]
        if ":" in reference:
            for tag in [tag for tag in registry.tags[repository] if registry.manifests[repository, tag][0] == data]:
                del registry.manifests[repository, tag]
                registry.tags[repository].remove(tag)
        else:
            registry.tags[repository].remove(reference)
        return Answer(202)

    # Blobs

    def _serve_blob(self, found: re.Match[str], query: Query) -> Answer:
        registry, repository, digest = self.registry, found["repository"], found["digest"]
        data = registry.blob(repository, digest)
        if self.command == "DELETE" and not registry.deletes:
            return error_answer(405, "UNSUPPORTED", "The operation is unsupported.")
        if self.command == "DELETE" and data is not None:
            registry.holdings[repository].discard(digest)
            return Answer(202)
        if self.fault.redirect and data is not None:
            return Answer(
                307, b"", {"Location": f"{registry.scheme}://{registry.storage_host}/storage/{digest}?signature=canary"}
            )
        return self.serve_blob(digest, data)

    def _start_upload(self, found: re.Match[str], query: Query) -> Answer:
        registry, repository = self.registry, found["repository"]
        if self.command != "POST":
            return error_answer(405, "UNSUPPORTED", "The operation is unsupported.")
        mount, source, digest = (first(query, name) for name in ("mount", "from", "digest"))
        if mount and registry.uploads.mounts:
            data = registry.blob(source, mount) if source else registry.blobs.get(mount)
            if data is not None:
                registry.add_blob(repository, data, mount)
                return self.created(f"/v2/{repository}/blobs/{mount}", mount)
        elif digest and registry.uploads.single_post and not self.truncated:
            if not digest_matches(self.seen.body, digest):
                return invalid_digest(digest)
            registry.add_blob(repository, self.seen.body, digest)
            return self.created(f"/v2/{repository}/blobs/{digest}", digest)
        return self.start_upload(repository)

    # Lists

    def _serve_tags(self, found: re.Match[str], query: Query) -> Answer:
        repository = found["repository"]
        tags = self.registry.tags.get(repository)
        if tags is None:
            return error_answer(404, "NAME_UNKNOWN", "repository name not known to registry")
        return self._serve_page("tags", sorted(tags), query, f"/v2/{repository}/tags/list", {"name": repository})

    def _serve_page(self, key: str, names: Sequence[str], query: Query, path: str, document: Mapping[str, Any]) -> Answer:
        """Those after ``last``, at most ``n``."""
        last, asked = first(query, "last") or "", first(query, "n")
        names = [name for name in names if name > last]
        size = min(int(asked) if asked else len(names), self.registry.page_size or len(names))
        page = names[:size]
        link = self._link(f"{path}?n={size}&last={quote(page[-1], safe='')}") if page and len(page) < len(names) else {}
        answer = json_answer(200, {**document, key: page or None}, link)
        return self.serve_bytes(answer.body, answer.headers)

    def _serve_referrers(self, found: re.Match[str], query: Query) -> Answer:
        registry, repository, digest = self.registry, found["repository"], found["digest"]
        if not registry.referrers:
            return Answer(404, b"404 page not found\n", {"Content-Type": "text/plain; charset=utf-8"})
        wanted = first(query, "artifactType") if registry.referrers_filter else None
        entries = [each for each in self._referrers(repository, digest) if wanted in (None, each["artifactType"])]
        start = int(first(query, "start") or 0)
        size = registry.page_size or len(entries)
        headers = {"Content-Type": OCI_INDEX} | ({"OCI-Filters-Applied": "artifactType"} if wanted else {})
        if start + size < len(entries):
            chosen = f"&artifactType={quote(wanted, safe='')}" if wanted else ""
            headers |= self._link(f"/v2/{repository}/referrers/{digest}?start={start + size}{chosen}")
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries[start : start + size]}
        return self.serve_bytes(json.dumps(index).encode(), headers)

    def _referrers(self, repository: str, digest: str) -> list[dict[str, Any]]:
        entries = []
        for (holder, reference), (data, media_type) in list(self.registry.manifests.items()):
            if holder != repository or ":" not in reference:
                continue
            try:
                document = json.loads(data)
            except ValueError:
                continue  # any bytes may be served as a manifest
            if not isinstance(document, dict) or document.get("subject", {}).get("digest") != digest:
                continue
            artifact_type = document.get("artifactType") or document.get("config", {}).get("mediaType")
            entry = {"mediaType": media_type, "digest": reference, "size": len(data), "artifactType": artifact_type}
            entries.append(entry | ({"annotations": document["annotations"]} if "annotations" in document else {}))
        return entries

    def _link(self, path: str) -> dict[str, str]:
        path = self.registry.api + path.removeprefix("/v2")
        return {"Link": f'<{self.url(path) if self.registry.absolute_links else path}>; rel="next"'}

    # Authorization

    def _refusal(self, path: str, query: Query) -> Answer | None:
        """A challenge, unless the request may pass."""
        registry = self.registry
        given = self.headers.get("authorization", "")
        if registry.auth == "none" or (registry.auth == "basic" and given == self._basic()):
            return None
        message = "authentication required"
        if registry.auth == "basic":
            return error_answer(401, "UNAUTHORIZED", message, {"WWW-Authenticate": 'Basic realm="registry, test"'})
        wanted = self._wanted(path, query)
        granted = registry.granted(given.removeprefix("Bearer ")) if given.startswith("Bearer ") else None
        needed = {f"{resource}:{action}" for resource, actions in wanted.items() for action in actions}
        if granted is not None and needed <= granted:
            return None
        realm, service = f"{registry.scheme}://{registry.host}/token", SERVICE
        if registry.token_server is not None:
            realm, service = registry.token_server.realm, registry.token_server.service
        challenge = f'Bearer realm="{realm if registry.realm is None else registry.realm}",service="{service}"'
        if wanted:
            scopes = " ".join(f"{resource}:{','.join(actions)}" for resource, actions in wanted.items())
            challenge += f',scope="{scopes}"'
        if given:
            challenge += ',error="invalid_token"' if granted is None else ',error="insufficient_scope"'
        return error_answer(401, "UNAUTHORIZED", message, {"WWW-Authenticate": challenge})

    def _wanted(self, path: str, query: Query) -> dict[str, tuple[str, ...]]:
        """Actions that the request needs, by ``type:name``."""
        if path == "/v2/_catalog":
            return {"registry:catalog": ("*",)}
        if found := _OPAQUE_UPLOAD.fullmatch(path):
            upload = self.registry.uploads.unfinished.get(found["upload"])
            return {f"repository:{upload.repository}": ("pull", "push")} if upload else {}
        found = re.match(rf"/v2/{_REPOSITORY}/(?:manifests|(?P<blobs>blobs)|tags|referrers)/", path)
        if found is None:
            return {}
        repository = f"repository:{found['repository']}"
        uploading = found["blobs"] and (_START.fullmatch(path) or _UPLOAD.fullmatch(path))
        if self.command == "DELETE" and not uploading:
            return {repository: ("delete",)}
        if self.command in ("GET", "HEAD") and not uploading:
            return {repository: ("pull",)}
        source = first(query, "from")
        return {repository: ("pull", "push")} | ({f"repository:{source}": ("pull",)} if source else {})

    def _serve_token(self, query: Query) -> Answer:
        """Gives the only account what it asks for, and others what is in everybody's hands."""
        registry = self.registry
        may_push = True
        if self.command == "POST":
            fields = parse_qs(self.seen.body.decode())
            password = first(fields, "username") == registry.username and first(fields, "password") == registry.password
            allowed = password or first(fields, "refresh_token") == registry.identity_token
        else:
            fields = dict(query)
            given = self.headers.get("authorization")
            may_push = given == self._basic()
            allowed = may_push or (registry.anonymous_pull and given is None)
        if not allowed:
            return error_answer(401, "UNAUTHORIZED", "authentication required")
        scopes = [scope for value in fields.get("scope", []) for scope in value.split()]
        granted = set()
        for scope in scopes[:1] if registry.first_scope_only else scopes:
            resource, _, actions = scope.rpartition(":")
            granted |= {f"{resource}:{action}" for action in actions.split(",") if may_push or action == "pull"}
        token = secrets.token_hex(32)
        registry.tokens[token] = frozenset(granted), time.monotonic() + (registry.token_lifetime or 60.0)
        document: dict[str, Any] = {registry.token_field: token}
        if registry.token_lifetime is not None:
            document["expires_in"] = int(registry.token_lifetime)
        answer = json_answer(200, document)
        return self.serve_bytes(answer.body, answer.headers)

    def _basic(self) -> str:
        registry = self.registry
        return "Basic " + base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()


def first(query: Query, name: str) -> str | None:
    """The first value of a field, or None."""
    return query[name][0] if name in query else None
