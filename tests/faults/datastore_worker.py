"""A process to be killed: publishes a disk, then its marker, then removes an old disk, in the datastore that argument 1 names."""

from __future__ import annotations

import sys
from pathlib import Path

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.errors import ImgstoreError
from tests.disks import add_disk


def main() -> None:
    with LocalDatastore(Path(sys.argv[1])) as datastore:
        try:
            add_disk(datastore, "new", None, [(0, b"a" * GRAIN), (GRAIN, b"b")], size=4 * GRAIN).close()
            datastore.write_atomic("disks/new.json", b'{"whole": true}')
            if datastore.exists("disks/old"):
                datastore.remove_tree("disks/old")
        except ImgstoreError as error:
            print(f"{error.code}: {error}")
            return
    print("done")


main()
