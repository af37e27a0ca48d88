"""Carries out a fetch plan: bytes straight into their destinations, what needs a buffer within a bounded window."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from s3core import RangeRead, S3Client

from ._fetch_plan import ALONE_BYTES, Fetch, Want, plan_fetches
from ._progress import TransferProgress
from ._threads import StoppedError

MiB = 2**20
WINDOW_BYTES = 256 * MiB
_POLL_SECONDS = 0.1


class Piece(Protocol):
    """A byte range of an object and what becomes of it."""

    @property
    def want(self) -> Want:
        """The bytes that are needed."""

    @property
    def memory_bytes(self) -> int:
        """Memory that `open` allocates; 0 when the bytes go straight to where they belong."""

    def open(self) -> memoryview:
        """Give the memory to fill, of exactly the wanted length; called once, in the thread of the load."""

    def finish(self) -> None:
        """Use the filled memory and let go of it; called once, in the thread of the load."""


@dataclass(slots=True)
class _Batch:
    """Fetches that are carried out together, and the pieces that are complete after them."""

    fetches: list[Fetch] = field(default_factory=list)
    cost_bytes: int = 0


def fetch_pieces(
    client: S3Client,
    bucket: str,
    pieces: Sequence[Piece],
    progress: TransferProgress,
    *,
    allowance_bytes: int = 0,
    window_bytes: int = WINDOW_BYTES,
    alone_bytes: int = ALONE_BYTES,
    etags: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Fetch every piece, and finish each as soon as its bytes are there.

    Pieces are fetched in batches. The next batch begins when the bytes of one are there, while the last of its pieces
    are being finished, so that the memory in use is at most `window_bytes`, or two pieces where a piece alone is larger
    than half of it, beyond what the pieces' own destinations take.

    Args:
        client: Client of the bucket.
        bucket: The bucket.
        pieces: What to fetch, in any order; they may overlap.
        progress: Counts the bytes as they arrive.
        allowance_bytes: See `plan_fetches`.
        alone_bytes: See `plan_fetches`.
        window_bytes: Bound of the memory for what does not go straight to its destination.
        etags: The ETag that each key must have, for the keys that are known. Of another key any version is taken, the
            same for all of its bytes.

    Returns:
        The ETag that each fetched key has, as far as the store tells it.

    Raises:
        S3Exception: A range could not be fetched, or an object changed meanwhile. Whatever is raised, also for Ctrl-C,
            the transfers have ended: no byte comes into a destination after it.
    """
    for piece in pieces:
        if piece.want.start == piece.want.end:
            piece.open()
            piece.finish()
    plan = plan_fetches([piece.want for piece in pieces], allowance_bytes=allowance_bytes, alone_bytes=alone_bytes)
    load = _Load(client, bucket, pieces, plan, progress, etags or {})
    batches = _split(plan, pieces, window_bytes // 2)
    current = next(batches, None)
    try:
        if current is not None:
            load.start(current)
        while current is not None:
            finished = load.finish_pieces()
            current = next(batches, None)
            if current is not None:
                load.start(current)
            load.finish_rest(finished)
    except BaseException:
        load.stop()
        raise
    return load.etags


def _split(plan: Sequence[Fetch], pieces: Sequence[Piece], limit_bytes: int) -> Iterator[_Batch]:
    """Group fetches so that the memory that each group opens stays within the limit."""
    batch = _Batch()
    opened: set[int] = set()
    for fetch in plan:
        cost = fetch.end - fetch.start if len(fetch.segments) > 1 else 0
        fresh = {index for segment in fetch.segments for index in segment.wants} - opened
        cost += sum(pieces[index].memory_bytes for index in fresh)
        if batch.fetches and cost and batch.cost_bytes + cost > limit_bytes:
            yield batch
            batch = _Batch()
        batch.fetches.append(fetch)
        batch.cost_bytes += cost
        opened |= fresh
    if batch.fetches:
        yield batch


@dataclass(slots=True)
class _Transfers:
    """A batch on its way.

    Args:
        fetches: By number the fetches that are not used yet, with the memory that each fills.
        ended: The numbers of the fetches whose bytes are there; None behind the last one, or an error.
        is_over: Whether nothing more comes.
        claim: Taken by whoever is first: the thread that fetches, or who stops it before it has begun.
    """

    fetches: dict[int, tuple[Fetch, memoryview]]
    ended: SimpleQueue[int | None] = field(default_factory=SimpleQueue)
    is_over: bool = False
    claim: threading.Lock = field(default_factory=threading.Lock)


class _Load:
    """The state of one call of `fetch_pieces`."""

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        pieces: Sequence[Piece],
        plan: Sequence[Fetch],
        progress: TransferProgress,
        etags: Mapping[str, str],
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._pieces = pieces
        self._progress = progress
        self.etags = dict(etags)
        self._buffers: dict[int, memoryview] = {}
        self._segments_left = [0] * len(pieces)
        for fetch in plan:
            for segment in fetch.segments:
                for index in segment.wants:
                    self._segments_left[index] += 1
        self._current = _Transfers({})
        self._error: BaseException | None = None
        self._stopped = False

    def start(self, batch: _Batch) -> None:
        """Open the destinations of a batch and begin to fetch it in a thread."""
        self._current = _Transfers(
            {number: (fetch, self._destination(fetch)) for number, fetch in enumerate(batch.fetches)}
        )
        threading.Thread(target=self._fetch, args=(self._current,), name="s3torch-checkpoint-load", daemon=True).start()

    def finish_pieces(self) -> _Transfers:
        """Finish the pieces of the batch as they come, in such a way that Ctrl-C ends the wait; raise its error.

        Returns:
            The batch when all of its bytes are there, though not all of its pieces may be finished.
        """
        transfers = self._current
        while not transfers.is_over:
            with suppress(Empty):
                self._complete(transfers, transfers.ended.get(timeout=_POLL_SECONDS))
        if self._error is not None:
            raise self._error
        return transfers

    def finish_rest(self, transfers: _Transfers) -> None:
        """Finish the pieces of a batch that `finish_pieces` left."""
        while not transfers.ended.empty():
            self._complete(transfers, transfers.ended.get())

    def stop(self) -> None:
        """Fetch no more; returns within a second, when nothing is written to the destinations any longer."""
        self._stopped = True
        transfers = self._current
        # Ctrl-C may have come before the thread was started, or in the midst of that, where nobody can tell which.
        if transfers.claim.acquire(blocking=False):
            return
        while not transfers.is_over:
            with suppress(Empty):
                transfers.ended.get(timeout=_POLL_SECONDS)

    def _complete(self, transfers: _Transfers, number: int | None) -> None:
        """Pass the bytes of a fetch on to every piece that wants them, and finish the complete pieces."""
        if number is None:
            return
        fetch, buffer = transfers.fetches.pop(number)  # Nothing else keeps a joint buffer any longer.
        for segment in fetch.segments:
            data = buffer[segment.start - fetch.start : segment.end - fetch.start]
            in_place = len(fetch.segments) == 1
            for position, index in enumerate(segment.wants):
                if position > 0 or not in_place:
                    start = self._pieces[index].want.start
                    self._buffer(index)[segment.start - start : segment.end - start] = data
                self._segments_left[index] -= 1
                if self._segments_left[index] == 0:
                    self._buffer(index)
                    del self._buffers[index]
                    self._pieces[index].finish()

    def _destination(self, fetch: Fetch) -> memoryview:
        if len(fetch.segments) > 1:
            return memoryview(bytearray(fetch.end - fetch.start))
        index = fetch.segments[0].wants[0]
        start = self._pieces[index].want.start
        return self._buffer(index)[fetch.start - start : fetch.end - start]

    def _buffer(self, index: int) -> memoryview:
        buffer = self._buffers.get(index)
        if buffer is None:
            buffer = self._buffers[index] = self._pieces[index].open()
        return buffer

    def _fetch(self, transfers: _Transfers) -> None:
        if not transfers.claim.acquire(blocking=False):
            return
        try:
            found = self._client.read_ranges(self._reads(transfers), progress=self._count, on_read=transfers.ended.put)
            self.etags.update({key: etag for (_, key), etag in found.items() if etag is not None})
        except BaseException as error:
            self._error = error
        finally:
            transfers.is_over = True
            transfers.ended.put(None)  # so that nobody waits on

    def _reads(self, transfers: _Transfers) -> Iterator[RangeRead]:
        for number in range(len(transfers.fetches)):
            fetch, buffer = transfers.fetches[number]
            yield RangeRead(self._bucket, fetch.key, fetch.start, buffer, self.etags.get(fetch.key))

    def _count(self, length: int) -> None:
        if self._stopped:  # asked also while no request ends
            raise StoppedError
        self._progress.advance(length)
