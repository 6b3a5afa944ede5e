"""The protocol's numbers and structures, each declared once. Everything is big-endian.

Source: "The NBD protocol" (``doc/proto.md``), section "Values"; names are its own without the prefix ``NBD_``.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

PORT = 10809
"""IANA's."""

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

STRING_MAX = 4096
"""Bytes of a name or a message."""

PAYLOAD_MAX = 32 << 20
"""Bytes that one request carries or asks for: what every client may take for granted (section "Size constraints")."""

BLOCK_SIZE_MIN = 1
BLOCK_SIZE_PREFERRED = 64 << 10
"""A grain: what is written whole needs nothing from the disks below."""

ALLOCATION = b"base:allocation"
"""The one metadata context."""

ALLOCATION_ID = 1


class HandshakeFlag(enum.IntFlag):
    """Of the server, and of the client that agrees."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(enum.IntFlag):
    """What an export is, and which commands it understands."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Option(enum.IntEnum):
    """What a client asks during the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """What it is answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_PLATFORM = 1 << 31 | 4
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_TOO_BIG = 1 << 31 | 9


class Info(enum.IntEnum):
    """A piece of what is known of an export."""

    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """The type of a request."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """How a request is meant."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(enum.IntEnum):
    """The type of one chunk of a structured reply."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1


CHUNK_DONE = 1 << 0
"""Flag of the last chunk of a reply."""


class State(enum.IntFlag):
    """Of an extent in ``base:allocation``."""

    HOLE = 1 << 0
    ZERO = 1 << 1


class Error(enum.IntEnum):
    """What a request is refused with."""

    EPERM = 1
    EIO = 5
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


GREETING = struct.Struct(">8s8sH")
"""INIT_MAGIC, OPTION_MAGIC, HandshakeFlag."""

CLIENT_FLAGS = struct.Struct(">I")

OPTION = struct.Struct(">8sII")
"""OPTION_MAGIC, Option, length of the data that follow."""

OPTION_REPLY = struct.Struct(">QIII")
"""OPTION_REPLY_MAGIC, the Option, OptionReply, length of the data that follow."""

EXPORT = struct.Struct(">QH")
"""Size in bytes, TransmissionFlag."""

EXPORT_PADDING = bytes(124)

INFO = struct.Struct(">H")
BLOCK_SIZES = struct.Struct(">III")
"""Smallest, preferred, and largest that a request may carry; bytes."""

LENGTH = struct.Struct(">I")
COUNT = struct.Struct(">H")

REQUEST = struct.Struct(">IHHQQI")
"""REQUEST_MAGIC, CommandFlag, Command, cookie, offset, length; data follow a write."""

SIMPLE_REPLY = struct.Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, Error or 0, cookie; data follow where a read went well."""

CHUNK = struct.Struct(">IHHQI")
"""STRUCTURED_REPLY_MAGIC, CHUNK_DONE or 0, Chunk, cookie, length of the payload that follows."""

DATA_CHUNK = struct.Struct(">IHHQIQ")
"""A CHUNK of OFFSET_DATA with its offset; data follow."""

HOLE_CHUNK = struct.Struct(">IHHQIQI")
"""A CHUNK of OFFSET_HOLE, with its offset and its length in bytes."""

ERROR_PAYLOAD = struct.Struct(">IH")
"""Error, length of the message that follows."""

EXTENT = struct.Struct(">II")
"""Length in bytes, State."""


class Request(NamedTuple):
    """A request without its data. Offset and length are bytes, and what the client says: nothing is checked yet."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
