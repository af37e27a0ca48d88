"""A file to which one process appends what it lists, for others to read meanwhile."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from typing import IO

from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._index_file import index_in, write_open_index

# Objects found since the last frame, and bytes of the piece that follows: none where only the number is told.
_FRAME = struct.Struct("<qQ")
# About three million objects, which those who wait may go over until the whole is there.
_MOST_BYTES = 256 * 2**20


class PieceWriter:
    """Appends to a new file, which is there until `close`; what has no room in it, others have to wait for.

    Args:
        path: Where the file is to be. What a killed process left there is replaced: those who read it go on reading it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def write(self, listed: int, piece: ObjectIndex | None = None) -> None:
        """Appends the number of objects found since the last call, or a piece of the index."""
        if self._file is None or self._file.tell() > _MOST_BYTES:
            return
        content = io.BytesIO()
        if piece is not None:
            write_open_index(piece, content)
        try:
            self._file.write(_FRAME.pack(listed, len(content.getbuffer())) + content.getbuffer())
            self._file.flush()
        except OSError:
            self.close()

    def close(self) -> None:
        """Removes the file."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            with contextlib.suppress(OSError):
                file.close()


class PieceReader:
    """Reads what another process appends.

    Args:
        path: Where its file is, or will be.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._begun = b""

    def read(self) -> list[tuple[int, ObjectIndex | None]]:
        """Returns what was written since the last call, as `PieceWriter.write` was given it."""
        if self._file is None:
            try:
                self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
            except FileNotFoundError:
                return []
        frames: list[tuple[int, ObjectIndex | None]] = []
        data = memoryview(self._begun + (self._file.read() or b""))
        while len(data) >= _FRAME.size:
            listed, length = _FRAME.unpack_from(data)
            content = data[_FRAME.size : _FRAME.size + length]
            if len(content) < length:
                break
            frames.append((listed, index_in(content) if length else None))
            data = data[_FRAME.size + length :]
        self._begun = bytes(data)
        return frames

    def close(self) -> None:
        """Closes the file, if it was there."""
        if self._file is not None:
            self._file.close()
