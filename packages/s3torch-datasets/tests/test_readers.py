"""What every reader of this package promises, against `io.BytesIO`, whatever stream it is given."""

from __future__ import annotations

import array
import gc
import io
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import SEEK_CUR, SEEK_END, SEEK_SET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interruptions import each_interruption, interrupted
from s3core import ObjectInfo, S3Exception
from s3torch_datasets import (
    RangedS3Reader,
    S3Reader,
    S3ReaderConstructor,
    SequentialS3Reader,
    StreamingS3Reader,
    _streaming_reader,
)


class FastStream:
    """Offers every faster path that the readers know."""

    def __init__(self, owner: MemoryObject, start: int, end: int) -> None:
        self._owner = owner
        self._position = start
        self._end = end
        self.closed = False

    def __iter__(self) -> FastStream:
        return self

    def __next__(self) -> memoryview:
        chunk = self._take(self._owner.chunk_size)
        if not chunk:
            raise StopIteration
        return chunk

    def prefetch(self) -> None:
        self._owner.prefetched += 1

    def read_into(self, buffer: memoryview) -> int:
        chunk = self._take(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def read_all(self) -> bytes:
        return bytes(self._take(self._end - self._position))

    @property
    def object_info(self) -> ObjectInfo:
        return ObjectInfo(self._owner.key, len(self._owner.data))

    def close(self) -> None:
        self.closed = True

    def _take(self, size: int) -> memoryview:
        assert not self.closed, "a closed stream was read"
        end = min(self._position + size, self._end)
        chunk = memoryview(self._owner.data)[self._position : end]
        self._position += len(chunk)
        self._owner.bytes_sent += len(chunk)
        return chunk


@dataclass
class MemoryObject:
    data: bytes
    fast: bool = True
    chunk_size: int = 7
    key: str = "key"
    heads: int = 0
    prefetched: int = 0
    bytes_sent: int = 0
    ranges: list[tuple[int | None, int | None]] = field(default_factory=list)
    streams: list[FastStream] = field(default_factory=list)

    def get_object_info(self) -> ObjectInfo:
        self.heads += 1
        return ObjectInfo(self.key, len(self.data))

    def get_stream(self, start: int | None = None, end: int | None = None) -> Iterator[memoryview]:
        self.ranges.append((start, end))
        first, last = start or 0, len(self.data) if end is None else min(end, len(self.data))
        if not self.fast:
            return self._chunks(first, last)
        self.streams.append(FastStream(self, first, last))
        return self.streams[-1]

    def _chunks(self, start: int, end: int) -> Iterator[memoryview]:
        for offset in range(start, end, self.chunk_size):
            yield memoryview(self.data)[offset : min(offset + self.chunk_size, end)]


CONSTRUCTORS = {
    "sequential": S3ReaderConstructor.sequential(),
    "ranged": S3ReaderConstructor.range_based(),
    "ranged-unbuffered": S3ReaderConstructor.range_based(buffer_size=0),
    "ranged-small": S3ReaderConstructor.range_based(buffer_size=10),
    "streaming": S3ReaderConstructor.streaming(),
    "streaming-small": S3ReaderConstructor.streaming(window=64),
    "streaming-one": S3ReaderConstructor.streaming(window=1),
}

operations = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-2, 120))),
        st.tuples(st.just("read1"), st.integers(-2, 120)),
        st.tuples(st.just("readinto"), st.integers(0, 120)),
        st.tuples(st.just("readline"), st.none()),
        st.tuples(st.just("seek"), st.tuples(st.integers(-130, 130), st.sampled_from([SEEK_SET, SEEK_CUR, SEEK_END]))),
        st.tuples(st.just("pickle"), st.none()),
    ),
    max_size=12,
)


def open_reader(constructor: str, memory: MemoryObject) -> S3Reader:
    return CONSTRUCTORS[constructor]("bucket", memory.key, memory.get_object_info, memory.get_stream)


