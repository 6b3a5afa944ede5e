"""Transfers: between a store and registries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from imgstore import gc
from imgstore.answers import PullResult, PullStatus, PushResult, RemoteImage
from imgstore.blobs import KnownBlobs
from imgstore.errors import InvalidError
from imgstore.filters import Filters
from imgstore.images import names_of, parse_reference
from imgstore.inquiries import describe_remote, parse_search_filters
from imgstore.intake import NAMES
from imgstore.leases import held
from imgstore.progress import ProgressEvent, ProgressSink, ignore
from imgstore.pushes import ImagePush, find_tagged, parse_destination, parse_repository, record, tags_of
from imgstore.registries import translated
from imgstore.stop import Stop
from imgstore.store.core import StoreCore
from registry_client.client import RepositoryClient
from registry_client.credentials import Credential
from registry_client.digest import Digest
from registry_client.image_config import ImageConfig, parse_image_config
from registry_client.login import check_login
from registry_client.platform import Platform, choose
from registry_client.search import LIMIT_DEFAULT, FoundRepository, search, split_term
from registry_client.source import ImageSource, open_source
from registry_client.writer import RepositoryWriter


class Transfers(StoreCore):
    """The methods of an `ImageStore` that talk to registries."""

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> PullResult:
        """Brings an image into the store, and gives it its name.

        Layers that are there already are not fetched; an image that is there costs one request. What other pulls, in this process or
        another, are converting is waited for. After an error or an interrupt nothing new is visible; converted layers stay, and the
        next pull goes on from there.

        Args:
            reference: ``alpine``, ``docker://host/name:tag``, ``oci:DIR[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE``.
            platform: ``os/arch[/variant]``; None: Linux on this machine's architecture.
            credential: for the registry of the reference; None: what the store's options or the files of docker and podman have.
            progress: told what happens; called from several threads.
            stop: ends it from another thread.

        Raises:
            InvalidError, NotFoundError, DeniedError, UnavailableError, UnsupportedError: as the source says.
            CorruptError: what came is not what its digest says, or breaks its format.
            NoSpaceError: it does not fit a disk of this store, or not the datastore.
            StoppedError: ``stop`` was set. A request that the registry leaves without an answer ends only when its time is over.
        """
        stop = stop or Stop()
        with contextlib.ExitStack() as stack, translated():
            wanted = None if platform is None else Platform.parse(platform)
            source = open_source(reference, self._options(progress, credential, stop), self._connections)
            stack.callback(source.close)
            progress(ProgressEvent("", message=f"Pulling {source.name}"))
            with self._mended():
                return self._pull(source, wanted, progress, stop)

    def pull_all_tags(
        self,
        reference: str,
        *,
        platform: str | None = None,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Iterator[PullResult]:
        """Pulls every tag of a repository, one after the other; signatures and the like, which are no images, are left out.

        Raises:
            InvalidError: the reference names a tag or digest, or no registry.
            Otherwise what `pull` raises; what came before stays.
        """
        tags = self.list_tags(reference, credential=credential, progress=progress, stop=stop)
        for tag in tags:
            yield self.pull(f"{reference}:{tag}", platform=platform, credential=credential, progress=progress, stop=stop)

    def list_tags(
        self,
        repository: str,
        *,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> list[str]:
        """The tags that a repository has in its registry, without those of signatures and the like. Arguments as for `pull`.

        Raises:
            InvalidError: the reference names a tag or digest, or no registry.
            Otherwise what `pull` raises.
        """
        with contextlib.ExitStack() as stack, translated():
            source = open_source(repository, self._options(progress, credential, stop or Stop()), self._connections)
            stack.callback(source.close)
            if source.reference is None or repository.startswith(("oci", "docker-archive")):
                raise InvalidError(f"{repository}: all tags can be pulled from a registry only")
            if set(":@") & set(repository.rpartition("/")[2]):
                raise InvalidError(f"{repository}: tag can't be used with --all-tags/-a")
            return source.tags()

    def push(
        self,
        reference: str,
        *,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> PushResult:
        """Sends the image that has this name to the registry that the name says.

        Layers that the repository has, or can mount from another one, are not sent; others are read back from their disks and
        compressed, the same way each time. The image keeps its id, and its manifest if the registry has, or gets, the very blobs that it
        names. Afterwards it has the name ``repository@digest`` here, too.

        After an error or an interrupt the tag in the registry is as it was; layers that were complete are not sent again. Pushes of one
        image at the same time do not wait for each other.

        Args:
            reference: a name with a tag; ``docker://`` may stand before it.
            credential: for the registry; None: what the store's options or the files of docker and podman have.
            progress: told what happens; called from several threads.
            stop: ends it from another thread.

        Raises:
            NotFoundError: no image has this name; or the registry has no such project.
            InvalidError: it is no name, or has a digest.
            DeniedError, UnavailableError, UnsupportedError: as the registry says.
            CorruptError: a layer cannot be read back as it was.
            NoSpaceError: there is no space for compressed layers in the directory of the store.
        """
        stop = stop or Stop()
        with translated(), self._mended():
            destination = parse_destination(reference)
            image = find_tagged(self._catalog, destination)
            options = self._options(progress, credential, stop)
            with (
                gc.kept(self._leases, {layer.chain_id for layer in image.layers}),
                RepositoryClient.of(destination, options, self._connections) as client,
            ):
                writer = RepositoryWriter(client.primary, options.upload_chunk)
                blobs = KnownBlobs(self._datastore)
                push = ImagePush(writer, destination, self._disks, self._catalog, blobs, progress, self._directory)
                with stop.interrupting(push.stop.set):
                    pushed = push.run(image)
                with held(self._leases, NAMES):
                    record(self._images, self._catalog, destination, pushed)
        return PushResult(str(destination), str(pushed.digest), len(pushed.image.manifest))

    def push_all_tags(
        self,
        repository: str,
        *,
        credential: Credential | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Iterator[PushResult]:
        """Pushes every tag that the store has of a repository, one after the other, by name.

        Raises:
            InvalidError: the reference names a tag or digest.
            NotFoundError: the store has no tag of this repository.
            Otherwise what `push` raises; what came before stays.
        """
        wanted = parse_repository(repository)
        for tagged in tags_of(self._catalog, wanted) or [wanted]:
            yield self.push(str(tagged), credential=credential, progress=progress, stop=stop)

    def search(
        self,
        term: str,
        filters: Filters | None = None,
        *,
        limit: int = LIMIT_DEFAULT,
        credential: Credential | None = None,
    ) -> list[FoundRepository]:
        """Repositories of a registry whose name has a word in it; of registries without a search those that they list.

        Args:
            term: ``host/word``, or a word, which is looked for at Docker Hub.
            filters: as docker has them: ``is-official``, ``stars``.
            limit: how many at most, before the filters.
            credential: for the registry; None: what the store's options or the files of docker and podman have.

        Raises:
            InvalidError: term, filters or limit make no sense.
            UnsupportedError: the registry lets nobody search.
            DeniedError, UnavailableError: as the registry says.
        """
        is_wanted = parse_search_filters(filters or {})
        with translated():
            registry, word = split_term(term)
            found = search(registry, word, self._options(ignore, credential, Stop()), self._connections, limit=limit)
        return [repository for repository in found if is_wanted(repository)]

    def describe_remote(self, reference: str, *, credential: Credential | None = None) -> RemoteImage:
        """What the registry has under a name: digest, size, platforms. Nothing is pulled.

        Raises:
            InvalidError, NotFoundError, DeniedError, UnavailableError, UnsupportedError, CorruptError: as the registry says.
        """
        with translated():
            name = f"docker://{parse_reference(reference)}"
            with contextlib.closing(open_source(name, self._options(ignore, credential, Stop()), self._connections)) as source:
                return describe_remote(source)

    def check_login(self, registry: str, credential: Credential) -> Credential:
        """Asks a registry whether it takes a credential. Nothing is kept here.

        Args:
            registry: as references begin with it: ``docker.io``, ``host:port``.

        Returns:
            What to keep: the credential, or the identity token that the registry gave for it.

        Raises:
            DeniedError: it does not take it, or a policy forbids the registry.
            InvalidError, NotFoundError, UnavailableError: no such registry, or it does not answer.
        """
        with translated():
            return check_login(registry, credential, self._registries)

    def _pull(self, source: ImageSource, platform: Platform | None, progress: ProgressSink, stop: Stop) -> PullResult:
        stop.check()
        unchanged = self._up_to_date(source, platform)
        if unchanged is not None:
            return unchanged
        stop.check()
        image = source.resolve(platform)
        stop.check()
        image_id = str(image.config.image_id)
        digest = None if image.digest is None else str(image.digest)
        taken = self._intake.take(source, image, names_of(source.reference, image_id, digest), progress, stop)
        status = PullStatus.DOWNLOADED if taken.changed else PullStatus.UP_TO_DATE
        name = image_id if source.reference is None else str(source.reference)
        return PullResult(name, self._listing.image(taken.image), status, digest)

    def _up_to_date(self, source: ImageSource, platform: Platform | None) -> PullResult | None:
        """The image that has the source's name already, if the source still means that one: one request tells."""
        if source.reference is None:
            return None
        reference = source.reference if source.reference.digest is None else source.reference.with_digest(source.reference.digest)
        row = self._catalog.reference(str(reference))
        image = None if row is None else self._catalog.image(row.image_id)
        if row is None or image is None or row.digest is None:
            return None
        if self._catalog.reference(str(reference.with_digest(Digest(row.digest)))) is None:
            return None  # a rebuild found it damaged and left it out
        if (
            choose(platform or Platform.host(), [parse_config(image.config, image.id).platform]) is None
            or source.digest() != row.digest
        ):
            return None
        # Damaged, it is pulled again. To look at every layer would take the longer the more there are; that is for check.
        if not self._disks.has_scratch() or any(self._disks.find(layer.chain_id) is None for layer in image.layers[-1:]):
            return None
        return PullResult(row.name, self._listing.image(image), PullStatus.UP_TO_DATE, row.digest)


def parse_config(data: bytes, image_id: str) -> ImageConfig:
    """The configuration of an image of the store, with errors in our own kinds."""
    with translated():
        return parse_image_config(data, f"image {image_id}")
