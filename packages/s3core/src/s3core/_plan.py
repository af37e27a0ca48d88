"""Planning: which ranges a read takes and which parts an upload has. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from operator import index

from ._config import GiB, KiB, MiB
from ._exceptions import ConfigError

MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_OBJECT_SIZE = MAX_PARTS * 5 * GiB  # 48.8 TiB, which S3 calls 50 TB; many other stores take 5 TiB.
MAX_COPY_SIZE = 5 * GiB

# A stream whose reader may stop after a few bytes begins with this, or with twice as much where it does not know the
# size, and doubles. Four times as much took 38 ms for the first kilobyte instead of 33 (at 30 ms and
# 90 MB/s per connection), and was no faster for a whole stream.
FIRST_RANGE = 64 * KiB
# Up to here the cost of a range is that of its request, and not of its bytes.
SMALL_RANGE = 256 * KiB
# The largest range of a stream that is read on and on: within the same memory, more of them are on their way. One GiB
# came at 1,200 MB/s in ranges of 4 MiB, at 880 of 8 MiB and at 1,080 of 2 MiB (at 30 ms and 90 MB/s per connection).
STREAM_RANGE = 4 * MiB
# What is fetched before it is read comes in ranges of about this size at once, where the version is known: it is there
# sooner, so that less memory is on its way at the same rate. 48 MiB of objects of 5 MB on their way gave 1,070 MB/s in
# ranges of 1 MiB and 870 of 2 MiB; 64 MiB of whole ones gave 680 (at 30 ms and 90 MB/s per connection).
AHEAD_RANGE = 1 * MiB
# The most bytes that a stream reads ahead, in parts: 128 MiB at 8 MiB each.
WINDOW_PARTS = 16
# The most parts on their way into place. More of them wait for one another: 64 fill 1 GiB at 1.9 GB/s, 128 at 1.3 and
# 32 at 1.7, with 16 cores, in a new process, at 30 ms and 90 MB/s per connection.
READ_PARTS = 64
# The most parts of one upload on their way. Of copies 32 take 256 MiB at 8 MiB each. What is sent from where the caller
# has it takes none: 64 parts of it move 2.1 GB/s where 32 move 1.6, at 30 ms and 90 MB/s per connection.
COPIED_PARTS = 32
REFERRED_PARTS = 64


def split_range(start: int, end: int, part_size: int) -> Iterator[tuple[int, int]]:
    """Cut `[start, end)` into ranges of at most `part_size` bytes.

    Args:
        start: First byte.
        end: One past the last byte.
        part_size: The longest range.

    Yields:
        `(start, end)` of each range, in order.
    """
    for begin in range(start, end, part_size):
        yield begin, min(begin + part_size, end)


def split_evenly(size: int, range_size: int) -> Iterator[tuple[int, int]]:
    """Cut `[0, size)` into as many equal ranges as come closest to a size; their lengths differ by a byte at most.

    Args:
        size: How many bytes; at least 1.
        range_size: How long a range should be.

    Yields:
        `(start, end)` of each range, in order.
    """
    count = max(1, round(size / range_size))
    for number in range(count):
        yield size * number // count, size * (number + 1) // count


def next_range_size(previous: int) -> int:
    """The size of a stream's next range: it starts small and doubles up to 4 MiB.

    Args:
        previous: Size of the range before; 0 for the first.

    Returns:
        A size in bytes.
    """
    return min(STREAM_RANGE, max(FIRST_RANGE, 2 * previous))


def next_window(parts: int, limit: int) -> int:
    """How many ranges may be in flight after one more was consumed: doubles up to the limit."""
    return min(limit, 2 * parts)


def plan_part_size(part_size: int, size_hint: int | None) -> int:
    """Choose an upload's part size so that the object fits S3's number of parts.

    Args:
        part_size: The configured size in bytes.
        size_hint: The object's size in bytes, or an upper bound of it; None when it is unknown.

    Returns:
        The configured size, or the next whole MiB that makes at most 10,000 parts.

    Raises:
        ConfigError: The object is larger than S3 allows.
    """
    if size_hint is None:
        return part_size
    try:
        size = index(size_hint)  # NumPy's numbers are whole ones too; of an unsigned one there is no negative.
    except TypeError:
        size = -1
    if size < 0:
        raise ConfigError(f"size_hint is {size_hint!r}; it must be a whole number of bytes of at least 0")
    if size > MAX_OBJECT_SIZE:
        raise ConfigError(f"size_hint is {size} bytes; an S3 object has at most {MAX_OBJECT_SIZE} (48.8 TiB)")
    least = -(-size // MAX_PARTS)
    if least <= part_size:
        return part_size
    return -(-least // MiB) * MiB


def plan_bytes_in_flight(part_size: int, concurrency: int) -> int:
    """How many bytes of ranges may be on their way into place at a time; short ones still take all connections.

    Args:
        part_size: Bytes per part.
        concurrency: Requests that the client may have in flight.

    Returns:
        A number of bytes of at least one part.
    """
    return min(READ_PARTS, concurrency) * part_size


def plan_parts_in_flight(part_size: int, concurrency: int, memory_limit: int, *, is_copied: bool) -> int:
    """How many parts of one upload may be held at a time.

    Args:
        part_size: Bytes per part.
        concurrency: Requests that the client may have in flight.
        memory_limit: Bytes that the client may hold.
        is_copied: Whether the parts are copies, and not the caller's own memory.

    Returns:
        A number of at least 1.
    """
    most = COPIED_PARTS if is_copied else REFERRED_PARTS
    return max(1, min(most, concurrency, memory_limit // part_size))
