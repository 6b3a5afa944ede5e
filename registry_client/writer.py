"""RepositoryWriter: the writes of the distribution API for one repository. They go to the registry itself, never to a mirror.

::

    with RepositoryClient.of(reference, options) as client:
        writer = RepositoryWriter(client.primary, options.upload_chunk)
        writer.push_blob(config, lambda offset: iter([data[offset:]]))
        digest = writer.put_manifest("1.36", manifest, media_types.OCI_MANIFEST)

A registry takes a manifest only after all that it names. `registry_client.push.push_image` does all of it for an image.

Source: OCI distribution-spec 1.1, "Push" and "Content Management".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from registry_client import media_types
from registry_client.client import read_manifest, referrers_tag
from registry_client.digest import Digest
from registry_client.errors import (
    DigestMismatchError,
    MalformedError,
    NotFoundError,
    RegistryError,
    UnavailableError,
    UnsupportedError,
)
from registry_client.image import Document
from registry_client.manifest import Descriptor, parse_descriptor
from registry_client.referrers import change_referrers, describe_referrer
from registry_client.repository import Action, Answer, RemoteRepository
from registry_client.strict_json import parse_object
from registry_client.uploads import OpenAt, PushStatus, Upload, has_blob, ignore_position

REFERRERS_TRIES = 5
"""How often the index that stands in for the referrers API is written again because others write it at the same time."""


class RepositoryWriter:
    """Writes to one repository. May be used from several threads."""

    def __init__(self, repository: RemoteRepository, chunk: int | None = None) -> None:
        """Sends nothing.

        Args:
            repository: `RepositoryClient.primary`.
            chunk: bytes that one request of an upload sends at most (``Options.upload_chunk``), unless the registry wants larger ones
                (``OCI-Chunk-Min-Length``); None for all in one.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"uploads in requests of {chunk} bytes")
        self.repository = repository
        self._chunk = chunk

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has the blob: one HEAD, with the rights to push.

        Raises:
            DeniedError: a login is needed, or the account may not push.
            RegistryError: all else but that there is none.
        """
        return self.repository.retried(lambda: has_blob(self.repository, descriptor))

    def mount_blob(self, descriptor: Descriptor, repository: str) -> bool:
        """Makes the blob of another repository of the same registry part of this one; none of its bytes are sent.

        Returns:
            False where that does not work: the other one has it not, may not be read, or the registry mounts nothing.

        Raises:
            UnavailableError: the registry does not answer.
        """
        return Upload(self.repository, descriptor, lambda offset: iter(()), mount_from=[repository]).mount()

    def push_blob(
        self,
        descriptor: Descriptor,
        open_at: OpenAt,
        *,
        mount_from: Sequence[str] = (),
        progress: Callable[[int], None] = ignore_position,
        stop: threading.Event | None = None,
    ) -> PushStatus:
        """Makes the blob part of the repository: nothing is sent if it is, a mount if another repository has it, or else its bytes.

        The registry shows the blob only when it is whole. Of an upload that fails, or is killed, it keeps nothing that anybody sees.

        Args:
            open_at: called again, with another offset, where the registry lost a connection.
            mount_from: repositories of the same registry that may have the blob, each of which is tried.
            progress: told the number of bytes sent, from 0 again if the registry lost them.
            stop: set from another thread, it ends the upload with a CancelledError.

        Raises:
            DeniedError: a login is needed, or the account may not push.
            DigestMismatchError, SizeMismatchError: ``open_at`` gives other bytes than the descriptor says. They were not committed.
            TooLargeError: not even 1 MiB passes in one request.
            RegistryError: the registry gave up on us, or we on it; or what ``open_at`` raises.
        """
        if self.has_blob(descriptor):
            return PushStatus.EXISTS
        upload = Upload(
            self.repository, descriptor, open_at, mount_from=mount_from, chunk=self._chunk, progress=progress, stop=stop
        )
        try:
            return upload.run()
        finally:
            if upload.chunk is not None:  # what a proxy does not let through will not pass for the next blob either
                self._chunk = min(upload.chunk, self._chunk or upload.chunk)

    def put_manifest(self, tag_or_digest: str, data: bytes, media_type: str) -> Digest:
        """Writes a manifest or index, as it is. The last write to a tag wins.

        Where the manifest has a subject, and the registry no referrers API, the index at the tag that stands in for it is brought up to
        date (distribution-spec, "Pushing Manifests with Subject").

        Returns:
            The digest of ``data``.

        Raises:
            MalformedError: ``data`` is no JSON object; or what answered is no registry.
            DigestMismatchError: ``data`` has not this digest; or the registry says that it got something else.
            NotFoundError: the registry has not all that the manifest names.
            DeniedError, TooLargeError, UnavailableError, RegistryError: the registry does not take it.
        """
        what = f"manifest for {self._named(tag_or_digest)}"
        subject = _subject(data, what)
        answer, digest = self._put(tag_or_digest, data, media_type)
        if subject is not None and not answer.header("oci-subject"):
            self._update_referrers(subject, digest, describe_referrer(data, media_type, digest, what))
        return digest

    def delete_manifest(self, digest: Digest) -> None:
        """Deletes a manifest or index, and with it all tags that name it; what it names stays.

        Where it has a subject, and the registry no referrers API, it is taken out of the index that stands in for it.

        Raises:
            NotFoundError: there is none.
            UnsupportedError: the registry deletes nothing.
            RegistryError: all else.
        """
        what = f"manifest {digest} of {self.repository.name}"
        subject = _subject(read_manifest(self.repository, digest, what).data, what)
        self._delete(f"manifests/{digest}", what)
        if subject is not None and not self._has_referrers_api(subject):
            self._update_referrers(subject, digest, None)

    def delete_tag(self, tag: str) -> None:
        """Takes a tag away, and nothing that it names.

        Raises:
            NotFoundError: there is none.
            UnsupportedError: the registry deletes no tags, or nothing at all.
            RegistryError: all else.
        """
        what = f"tag {self._named(tag)}"
        try:
            self._delete(f"manifests/{tag}", what)
        except RegistryError as error:
            if error.status != 400:  # distribution 2.8 takes the tag for a wrong digest
                raise
            raise UnsupportedError(
                f"{what}: the registry deletes no tags ({error})", request=error.request, status=400, codes=error.codes
            ) from None

    def delete_blob(self, digest: Digest) -> None:
        """Takes a blob out of the repository. Manifests that name it are broken then.

        Raises:
            NotFoundError: there is none.
            UnsupportedError: the registry deletes nothing.
            RegistryError: all else.
        """
        self._delete(f"blobs/{digest}", f"blob {digest} of {self.repository.name}")

    def _named(self, tag_or_digest: str) -> str:
        return f"{self.repository.name}{'@' if ':' in tag_or_digest else ':'}{tag_or_digest}"

    def _put(self, tag_or_digest: str, data: bytes, media_type: str) -> tuple[Answer, Digest]:
        what = f"manifest for {self._named(tag_or_digest)}"
        digest = Digest(tag_or_digest) if ":" in tag_or_digest else Digest.of(data)
        if not digest.names(data):
            raise DigestMismatchError(f"{what}: the {len(data)} bytes to push have {Digest.of(data, digest.algorithm)}")
        try:
            answer = self.repository.request(
                "PUT",
                f"manifests/{tag_or_digest}",
                what,
                headers={"Content-Type": media_type},
                body=lambda: data,
                action=Action.PUSH,
                expected=(200, 201, 202),
            )
        except NotFoundError as error:
            if "NAME_UNKNOWN" in error.codes:
                raise
            words = str(error).partition("not found: ")[2]
            raise error.like(f"{what}: the registry does not take it, something that it names is not there: {words}") from None
        answer.close()
        claimed = answer.header("docker-content-digest")
        if answer.status != 201 and not claimed:
            # The login page of a network says 200, too.
            raise MalformedError(f"{what}: status {answer.status} does not say that the registry took it")
        if claimed.startswith(f"{digest.algorithm}:") and claimed != digest:
            raise DigestMismatchError(f"{what}: {digest} was pushed, the registry says that it got {claimed[:80]!r}")
        return answer, digest

    def _delete(self, path: str, what: str) -> None:
        tries = 0

        def delete() -> None:
            nonlocal tries
            tries += 1
            try:
                self.repository.send("DELETE", path, what, action=Action.DELETE, expected=(200, 202, 204)).close()
            except NotFoundError:
                if tries == 1:  # else an earlier try did it, and its answer was lost
                    raise

        self.repository.retried(delete)

    def _has_referrers_api(self, subject: Digest) -> bool:
        what = f"referrers of {self.repository.name}@{subject}"
        answer = self.repository.request("GET", f"referrers/{subject}", what, expected=(200, 404))
        answer.close()
        return answer.status == 200

    def _update_referrers(self, subject: Digest, digest: Digest, entry: dict[str, Any] | None) -> None:
        """Puts a manifest into the index that stands in for the referrers API, or takes it out (``entry`` is None).

        A registry knows no conditional writes, so what was written is read again: if somebody else wrote meanwhile, ours is done again.
        What two write at the very same moment, one of them may still lose.
        """
        tag = referrers_tag(subject)
        what = f"referrers of {self.repository.name}@{subject}"
        for _ in range(REFERRERS_TRIES + 1):
            changed = change_referrers(self._find(tag, what), digest, entry, what)
            if changed is None:
                return
            self._put(tag, changed, media_types.OCI_INDEX)
        raise UnavailableError(f"{what}: others changed the list at tag {tag} at the same time, {REFERRERS_TRIES} times in a row")

    def _find(self, tag: str, what: str) -> Document | None:
        try:
            return read_manifest(self.repository, tag, what)
        except NotFoundError:
            return None


def _subject(data: bytes, what: str) -> Digest | None:
    fields = parse_object(data, what)
    return parse_descriptor(fields.nested("subject")).digest if "subject" in fields else None
