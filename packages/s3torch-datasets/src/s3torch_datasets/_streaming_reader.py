"""The reader for objects larger than memory: a window that moves forward over the object."""

from __future__ import annotations

import operator
from collections import deque
from typing import Any

from s3core import S3Exception
from s3torch_datasets._byte_stream import ByteStream, as_byte_stream, object_size_bytes
from s3torch_datasets._fork_count import ForkCount
from s3torch_datasets._positioned_reader import PositionedReader
from s3torch_datasets._protocol import GetObjectInfo, GetStream

DEFAULT_WINDOW_SIZE_BYTES = 128 * 2**20
_MAX_BLOCK_SIZE_BYTES = 8 * 2**20
_BLOCKS_IN_WINDOW = 16
# Here lies an archive's directory, or a table's footer, which is read first, and now and then.
_MAX_TAIL_SIZE_BYTES = 2**20
# What a short read somewhere else fetches: a header, of which nobody knows yet whether the rest is wanted.
_MAX_LEAD_SIZE_BYTES = 128 * 2**10


class _Block:
    """One range of the window: on its way, or here."""

    __slots__ = ("data", "end", "start", "stream")

    def __init__(self, start: int, end: int, stream: ByteStream) -> None:
        self.start = start
        self.end = end
        self.stream: ByteStream | None = stream
        self.data: bytes | None = None


