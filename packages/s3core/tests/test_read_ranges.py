"""Many ranges of many objects at once."""

from __future__ import annotations

import mmap
import random
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3core import NoSuchKeyError, ObjectChangedError, RangeRead, S3Client, S3Exception
from s3core._plan import READ_PARTS
from servers import CountingServer

MiB = 2**20
PART = 5 * MiB
OBJECTS = {f"folder/{n}": random.Random(n).randbytes(n * 1000 + n) for n in range(1, 6)}
OBJECTS["odd//key"] = random.Random(9).randbytes(3000)


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    return make_client(counting_server, part_size=PART, max_attempts=3, max_concurrency=4)


@pytest.fixture
def bucket(counting_server: CountingServer) -> str:
    for key, data in OBJECTS.items():
        counting_server.put(key, data)
    return counting_server.bucket


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, int, int]:
    key = draw(st.sampled_from(sorted(OBJECTS)))
    start = draw(st.integers(0, len(OBJECTS[key])))
    return key, start, draw(st.integers(start, len(OBJECTS[key])))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(ranges(), max_size=20))
def test_any_ranges_of_any_objects_come_into_their_buffers(
    client: S3Client, bucket: str, wanted: list[tuple[str, int, int]]
) -> None:
    reads = [RangeRead(bucket, key, start, bytearray(end - start)) for key, start, end in wanted]
    came: list[int] = []
    numbers: list[int] = []
    etags = client.read_ranges(iter(reads), progress=came.append, on_read=numbers.append)
    assert sorted(numbers) == list(range(len(wanted)))
    assert etags == {(bucket, key): client.head_object(bucket, key).etag for key, start, end in wanted if start < end}
    assert [bytes(read.buffer) for read in reads] == [OBJECTS[key][start:end] for key, start, end in wanted]
    assert sum(came) == sum(end - start for _, start, end in wanted)


def test_a_range_larger_than_a_part_is_read_in_parts(counting_server: CountingServer, client: S3Client) -> None:
    data = random.Random(2).randbytes(2 * PART + 12)
    counting_server.put("big", data)
    buffer = bytearray(len(data) - 7)
    client.read_ranges([RangeRead(counting_server.bucket, "big", 7, buffer)])
    assert buffer == data[7:]
    assert len(counting_server.requests) == 3


def test_a_read_is_told_of_when_its_buffer_is_full_and_free(counting_server: CountingServer, client: S3Client) -> None:
    data = random.Random(3).randbytes(2 * PART + 12)
    counting_server.put("big", data)
    counting_server.put("small", data[:10])
    counting_server.fault(operation="GetObject", key="big", times=1, delay_seconds=0.3)
    buffers = [bytearray(len(data)), bytearray(10)]
    numbers: list[int] = []

    def on_read(number: int) -> None:
        assert buffers[number] == data[: len(buffers[number])]
        buffers[number].clear()  # impossible while anything holds the buffer
        numbers.append(number)

    reads = zip(("big", "small"), buffers, strict=True)
    client.read_ranges([RangeRead(counting_server.bucket, key, 0, buffer) for key, buffer in reads], on_read=on_read)
    assert numbers == [1, 0]


def test_no_reads_send_nothing(counting_server: CountingServer, client: S3Client, bucket: str) -> None:
    client.read_ranges([])
    client.read_ranges([RangeRead(bucket, "folder/1", 0, bytearray())])
    assert counting_server.requests == []


def test_a_buffer_of_another_type_is_filled_by_bytes(client: S3Client, bucket: str) -> None:
    buffer = array("d", bytes(800))
    client.read_ranges([RangeRead(bucket, "folder/1", 100, buffer)])
    assert buffer.tobytes() == OBJECTS["folder/1"][100:900]


def test_the_first_error_stops_the_rest(counting_server: CountingServer, client: S3Client, bucket: str) -> None:
    def reads() -> Iterator[RangeRead]:
        yield RangeRead(bucket, "missing", 0, bytearray(10))
        for _ in range(10_000):
            yield RangeRead(bucket, "folder/1", 0, bytearray(10))

    with pytest.raises(NoSuchKeyError, match=f"s3://{bucket}/missing"):
        client.read_ranges(reads())
    client.head_object(bucket, "folder/1")
    assert len(counting_server.requests) < 1000


def test_progress_can_end_the_reading_while_no_answer_comes(
    counting_server: CountingServer, client: S3Client, bucket: str
) -> None:
    def give_up(count: int) -> None:
        raise RuntimeError(f"{count} bytes came")

    buffer = bytearray(10)
    counting_server.fault(operation="GetObject", hold=True)
    with pytest.raises(RuntimeError, match="0 bytes came"):
        client.read_ranges([RangeRead(bucket, "folder/1", 0, buffer)], progress=give_up)
    counting_server.release()
    client.head_object(bucket, "folder/1")
    assert buffer == bytes(10)


