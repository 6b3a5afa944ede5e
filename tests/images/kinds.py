"""A stack of layers with every kind of file and every kind of edit."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

from tests.images.layer import LayerTar
from tests.images.layout import Image, write_layout

INVALID_UTF8 = b"names/caf\xe9-\xff\xfe"
LONG_NAME = "l" * 255
LONG_UTF8_NAME = "ж" * 127 + "x"
DEEP = "/".join(["deep", *("d" * 200 for _ in range(17)), "file"])
"""3,400 bytes and more: near the kernel's limit, with room for the directory that umoci unpacks into."""

_CAPABILITY_V2 = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
_CAPABILITY_V3 = struct.pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, 1000)  # cap_net_raw=ep in the namespace of uid 1000
_UNDEFINED = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of ``system.posix_acl_*``: version 2, then (tag, permissions, id) each, as linux/posix_acl_xattr.h has it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_ACL = acl(
    (0x01, 6, _UNDEFINED), (0x02, 7, 1000), (0x04, 4, _UNDEFINED), (0x08, 5, 70000), (0x10, 7, _UNDEFINED), (0x20, 4, _UNDEFINED)
)


def _base(layer: LayerTar) -> None:
    layer.directory(".", 0o755)
    for name in ("bin", "etc", "usr", "var", "names", "sizes", "modes", "times", "links", "xattrs", "devices", "lost+found"):
        layer.directory(name)
    for size in (0, 1, 59, 60, 4095, 4096, 4097, 65535, 65536, 65537, 1_000_000):
        layer.file(f"sizes/{size}", _noise(size))
    layer.file("sizes/zeros", bytes(300_000))
    layer.file("sizes/holes", _noise(5000) + bytes(500_000) + _noise(9000) + bytes(70_000))
    _names(layer)
    _attributes(layer)
    _links(layer)
    _xattrs(layer)
    _victims(layer)
    _bulk(layer, 1000)
    layer.file("lost+found/found", b"a name like any other")


def _names(layer: LayerTar) -> None:
    for name in (
        "grüße",
        "日本語",
        "with space",
        " leading",
        "-dash",
        "new\nline",
        "tab\t",
        "back\\slash",
        "...",
        "quote'\"",
        ".whx",
        "*",
    ):
        layer.file(f"names/{name}", name.encode())
    layer.file(INVALID_UTF8, b"not UTF-8")
    layer.file(f"names/{LONG_NAME}", b"255 bytes")
    layer.file(f"names/{LONG_UTF8_NAME}", b"255 bytes in 128 characters")
    layer.directory(f"names/{'D' * 255}")
    layer.symlink(f"names/{'S' * 255}", LONG_NAME)
    _parents(layer, DEEP)
    layer.file(DEEP, b"deep")
    for top in ("levels", "bulk"):
        path = f"{top}/" + "x/" * 300 + "file"
        _parents(layer, path)
        layer.file(path, b"300 levels down")


def _attributes(layer: LayerTar) -> None:
    for mode in (0o4755, 0o2755, 0o6711, 0o1644, 0o000, 0o777, 0o400):
        layer.file(f"modes/{mode:04o}", b"mode", mode)
    for mode in (0o1777, 0o2775, 0o700, 0o000, 0o555):
        layer.directory(f"modes/directory-{mode:04o}", mode)
    for uid in (1, 65534, 65535, 65536, 2**31, 2**32 - 2):
        layer.file(f"modes/owner-{uid}", b"owner", uid=uid, gid=max(uid - 1, 0))
    for mtime_ns in (0, 1, 10**9, 999_999_999, -1, -(10**9), -1_500_000_000, -(2**31) * 10**9, 2**31 * 10**9):
        layer.file(f"times/{mtime_ns}", b"time", mtime_ns=mtime_ns)
        layer.symlink(f"times/link-{mtime_ns}", "0", mtime_ns=mtime_ns)
        layer.directory(f"times/directory-{mtime_ns}", mtime_ns=mtime_ns)
    for name, kind, major, minor in (
        *(("null", "c", 1, 3), ("sda", "b", 8, 0), ("zero-zero", "c", 0, 0), ("255", "b", 255, 255), ("256", "c", 256, 0)),
        *(("minor-256", "b", 1, 256), ("large", "c", 300, 70000), ("largest", "b", 4095, 1048575)),
    ):
        layer.device(f"devices/{name}", kind, major, minor, 0o660, uid=5, gid=6)
    layer.fifo("devices/fifo", 0o622, uid=7)


