"""What the kernel sees: loop mounts, and QEMU's FUSE export so that it can write through a VMDK chain."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools import missing, need, need_root, run


@contextmanager
def mounted(image: Path, *, writable: bool = False) -> Iterator[Path]:
    """Mounts a raw ext4 image through a loop device, read-only unless ``writable``, and unmounts it at the end.

    Device nodes can be listed, not opened; nothing can be executed. A read-only mount refuses a journal that asks for replay.
    """
    need_root()
    need("mount", "umount")
    with tempfile.TemporaryDirectory(prefix="imgstore-mount-") as directory:
        options = f"loop,{'rw' if writable else 'ro'},nosuid,nodev,noexec"
        run("mount", "-t", "ext4", "-o", options, image, directory)
        try:
            yield Path(directory)
        finally:
            if writable:
                # Now, and not when the last copy of the mount goes that a container may have taken meanwhile with all other mounts.
                run("mount", "-o", "remount,ro", directory)
            run("umount", directory)


@contextmanager
def exported(disk: Path) -> Iterator[Path]:
    """A file that reads and writes as the contents of a VMDK (with its parents), served by qemu-storage-daemon over FUSE."""
    need_root()
    need("qemu-storage-daemon")
    if not Path("/dev/fuse").exists():
        missing("/dev/fuse")
    with tempfile.TemporaryDirectory(prefix="imgstore-export-") as directory:
        mountpoint = Path(directory, "disk.raw")
        mountpoint.touch()
        daemon = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", f"driver=file,filename={disk},node-name=file"),
                *("--blockdev", "driver=vmdk,file=file,node-name=disk"),
                *("--export", f"type=fuse,id=export,node-name=disk,mountpoint={mountpoint},writable=on"),
            ],
            stderr=subprocess.PIPE,
        )
        try:
            _wait_for_size(mountpoint, daemon)
            yield mountpoint
        finally:
            daemon.terminate()
            _, words = daemon.communicate(timeout=60)
        assert daemon.returncode == 0, f"qemu-storage-daemon ended with {daemon.returncode}: {words.decode(errors='replace')}"


def _wait_for_size(mountpoint: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while mountpoint.stat().st_size == 0:
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.terminate()
            _, words = daemon.communicate(timeout=60)
            raise AssertionError(f"qemu-storage-daemon exported nothing: {words.decode(errors='replace')}")
        time.sleep(0.01)
