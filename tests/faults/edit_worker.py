"""A process to be killed: edits a disk of a container. Argument 1 names the datastore."""

from __future__ import annotations

import sys
from pathlib import Path

from imgstore.datastores import LocalDatastore
from imgstore.errors import ImgstoreError
from imgstore.live_disks import LiveDisks


def main() -> None:
    with LocalDatastore(Path(sys.argv[1])) as datastore:
        try:
            with LiveDisks(datastore).edit("containers/c.vmdk") as device:
                device.write(0, b"new")
                device.write(33 << 20, b"far")
        except ImgstoreError as error:
            print(f"{error.code}: {error}")
            return
    print("done")


main()