def _links(layer: LayerTar) -> None:
    for length in (1, 58, 59, 60, 61, 255, 1000, 4000):
        layer.symlink(f"links/symlink-{length}", "t" * length if length <= 255 else "t/" * (length // 2))
    layer.symlink("links/absolute", "/etc/passwd")
    layer.symlink("links/dangling", "../no/such/file")
    layer.symlink("links/loop", "loop")
    layer.symlink("links/not-utf8", b"\xff\xfe")
    layer.file("links/first", b"one file, three names")
    layer.hard_link("links/second", "links/first")
    layer.hard_link("etc/third", "links/first")
    layer.symlink("links/symlink-first", "first")
    layer.hard_link("links/symlink-second", "links/symlink-first")
    layer.hard_link("links/fifo", "devices/fifo")
    layer.hard_link("links/device", "devices/null")
    layer.file("links/crowd-0", b"crowd")
    for number in range(1, 300):
        layer.hard_link(f"links/crowd-{number}", "links/crowd-0")


def _xattrs(layer: LayerTar) -> None:
    layer.file("xattrs/small", b"x", xattrs={"user.small": b"value"})
    layer.file("xattrs/binary", b"x", xattrs={"user.binary": bytes(range(256))})
    layer.file("xattrs/large", b"x", xattrs={"user.large": _noise(3900)})
    layer.file(
        "xattrs/both", b"x", xattrs={"user.a": b"1", "user.block": _noise(1500), "trusted.b": b"2", "user.utf8": "ключ".encode()}
    )
    layer.file("xattrs/many", b"x", xattrs={f"user.attribute-{number:02}": b"v" * number for number in range(1, 60)})
    layer.file("xattrs/trusted", b"x", xattrs={"trusted.imgstore": b"root sees it"})
    layer.file("xattrs/security", b"x", xattrs={"security.small": b"s", "security.large": _noise(2000)})
    layer.file("xattrs/capability", b"x", 0o755, xattrs={"security.capability": _CAPABILITY_V2})
    layer.file("xattrs/capability-v3", b"x", 0o755, uid=1000, xattrs={"security.capability": _CAPABILITY_V3})
    layer.file("xattrs/capability-setuid", b"x", 0o4755, xattrs={"security.capability": _CAPABILITY_V2, "user.more": _noise(200)})
    layer.file("xattrs/acl", b"x", 0o674, xattrs={"system.posix_acl_access": _ACL})
    layer.directory("xattrs/acls", 0o775, xattrs={"system.posix_acl_access": _ACL_DIRECTORY, "system.posix_acl_default": _ACL})
    layer.file("xattrs/acls/plain", b"does not inherit")
    layer.directory("xattrs/directory", xattrs={"user.directory": b"d", "trusted.directory": _noise(900)})
    layer.symlink("xattrs/symlink", "small", xattrs={"trusted.symlink": b"on the link itself"})
    layer.symlink("xattrs/symlink-long", "t/" * 100, xattrs={"trusted.symlink": _noise(700)})
    layer.device("xattrs/device", "c", 1, 5, xattrs={"trusted.device": b"zero"})
    layer.fifo("xattrs/fifo", xattrs={"security.fifo": b"f"})


_ACL_DIRECTORY = acl((0x01, 7, _UNDEFINED), (0x02, 5, 1000), (0x04, 5, _UNDEFINED), (0x10, 7, _UNDEFINED), (0x20, 5, _UNDEFINED))

_EDITED = ("white", "opaque", "again", "replaced", "later")


def _bulk(layer: LayerTar, count: int) -> None:
    """Files, directories and xattr blocks that one layer deletes and another has anew, in what was freed."""
    layer.directory("bulk", 0o700)
    for number in range(count):
        layer.file(f"bulk/{number:05}", _noise(number * 3), xattrs={"user.block": _noise(500)} if number % 20 == 0 else {})
        if number % 100 == 0:
            layer.directory(f"bulk/directory-{number}")


def _victims(layer: LayerTar) -> None:
    """What later layers delete, empty and replace, once for each way."""
    for top in _EDITED:
        layer.directory(top)
        for name in ("tree", "tree/sub", "tree/sub/sub"):
            layer.directory(f"{top}/{name}", xattrs={"user.top": top.encode()} if name == "tree" else {})
        for name in ("file", "other", "tree/file", "tree/sub/file", "tree/sub/sub/file"):
            layer.file(f"{top}/{name}", _noise(10_000) + top.encode())
        layer.file(f"{top}/xattrs", b"x", xattrs={"user.block": _noise(1000)})
        layer.symlink(f"{top}/symlink", "file")
        layer.symlink(f"{top}/symlink-long", "l" * 200)
        layer.symlink(f"{top}/symlink-to-directory", "tree")
        layer.device(f"{top}/device", "c", 1, 3)
        layer.fifo(f"{top}/fifo")
        layer.file(f"{top}/linked-1", b"linked " * 2000)
        layer.hard_link(f"{top}/linked-2", f"{top}/linked-1")
        layer.hard_link(f"{top}/linked-3", f"{top}/linked-1")


def _whiteouts(layer: LayerTar) -> None:
    for name in ("file", "symlink", "symlink-long", "device", "fifo", "xattrs", "linked-1", "tree/sub"):
        layer.whiteout(f"white/{name}")
    layer.whiteout(f"names/{LONG_NAME[:251]}")
    layer.whiteout(INVALID_UTF8)
    layer.whiteout("sizes/1000000")


def _opaques(layer: LayerTar) -> None:
    layer.directory("opaque", 0o711, uid=3)
    layer.opaque("opaque")
    layer.directory("later/tree")
    layer.file("later/tree/new-before", b"before the mark")
    layer.opaque("later/tree")
    layer.file("later/tree/new-after", b"after the mark")
    layer.directory("later/tree/sub")
    layer.file("later/tree/sub/new", b"in a directory that was there before")


def _opaque_with_content(layer: LayerTar) -> None:
    layer.directory("opaque")
    layer.opaque("opaque")
    layer.file("opaque/file", b"the same name anew")
    layer.directory("opaque/tree")
    layer.symlink("opaque/tree/link", "../file")


def _recreations(layer: LayerTar) -> None:
    for name in ("file", "tree", "symlink", "device", "linked-2"):
        layer.whiteout(f"again/{name}")
    layer.file("again/file", b"recreated")
    layer.directory("again/tree", 0o750, gid=9)
    layer.file("again/tree/other", b"other children")
    layer.symlink("again/symlink", "elsewhere")
    layer.fifo("again/device")
    layer.file("again/linked-2", b"no longer linked")


def _replacements(layer: LayerTar) -> None:
    layer.directory("replaced/file", 0o700)
    layer.file("replaced/file/inside", b"a file became a directory")
    layer.file("replaced/tree", b"a directory became a file")
    layer.directory("replaced/symlink-to-directory")
    layer.file("replaced/symlink-to-directory/inside", b"a symlink became a directory")
    layer.file("replaced/symlink", b"a symlink became a file")
    layer.symlink("replaced/other", "file")
    layer.file("replaced/device", b"a device became a file")
    layer.device("replaced/fifo", "b", 7, 7)
    layer.file("replaced/linked-1", b"replaced under one name")
    layer.fifo("replaced/linked-2")
    layer.file("replaced/xattrs", b"without xattrs")
    layer.symlink("later/tree", "file")  # a directory that an earlier layer emptied
    layer.directory("white/tree", 0o711, uid=11, gid=12, mtime_ns=5, xattrs={"user.new": b"attributes"})
    layer.file("sizes/0", _noise(100_000))
    layer.file("sizes/65537", b"")
    layer.file("modes/4755", b"mode", 0o755)
    layer.file("modes/owner-1", b"owner", uid=2, gid=3)
    layer.directory("modes/directory-1777", 0o755)


def _links_across(layer: LayerTar) -> None:
    layer.hard_link("links/fourth", "links/first")
    layer.hard_link("white/other-2", "white/other")
    layer.hard_link("links/of-a-link", "links/fourth")
    layer.hard_link("links/symlink-third", "links/symlink-first")
    layer.whiteout("links/second")
    layer.hard_link("xattrs/small-2", "xattrs/small")
    layer.hard_link("replaced/xattrs", "links/crowd-7")


def _twice(layer: LayerTar) -> None:
    layer.file("etc/twice", b"first")
    layer.file("etc/twice", b"second, the last wins", 0o600)
    layer.directory("etc/kind")
    layer.file("etc/kind/lost", b"lost")
    layer.file("etc/kind", b"a file in the end")
    layer.file("etc/source", b"linked, then replaced")
    layer.hard_link("etc/kept", "etc/source")
    layer.file("etc/source", b"replaced")


def _nothing(layer: LayerTar) -> None:
    del layer


def _deletions(layer: LayerTar) -> None:
    layer.whiteout("bulk")
    for number in range(1, 290):
        layer.whiteout(f"links/crowd-{number}")


def _refill(layer: LayerTar) -> None:
    _bulk(layer, 1700)
    layer.file("xattrs/both", b"again", xattrs={"user.block": _noise(1400)})


KINDS: tuple[Callable[[LayerTar], None], ...] = (
    *(_base, _whiteouts, _opaques, _opaque_with_content, _recreations, _replacements),
    *(_links_across, _twice, _nothing, _deletions, _refill),
)


def build_kinds(directory: Path) -> Image:
    """The stack that umoci reads as the specification says."""
    return _build("kinds", directory, KINDS)


def _unmentioned_parents(layer: LayerTar) -> None:
    layer.file("a/b/c/file", b"no entry for the parents")
    layer.directory("usr")
    layer.symlink("bin", "usr")
    layer.file("etc", b"a file where a later layer needs a directory")
    layer.file("both/lower", b"lower")
    layer.directory("both")
    # Go's tar reader takes an empty PAX value for no record, so umoci loses an empty xattr.
    layer.file("empty-xattr", b"x", xattrs={"user.empty": b""})
    # umoci holds times in 64-bit nanoseconds, which end in 2262.
    layer.file("far-future", b"2300-01-01", mtime_ns=10_413_792_000_987_654_321)
    # umoci leaves SELinux labels to the host.
    layer.file("security", b"x", xattrs={"security.selinux": b"system_u:object_r:bin_t:s0\x00"})


def _longest_paths(layer: LayerTar) -> None:
    path = "/".join(["longest", *("p" * 255 for _ in range(15))])
    _parents(layer, path + "/x")
    layer.file(path + "/" + "f" * (4095 - len(path) - 1), b"4095 bytes, all that the kernel takes")
    layer.symlink("longest/target", "t" * 4095)


def _through_symlinks(layer: LayerTar) -> None:
    """Parents that are symlinks or files in the layer below are replaced by directories, never followed, as overlayfs does it."""
    layer.file("bin/tool", b"not in usr")
    layer.file("etc/passwd", b"root")


def _odd_whiteouts(layer: LayerTar) -> None:
    layer.whiteout("no-such-file")
    layer.whiteout("no/such/directory")
    layer.whiteout("etc/passwd/below-a-file")
    layer.file("both/upper", b"this layer's own")
    layer.whiteout("both/upper")
    layer.whiteout("both/lower")
    layer.directory("a/b")
    layer.file("a/b/new", b"new")
    layer.whiteout("a/b/c")
    layer.opaque("a/b")


BEYOND_UMOCI: tuple[Callable[[LayerTar], None], ...] = (_unmentioned_parents, _longest_paths, _through_symlinks, _odd_whiteouts)


def build_beyond_umoci(directory: Path) -> Image:
    """What the specification or the kernel allows and umoci refuses or reads in its own way."""
    return _build("beyond-umoci", directory, BEYOND_UMOCI)


def _build(name: str, directory: Path, makers: tuple[Callable[[LayerTar], None], ...]) -> Image:
    layers = []
    for number, make in enumerate(makers):
        path = directory / f"{number:02}{make.__name__}.tar"
        with LayerTar(path) as layer:
            make(layer)
        layers.append(path)
    write_layout(directory / "layout", layers)
    return Image(name, directory / "layout", tuple(layers))


def _parents(layer: LayerTar, path: str) -> None:
    steps = path.split("/")
    for depth in range(1, len(steps)):
        layer.directory("/".join(steps[:depth]))


def _noise(size: int) -> bytes:
    """Bytes that differ from size to size, the same on every run."""
    return random.Random(size).randbytes(size)
