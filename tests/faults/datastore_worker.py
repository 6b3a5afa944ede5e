"""A process to be killed: publishes a disk and its sums, then its marker, then removes an old disk and the tree of its names.

Argument 1 names the datastore.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.errors import ImgstoreError, NotFoundError
from tests.disks import add_disk


def main() -> None:
    with LocalDatastore(Path(sys.argv[1])) as datastore:
        try:
            add_disk(datastore, "new", None, [(0, b"a" * GRAIN), (GRAIN, b"b")], size=4 * GRAIN).close()
            datastore.write_atomic("disks/new.json", b'{"whole": true}')
            for name in ("disks/old.vmdk", "disks/old.crc32c"):
                with contextlib.suppress(NotFoundError):
                    datastore.remove_file(name)
            with contextlib.suppress(NotFoundError):
                datastore.remove_tree("names")
        except ImgstoreError as error:
            print(f"{error.code}: {error}")
            return
    print("done")


main()
