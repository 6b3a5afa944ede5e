"""An image whose command runs, with nothing of its machine but a kernel, and one that is only data."""

from __future__ import annotations

from pathlib import Path

from tests.images.layer import LayerTar
from tests.images.layout import Image, write_layout

_GREET = b"""#!/bin/sh
set -e
echo "greet: $GREETING, $1 and $2, from $PWD"
echo "$GREETING, $1" > /etc/greeting
rm /etc/obsolete
mkdir -p made/here
cat /opt/tools/version > made/here/version
grep -v two words > fewer
sleep 0
echo "kept for $2" > /srv/data/kept
"""
_APPLETS = ("sh", "cat", "echo", "grep", "mkdir", "rm", "sleep")


def build_runnable(directory: Path, busybox: Path) -> Image:
    """Two layers: a static busybox; a script for it that reads and writes its own files, ``/srv/data`` and ``/opt/tools``."""
    base, script = directory / "base.tar", directory / "script.tar"
    with LayerTar(base) as layer:
        for name in ("bin", "etc", "opt", "opt/tools", "srv", "srv/data", "usr", "usr/bin"):
            layer.directory(name)
        layer.file("bin/busybox", busybox.read_bytes(), 0o755)
        for name in _APPLETS:
            layer.symlink(f"bin/{name}", "busybox")
        layer.file("etc/obsolete", b"removed by the command\n")
        layer.file("srv/data/from-the-image", b"copied into the volume\n")
    with LayerTar(script) as layer:
        layer.directory("job")
        layer.file("job/words", b"one\ntwo\nthree\n")
        layer.file("usr/bin/greet", _GREET, 0o755)
    config = {
        "Entrypoint": ["/usr/bin/greet"],
        "Cmd": ["world", "two words"],
        "Env": ["PATH=/usr/bin:/bin", "GREETING=it's $5"],
        "WorkingDir": "/job",
    }
    write_layout(directory / "layout", [base, script], config=config)
    return Image("runnable", directory / "layout", (base, script))


def build_tools(directory: Path) -> Image:
    """One layer with the file ``version``."""
    tar = directory / "tools.tar"
    with LayerTar(tar) as layer:
        layer.file("version", b"tools 1.0\n")
    write_layout(directory / "layout", [tar])
    return Image("tools", directory / "layout", (tar,))
