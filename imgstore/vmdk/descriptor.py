"""The text descriptor of a VMDK: who the disk is, who its parent is, which file holds its data.

Written so that QEMU, libvmdk, dissect.hypervisor and VMware's tools read the same out of it: the order of the keys, no blanks round
``=``, ``RW`` for sealed disks too, section lines, and the extent line inside the first 512 bytes, which is all that some readers look
at. Read with suspicion: one extent, a plain base name, bounded numbers.

Source: VMware "Virtual Disk Format 5.0" section 1.2; open-vmdk ``vmware_vmdk.c``; QEMU ``block/vmdk.c``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from imgstore.blocks import SECTOR, Bytes
from imgstore.errors import CorruptError, InvalidError, UnsupportedError

NO_PARENT = 0xFFFFFFFF
"""What the field ``parentCID`` of a disk without parent says."""

_RESERVED_CIDS = frozenset({0, 0xFFFFFFFE, NO_PARENT})
"""VMware's writer rolls again when it gets one of the last two; 0 looks like a field that was never set."""

MAX_DESCRIPTOR = 20 * SECTOR
"""Bytes kept for an embedded descriptor; QEMU reads the content ids from no more."""

SIGNATURE = b"# Disk DescriptorFile"
"""First bytes of a descriptor that is a file of its own."""

EMBEDDED = ("monolithicSparse", "streamOptimized")
"""Values of ``createType`` of disks that have their descriptor inside."""

EXTENT_KINDS = {
    "monolithicSparse": "SPARSE",
    "streamOptimized": "SPARSE",
    "monolithicFlat": "FLAT",
    "vmfs": "VMFS",
    "vmfsSparse": "VMFSSPARSE",
    "seSparse": "SESPARSE",
}
"""What ``createType`` asks the extent to be; other types than these are not read."""

_KEY = re.compile(r'([A-Za-z][A-Za-z0-9_.]*)\s*=\s*"?([^"]*)"?')
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+([0-9]{1,19})\s+([A-Za-z0-9]+)(?:\s+"([^"]*)"(?:\s+([0-9]{1,19}))?)?')
_CID = re.compile(r"[0-9a-fA-F]{1,8}")
_CID_LINE = re.compile(rb"(?m)^([ \t]*CID[ \t]*=[ \t]*\"?)[0-9a-fA-F]{1,8}(\"?[ \t]*\r?)$")
_LONG_CONTENT_ID = re.compile(rb"(?m)^(ddb\.longContentID = \"[0-9a-f]{24})[0-9a-f]{8}(?=\"\r?$)")
_DELETABLE_LINE = re.compile(rb"(?m)^[ \t]*ddb\.deletable[ \t]*=.*\n?")
_OBJECT = re.compile(r"(?:vsan|vvol)://[0-9A-Za-z./:_-]{1,256}")
_NAME = r"[A-Za-z0-9_-](?:[A-Za-z0-9 ._-]*[A-Za-z0-9._-])?"
_WRITABLE_NAME = re.compile(_NAME)
_WRITABLE_HINT = re.compile(rf"(?:\.\./)*(?:{_NAME}/)*{_NAME}")


def derive_cid(identity: str) -> int:
    """The content id that a disk of this identity (its chain id) always gets: 32 bits, none of the values that mean something else."""
    digest = hashlib.sha256(f"content id of {identity}".encode()).digest()
    for position in range(0, len(digest), 4):
        cid = int.from_bytes(digest[position : position + 4])
        if cid not in _RESERVED_CIDS:
            return cid
    return derive_cid(digest.hex())