class StreamingS3Reader(PositionedReader):
    """Reads forward through a window of bounded memory.

    The window is a run of blocks, fetched in parallel: about three quarters lie ahead of the position, a quarter behind
    it. It starts with one block and doubles as reading goes on. Seeks inside the window are free; a seek outside it
    starts a new window there. An object of one block is fetched whole. Of a larger one, two small pieces are held apart
    and leave the window where it is: the end, once it is asked for, and what a short read somewhere else began with. A
    single read of at least the window's size goes straight into its result.

    Args:
        bucket: Bucket of the object.
        key: Exact key of the object.
        get_object_info: Returns the object's size and ETag.
        get_stream: Opens a range of the object.
        window: Most bytes of the window held and on their way at a time; None means 128 MiB.

    Raises:
        ValueError: The window is not positive.
    """

    def __init__(
        self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStream, window: int | None = None
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._window = check_window(window)
        self._block_size = min(_MAX_BLOCK_SIZE_BYTES, max(1, self._window // _BLOCKS_IN_WINDOW))
        self._tail_size = min(_MAX_TAIL_SIZE_BYTES, self._block_size)
        self._lead_size = min(_MAX_LEAD_SIZE_BYTES, max(1, self._block_size // 2))
        in_window = max(1, self._window // self._block_size)
        self._blocks_behind = in_window // 4
        self._max_blocks_ahead = in_window - 1 - self._blocks_behind
        self._blocks_ahead = 0
        self._blocks: deque[_Block] = deque()
        self._tail: _Block | None = None
        self._lead: _Block | None = None
        self._forks = 0

    def prefetch(self) -> None:
        """Sends the request for the first block of the window and does not wait."""
        self._check_open()
        if not self._blocks:
            self._forks = ForkCount.now
            self._append_block(self._position)

    def _fetch(self, position: int, size: int | None) -> bytes:
        if size is None and self._is_in_tail(position):
            size = self._object_size() - position
        if size is None or size >= self._window:
            return self._fetch_past_window(position, None if size is None else position + size)
        pieces = []
        left = size
        while left:
            piece = self._fetch_some(position, left)
            if not piece:
                break
            pieces.append(piece)
            position += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _fetch_into(self, position: int, view: memoryview) -> int:
        if len(view) >= self._window:
            return self._fetch_into_past_window(position, view)
        filled = 0
        while filled < len(view):
            block = self._block_at(position + filled, position + len(view))
            if block is None:
                break
            assert block.data is not None
            offset = position + filled - block.start
            taken = min(len(block.data) - offset, len(view) - filled)
            view[filled : filled + taken] = memoryview(block.data)[offset : offset + taken]
            filled += taken
        return filled

    def _fetch_some(self, position: int, size: int) -> bytes:
        block = self._block_at(position, position + size)
        if block is None:
            return b""
        assert block.data is not None
        offset = position - block.start
        return block.data[offset : offset + size]

    def _fetch_past_window(self, position: int, end: int | None) -> bytes:
        if self._size is not None:
            end = self._size if end is None else min(end, self._size)
            if position >= end:
                return b""
        self._drop_window()
        stream = as_byte_stream(self._open(position, end))
        try:
            data = stream.read_all()
            told = object_size_bytes(stream)
        finally:
            stream.close()
        if end is not None and len(data) > end - position:
            data = data[: end - position]
        if self._size is None:
            self._size = position + len(data) if told is None and end is None else told
        self._check_complete(position, self._object_size() if end is None else end, len(data))
        return data

    def _fetch_into_past_window(self, position: int, view: memoryview) -> int:
        if self._size is not None:
            view = view[: max(0, self._size - position)]
            if not view:
                return 0
        self._drop_window()
        stream = as_byte_stream(self._open(position, position + len(view)))
        try:
            filled = stream.read_into(view)
            if self._size is None:
                self._size = object_size_bytes(stream)
        finally:
            stream.close()
        self._check_complete(position, position + len(view), filled)
        return filled

    def _block_at(self, position: int, wanted_end: int) -> _Block | None:
        """Returns the block that holds the position, with its data; None at the end of the object.

        Args:
            position: Offset in the object.
            wanted_end: One past the last byte that is read now: up to there nothing is asked for in vain.
        """
        if self._size is not None and position >= self._size:
            return None
        if self._forks != ForkCount.now:
            self._blocks.clear()  # inherited through a fork: dead here, and the parent's to close
            self._blocks_ahead = 0
            self._forks = ForkCount.now
        blocks = self._blocks
        if blocks and position == blocks[-1].end:
            self._append_block(position)
        elif not blocks or not blocks[0].start <= position < blocks[-1].end:
            apart = self._block_apart(position, wanted_end)
            if apart is not None:
                return apart if apart.data else None
            self._drop_window()
            self._append_block(0 if self._is_one_block() else position)
        block = blocks[(position - blocks[0].start) // self._block_size]
        self._move_window(block, wanted_end)
        if block.data is None:
            self._receive(block)
        return None if not block.data or position >= block.start + len(block.data) else block

    def _is_one_block(self) -> bool:
        return self._size is not None and self._size <= self._block_size

    def _is_in_tail(self, position: int) -> bool:
        return self._size is not None and self._size > self._block_size and position >= self._size - self._tail_size

    def _block_apart(self, position: int, wanted_end: int) -> _Block | None:
        """Returns a piece that leaves the window where it is, with its data; None where a window is to start."""
        if self._is_in_tail(position):
            if self._tail is None:
                size = self._object_size()
                self._tail = self._fetch_apart(size - self._tail_size, size)
            return self._tail
        lead = self._lead
        if lead is not None and lead.start <= position < lead.end:
            return lead
        goes_on = lead is not None and position == lead.end
        if goes_on or wanted_end - position > self._lead_size or self._is_one_block():
            return None
        self._lead = self._fetch_apart(position, position + self._lead_size)
        return self._lead

    def _fetch_apart(self, start: int, end: int) -> _Block:
        block = _Block(start, end, as_byte_stream(self._open(start, end)))
        try:
            self._receive(block)
        finally:
            if block.stream is not None:
                block.stream.close()
        return block

    def _move_window(self, current: _Block, wanted_end: int) -> None:
        blocks = self._blocks
        while (current.start - blocks[0].start) // self._block_size > self._blocks_behind:
            self._close_block(blocks.popleft())
        if current.data is None and self._size is not None:
            ahead = max(1, self._blocks_ahead * 2) if current is not blocks[0] else self._blocks_ahead
            self._blocks_ahead = min(ahead, self._max_blocks_ahead)
        wanted = -(-(wanted_end - current.end) // self._block_size)
        ahead = min(max(wanted, self._blocks_ahead), self._max_blocks_ahead)
        end = current.end + ahead * self._block_size
        while self._size is not None and blocks[-1].end < min(end, self._size):
            self._append_block(blocks[-1].end)

    def _append_block(self, start: int) -> None:
        end = start + self._block_size
        if self._size is not None:
            end = min(end, self._size)
        opened = self._open(start, end)
        stream = as_byte_stream(opened)
        prefetch = getattr(stream, "prefetch", None)
        if prefetch is not None:
            prefetch()
        self._blocks.append(_Block(start, end, stream))

    def _receive(self, block: _Block) -> None:
        stream = block.stream
        assert stream is not None
        try:
            data = stream.read_all()[: block.end - block.start]
            if self._size is None:
                self._size = object_size_bytes(stream)
            self._check_complete(block.start, block.end, len(data))
            block.data, block.end, block.stream = data, block.start + len(data), None
        except BaseException:
            self._drop_window()
            raise
        stream.close()

    def _check_complete(self, start: int, end: int, received: int) -> None:
        expected = min(end, self._object_size()) - start
        if received < expected:
            self._drop_window()
            raise S3Exception(
                f"{self._uri}: received {received} of the {expected} bytes from offset {start}; "
                "the object may have been replaced while it was read, open it again"
            )

    def _close_block(self, block: _Block) -> None:
        block.data = None
        stream, block.stream = block.stream, None
        if stream is not None:
            stream.close()

    def _release(self) -> None:
        self._drop_window()
        self._tail = self._lead = None

    def _drop_window(self) -> None:
        self._blocks_ahead = 0
        while self._blocks:
            block = self._blocks.popleft()  # first of all: what Ctrl-C leaves in the window can be read
            if self._forks == ForkCount.now:
                self._close_block(block)

    def _settings(self) -> dict[str, Any]:
        return {"window": self._window}


def check_window(window: int | None) -> int:
    """Returns the window in bytes, the default for None."""
    if window is None:
        return DEFAULT_WINDOW_SIZE_BYTES
    size = operator.index(window)
    if size <= 0:
        raise ValueError(f"window must be a positive number of bytes, got {size}")
    return size
