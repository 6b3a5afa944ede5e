"""Images that are large in one way: files, layers, entries of a directory, bytes of a file."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.images.layer import LayerTar
from tests.images.layout import Image, write_layout
from tests.tools import need, run

_NOISE = random.Random(0).randbytes(1 << 20)


def build_many_files(directory: Path, count: int = 30_000) -> Image:
    """One layer of ``count`` files in directories of 100, of 9 KiB on average as in a tree of program text, and one that edits it."""
    chance = random.Random(count)
    layers = [directory / "files.tar", directory / "edits.tar"]
    with LayerTar(layers[0]) as layer:
        layer.directory("srv")
        for number in range(count):
            package, index = divmod(number, 100)
            if index == 0:
                layer.directory(f"srv/package-{package:03}")
            start = chance.randrange(len(_NOISE) // 2)
            size = min(int(chance.expovariate(1 / 9216)), 400_000)
            layer.file(f"srv/package-{package:03}/module-{index:02}.js", _NOISE[start : start + size], mtime_ns=number * 10**9)
    with LayerTar(layers[1]) as layer:
        for number in range(0, count, 300):
            package, index = divmod(number, 100)
            layer.file(f"srv/package-{package:03}/module-{index:02}.js", b"edited")
            layer.whiteout(f"srv/package-{package:03}/module-{index + 1:02}.js")
    return _image("many-files", directory, layers)


def build_many_layers(directory: Path, count: int = 127) -> Image:
    """As many layers as Docker allows; each adds a file, edits one that all edit, links to an older one and deletes one."""
    layers = []
    for number in range(count):
        layers.append(directory / f"{number:03}.tar")
        with LayerTar(layers[-1]) as layer:
            layer.directory("own", mtime_ns=number * 10**9)
            layer.file(f"own/{number:03}", _NOISE[number : 2 * number + 5000])
            layer.file("counter", b"%d\n" % number)
            if number == 0:
                layer.file("victim-0", b"deleted by layer 1")
            else:
                layer.hard_link(f"linked-{number:03}", f"own/{number - 1:03}")
                layer.whiteout(f"victim-{number - 1}")
                layer.file(f"victim-{number}", b"deleted by the next layer")
            if number % 10 == 9:
                layer.whiteout(f"own/{number - 5:03}")
    return _image("many-layers", directory, layers)


def build_wide(directory: Path, count: int = 20_000) -> Image:
    """Directories of ``count`` entries with short and with long names; a layer that deletes a third, one that empties and refills."""
    makers: tuple[tuple[str, Callable[[LayerTar, int], None]], ...] = (
        ("wide", _wide),
        ("thinned", _thinned),
        ("refilled", _refilled),
    )
    layers = []
    for name, make in makers:
        layers.append(directory / f"{name}.tar")
        with LayerTar(layers[-1]) as layer:
            make(layer, count)
    return _image("wide", directory, layers)


def _long(number: int) -> str:
    return f"long/{number:06}-{'n' * 200}"


def _wide(layer: LayerTar, count: int) -> None:
    for name in ("short", "long", "directories"):
        layer.directory(name)
    for number in range(count):
        layer.file(f"short/{number}", b"s" if number % 100 == 0 else b"")
        layer.symlink(_long(number), "nowhere")
    for number in range(2000):
        layer.directory(f"directories/{number}")


def _thinned(layer: LayerTar, count: int) -> None:
    for number in range(0, count, 3):
        layer.whiteout(f"short/{number}")
        layer.whiteout(_long(number))
    layer.whiteout("directories")
    for number in range(count, count + 500):
        layer.file(f"short/{number}", b"added")
        layer.file(_long(number), b"added")


def _refilled(layer: LayerTar, count: int) -> None:
    layer.directory("short")
    layer.opaque("short")
    for number in range(0, count, 7):
        layer.file(f"short/{number}", b"again")


def build_sparse(directory: Path) -> Image:
    """Sparse files in PAX form 1.0, as GNU tar writes them, one of more than 4 GiB, and an edit of one."""
    tree = directory / "tree" / "sparse"
    tree.mkdir(parents=True)
    _sparse_file(tree / "four-gib", (4 << 30) + 12_345, [0, 1 << 20, (2 << 30) - 4096, (4 << 30) - 2048, (4 << 30) + 8192])
    _sparse_file(tree / "all-hole", 1 << 30, [])
    _sparse_file(tree / "many-runs", 64 << 20, [step * 131_072 for step in range(400)])
    _sparse_file(tree / "ends-in-data", 10_000_000, [0, 9_995_904])
    layers = [directory / "posix.tar", directory / "edit.tar"]
    _sparse_tar(layers[0], tree, "posix", "--sparse-version=1.0", "--pax-option=delete=atime,delete=ctime")
    with LayerTar(layers[1]) as layer:
        layer.hard_link("sparse/linked", "sparse/four-gib")
        layer.file("sparse/all-hole", b"no longer")
    return _image("sparse", directory, layers)


def build_gnu_sparse(directory: Path) -> Image:
    """Sparse files as GNU tar wrote them before PAX (type ``S``), which umoci refuses, and in the PAX forms 0.0 and 0.1."""
    tree = directory / "tree" / "sparse"
    tree.mkdir(parents=True)
    _sparse_file(tree / "six-gib", (6 << 30) + 1, [4096, 6 << 30])
    _sparse_file(tree / "all-hole", 3 << 30, [])
    _sparse_file(tree / "many-runs", 64 << 20, [step * 131_072 + 65_536 for step in range(300)])
    layers = [directory / "gnu.tar", directory / "pax-0.0.tar", directory / "pax-0.1.tar"]
    _sparse_tar(layers[0], tree, "gnu")
    for layer, version in zip(layers[1:], ("0.0", "0.1"), strict=True):
        _sparse_file(tree / f"pax-{version}", (5 << 30) + 77, [8192, 5 << 30])
        _sparse_tar(layer, tree, "posix", f"--sparse-version={version}")
    return _image("gnu-sparse", directory, layers)


def _sparse_tar(layer: Path, tree: Path, form: str, *options: str) -> None:
    need("tar")
    command: list[str | Path] = [
        *("tar", "--create", "--sparse", f"--format={form}", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"),
        *("--mtime=@1700000000", *options, "--file", layer, "--directory", tree.parent, tree.name),
    ]
    run(*command)


def _sparse_file(path: Path, size: int, data: list[int]) -> None:
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
        for offset in data:
            os.pwrite(file.fileno(), _NOISE[offset % 1000 : offset % 1000 + min(4096, size - offset)], offset)


def _image(name: str, directory: Path, layers: list[Path]) -> Image:
    write_layout(directory / "layout", layers)
    return Image(name, directory / "layout", tuple(layers))
