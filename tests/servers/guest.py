"""A guest: QEMU without KVM, Debian's own kernel, and an initramfs of busybox and one script. It starts in two or three seconds.

The kernel is the one of /boot, or of a ``linux-image-cloud-amd64`` package unpacked in ``.tox/guest``, where CI puts it.
"""

from __future__ import annotations

import contextlib
import lzma
import re
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests import tools

PLACES = (Path(__file__).parents[2] / ".tox/guest", Path("/"))
TIME_MAX = 90.0
"""Seconds that any one thing in a guest may take; the machine may be busy with other tests."""

BUSYBOX = Path("/bin/busybox")
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod")
_DONE = "guest: done"

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /mnt
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
if sh -e /script; then echo "guest: done"; else echo "guest: failed"; fi
poweroff -f
"""

_FUNCTIONS = """
# The serial number of each disk, and its device.
disks() {
    ls /sys/block | while read -r name; do
        cd /sys/block/$name
        echo $(cat serial device/serial device/vpd_pg80 2>/dev/null | tr -dc 'a-zA-Z0-9._-') /dev/$name
    done
}
# The device that has the serial number, once it is there.
disk() {
    for try in $(seq 300); do
        if disks | grep "^$1 " >/found; then cut -d ' ' -f 2 /found; return; fi
        usleep 100000
    done
    echo "guest: there is no disk $1" >&2
    return 1
}
# Returns once no device has the serial number any more.
gone() { while disks | grep -q "^$1 "; do usleep 100000; done; }
"""


@dataclass(frozen=True)
class Kernel:
    """A kernel of Debian, and the directory of its modules."""

    image: Path
    modules: Path


@dataclass(frozen=True)
class Guest:
    """A machine that runs.

    Attributes:
        directory: where its console is kept.
    """

    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def console(self) -> str:
        """What it has printed until now."""
        return (self.directory / "console").read_text(errors="replace").replace("\r\n", "\n")

    def wait_for(self, text: str) -> None:
        """Waits until it has printed this."""
        deadline = time.monotonic() + TIME_MAX
        while text not in self.console:
            assert self.process.poll() is None, f"the guest ended before {text!r}:\n{self.console}"
            assert time.monotonic() < deadline, f"no {text!r} from the guest:\n{self.console}"
            time.sleep(0.02)

    def finish(self) -> str:
        """Waits until its script has ended well and it has switched itself off; returns what it printed."""
        try:
            self.process.wait(TIME_MAX)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guest does not end:\n{self.console}") from None
        assert self.process.returncode == 0 and _DONE in self.console, f"the guest failed:\n{self.console}"
        return self.console

    def kill(self) -> None:
        """Ends it as a power cut does."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_guest(directory: Path, script: str, arguments: Sequence[str]) -> Iterator[Guest]:
    """Boots a machine that runs a shell script as its first process, and switches itself off. It is killed at the end of the block.

    In the script ``$(disk SERIAL)`` is a device, waited for; what fails in it ends it.

    Args:
        directory: an empty one.
        arguments: more words for QEMU.
    """
    tools.need("qemu-system-x86_64")
    kernel = find_kernel()
    directory.mkdir()
    (directory / "initrd").write_bytes(_base(kernel) + _archive({"script": (_FUNCTIONS + script).encode()}))
    command = [
        "qemu-system-x86_64",
        *("-accel", "tcg", "-machine", "q35", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{directory / 'console'}"),
        *("-kernel", str(kernel.image), "-initrd", str(directory / "initrd")),
        *("-append", "console=ttyS0 panic=-1 quiet"),
        *arguments,
    ]
    (directory / "console").touch()
    with (directory / "said").open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield Guest(process, directory)
    finally:
        process.kill()
        process.wait()
        (directory / "initrd").unlink()
    assert (directory / "said").read_text() == ""


@cache
def find_kernel() -> Kernel:
    """A kernel of Debian with its modules. Skips or fails the test where there is none."""
    for place in PLACES:
        for image in sorted(place.glob("boot/vmlinuz-*-cloud-amd64"), reverse=True):
            modules = place / "lib/modules" / image.name.removeprefix("vmlinuz-")
            if (modules / "kernel").is_dir():
                return Kernel(image, modules)
    tools.missing("a kernel of Debian (linux-image-cloud-amd64) in /boot or .tox/guest")
    raise AssertionError


@cache
def _base(kernel: Kernel) -> bytes:
    """What all guests have: busybox, the drivers in the order in which they are loaded, and the first process."""
    if not BUSYBOX.exists() or b"/ld-linux" in BUSYBOX.read_bytes():
        tools.missing("busybox-static")
    drivers = _drivers(kernel)
    files = {f"modules/{name}.ko": data for name, data in drivers.items()}
    order = "".join(f"{name}.ko\n" for name in drivers)
    return _archive({"init": _INIT.encode(), "bin/busybox": BUSYBOX.read_bytes(), **files, "modules/order": order.encode()})


def _drivers(kernel: Kernel) -> dict[str, bytes]:
    """The modules for disks, each behind those that it needs; Debian's are compressed since 13."""
    paths = {path.name.partition(".ko")[0].replace("-", "_"): path for path in kernel.modules.glob("kernel/**/*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in paths:  # what is no module is built in
            return
        path = paths[name]
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for needed in re.findall(rb"\0depends=([\w,-]*)\0", data)[0].decode().split(","):
            add(needed.replace("-", "_"))
        found[name] = data

    for name in _DRIVERS:
        add(name)
    return found


def _archive(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive as the kernel unpacks it; several may follow each other.

    Source: the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst``.
    """
    entries: dict[str, bytes | None] = {path.rpartition("/")[0]: None for path in files if "/" in path}
    body = bytearray()
    for number, (name, data) in enumerate([*entries.items(), *files.items(), ("TRAILER!!!", b"")]):
        mode = stat.S_IFDIR | 0o755 if data is None else stat.S_IFREG | 0o755
        content, path = data or b"", name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        body += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        body += bytes(-len(body) % 4) + content
        body += bytes(-len(body) % 4)
    return bytes(body)
