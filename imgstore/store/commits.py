"""What containers changed: told, and made into images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from imgstore.answers import Image
from imgstore.commits import CommitOptions, Commits
from imgstore.diffs import open_container
from imgstore.ext4.diff import Difference
from imgstore.progress import ProgressSink, ignore
from imgstore.registries import translated
from imgstore.stop import Stop
from imgstore.store.containers import Containers


class ContainerCommits(Containers):
    """The methods of an `ImageStore` that compare containers with their images."""

    def diff_container(self, reference: str) -> list[Difference]:
        """What the container's file system has that its image has not, as docker tells it, sorted by path.

        Takes time by what changed, not by what there is.

        Raises:
            NotFoundError: there is no such container.
            InUseError: a guest runs on its disk.
        """
        with open_container(self._live_disks, self._containers.find(reference)) as view:
            return view.differences()

    def commit_container(
        self,
        container: str,
        *,
        reference: str | None = None,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        created: datetime | None = None,
        progress: ProgressSink = ignore,
        stop: Stop | None = None,
    ) -> Image:
        """Makes an image of a container: its image, and one more layer with all that its disk has over that; no volumes.

        The container stays on the image that it has. A container that changed nothing gives an image of the same layers. The new image
        can be pushed, saved and run as any other.

        Args:
            reference: a name for the image, with the tag ``latest`` if it has none; it leaves any image that had it.
            message: comment of the step.
            author: of the image.
            changes: instructions of a Dockerfile that change its configuration, as for `import_image`.
            config: what it runs, in Docker's names; what is not there is as the container has it.
            created: when it is said to be made; None: now. The id of the image depends on it.
            progress: told what happens; called from several threads.
            stop: ends it from another thread.

        Raises:
            NotFoundError: there is no such container, or its image is gone.
            InvalidError: reference, changes or ``config`` make no sense.
            InUseError: a guest runs on its disk.
            NoSpaceError: the layer does not fit an image's disk, the datastore, or the quota.
        """
        options = CommitOptions(reference, message, author, changes, config, created)
        commits = Commits(self._catalog, self._disks, self._live_disks, self._intake)
        with self._mended(), translated():
            row = commits.commit(self._containers.find(container), options, progress, stop or Stop())
            return self._listing.image(row)
