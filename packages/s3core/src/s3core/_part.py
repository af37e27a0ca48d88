"""One part of an upload in the making."""

from __future__ import annotations

from ._memory import Destination


class Part:
    """The bytes of a part in pieces: what was copied, and what is sent from where it lies.

    Args:
        buffer: What to copy into, of a part's size; None for one that grows, so that little data costs little memory.
        is_counted: Whether its memory is among what the upload may hold.
    """

    __slots__ = ("_begin", "_end", "_pieces", "_run", "buffer", "copied", "is_counted", "size")

    def __init__(self, buffer: bytearray | None = None, *, is_counted: bool = False) -> None:
        self.buffer = buffer
        self.is_counted = is_counted
        self.size = 0
        self.copied = 0
        self._run = bytearray()
        self._begin = self._end = 0
        self._pieces: list[bytearray | memoryview] = []

    def copy(self, piece: memoryview) -> None:
        """Append bytes that may change when this returns."""
        if self.buffer is None:
            self._run += piece
        else:
            Destination.of_buffer(self.buffer).slot(self._end, self._end + len(piece)).write(piece)
            self._end += len(piece)
        self.size += len(piece)
        self.copied += len(piece)

    def count(self, buffer: bytearray | None) -> None:
        """Be among what the upload may hold from here on.

        Args:
            buffer: What to copy into; see there.
        """
        self._cut()
        self.buffer = buffer
        self.is_counted = True

    def refer(self, piece: memoryview) -> None:
        """Append bytes that stay as they are until they are sent."""
        self._cut()
        self._pieces.append(piece)
        self.size += len(piece)

    def pieces(self) -> list[bytearray | memoryview]:
        """All bytes in their order; nothing is appended after this."""
        self._cut()
        return self._pieces

    def own_pieces(self) -> list[bytes | bytearray | memoryview]:
        """As `pieces`, with copies of what is the caller's, who may change it after Ctrl-C while it is on its way."""
        return [piece if self._is_own(piece) else bytes(piece) for piece in self.pieces()]

    def drop(self) -> None:
        """Let go of all bytes, whoever still knows this part or its pieces."""
        self._pieces.clear()
        self.buffer = None

    def _is_own(self, piece: bytearray | memoryview) -> bool:
        return isinstance(piece, bytearray) or piece.obj is self.buffer or type(piece.obj) is bytes

    def _cut(self) -> None:
        if self._run:
            self._pieces.append(self._run)
            self._run = bytearray()
        elif self.buffer is not None and self._end > self._begin:
            self._pieces.append(memoryview(self.buffer)[self._begin : self._end])
            self._begin = self._end
