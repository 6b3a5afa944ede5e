"""What the kernel does, beside what imgstore does: ext4 on loop devices, and tar, which knows nothing of disks. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.measure import Run, run

PROGRAMS = ("mount", "umount", "mkfs.ext4", "tar", "sync")


def usable() -> bool:
    """Whether disks can be mounted here."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


class LoopDisk:
    """A raw disk and the directory where it is mounted; not mounted any more when the block ends. The disk stays.

    Args:
        file: the disk, also one that is yet to be made.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.directory = file.with_suffix(".mounted")
        self._mounted = False

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unmount()
        self.directory.rmdir()

    def format(self, size: int) -> None:
        """Mounts an empty file system on a disk of this size, nothing of which is left to be written in the background."""
        self._unmount()
        self._file.unlink(missing_ok=True)
        with self._file.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self._file], check=True)
        self._mount("rw")

    def mount_again(self, mode: str = "rw") -> None:
        """Mounts it so that the kernel knows nothing of its files; what the host has cached of the disk stays cached."""
        self._unmount()
        self._mount(mode)

    def extract(self, tar: Path) -> Run:
        """A tar, into its root directory."""
        return run(["sh", "-c", 'tar -xf "$1" -C "$2" && sync -f "$2"', "sh", tar, self.directory])

    def archive(self, path: str, tar: Path) -> Run:
        """A directory, into a tar that is durable."""
        return run(["sh", "-c", 'tar -cf "$1" -C "$2" "$3" && sync "$1"', "sh", tar, self.directory, path])

    def _mount(self, mode: str) -> None:
        subprocess.run(["mount", "-t", "ext4", "-o", f"loop,nosuid,nodev,noexec,{mode}", self._file, self.directory], check=True)
        self._mounted = True

    def _unmount(self) -> None:
        if self._mounted:
            subprocess.run(["umount", self.directory], check=True)
            self._mounted = False
