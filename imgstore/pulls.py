"""Pulls: the layers of one image, downloaded ahead and converted in order.

Of any number of pulls that want a layer, one converts it, and the others wait for its marker; the lease ``layer-<chain id>`` decides
which, in one process as between processes. There is no deadlock: who waits for a layer holds leases only of layers above it, and who
holds the lowest lease waits for nobody.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imgstore import layout
from imgstore.catalog.catalog import Catalog
from imgstore.disks import Disks, PreparedDisk, layer_lease
from imgstore.downloads import CancelledError, Spools
from imgstore.errors import CorruptError, ImgstoreError, InvalidError, NoSpaceError, UnsupportedError
from imgstore.ext4.allocation import FileSystemFullError
from imgstore.leases import Lease, Leases, wait_for
from imgstore.markers import LayerMarker, RecipeRecord
from imgstore.progress import ProgressEvent, ProgressSink, State
from imgstore.registries import translate
from imgstore.stop import Stop
from imgstore.unpack import unpack
from imgstore.vmdk.chain import Chain
from registry_client.blobs import BlobStream
from registry_client.errors import RegistryError
from registry_client.manifest import Descriptor

CONCURRENT_DOWNLOADS = 3
"""As many as docker has at once."""

_OF_THE_LAYER = (CorruptError, InvalidError, NoSpaceError, UnsupportedError)
"""Errors whose message does not say yet in which layer it was; all others come from the source and name what was asked for."""

_LARGER_DISKS = "the disks of a store all have one size, chosen when it is made: imgstore init --disk-size"

_NOTE_SECONDS = 0.2
"""How often those who wait are told how far we are."""


class BlobSource(Protocol):
    """Where the blobs of an image come from: any ImageSource is one."""

    local: bool

    def open_blob(self, descriptor: Descriptor) -> BlobStream:
        """See ImageSource."""


@dataclass(frozen=True, slots=True)
class WantedLayer:
    """A layer of the image that is pulled."""

    chain_id: str
    diff_id: str
    parent: str | None
    descriptor: Descriptor

    @property
    def short(self) -> str:
        """What progress calls it: the start of the digest that the registry knows, as docker does."""
        return layout.hex_of(self.descriptor.digest)[:12]


class LayerPull:
    """Brings all layers of one image into the store. Use once.

    Args:
        spool_directory: for what downloads ahead of its turn; None: the system's temporary directory.
        stop: ends it from another thread; None: nobody does.
        admit: raises an error where a layer that is ready may not become visible.
    """

    def __init__(
        self,
        source: BlobSource,
        disks: Disks,
        catalog: Catalog,
        leases: Leases,
        progress: ProgressSink,
        spool_directory: Path | None,
        stop: Stop | None = None,
        *,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._disks = disks
        self._catalog = catalog
        self._leases = leases
        self._progress = progress
        self._spool_directory = spool_directory
        self._stop = stop or Stop()
        self._admit = admit

    def run(self, layers: Sequence[WantedLayer]) -> bool:
        """Returns when every layer is committed: whether any had to be brought.

        Raises:
            ImgstoreError: the first layer that failed; those below it are committed and stay.
            StoppedError, KeyboardInterrupt: likewise.
        """
        self._disks.make_scratch()
        existing = self._count_existing(layers)
        for layer in layers[:existing]:
            self._progress(ProgressEvent(layer.short, State.EXISTS))
        for number, layer in enumerate(layers[existing:]):
            self._progress(ProgressEvent(layer.short, State.PULLING, total=layer.descriptor.size))
            if number >= CONCURRENT_DOWNLOADS:
                self._progress(ProgressEvent(layer.short, State.WAITING, total=layer.descriptor.size))
        if existing == len(layers):
            return False
        try:
            self._bring_all(layers, existing)
        except CancelledError:
            self._stop.check()
            raise
        return True

    def _bring_all(self, layers: Sequence[WantedLayer], existing: int) -> None:
        with contextlib.ExitStack() as stack:
            chains = stack.enter_context(contextlib.ExitStack())
            chain = self._disks.open_chain([layer.chain_id for layer in layers[:existing]])
            chains.callback(chain.close)
            commits = stack.enter_context(_Commits(self._disks, self._catalog, self._progress, self._admit))
            workers = ThreadPoolExecutor(CONCURRENT_DOWNLOADS, thread_name_prefix="imgstore-download")
            # A download that waits for the first byte of an answer cannot be interrupted. Stopped, it holds nothing, and ends by itself.
            stack.callback(lambda: workers.shutdown(wait=not self._stop.is_set))
            spools = Spools(self._spool_directory, spill=not self._source.local)
            downloads = deque(_Download(layer, self._source, self._leases, self._progress, spools) for layer in layers[existing:])
            stack.callback(_cancel, downloads)
            stack.enter_context(self._stop.interrupting(functools.partial(_interrupt, tuple(downloads))))
            for download in downloads:
                workers.submit(download.run, self._disks)
            while downloads:
                self._stop.check()
                chain = self._bring(downloads[0], chain, commits)
                chains.callback(chain.close)
                downloads.popleft().drop_spool()

    def _count_existing(self, layers: Sequence[WantedLayer]) -> int:
        """How many layers from the lowest up are whole; one that is damaged is converted again, and with it all above are looked at."""
        for count, layer in enumerate(layers):
            if self._disks.find(layer.chain_id) is None:
                return count
        return len(layers)

    def _bring(self, download: _Download, chain: Chain, commits: _Commits) -> Chain:
        layer = download.layer
        found = download.ready.result()
        if found is not None:
            self._progress(ProgressEvent(layer.short, State.EXISTS))
            return self._disks.open_child(chain, found)
        disk = self._disks.prepare(layer.chain_id, chain)
        try:
            unpacked = unpack(download.pieces(), disk, layer.diff_id, interrupt=download.stop_reading)
            if unpacked.changed:
                chain = disk.device.chain()
        except _OF_THE_LAYER as error:
            disk.discard()
            cause = error if isinstance(error, NoSpaceError) else download.cause_of(error)
            hint = _LARGER_DISKS if isinstance(cause, FileSystemFullError) else cause.hint
            raise type(cause)(f"layer {layer.short}: {cause}", hint=hint) from error
        except BaseException:
            disk.discard()
            raise
        # From here the disk is the committer's: what interrupts us now must not discard a disk that is being published.
        recipe = RecipeRecord(layout.recipe_file(layout.hex_of(layer.chain_id)), unpacked.recipe.size, unpacked.recipe.digest)
        marker = LayerMarker(layer.chain_id, layer.diff_id, layer.parent, unpacked.size, None, recipe)
        commits.add(download, disk, marker, changed=unpacked.changed)
        return chain


class _Download:
    """One layer on its way from the source to the converter."""

    def __init__(self, layer: WantedLayer, source: BlobSource, leases: Leases, progress: ProgressSink, spools: Spools) -> None:
        self.layer = layer
        self.ready: Future[LayerMarker | None] = Future()
        """Done as soon as it is known who makes the layer: the marker if someone else did, None if we are to."""
        self._source = source
        self._leases = leases
        self._progress = progress
        self._spool = spools.open(f"layer {layer.descriptor.digest}")
        self._guard = threading.Lock()
        self._stopped = False
        self._converting = False
        self._lease: Lease | None = None
        self._blob: BlobStream | None = None
        self._noted = 0.0

    def run(self, disks: Disks) -> None:
        """Waits for the lease, then downloads unless the layer is there by now. Errors go to who reads."""
        try:
            if self._stopped:
                raise CancelledError
            self._keep(wait_for(self._leases, layer_lease(self.layer.chain_id), waiting=self._show_other))
            found = disks.find(self.layer.chain_id)
            self.ready.set_result(found)
            if found is not None:
                self.release()
                return
            with self._source.open_blob(self.layer.descriptor) as blob:
                self._blob = blob
                if self._stopped:  # before there was a blob to cancel
                    raise CancelledError
                done = 0
                for piece in blob:
                    self._spool.write(piece)
                    done += len(piece)
                    if not self._converting:
                        self._tell(State.DOWNLOADING, done)
            self._progress(ProgressEvent(self.layer.short, State.DOWNLOADED, done, done))
            self._spool.finish()
        except BaseException as error:
            reason = translate(error) if isinstance(error, RegistryError) else error
            if not self.ready.done():
                self.ready.set_exception(reason)
            self._spool.finish(reason)

    def pieces(self) -> Iterator[bytes]:
        """The blob, in pieces, as it arrives."""
        self._converting = True
        done = 0
        self._tell(State.CONVERTING, done)
        try:
            for piece in self._spool:
                yield piece
                done += len(piece)
                self._tell(State.CONVERTING, done)
        finally:
            self._spool.stop_reading()

    def stop_reading(self) -> None:
        """The layer is no good: the rest of it is received and dropped. Makes a reader that waits for its next piece end."""
        self._spool.stop_reading()

    def cause_of(self, error: ImgstoreError) -> ImgstoreError:
        """Why the blob made no sense: receives the rest of it, since one that was damaged on its way is to be called that."""
        outcome = self._spool.outcome()
        return outcome if isinstance(outcome, CorruptError) else error

    def drop_spool(self) -> None:
        """Frees what held the layer on its way, once it is converted."""
        self._spool.close()

    def release(self) -> None:
        """Lets others have the layer."""
        if self._lease is not None:
            self._lease.release()

    def abandon(self) -> None:
        """Lets others have the layer, and the next sweep know that it may be half made."""
        if self._lease is not None:
            self._lease.abandon()

    def interrupt(self) -> None:
        """Ends the download, wherever it is, and what reads its pieces. The lease stays with who converts the layer."""
        with self._guard:
            self._stopped = True
        if self._blob is not None:
            self._blob.cancel()
        self._spool.close()

    def cancel(self) -> None:
        """Ends the download, and lets others have the layer."""
        self.interrupt()
        self.release()

    def _keep(self, lease: Lease) -> None:
        with self._guard:
            if not self._stopped:
                self._lease = lease
                return
        lease.release()
        raise CancelledError

    def _tell(self, state: State, done: int) -> None:
        total = self.layer.descriptor.size
        self._progress(ProgressEvent(self.layer.short, state, done, total))
        now = time.monotonic()
        if self._lease is not None and now - self._noted > _NOTE_SECONDS:
            self._noted = now
            self._lease.note({"state": state.value, "current": done, "total": total})

    def _show_other(self, note: dict[str, Any]) -> None:
        if self._stopped:
            raise CancelledError
        try:
            event = ProgressEvent(self.layer.short, State(note["state"]), int(note["current"]), int(note["total"]))
        except (KeyError, ValueError, TypeError):
            event = ProgressEvent(self.layer.short, State.WAITING)
        self._progress(event)


def _cancel(downloads: Iterable[_Download]) -> None:
    for download in downloads:
        download.cancel()


def _interrupt(downloads: Iterable[_Download]) -> None:
    for download in downloads:
        download.interrupt()


class _Commits:
    """Commits disks in the background, in order, while the next layer is converted.

    Leaving the ``with`` block waits for all commits, and raises what the first failed one raised. A layer above a failed one is discarded.
    """

    def __init__(self, disks: Disks, catalog: Catalog, progress: ProgressSink, admit: Callable[[], None]) -> None:
        self._disks = disks
        self._catalog = catalog
        self._progress = progress
        self._admit = admit
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="imgstore-commit")
        self._last: Future[None] | None = None

    def __enter__(self) -> _Commits:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._worker.shutdown(wait=True)
        # What goes wrong above a failed commit goes wrong because its disk is gone.
        if self._last is not None and (kind is None or issubclass(kind, Exception)):
            self._last.result()

    def add(self, download: _Download, disk: PreparedDisk, marker: LayerMarker, *, changed: bool) -> None:
        """Commits the disk after those that were added before."""
        self._last = self._worker.submit(self._commit, self._last, download, disk, marker, changed)

    def _commit(
        self, before: Future[None] | None, download: _Download, disk: PreparedDisk, marker: LayerMarker, changed: bool
    ) -> None:
        try:
            if before is not None:
                before.result()
            self._catalog.put_layer(self._disks.commit(disk, marker, changed=changed, admit=self._admit))
        except BaseException:
            download.abandon()  # the layer may be there, and the catalog not know it
            disk.discard()
            raise
        download.release()
        self._progress(ProgressEvent(download.layer.short, State.COMPLETE))
