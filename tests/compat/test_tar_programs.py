"""GNU tar, libarchive's bsdtar and busybox write what we read, and read what we write; the kernel says what is right."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from imgstore.changes import Change, Entry, FileType, HardLink, Opaque, Whiteout
from imgstore.layers.compression import LayerStream
from imgstore.layers.tar_reader import read_changes
from imgstore.layers.tar_writer import write_tar
from tests.ext4_layers import formatted
from tests.recipes import record
from tests.tools import missing, need, need_root, run

CAPACITY = 1 << 40


class Node(NamedTuple):
    """A file as a tree has it; ``links`` are all its names."""

    type: FileType
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: str
    rdev: tuple[int, int]
    xattrs: dict[str, bytes]
    links: tuple[bytes, ...]


def tree_of_directory(root: Path) -> dict[bytes, Node]:
    """What the kernel says of everything below, root included."""
    top = os.fsencode(root)
    paths = [top]
    for parent, directories, files in os.walk(top):
        paths += [parent + b"/" + name for name in [*directories, *files]]
    names: dict[int, list[bytes]] = {}
    for path in paths:
        names.setdefault(os.lstat(path).st_ino, []).append(path[len(top) + 1 :])
    tree = {}
    for path in paths:
        found = os.lstat(path)
        content = ""
        if stat.S_ISREG(found.st_mode):
            with Path(os.fsdecode(path)).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISLNK(found.st_mode):
            content = repr(os.fsencode(Path(os.fsdecode(path)).readlink()))
        device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        tree[path[len(top) + 1 :]] = Node(
            FileType(found.st_mode >> 12),
            stat.S_IMODE(found.st_mode),
            (found.st_uid, found.st_gid),
            found.st_mtime_ns,
            content,
            (os.major(found.st_rdev), os.minor(found.st_rdev)) if device else (0, 0),
            {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)},
            tuple(sorted(names[found.st_ino])),
        )
    return tree


def digest(pieces: Iterable[bytes | memoryview]) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def content_of(entry: Entry) -> Iterator[bytes | memoryview]:
    """A regular file's bytes, holes too."""
    zeros = bytes(1 << 20)
    data = b"".join(entry.data)
    position = taken = 0
    for offset, length in [*([(0, entry.size)] if entry.segments is None else entry.segments), (entry.size, 0)]:
        while position < offset:
            yield zeros[: offset - position]
            position += min(len(zeros), offset - position)
        yield data[taken : taken + length]
        taken += length
        position += length


def tree_of_changes(changes: Iterable[Change]) -> dict[bytes, Node]:
    """The tree that Entries and HardLinks make on nothing."""
    tree: dict[bytes, Node] = {}
    for change in changes:
        if isinstance(change, Entry):
            content = ""
            if change.type is FileType.REGULAR:
                content = digest(content_of(change))
            elif change.type is FileType.SYMLINK:
                content = repr(change.target)
            xattrs = {name.decode(): value for name, value in change.xattrs.items()}
            owner = (change.uid, change.gid)
            node = Node(change.type, change.mode, owner, change.mtime_ns, content, change.rdev, xattrs, (change.path,))
            tree[change.path] = node
        else:
            assert isinstance(change, HardLink)
            links = tuple(sorted((*tree[change.target].links, change.path)))
            for path in links:
                tree[path] = tree[change.target]._replace(links=links)
    return tree


def read_file(path: Path) -> dict[bytes, Node]:
    """The tree that the archive makes; which is made again to the byte out of the disk that it becomes."""
    device = formatted(1 << 30)
    with path.open("rb") as archive, path.open("rb") as expected:
        for piece in record(iter(lambda: archive.read(1 << 20), b""), device).rebuild(device):
            assert piece == expected.read(len(piece))
        assert expected.read(1) == b""
    with path.open("rb") as archive:
        return tree_of_changes(read_changes(iter(lambda: archive.read(1 << 20), b""), capacity=CAPACITY))


