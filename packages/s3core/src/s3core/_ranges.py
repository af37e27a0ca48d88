"""Reading ranges straight into their places: one large range in parallel parts, or many ranges of many objects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

from ._answer import Stopped
from ._batch import run_all
from ._exceptions import S3Exception
from ._fetch import fetch
from ._head import Target, changed_error
from ._info import ObjectInfo
from ._memory import Destination, Slot
from ._plan import plan_bytes_in_flight, split_range
from ._uri import check_bucket, check_key, uri_of

if TYPE_CHECKING:
    from ._runtime import Runtime


@dataclass(frozen=True, slots=True)
class RangeRead:
    """One range of one object and the buffer that it goes to.

    Args:
        bucket: The bucket.
        key: The key.
        start: First byte; the buffer's length is the range's length.
        buffer: A writable C-contiguous buffer.
        etag: The ETag that the object must have; None to accept whichever it has, the same for all reads of the object.
    """

    bucket: str
    key: str
    start: int
    buffer: Any
    etag: str | None = None


class FillJob:
    """One ranged GET into a slot.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        slot: Where the bytes go; its size is the range's.
        etag: The ETag that the object must have.
        on_answer: Told about the object before its bytes come.
    """

    __slots__ = ("_etag", "_on_answer", "_runtime", "_slot", "_start", "_target")

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        start: int,
        slot: Slot,
        etag: str | None,
        on_answer: Callable[[ObjectInfo], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._start = start
        self._slot = slot
        self._etag = etag
        self._on_answer = on_answer

    @property
    def size(self) -> int:
        """The slot's size."""
        return self._slot.size

    def run(self) -> int:
        """Fill the slot, whole."""
        slot, end = self._slot, self._start + self._slot.size
        try:
            fetch(
                self._runtime,
                self._target,
                self._start,
                end,
                etag=self._etag,
                slot=slot,
                on_answer=self._on_answer,
            )
        except Stopped:
            return 0
        if slot.filled != slot.size:
            raise S3Exception(
                f"GET of {self._target.uri} failed: bytes {self._start} to {end} were asked for, but the object ends "
                f"at {self._start + slot.filled}; it is shorter than expected"
            )
        return slot.size

    def stop(self) -> None:
        """Let nothing more into the slot."""
        self._slot.close()


def fill_range(
    runtime: Runtime, target: Target, start: int, end: int, destination: Destination, offset: int, etag: str | None
) -> None:
    """Read `[start, end)` into a destination by parallel ranges.

    Args:
        runtime: The client.
        target: The object.
        start: First byte.
        end: One past the last.
        destination: Where the bytes go.
        offset: Where in it `start` goes.
        etag: The ETag that all answers must carry.

    Raises:
        S3Exception: A range failed. No byte is written after that.
    """
    jobs = (
        FillJob(runtime, target, low, destination.slot(offset + low - start, offset + high - start), etag)
        for low, high in split_range(start, end, runtime.config.part_size)
    )
    run_all(runtime.pool, jobs, most_bytes=_most_bytes(runtime))


def read_ranges(
    runtime: Runtime,
    reads: Iterable[RangeRead],
    progress: Callable[[int], None] | None = None,
    on_read: Callable[[int], None] | None = None,
) -> dict[tuple[str, str], str | None]:
    """Carry out many reads at once; see `S3Client.read_ranges`."""
    versions = _Versions()
    unfilled: dict[int, _Unfilled] = {}

    def jobs() -> Iterator[_ReadJob]:
        for number, read in enumerate(reads):
            target, start = _target_of(read), index(read.start)
            destination = Destination.of_buffer(read.buffer)
            ranges = list(split_range(0, destination.size, runtime.config.part_size))
            unfilled[number] = _Unfilled(destination, len(ranges))
            for low, high in ranges:
                slot, etag = destination.slot(low, high), read.etag or versions.etags.get((read.bucket, read.key))
                yield _ReadJob(number, runtime, target, start + low, slot, etag, versions.checker(target))
            if not ranges:
                full(number)

    def ended(job: _ReadJob, count: int) -> None:
        if progress is not None:
            progress(count)
        unfilled[job.index].jobs_left -= 1
        if not unfilled[job.index].jobs_left:
            full(job.index)

    def full(index: int) -> None:
        unfilled.pop(index).destination.release()
        if on_read is not None:
            on_read(index)

    on_wait = None if progress is None else partial(progress, 0)
    try:
        run_all(runtime.pool, jobs(), most_bytes=_most_bytes(runtime), on_end=ended, on_wait=on_wait)
    except Exception:
        for left in unfilled.values():
            left.destination.release()
        raise
    return versions.etags


def _most_bytes(runtime: Runtime) -> int:
    return plan_bytes_in_flight(runtime.config.part_size, runtime.config.concurrency)


@dataclass(slots=True)
class _Unfilled:
    """A read whose buffer is not full yet.

    Args:
        destination: The buffer.
        jobs_left: How many requests for it have not ended.
    """

    destination: Destination
    jobs_left: int


class _ReadJob(FillJob):
    """A part of one of many reads.

    Args:
        index: Which read it belongs to.
    """

    __slots__ = ("index",)

    def __init__(self, index: int, *args: Any) -> None:
        super().__init__(*args)
        self.index = index


def _target_of(read: RangeRead) -> Target:
    if read.start < 0:
        raise ValueError(f"a range of {uri_of(read.bucket, read.key)} starts at {read.start}; it must be at least 0")
    check_bucket(read.bucket)
    check_key(read.bucket, read.key)
    return Target(read.bucket, read.key)


class _Versions:
    """The ETag that each object of a batch was first seen with: the others must agree."""

    def __init__(self) -> None:
        self.etags: dict[tuple[str, str], str | None] = {}
        self._lock = threading.Lock()

    def checker(self, target: Target) -> Callable[[ObjectInfo], None]:
        def check(info: ObjectInfo) -> None:
            with self._lock:
                first = self.etags.setdefault((target.bucket, target.key), info.etag)
            if first != info.etag:
                raise changed_error(target)

        return check