@pytest.fixture(params=CONSTRUCTORS)
def constructor(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["fast-stream", "plain-iterator"])
def fast(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("fast", [True, False], ids=["fast-stream", "plain-iterator"])
@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=120), chunk_size=st.integers(1, 40), steps=operations)
def test_any_sequence_of_operations_equals_bytes_io(
    constructor: str, fast: bool, data: bytes, chunk_size: int, steps: list
) -> None:
    memory = MemoryObject(data, fast=fast, chunk_size=chunk_size)
    reader, reference = open_reader(constructor, memory), io.BytesIO(data)
    for name, argument in steps:
        match name:
            case "read":
                assert reader.read(argument) == reference.read(argument)
            case "readline":
                assert reader.readline() == reference.readline()
            case "read1":
                got = reader.read1(argument)
                assert reference.read(len(got)) == got
                assert got or argument == 0 or reader.tell() == len(data)
            case "readinto":
                mine, theirs = bytearray(argument), bytearray(argument)
                assert reader.readinto(mine) == reference.readinto(theirs)
                assert mine == theirs
            case "seek":
                offset, whence = argument
                target = offset + {SEEK_SET: 0, SEEK_CUR: reference.tell(), SEEK_END: len(data)}[whence]
                if target < 0:
                    with pytest.raises(ValueError, match="negative"):
                        reader.seek(offset, whence)
                else:
                    clamped = min(target, len(data))
                    assert reader.seek(offset, whence) == clamped
                    reference.seek(clamped)
            case "pickle":
                reader = pickle.loads(pickle.dumps(reader))
        assert reader.tell() == reference.tell()


def test_lines_and_iteration_work_as_on_any_binary_file(constructor: str, fast: bool) -> None:
    data = b"\n".join(random.Random(1).randbytes(n).replace(b"\n", b" ") for n in (0, 5, 90, 1, 300)) + b"\n"
    assert list(open_reader(constructor, MemoryObject(data, fast=fast))) == list(io.BytesIO(data))
    text = io.TextIOWrapper(open_reader(constructor, MemoryObject(b"one\ntwo\n", fast=fast)), encoding="utf-8")
    assert text.read() == "one\ntwo\n"


def test_an_empty_object_reads_as_empty(constructor: str, fast: bool) -> None:
    reader = open_reader(constructor, MemoryObject(b"", fast=fast))
    assert reader.read() == b"" == reader.read(5) == reader.read1()
    assert reader.readinto(bytearray(4)) == 0
    assert reader.seek(0, SEEK_END) == 0
    assert list(reader) == []


def test_a_float_offset_is_a_type_error(constructor: str) -> None:
    reader = open_reader(constructor, MemoryObject(b"data"))
    with pytest.raises(TypeError):
        reader.seek(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        reader.read(1.0)  # type: ignore[arg-type]


def test_an_unknown_whence_is_a_value_error(constructor: str) -> None:
    with pytest.raises(ValueError, match="whence"):
        open_reader(constructor, MemoryObject(b"data")).seek(0, 7)


def test_readinto_a_read_only_buffer_is_a_type_error(constructor: str) -> None:
    with pytest.raises(TypeError, match="writable"):
        open_reader(constructor, MemoryObject(b"data")).readinto(b"1234")


def test_readinto_fills_buffers_of_any_item_type(constructor: str, fast: bool) -> None:
    numbers = array.array("q", [0, 0])
    reader = open_reader(constructor, MemoryObject(array.array("q", [7, -8]).tobytes(), fast=fast))
    assert reader.readinto(numbers) == 16
    assert list(numbers) == [7, -8]


def test_a_closed_reader_refuses_everything_and_frees_its_streams(constructor: str) -> None:
    memory = MemoryObject(b"data" * 100)
    reader = open_reader(constructor, memory)
    reader.read(1)
    reader.close()
    reader.close()
    assert all(stream.closed for stream in memory.streams)
    for use in (reader.read, reader.tell, reader.readable, reader.readline, reader.peek, lambda: reader.seek(0)):  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="s3://bucket/key"):
            use()
    with pytest.raises(ValueError, match="s3://bucket/key"):
        reader.readinto(bytearray(1))
    with pytest.raises(ValueError, match="s3://bucket/key"):
        pickle.dumps(reader)


def test_a_dropped_reader_closes_its_streams(constructor: str) -> None:
    memory = MemoryObject(b"data" * 100)
    reader = open_reader(constructor, memory)
    reader.read(1)
    del reader
    gc.collect()
    assert all(stream.closed for stream in memory.streams)


def test_a_with_block_closes_the_reader(constructor: str) -> None:
    with open_reader(constructor, MemoryObject(b"data")) as reader:
        assert reader.read() == b"data"
    assert reader.closed