def whole_seconds(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    return {path: node._replace(mtime_ns=node.mtime_ns // 10**9 * 10**9) for path, node in tree.items()}


def without_xattrs(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    return {path: node._replace(xattrs={}) for path, node in tree.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that tars and Linux have in common."""
    need_root()
    need("setfacl", "setcap")
    root = tmp_path_factory.mktemp("source") / "tree"
    root.mkdir()
    (root / "empty").touch()
    (root / "file").write_bytes(b"content\n" * 1000)
    (root / "setuid").write_bytes(b"x")
    (root / "big").write_bytes(os.urandom(3_000_001))
    deep = root / "/".join(["d" * 80] * 4)
    deep.mkdir(parents=True)
    (deep / ("n" * 255)).write_bytes(b"long name")
    (deep / "hard link").hardlink_to(root / "file")
    (root / "zz hard link").hardlink_to(root / "file")
    (root / "link").symlink_to("file")
    (root / "long link").symlink_to("../" * 100 + "t" * 200)
    (root / "ü 中").write_bytes(b"UTF-8")
    Path(os.fsdecode(os.fsencode(root) + b"/raw \xff\xfe")).write_bytes(b"no UTF-8")
    (root / "new\nline = 7").write_bytes(b"odd")
    os.mkfifo(root / "fifo", 0o622)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 300))
    with (root / "sparse").open("wb") as sparse:
        for number in range(1, 60):
            sparse.seek(number << 20)
            sparse.write(b"data %d" % number)
        sparse.truncate(64 << 20)
    with (root / "all hole").open("wb") as sparse:
        sparse.truncate(100 << 20)
    (root / "sticky").mkdir()
    for path in root.rglob("*"):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789), follow_symlinks=False)
    os.chown(root / "file", 1000, 2000)
    os.chown(root / "link", 3_000_000, 4_000_000_000, follow_symlinks=False)
    (root / "setuid").chmod(0o6755)
    (root / "sticky").chmod(0o1777)
    os.utime(root / "empty", ns=(0, -1_000_000_000))
    os.utime(root, ns=(0, 1_000_000_000))
    return root


@pytest.fixture(scope="module")
def source_with_xattrs(source: Path) -> Path:
    """The same with capabilities, ACLs and user attributes, where the file system has them."""
    try:
        os.setxattr(source / "big", "user.comment", b"\0binary=\n\xff")
    except OSError:
        missing("a temporary directory with extended attributes")
    os.setxattr(source / "big", "user.empty", b"")
    os.setxattr(source / "sticky", "trusted.overlay.opaque", b"y")
    run("setcap", "cap_net_bind_service+ep", source / "setuid")
    run("setfacl", "-m", "u:61234:rw,g:61077:r", source / "file")
    run("setfacl", "-m", "u:61005:rwx", "-m", "d:u:61006:rx", source / "sticky")
    for name in ("big", "sticky", "setuid", "file"):
        os.utime(source / name, ns=(0, 1_600_000_000_123_456_789))
    return source


def gnu_tar(source: Path, archive: Path, *options: str) -> dict[bytes, Node]:
    need("tar")
    run("tar", "-C", source, "-cf", archive, "--numeric-owner", *options, ".")
    return read_file(archive)


@pytest.mark.parametrize("sparse", [(), ("--sparse",)], ids=["plain", "sparse"])
@pytest.mark.parametrize("form", ["gnu", "oldgnu"])
def test_reads_gnu_formats(source: Path, tmp_path: Path, form: str, sparse: tuple[str, ...]) -> None:
    found = gnu_tar(source, tmp_path / "a.tar", f"--format={form}", *sparse)
    assert without_xattrs(found) == without_xattrs(whole_seconds(tree_of_directory(source)))
    if sparse:
        assert (tmp_path / "a.tar").stat().st_size < 16 << 20


@pytest.mark.parametrize("sparse", [(), *(("--sparse", f"--sparse-version={version}") for version in ("0.0", "0.1", "1.0"))])
def test_reads_gnu_posix_with_everything(source_with_xattrs: Path, tmp_path: Path, sparse: tuple[str, ...]) -> None:
    options = ("--format=posix", "--xattrs", "--xattrs-include=*", "--acls", *sparse)
    found = gnu_tar(source_with_xattrs, tmp_path / "a.tar", *options)
    assert found == tree_of_directory(source_with_xattrs)


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_reads_gnu_old_formats(tmp_path: Path, form: str) -> None:
    source = tmp_path / "tree"
    (source / "directory").mkdir(parents=True)
    (source / "directory/file").write_bytes(b"x" * 70_000)
    (source / "link").symlink_to("file")
    (source / "hard link").hardlink_to(source / "directory/file")
    found = gnu_tar(source, tmp_path / "a.tar", f"--format={form}")
    assert without_xattrs(found) == without_xattrs(whole_seconds(tree_of_directory(source)))


def test_reads_gnu_global_comments(source: Path, tmp_path: Path) -> None:
    found = gnu_tar(source, tmp_path / "a.tar", "--format=posix", "--pax-option=comment=hello")
    assert without_xattrs(found) == without_xattrs(tree_of_directory(source))


@pytest.mark.parametrize("form", ["pax", "gnutar"])
def test_reads_bsdtar(source_with_xattrs: Path, tmp_path: Path, form: str) -> None:
    need("bsdtar")
    command = (
        "bsdtar",
        "-C",
        source_with_xattrs,
        "-cf",
        tmp_path / "a.tar",
        f"--format={form}",
        "--xattrs",
        "--acls",
        "--no-fflags",
    )
    run(*command, "--numeric-owner", ".")
    found, expected = read_file(tmp_path / "a.tar"), tree_of_directory(source_with_xattrs)
    if form == "gnutar":
        # Neither ACLs, nor fractions, nor times before 1970; and of a file with an ACL it writes the group's permissions for the mask's.
        found, expected = without_xattrs(found), without_xattrs(whole_seconds(expected))
        for name in (b"empty", *expected[b"file"].links):
            found[name] = found[name]._replace(mtime_ns=expected[name].mtime_ns, mode=expected[name].mode)
    assert found == expected


def test_reads_busybox(tmp_path: Path) -> None:
    need("busybox")
    source = tmp_path / "tree"
    (source / ("d" * 90) / ("e" * 90)).mkdir(parents=True)
    (source / ("d" * 90) / ("e" * 90) / "file").write_bytes(b"x" * 70_000)
    (source / "link").symlink_to("t" * 150)
    run("busybox", "tar", "-C", source, "-cf", tmp_path / "a.tar", ".")
    assert without_xattrs(read_file(tmp_path / "a.tar")) == without_xattrs(whole_seconds(tree_of_directory(source)))


@pytest.fixture(scope="module")
def written(source_with_xattrs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source as we write it."""
    need("tar")
    archives = tmp_path_factory.mktemp("written")
    gnu_tar(source_with_xattrs, archives / "gnu.tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--sparse")
    with (archives / "gnu.tar").open("rb") as archive, (archives / "ours.tar").open("wb") as out:
        write_tar(read_changes(iter(lambda: archive.read(1 << 20), b""), capacity=CAPACITY), out.write)
    return archives / "ours.tar"


def test_gnu_tar_reads_ours(source_with_xattrs: Path, written: Path, tmp_path: Path) -> None:
    assert written.stat().st_size < 16 << 20
    done = run("tar", "-C", tmp_path, "-xpf", written, "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*")
    complaints = [line for line in done.stderr.splitlines() if b"'hdrcharset'" not in line and b"implausibly old" not in line]
    assert complaints == []
    assert tree_of_directory(tmp_path) == tree_of_directory(source_with_xattrs)


def test_bsdtar_reads_ours(source_with_xattrs: Path, written: Path, tmp_path: Path) -> None:
    need("bsdtar")
    done = run("bsdtar", "-C", tmp_path, "-xpf", written, "--numeric-owner", "--same-owner", "--xattrs", "--acls")
    assert done.stderr == b""
    found, expected = tree_of_directory(tmp_path), tree_of_directory(source_with_xattrs)
    for tree in (found, expected):
        del tree[b""]  # bsdtar leaves the time of the directory that it unpacks into
        for node in tree.values():  # and takes ACLs as text only, which docker does not
            node.xattrs.pop("system.posix_acl_access", None)
            node.xattrs.pop("system.posix_acl_default", None)
    assert found == expected


@pytest.mark.parametrize("program", ["tar", "bsdtar", "busybox"])
def test_programs_list_our_whiteouts(tmp_path: Path, program: str) -> None:
    need(program)
    with (tmp_path / "a.tar").open("wb") as out:
        write_tar([Whiteout(b"a/b"), Opaque(b"c"), Opaque(b""), Entry(b"d", FileType.DIRECTORY, 0o755)], out.write)
    command = ("busybox", "tar") if program == "busybox" else (program,)
    assert run(*command, "-tf", tmp_path / "a.tar").stdout == b"a/.wh.b\nc/.wh..wh..opq\n.wh..wh..opq\nd/\n"


def test_gnu_tar_finds_no_fault_with_a_file_over_8_gib(tmp_path: Path) -> None:
    need("tar")
    size = 9 << 30
    entry = Entry(b"huge", FileType.REGULAR, 0o600, size=size, segments=[(size - 5, 5)], data=[memoryview(b"bytes")])
    with (tmp_path / "a.tar").open("wb") as out:
        write_tar([entry], out.write)
    assert b" 9663676416 1970-01-01 " in run("tar", "--utc", "-tvf", tmp_path / "a.tar").stdout
    run("tar", "-C", tmp_path, "-xf", tmp_path / "a.tar")
    with (tmp_path / "huge").open("rb") as huge:
        assert huge.seek(0, os.SEEK_DATA) > 8 << 30
        huge.seek(-6, os.SEEK_END)
        assert huge.read() == b"\0bytes"
    assert (tmp_path / "huge").stat().st_size == size


def test_reads_what_umoci_writes(source_with_xattrs: Path, tmp_path: Path) -> None:
    """umoci writes with Go's ``archive/tar``, as docker and containerd do."""
    need("umoci", "cp")
    layout, bundle = tmp_path / "layout", tmp_path / "bundle"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:empty")
    run("umoci", "unpack", "--image", f"{layout}:empty", bundle)
    run("cp", "-a", f"{source_with_xattrs}/.", bundle / "rootfs")
    expected = tree_of_directory(bundle / "rootfs")
    run("umoci", "repack", "--image", f"{layout}:full", bundle)
    found = tree_of_changes(layer_of(layout, "full"))
    for tree in (expected, found):
        tree.pop(b"", None)  # umoci has no entry for the root
        for node in tree.values():
            node.xattrs.pop("trusted.overlay.opaque", None)  # nor this attribute, nor one without a value
            node.xattrs.pop("user.empty", None)
    assert {path: node._replace(mtime_ns=0) for path, node in found.items()} == {
        path: node._replace(mtime_ns=0) for path, node in expected.items()
    }

    run("umoci", "unpack", "--image", f"{layout}:full", tmp_path / "second")
    rootfs = tmp_path / "second" / "rootfs"
    (rootfs / "file").unlink()
    (rootfs / "fifo").unlink()
    (rootfs / "fifo").mkdir()
    (rootfs / "sticky").rmdir()
    run("umoci", "repack", "--image", f"{layout}:less", tmp_path / "second")
    changes = list(layer_of(layout, "less"))
    assert Whiteout(b"file") in changes
    assert Whiteout(b"sticky") in changes
    assert [change.type for change in changes if isinstance(change, Entry) and change.path == b"fifo"] == [FileType.DIRECTORY]


def layer_of(layout: Path, tag: str) -> Iterator[Change]:
    """The Changes of an image's last layer; its diff id is checked."""
    blobs = layout / "blobs" / "sha256"

    def blob(descriptor: dict[str, str]) -> Path:
        return blobs / descriptor["digest"].removeprefix("sha256:")

    index = json.loads((layout / "index.json").read_text())
    (image,) = (one for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == tag)
    manifest = json.loads(blob(image).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    stream = LayerStream([blob(manifest["layers"][-1]).read_bytes()], max_size=CAPACITY)
    yield from read_changes(stream, capacity=CAPACITY)
    assert stream.diff_id == config["rootfs"]["diff_ids"][-1]