def is_reserved(cid: int) -> bool:
    """Whether a content id means something else: no parent, or not set."""
    return cid in _RESERVED_CIDS


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a descriptor says.

    Attributes:
        cid: content id.
        parent_cid: content id of the parent, or None.
        parent_hint: path of the parent relative to the directory of this disk, or None.
        capacity: sectors of 512 bytes, by the extent line.
        extent_name: base name of the file that holds the data; or of an object of vSAN or a vVol, with ``://`` in it.
        ddb: disk data base: geometry, adapter and the like; keys without ``ddb.``.
        create_type: form of the disk, a key of ``EXTENT_KINDS``.
    """

    cid: int
    parent_cid: int | None
    parent_hint: str | None
    capacity: int
    extent_name: str
    ddb: Mapping[str, str] = field(default_factory=dict)
    create_type: str = "monolithicSparse"

    @classmethod
    def from_bytes(
        cls, data: Bytes, path: str, create_types: Collection[str] = ("monolithicSparse",), *, offset: int = SECTOR
    ) -> Descriptor:
        """Reads a descriptor.

        Args:
            data: the descriptor; what follows a NUL is ignored.
            path: names the file in errors.
            create_types: the forms of disks that the caller can read.
            offset: where the descriptor begins in the file, for errors.

        Raises:
            CorruptError: a line or value makes no sense, or is missing.
            UnsupportedError: a disk of another form, or of several extents.
        """
        where = f"descriptor of {path} at byte {offset}"
        try:
            text = bytes(data).partition(b"\0")[0].decode()
        except UnicodeDecodeError as error:
            raise CorruptError(f"{where}: byte {error.start} is not UTF-8") from None
        signature = SIGNATURE.decode()
        if not text.startswith(signature):
            raise CorruptError(f"{where}: starts with {text[: len(signature)]!r}, not {signature!r}")
        keys: dict[str, str] = {}
        extents: list[re.Match[str]] = []
        for line in (line.strip(" \t\r") for line in text.split("\n")):
            if not line or line.startswith("#"):
                continue
            if extent := _EXTENT.fullmatch(line):
                extents.append(extent)
            elif key := _KEY.fullmatch(line):
                if key[1] in keys:
                    raise CorruptError(f"{where}: {key[1]} is there twice")
                keys[key[1]] = key[2]
            else:
                raise CorruptError(f"{where}: line {line[:80]!r} is neither a key nor an extent")
        create_type = keys.get("createType", "")
        if create_type not in create_types:
            readable = ", ".join(map(repr, create_types))
            raise UnsupportedError(f"{where}: createType is {create_type!r}, only {readable} is read")
        if len(extents) != 1:
            raise UnsupportedError(f"{where}: has {len(extents)} extents, only disks with one are read")
        access, capacity, kind, name, start = extents[0].groups()
        if (access, kind) != ("RW", EXTENT_KINDS[create_type]):
            raise UnsupportedError(f"{where}: the extent is {access} {kind}, only RW {EXTENT_KINDS[create_type]} is read")
        if int(start or 0):
            raise UnsupportedError(f"{where}: the extent begins at sector {start} of {name!r}, only 0 is read")
        is_plain = name and name not in (".", "..") and name.isprintable() and not re.search(r"[/\\:]", name)
        if not is_plain and not (create_type == "vmfs" and _OBJECT.fullmatch(name or "")):
            raise CorruptError(f"{where}: extent name {name!r} is not a plain base name")
        parent_cid: int | None = _read_cid(keys, "parentCID", where)
        if parent_cid == NO_PARENT:
            parent_cid = None
        hint = keys.get("parentFileNameHint")
        if (parent_cid is None) != (hint is None):
            raise CorruptError(
                f"{where}: parentCID is {keys['parentCID']!r} and parentFileNameHint {hint!r}: one of them is missing"
            )
        return cls(
            cid=_read_cid(keys, "CID", where),
            parent_cid=parent_cid,
            parent_hint=hint,
            capacity=int(capacity),
            extent_name=name,
            ddb={key[4:]: value for key, value in keys.items() if key.startswith("ddb.")},
            create_type=create_type,
        )

    def to_bytes(self) -> bytes:
        """The descriptor padded with NUL to its place of ``MAX_DESCRIPTOR`` bytes.

        Raises:
            InvalidError: a name has characters other than letters, digits, blanks, ``.``, ``_`` and ``-``, the hint is not relative, a
                content id is reserved, or names are so long that the extent line does not fit in the first 512 bytes.
        """
        return self.to_text().ljust(MAX_DESCRIPTOR, b"\0")

    def to_text(self) -> bytes:
        """The descriptor as a file of its own. Raises what `to_bytes` raises."""
        self._check()
        lines = [SIGNATURE.decode(), "version=1", 'encoding="UTF-8"', f"CID={self.cid:08x}"]
        lines.append(f"parentCID={NO_PARENT if self.parent_cid is None else self.parent_cid:08x}")
        lines.append(f'createType="{self.create_type}"')
        if self.parent_hint is not None:
            lines.append(f'parentFileNameHint="{self.parent_hint}"')
        kind = EXTENT_KINDS[self.create_type]
        # QEMU wants the offset of a FLAT extent said, and none of the others.
        start = " 0" if kind == "FLAT" else ""
        lines += ["# Extent description", f'RW {self.capacity} {kind} "{self.extent_name}"{start}']
        head = "\n".join(lines) + "\n"
        if len(head) > SECTOR:
            raise InvalidError(
                f"descriptor of {self.extent_name}: the extent line ends at byte {len(head)}, after {SECTOR}: "
                f"{len(self.extent_name)} characters of name and {len(self.parent_hint or '')} of parent hint are too many"
            )
        ddb = "".join(f'ddb.{key} = "{value}"\n' for key, value in self.ddb.items())
        text = f"{head}\n# The Disk Data Base\n#DDB\n\n{ddb}".encode()
        if len(text) > MAX_DESCRIPTOR:
            raise InvalidError(f"descriptor of {self.extent_name}: takes {len(text)} bytes of {MAX_DESCRIPTOR}")
        return text

    def _check(self) -> None:
        if not _WRITABLE_NAME.fullmatch(self.extent_name):
            raise InvalidError(
                f"extent name {self.extent_name!r}: may only have A-Z, a-z, 0-9, blanks, '.', '_' and '-', and not start with '.'"
            )
        for cid in (self.cid, self.parent_cid):
            if cid is not None and (cid in _RESERVED_CIDS or not 0 < cid < 1 << 32):
                raise InvalidError(f"content id {cid:08x} of {self.extent_name}: is a reserved value")
        if (self.parent_cid is None) != (self.parent_hint is None):
            raise InvalidError(f"descriptor of {self.extent_name}: a parent needs both a content id and a hint")
        if self.parent_hint is not None and not _WRITABLE_HINT.fullmatch(self.parent_hint):
            raise InvalidError(
                f"parent hint {self.parent_hint!r} of {self.extent_name}: is not a relative path of A-Z, a-z, 0-9, blanks, '.', '_', '-'"
            )


def describe_disk(
    capacity: int,
    cid: int,
    parent_cid: int | None,
    parent_hint: str | None,
    extent_name: str,
    *,
    create_type: str = "monolithicSparse",
    deletable: bool = True,
) -> Descriptor:
    """The descriptor of a disk of ``capacity`` sectors as imgstore writes it: the same arguments always give the same bytes.

    Args:
        deletable: False makes vSphere refuse to delete the disk: for one that others stand on.
    """
    content = hashlib.sha256(f"long content id of {extent_name} {cid:08x}".encode(errors="surrogateescape")).hexdigest()[:24]
    ddb = {
        "adapterType": "lsilogic",
        **({} if deletable else {"deletable": "false"}),
        "geometry.cylinders": str(-(-capacity // (255 * 63))),
        "geometry.heads": "255",
        "geometry.sectors": "63",
        "longContentID": f"{content}{cid:08x}",
        # Flat files keep their holes, and on vSphere such a disk is a thin one.
        **({"thinProvisioned": "1"} if create_type == "vmfs" else {}),
        "toolsInstallType": "4",
        "toolsVersion": "2147483647",
        "virtualHWVersion": "4",
    }
    return Descriptor(cid, parent_cid, parent_hint, capacity, extent_name, ddb, create_type)


def replace_cid(data: bytes, cid: int, path: str) -> bytes:
    """A descriptor's bytes with another content id, and nothing else changed: other programs' keys stay.

    Args:
        data: the whole place of an embedded descriptor; the result has its length.
        path: names the file in errors.

    Raises:
        CorruptError: there is no content id, or no room.
    """
    text, _, _ = data.partition(b"\0")
    text, count = _CID_LINE.subn(b"\\g<1>%08x\\2" % cid, text)
    if count != 1 or len(text) > len(data):
        raise CorruptError(f"descriptor of {path} at byte {SECTOR}: has {count} lines for a content id, or no room for it")
    # VMware's writer ends the long content id with the short one; QEMU leaves it alone.
    text = _LONG_CONTENT_ID.sub(b"\\g<1>%08x" % cid, text)
    return text.ljust(len(data), b"\0")


def replace_deletable(data: bytes, *, deletable: bool) -> bytes:
    """A descriptor's bytes that permit vSphere to delete the disk, or do not; nothing else is changed.

    Source: govmomi ``object/datastore_file_manager.go``, which has the client take the line out before it deletes.
    """
    text = _DELETABLE_LINE.sub(b"", data)
    return text if deletable else text.rstrip(b"\n") + b'\nddb.deletable = "false"\n'


def _read_cid(keys: Mapping[str, str], name: str, where: str) -> int:
    value = keys.get(name)
    if value is None:
        raise CorruptError(f"{where}: {name} is missing")
    if not _CID.fullmatch(value):
        raise CorruptError(f"{where}: {name} is {value!r}, not 8 hexadecimal digits")
    return int(value, 16)
