"""What vcsim lacks of an ESXi's disk manager: the disks themselves. vcsim takes the calls, and does or refuses what it does.

Its ``CreateVirtualDisk`` makes two files in place of descriptor and data: empty ones, or since 0.38 with the capacity in KiB, as
digits. Its ``CopyVirtualDisk`` copies the two files, and so fails for a disk of one file. Here an empty file ``-flat.vmdk`` lets it
pass, and then the files become what an ESXi makes: by qemu-img, and with descriptors in the words of ESXi 7.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from tests.servers.authority import Authority
from tests.servers.http_server import Answer
from tests.servers.vcsim import Vcsim
from tests.servers.vsphere_proxy import Forward, VsphereProxy
from tests.tools import need, run

_WRITING_TIME = 0.1  # seconds, for the digits

NEVER_WRITTEN = "fffffffe"
"""Content id that ESXi gives a disk when it makes it empty."""

_NAME = r"\[(?P<{0}_datastore>[^\]]+)\] (?P<{0}>[^<]+)"
_CREATE = re.compile(
    f"<CreateVirtualDisk_Task .*<name [^>]*>{_NAME.format('target')}</name>.*<diskType>(?P<type>[^<]+)</diskType>.*"
    "<capacityKb>(?P<kib>[0-9]+)</capacityKb>",
    re.DOTALL,
)
_COPY = re.compile(
    f"<CopyVirtualDisk_Task .*<sourceName [^>]*>{_NAME.format('source')}</sourceName>.*<destName [^>]*>{_NAME.format('target')}</destName>",
    re.DOTALL,
)
_DESCRIPTOR = """# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={cid}
parentCID=ffffffff
createType="vmfs"

# Extent description
RW {sectors} VMFS "{extent}"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "8"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "0f9cbe5b2d9ba5dc40b1b3c1{cid}"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 9a 3c 1f 2b 5e-11 22 33 44 55 66 77 88"
ddb.virtualHWVersion = "19"
"""


class EsxDisks(VsphereProxy):
    """See the module; between ``with`` and its end, at `login`.

    Attributes:
        calls: what was asked of the disk manager, in order: the method, and ``thin`` where the answer was to be such.
        imports: copy as an ESXi does; else as vcsim does, which fails.
        verbatim: copy a disk as it is, without making it another form.
    """

    def __init__(self, vcsim: Vcsim, authority: Authority) -> None:
        super().__init__(vcsim, authority, _Handler)
        self.directory = vcsim.directory()
        self.calls: list[str] = []
        self.imports = True
        self.verbatim = False


class _Handler(Forward):
    def serve(self, path: str, query: Mapping[str, list[str]]) -> Answer:
        body = self.seen.body.decode(errors="replace") if b"VirtualDisk_Task " in self.seen.body else ""
        esx = cast("EsxDisks", self.server.service)
        if found := _CREATE.search(body):
            esx.calls.append(f"create {found['type']}")
            answer = super().serve(path, query)
            target = esx.directory / found["target"]
            _await(target.with_name(f"{target.stem}-flat.vmdk").exists)  # the second file that it makes
            time.sleep(_WRITING_TIME)
            _make(target, int(found["kib"]) * 1024, NEVER_WRITTEN)
            return answer
        if found := _COPY.search(body):
            thin = "<diskType>thin</diskType>" in body
            esx.calls.append("copy thin" if thin else "copy")
            if not esx.imports or thin:  # vcsim is a vCenter, which does not do that
                return super().serve(path, query)
            return self._copy(esx.directory / found["source"], esx.directory / found["target"], path, query)
        return super().serve(path, query)

    def _copy(self, source: Path, target: Path, path: str, query: Mapping[str, list[str]]) -> Answer:
        esx = cast("EsxDisks", self.server.service)
        beside = source.with_name(f"{source.stem}-flat.vmdk")
        beside.touch()
        answer = super().serve(path, query)
        _await(lambda: target.exists() and target.stat().st_size == source.stat().st_size)
        beside.unlink()
        if not esx.verbatim:
            need("qemu-img")
            flat = target.with_name(f"{target.stem}-flat.vmdk")
            run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", source, flat)
            _make(target, flat.stat().st_size, "12c0ffee")
        return answer


def _make(descriptor: Path, capacity: int, cid: str) -> None:
    flat = descriptor.with_name(f"{descriptor.stem}-flat.vmdk")
    if cid == NEVER_WRITTEN:
        flat.write_bytes(b"")
        with flat.open("r+b") as file:
            file.truncate(capacity)
    descriptor.write_text(_DESCRIPTOR.format(cid=cid, sectors=capacity // 512, extent=flat.name))


def _await(is_done: Callable[[], bool]) -> None:
    """vcsim answers with a task before that is done."""
    deadline = time.monotonic() + 10
    while not is_done():
        if time.monotonic() > deadline:
            raise AssertionError("vcsim did not do it")
        time.sleep(0.01)