def test_a_range_past_the_end_raises(client: S3Client, bucket: str) -> None:
    for start in (len(OBJECTS["folder/1"]) - 5, len(OBJECTS["folder/1"]) + 5):
        with pytest.raises(S3Exception, match=f"s3://{bucket}/folder/1 failed"):
            client.read_ranges([RangeRead(bucket, "folder/1", start, bytearray(10))])


def test_a_range_before_the_start_is_refused(client: S3Client, bucket: str) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        client.read_ranges([RangeRead(bucket, "folder/1", -1, bytearray(10))])


@pytest.mark.parametrize(("bucket", "key"), [("a-bucket", ""), ("b", "key"), ("a-bucket", "x" * 1025)])
def test_what_is_no_bucket_and_no_key_is_refused(client: S3Client, bucket: str, key: str) -> None:
    with pytest.raises(ValueError, match="bucket"):
        client.read_ranges([RangeRead(bucket, key, 0, bytearray(1))])


def test_a_buffer_that_cannot_be_filled_is_refused(client: S3Client, bucket: str) -> None:
    with pytest.raises(TypeError, match="writable"):
        client.read_ranges([RangeRead(bucket, "folder/1", 0, bytes(10))])


def test_an_error_of_the_iterable_is_raised_as_it_is(client: S3Client, bucket: str) -> None:
    def reads() -> Iterator[RangeRead]:
        for _ in range(10):
            yield RangeRead(bucket, "folder/1", 0, bytearray(10))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.read_ranges(reads())


def test_the_iterable_may_use_the_client_itself(
    make_client: Callable[..., S3Client], counting_server: Any, bucket: str
) -> None:
    client = make_client(counting_server, max_concurrency=1)
    buffers = []

    def reads() -> Iterator[RangeRead]:
        for key in ["folder/1", "folder/2", "folder/3"]:
            buffers.append(bytearray(client.head_object(bucket, key).size))
            yield RangeRead(bucket, key, 0, buffers[-1])

    client.read_ranges(reads())
    assert buffers == [OBJECTS["folder/1"], OBJECTS["folder/2"], OBJECTS["folder/3"]]


def test_an_error_of_the_progress_stops_the_rest(client: S3Client, bucket: str) -> None:
    def progress(count: int) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.read_ranges([RangeRead(bucket, "folder/1", 0, bytearray(10))], progress=progress)


def test_two_versions_of_one_object_are_never_mixed(
    counting_server: CountingServer, client: S3Client, bucket: str
) -> None:
    counting_server.fault(operation="GetObject", key="folder/1", times=1, replace_with=b"x" * 2000)
    with pytest.raises(ObjectChangedError, match=f"s3://{bucket}/folder/1"):
        client.read_ranges(RangeRead(bucket, "folder/1", 0, bytearray(10)) for _ in range(20))


def test_another_version_than_named_is_refused(client: S3Client, bucket: str) -> None:
    with pytest.raises(ObjectChangedError):
        client.read_ranges([RangeRead(bucket, "folder/1", 0, bytearray(10), '"of another version"')])


def test_buffers_are_free_again_when_the_reads_return_or_fail(client: S3Client, bucket: str) -> None:
    buffer = bytearray(100)
    for _ in range(100):
        client.read_ranges([RangeRead(bucket, "folder/1", 0, memoryview(buffer)[n::1][:1]) for n in range(10)])
        buffer.append(0)
    try:
        client.read_ranges([RangeRead(bucket, "folder/1", 0, buffer), RangeRead(bucket, "missing", 0, bytearray(1))])
    except NoSuchKeyError:
        buffer.append(0)


def test_no_more_parts_are_on_their_way_than_help(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("short", b"x")
    client = make_client(counting_server, part_size=PART, max_concurrency=READ_PARTS + 36)
    buffer = mmap.mmap(-1, 100 * PART)
    failures: list[S3Exception] = []

    def read() -> None:
        try:
            client.read_ranges([RangeRead(counting_server.bucket, "short", 0, buffer)])
        except S3Exception as error:
            failures.append(error)

    counting_server.fault(operation="GetObject", hold=True)
    reading = threading.Thread(target=read)
    reading.start()
    counting_server.wait_for_requests(READ_PARTS, operation="GetObject")
    time.sleep(0.3)
    assert len(counting_server.requests) == READ_PARTS
    while reading.is_alive():
        counting_server.release()
        reading.join(0.01)
    assert "shorter" in str(failures[0])
