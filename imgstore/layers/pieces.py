"""PieceCursor: a stream that arrives in pieces, read as if it were whole, without copying what lies inside one piece."""

from __future__ import annotations

from collections.abc import Iterable

from imgstore.blocks import Bytes


class PieceCursor:
    """A place in a stream of pieces.

    What it hands out is a view of the current piece, valid until the cursor asks its source for the next one, unless the bytes asked
    for lie in two pieces: then they are copied.

    Attributes:
        view: the current piece.
        position: next unread byte in it. A reader that is in a hurry may move it forward itself, never past ``length``.
        length: bytes in the current piece.
        base: offset of the current piece in the stream.
    """

    __slots__ = ("_pieces", "base", "length", "position", "view")

    def __init__(self, pieces: Iterable[Bytes]) -> None:
        self._pieces = iter(pieces)
        self.view = memoryview(b"")
        self.position = 0
        self.length = 0
        self.base = 0

    @property
    def offset(self) -> int:
        """Offset of the next unread byte in the stream."""
        return self.base + self.position

    def take(self, count: int) -> Bytes:
        """The next ``count`` bytes; fewer only at the end of the stream. The caller has bounded ``count``."""
        start = self.position
        if start + count <= self.length:
            self.position = start + count
            return self.view[start : start + count]
        joined = bytearray()
        while len(joined) < count:
            run = self.run(count - len(joined))
            if not run:
                break
            joined += run
        return joined

    def run(self, limit: int) -> memoryview:
        """The next bytes that lie together, at least one and at most ``limit``; none at the end of the stream."""
        if self.position == self.length and not self._next_piece():
            return self.view[:0]
        start = self.position
        self.position = min(start + limit, self.length)
        return self.view[start : self.position]

    def skip(self, count: int) -> int:
        """Passes over ``count`` bytes; returns how many there were, which is fewer only at the end of the stream."""
        left = count
        while left:
            passed = len(self.run(left))
            if not passed:
                break
            left -= passed
        return count - left

    def peek(self, count: int) -> Bytes:
        """What ``take`` would return, and stays unread."""
        head = self.take(count)
        if self.position >= len(head):
            self.position -= len(head)
        else:
            rest = self.view[self.position :]
            self.base = self.offset - len(head)
            self.view = memoryview(bytes(head) + bytes(rest))
            self.length = len(self.view)
            self.position = 0
        return head

    def _next_piece(self) -> bool:
        for piece in self._pieces:
            if len(piece):
                self.base += self.length
                self.view = memoryview(piece)
                self.length = len(self.view)
                self.position = 0
                return True
        return False
