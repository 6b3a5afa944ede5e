"""A process to be killed: a guest's writes into a disk, each flushed, and then its number said. Argument 1 names the datastore."""

from __future__ import annotations

import sys
from pathlib import Path

from imgstore.blocks import GRAIN
from imgstore.datastores import LocalDatastore
from imgstore.live_disks import LiveDisks


def main() -> None:
    with LocalDatastore(Path(sys.argv[1])) as datastore:
        device = LiveDisks(datastore).attach("containers/c.vmdk")
        for grain in (3, 4, 520, 7):
            device.write(grain * GRAIN, b"%04d-" % grain * 1000)
            device.flush()
            print(grain, flush=True)
        device.close()


main()