def test_nothing_is_sent_before_the_first_read(constructor: str) -> None:
    memory = MemoryObject(b"data")
    reader = open_reader(constructor, memory)
    assert (reader.bucket, reader.key, reader.tell(), reader.seek(0)) == ("bucket", "key", 0, 0)
    assert not memory.ranges
    assert not memory.heads


def test_the_first_answer_tells_the_size_without_a_head(constructor: str) -> None:
    memory = MemoryObject(b"data" * 50)
    reader = open_reader(constructor, memory)
    reader.read(10)
    assert reader.seek(0, SEEK_END) == 200
    assert reader.seek(500) == 200
    assert memory.heads == 0


def test_a_stream_that_ends_early_is_an_error(constructor: str) -> None:
    memory = MemoryObject(b"x" * 100)
    reader = open_reader(constructor, memory)
    reader.seek(0, SEEK_END)
    memory.data = b"x" * 60
    reader.seek(0)
    with pytest.raises(S3Exception, match="s3://bucket/key"):
        list(iter(lambda: reader.read(17), b""))


class TestSequential:
    def test_the_object_is_fetched_once_whatever_is_read(self) -> None:
        memory = MemoryObject(random.Random(2).randbytes(3 * 2**20), chunk_size=1000)
        reader = open_reader("sequential", memory)
        reader.read(10)
        reader.seek(-5, SEEK_END)
        reader.read()
        reader.seek(0)
        assert reader.read() == memory.data
        assert len(memory.ranges) == 1
        assert memory.bytes_sent == len(memory.data)

    def test_a_whole_read_returns_the_very_bytes_that_are_held(self) -> None:
        reader = open_reader("sequential", MemoryObject(b"data"))
        first = reader.read()
        reader.seek(0)
        assert reader.read() is first

    def test_ten_bytes_of_a_large_object_fetch_one_chunk(self) -> None:
        memory = MemoryObject(bytes(2**20), chunk_size=100)
        open_reader("sequential", memory).read(10)
        assert memory.bytes_sent == 100

    def test_readinto_of_the_whole_object_goes_in_place_and_can_be_repeated(self) -> None:
        data = random.Random(3).randbytes(2**20)
        reader = open_reader("sequential", MemoryObject(data))
        for _ in range(2):
            buffer = bytearray(2**20 + 5)
            assert reader.readinto(buffer) == 2**20
            assert buffer[: 2**20] == data
            reader.seek(0)

    def test_reading_at_the_end_after_readinto_of_the_whole_object_fetches_nothing(self) -> None:
        memory = MemoryObject(bytes(2**20))
        reader = open_reader("sequential", memory)
        buffer = bytearray(2**20)
        assert reader.readinto(buffer) == 2**20
        assert reader.readinto(buffer) == 0
        assert reader.readinto(bytearray(5)) == 0
        assert (reader.read(), reader.read(5), reader.readline()) == (b"", b"", b"")
        assert len(memory.ranges) == 1

    def test_reading_goes_on_where_an_error_cut_it(self) -> None:
        class FailsOnce:
            failed = False

            def __call__(self, start: int | None = None, end: int | None = None):
                yield b"0123456789"[start or 0 : 4 if not self.failed else None]
                if not self.failed:
                    FailsOnce.failed = True
                    raise OSError("cut")

        reader = SequentialS3Reader("bucket", "key", MemoryObject(b"").get_object_info, FailsOnce())
        with pytest.raises(OSError, match="cut"):
            reader.read(8)
        assert reader.read(8) == b"01234567"


