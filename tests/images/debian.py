"""A Debian root file system by mmdebstrap, and a layer of edits as umoci repacks it."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

from tests.images.layout import Image, write_layout
from tests.tools import need, need_root, run

_EPOCH = "1700000000"


def build_debian(directory: Path, suite: str = "bookworm") -> Image:
    """More than 8,000 files from Debian's mirror, and what ``rm``, ``mv``, ``ln`` and an editor did to them afterwards."""
    need_root()
    need("mmdebstrap", "umoci")
    base = directory / "base.tar"
    run("env", f"SOURCE_DATE_EPOCH={_EPOCH}", f"TMPDIR={directory}", "mmdebstrap", "--quiet", "--variant=minbase", suite, base)
    layout = directory / "layout"
    write_layout(layout, [base])
    bundle = directory / "bundle"
    run("umoci", "unpack", "--image", f"{layout}:latest", bundle)
    _edit(bundle / "rootfs")
    run("umoci", "repack", "--image", f"{layout}:latest", bundle)
    shutil.rmtree(bundle)
    edits = directory / "edits.tar"
    _inflate_last_layer(layout, edits)
    return Image("debian", layout, (base, edits))


def _edit(root: Path) -> None:
    shutil.rmtree(root / "usr/share/doc")
    shutil.rmtree(root / "usr/share/zoneinfo/Europe", ignore_errors=True)
    (root / "etc/hostname").write_text("imgstore\n")
    (root / "etc/debian_version").unlink()
    (root / "usr/share/misc").rename(root / "usr/share/moved")
    (root / "usr/bin/perl").chmod(0o750)
    os.link(root / "usr/bin/perl", root / "usr/bin/perl-again")
    os.chown(root / "var/mail", 8, 8)
    (root / "opt/new").mkdir()
    (root / "opt/new/data").write_bytes(bytes(range(256)) * 4096)


def _inflate_last_layer(layout: Path, tar: Path) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_bytes())
    compressed = _blob(layout, manifest["layers"][-1]["digest"]).read_bytes()
    tar.write_bytes(zlib.decompress(compressed, wbits=31))


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