class TestRanged:
    def test_a_small_read_loads_the_buffer_and_the_next_is_served_from_it(self) -> None:
        memory = MemoryObject(bytes(range(100)))
        reader = open_reader("ranged-small", memory)
        reader.read(3)
        reader.read(7)
        assert memory.ranges == [(0, 10)]

    def test_a_large_read_bypasses_the_buffer(self) -> None:
        memory = MemoryObject(bytes(range(100)))
        reader = open_reader("ranged-small", memory)
        reader.seek(20)
        assert reader.read(10) == bytes(range(20, 30))
        assert memory.ranges == [(20, 30)]

    def test_a_read_past_the_buffer_takes_what_it_has(self) -> None:
        memory = MemoryObject(bytes(range(100)))
        reader = open_reader("ranged-small", memory)
        reader.read(6)
        assert reader.read(30) == bytes(range(6, 36))
        reader.seek(34)
        assert reader.read(4) == bytes(range(34, 38))
        assert memory.ranges == [(0, 10), (10, 36), (34, 44)]

    def test_without_a_buffer_each_read_is_its_range(self) -> None:
        memory = MemoryObject(bytes(range(100)))
        reader = open_reader("ranged-unbuffered", memory)
        reader.read(3)
        reader.read(3)
        assert memory.ranges == [(0, 3), (3, 6)]

    def test_a_range_never_goes_past_a_known_end(self) -> None:
        memory = MemoryObject(bytes(range(100)))
        reader = open_reader("ranged-small", memory)
        reader.seek(-3, SEEK_END)
        assert reader.read(8) == bytes([97, 98, 99])
        assert memory.ranges == [(97, 100)]

    @pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), ("8", TypeError)])
    def test_a_bad_buffer_size_is_refused_at_once(self, value: object, error: type[Exception]) -> None:
        with pytest.raises(error):
            S3ReaderConstructor.range_based(buffer_size=value)  # type: ignore[arg-type]


class TestStreaming:
    def test_what_is_held_and_on_its_way_stays_within_the_window(self) -> None:
        memory = MemoryObject(bytes(10_000))
        reader = open_reader("streaming-small", memory)
        while reader.read(8):
            here = [stream for stream in memory.streams if not stream.closed]
            assert len(here) * 4 <= 64
        assert memory.bytes_sent == 10_000

    def test_seeks_inside_the_window_cost_no_request(self) -> None:
        memory = MemoryObject(bytes(range(200)))
        reader = open_reader("streaming-small", memory)
        for _ in range(10):
            reader.read(10)
        before = len(memory.ranges)
        reader.seek(90)
        assert reader.read(10) == bytes(range(90, 100))
        assert len(memory.ranges) == before

    def test_a_seek_outside_the_window_starts_a_new_range_there(self) -> None:
        memory = MemoryObject(bytes(1000))
        reader = open_reader("streaming-small", memory)
        for _ in range(10):
            reader.read(10)
        reader.seek(0)
        reader.read(3)
        assert memory.ranges[-1] == (0, 4)

    def test_a_short_read_fetches_less_than_a_block_and_leaves_the_window_where_it_is(self) -> None:
        memory = MemoryObject(bytes(range(100)))
        reader = open_reader("streaming-small", memory)
        reader.read(1)
        assert memory.ranges == [(0, 2)]
        reader.read(20)
        fetched = len(memory.ranges)
        reader.seek(80)
        assert reader.read(2) == bytes((80, 81))
        reader.seek(15)
        assert reader.read(6) == bytes(range(15, 21))
        assert memory.ranges[fetched:] == [(80, 82)]

    def test_reading_goes_on_whatever_is_interrupted(self) -> None:
        memory = MemoryObject(bytes(range(70)))
        at = 0
        for at, interruption in enumerate(each_interruption(_streaming_reader), 1):
            reader = open_reader("streaming-small", memory)
            with interrupted(interruption), suppress(KeyboardInterrupt):
                reader.read(10)
                reader.readinto(bytearray(9))
                reader.seek(66)
                reader.read(9)
            position = reader.tell()
            assert reader.read(9) == memory.data[position : position + 9], at
            reader.seek(0)
            assert b"".join(iter(lambda: reader.read(9), b"")) == memory.data, at  # noqa: B023
        assert at > 100

    @pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
    def test_a_bad_window_is_refused_at_once(self, value: object, error: type[Exception]) -> None:
        with pytest.raises(error):
            S3ReaderConstructor.streaming(window=value)  # type: ignore[arg-type]


class TestConstructor:
    def test_the_type_strings_name_the_readers(self) -> None:
        name: Callable[..., str] = S3ReaderConstructor.get_reader_type_string
        assert name(None) == name(S3ReaderConstructor.default()) == "sequential"
        assert name(S3ReaderConstructor.range_based(5)) == name(RangedS3Reader) == "range_based"
        assert name(S3ReaderConstructor.streaming()) == name(StreamingS3Reader) == "streaming"
        assert name(lambda *_: None) == "unknown"

    @pytest.mark.parametrize("constructor", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
    def test_constructors_pickle(self, constructor: Callable) -> None:
        memory = MemoryObject(b"data")
        copy = pickle.loads(pickle.dumps(constructor))
        assert copy("bucket", "key", memory.get_object_info, memory.get_stream).read() == b"data"
