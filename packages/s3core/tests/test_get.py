"""Reading one object: the right bytes, whatever way they are asked for."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3core import (
    ArchivedObjectError,
    NoSuchKeyError,
    ObjectChangedError,
    ObjectInfo,
    RangeRead,
    S3Client,
    S3ConnectionError,
    S3Exception,
    ThrottledError,
)
from servers import CountingServer, S3Server

pytestmark = pytest.mark.usefixtures("each_way")

MiB = 2**20
PART = 5 * MiB
DATA = random.Random(1).randbytes(2 * PART + 12_345)


@pytest.fixture
def client(counting_server: CountingServer, make_client: Callable[..., S3Client]) -> S3Client:
    return make_client(counting_server, part_size=PART, max_attempts=3)


@pytest.fixture
def big(counting_server: CountingServer) -> str:
    counting_server.put("big", DATA)
    return "big"


def used(client: S3Client) -> int:
    return client._runtime.budget.used


def version_of(client: S3Client, bucket: str, key: str) -> dict[str, Any]:
    """What a listing tells of an object, and a dataset passes on."""
    info = client.head_object(bucket, key)
    return {"object_info": info, "etag": info.etag}


@pytest.mark.parametrize("way", ["chunks", "read_all", "read_into", "mixed"])
@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_a_large_object_is_read_whole(counting_server: CountingServer, client: S3Client, way: str, key: str) -> None:
    counting_server.put(key, DATA)
    stream = client.get_object(counting_server.bucket, key)
    buffer = bytearray(len(DATA) + 10)
    if way == "chunks":
        assert b"".join(map(bytes, stream)) == DATA
    elif way == "read_all":
        assert stream.read_all() == DATA
    elif way == "read_into":
        assert stream.read_into(buffer) == len(DATA)
        assert buffer == DATA + bytes(10)
    else:
        first = bytes(next(stream))
        count = stream.read_into(memoryview(buffer)[:1_000_001])
        assert first + buffer[:count] + stream.read_all() == DATA
    assert stream.tell() == len(DATA)
    assert stream.read_all() == b""
    assert list(stream) == []


@pytest.mark.parametrize("read", [S3Client.get_object, "hinted", "ranged"])
@pytest.mark.parametrize("key", ["empty", "odd//empty"])
def test_an_empty_object_is_read_in_every_way(
    counting_server: CountingServer, client: S3Client, read: Any, key: str
) -> None:
    counting_server.put(key, b"")
    more: dict[str, Any] = {"hinted": {"object_info": ObjectInfo(key, 0)}, "ranged": {"start": 0, "end": 10}}.get(
        read, {}
    )

    def opened() -> Any:
        return client.get_object(counting_server.bucket, key, **more)

    assert opened().read_all() == b""
    assert opened().read_into(bytearray(10)) == 0
    assert opened().read_into(bytearray()) == 0
    assert list(opened()) == []
    assert opened().object_info.size == 0
    stream = opened()
    stream.prefetch()
    assert stream.read_all() == b""
    assert used(client) == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.none() | st.integers(0, len(DATA) + 5),
    length=st.none() | st.integers(0, len(DATA) + 5),
    steps=st.lists(st.sampled_from(["next", "prefetch"]) | st.integers(0, PART + 100), max_size=5),
    is_version_known=st.booleans(),
)
def test_any_sequence_of_reads_of_any_range_gives_the_slice(
    counting_server: CountingServer,
    client: S3Client,
    big: str,
    start: int | None,
    length: int | None,
    steps: list[str | int],
    is_version_known: bool,
) -> None:
    end = None if length is None else (start or 0) + length
    expected = DATA[start:end]
    known = version_of(client, counting_server.bucket, big) if is_version_known else {}
    with client.get_object(counting_server.bucket, big, start=start, end=end, **known) as stream:
        came = bytearray()
        for step in steps:
            if step == "next":
                came += next(stream, b"")
            elif isinstance(step, int):
                buffer = bytearray(step)
                count = stream.read_into(buffer)
                came += buffer[:count]
                assert count == min(step, len(expected) - len(came) + count)
            else:
                stream.prefetch()
            assert stream.tell() == (start or 0) + len(came)
        came += stream.read_all()
    assert came == expected
    assert used(client) == 0


@pytest.mark.parametrize("kind", ["int16", "uint32", "int64"])
def test_numbers_of_numpy_are_as_good_as_those_of_python(
    counting_server: CountingServer, client: S3Client, kind: str
) -> None:
    make = getattr(pytest.importorskip("numpy"), kind)
    bucket, start, end = counting_server.bucket, make(5), make(30_000)
    counting_server.put("key", DATA)
    assert client.get_object(bucket, "key", start=start, end=end).read_all() == DATA[5:30_000]
    assert client.get_object(bucket, "key", start=start).read_all() == DATA[5:]
    assert b"".join(map(bytes, client.get_object(bucket, "key", start=start))) == DATA[5:]
    buffers = [bytearray(PART), bytearray(2 * PART)]
    assert client.get_object(bucket, "key", start=start).read_into(buffers[0]) == PART
    client.read_ranges([RangeRead(bucket, "key", start, buffers[1])])
    assert [bytes(buffer) for buffer in buffers] == [DATA[5 : 5 + len(buffer)] for buffer in buffers]
    assert [page.keys for page in client.list_objects(bucket, max_keys=make(3))] == [["key"]]


def test_nothing_is_sent_before_the_first_use(counting_server: CountingServer, client: S3Client) -> None:
    client.get_object(counting_server.bucket, "missing").close()
    assert counting_server.requests == []


def test_a_small_object_takes_one_ranged_request(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("small", b"abc")
    assert client.get_object(counting_server.bucket, "small").read_all() == b"abc"
    (request,) = counting_server.requests
    assert (request.method, request.operation) == ("GET", "GetObject")
    assert request.headers["range"].startswith("bytes=0-")


def test_an_object_of_known_size_up_to_a_part_takes_one_request(
    counting_server: CountingServer, client: S3Client
) -> None:
    counting_server.put("part", DATA[:PART])
    (page,) = client.list_objects(counting_server.bucket)
    counting_server.clear()
    stream = client.get_object(counting_server.bucket, "part", object_info=page.object_info[0])
    assert b"".join(map(bytes, stream)) == DATA[:PART]
    assert [request.headers["range"] for request in counting_server.requests] == [f"bytes=0-{PART - 1}"]


@pytest.mark.parametrize("key", ["part", "odd//part"])
@pytest.mark.parametrize("size", [300_000, MiB, PART])
def test_what_is_fetched_ahead_of_a_known_version_comes_in_ranges_at_once(
    counting_server: CountingServer, client: S3Client, key: str, size: int
) -> None:
    counting_server.put(key, DATA[:size])
    known = version_of(client, counting_server.bucket, key)
    counting_server.clear()
    counting_server.fault(operation="GetObject", hold=True)
    count = -(-size // MiB)
    with client.get_object(counting_server.bucket, key, **known) as stream:
        stream.prefetch()
        counting_server.wait_for_requests(count, operation="GetObject")
        assert used(client) == size
        counting_server.release()
        assert stream._window._ranges[0].place is not None
        whole = stream._window._ranges[0].place.obj
        data = stream.read_all()
        assert data == DATA[:size]
        assert data is whole  # No copy of it was made.
    ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in counting_server.requests]
    lengths = [int(last) - int(first) + 1 for first, last in ranges]
    assert sum(lengths) == size
    assert len(lengths) == count
    assert max(lengths) <= -(-size // count)
    assert {request.headers["if-match"] for request in counting_server.requests} == {known["etag"]}
    assert used(client) == 0


@pytest.mark.parametrize("way", ["chunks", "read_all", "read_into"])
def test_what_is_fetched_ahead_is_of_the_known_version_or_an_error(
    counting_server: CountingServer, client: S3Client, way: str
) -> None:
    counting_server.put("part", DATA[:PART])
    known = version_of(client, counting_server.bucket, "part")
    counting_server.fault(operation="GetObject", skip=2, times=1, replace_with=DATA[:PART][::-1])
    stream = client.get_object(counting_server.bucket, "part", **known)
    stream.prefetch()
    with pytest.raises(ObjectChangedError, match=f"s3://{counting_server.bucket}/part failed: the object was replaced"):
        {
            "chunks": lambda: list(stream),
            "read_all": stream.read_all,
            "read_into": lambda: stream.read_into(bytearray(PART)),
        }[way]()
    stream.close()
    assert used(client) == 0


@pytest.mark.parametrize("way", ["chunks", "read_all", "read_into"])
@pytest.mark.parametrize("failing", [0, 3])
def test_a_range_ahead_that_failed_once_is_asked_for_again(
    counting_server: CountingServer, client: S3Client, way: str, failing: int
) -> None:
    counting_server.put("part", DATA[:PART])
    known = version_of(client, counting_server.bucket, "part")
    counting_server.fault(operation="GetObject", skip=failing, times=1, status=403, code="AccessDenied")
    with client.get_object(counting_server.bucket, "part", **known) as stream:
        stream.prefetch()
        came, buffer = bytearray(), bytearray(PART)
        for _ in range(2):
            try:
                if way == "chunks":
                    for chunk in stream:
                        came += chunk
                elif way == "read_all":
                    came += stream.read_all()
                else:
                    came += memoryview(buffer)[: stream.read_into(buffer)]
                assert stream.tell() == PART
                break
            except PermissionError:
                assert stream.tell() == len(came)
        assert came == DATA[:PART]
        assert len([request for request in counting_server.requests if request.status == 403]) == 1
    assert used(client) == 0


def test_the_end_of_a_range_is_not_taken_for_the_size(counting_server: CountingServer, client: S3Client) -> None:
    etag = counting_server.put("key", b"abc")
    with client.get_object(counting_server.bucket, "key", end=PART, etag=etag) as stream:
        assert stream.read_all() == b"abc"
    assert len(counting_server.requests) == 1


def test_a_wrong_size_of_the_right_version_is_only_a_hint(counting_server: CountingServer, client: S3Client) -> None:
    etag = counting_server.put("key", DATA[: PART - 1000])
    for size in (0, 10, 3 * MiB, PART, 2 * PART):
        wrong = ObjectInfo("key", size, etag)
        for is_chunked in (False, True):
            with client.get_object(counting_server.bucket, "key", object_info=wrong, etag=etag) as stream:
                stream.prefetch()
                came = b"".join(map(bytes, stream)) if is_chunked else stream.read_all()
                assert came == DATA[: PART - 1000]
                assert not stream.read_all()
        assert used(client) == 0


@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_every_range_after_the_first_asks_for_the_same_version(
    counting_server: CountingServer, client: S3Client, key: str
) -> None:
    etag = counting_server.put(key, DATA)
    assert client.get_object(counting_server.bucket, key).read_all() == DATA
    first, *others = counting_server.requests
    assert "if-match" not in first.headers
    assert others
    assert {request.headers.get("if-match") for request in others} == {etag}
    assert {request.method for request in [first, *others]} == {"GET"}


@pytest.mark.parametrize("way", ["chunks", "read_all", "read_into"])
@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_an_object_that_is_replaced_while_it_is_read_raises(
    counting_server: CountingServer, client: S3Client, way: str, key: str
) -> None:
    counting_server.put(key, DATA)
    counting_server.fault(operation="GetObject", times=1, replace_with=DATA[::-1])
    stream = client.get_object(counting_server.bucket, key)
    with pytest.raises(
        ObjectChangedError, match=f"s3://{counting_server.bucket}/{key} failed: the object was replaced"
    ):
        {
            "chunks": lambda: list(stream),
            "read_all": stream.read_all,
            "read_into": lambda: stream.read_into(bytearray(len(DATA))),
        }[way]()


@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_an_object_that_is_replaced_while_a_broken_body_is_read_again_raises(
    counting_server: CountingServer, client: S3Client, key: str
) -> None:
    counting_server.put(key, DATA)
    counting_server.fault(operation="GetObject", skip=1, times=1, truncate=100_000, replace_with=DATA[::-1])
    with pytest.raises(ObjectChangedError, match=f"s3://{counting_server.bucket}/{key}"):
        client.get_object(counting_server.bucket, key).read_all()


def test_a_listing_that_is_out_of_date_is_only_a_hint(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("key", DATA)
    for size in (0, 10, PART, len(DATA) + PART):
        stale = ObjectInfo("key", size, '"stale"')
        assert client.get_object(counting_server.bucket, "key", object_info=stale).read_all() == DATA
        assert b"".join(map(bytes, client.get_object(counting_server.bucket, "key", object_info=stale))) == DATA


@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_a_connection_that_breaks_in_the_body_is_taken_up_again(
    counting_server: CountingServer, client: S3Client, key: str
) -> None:
    counting_server.put(key, DATA)
    counting_server.fault(operation="GetObject", times=1, truncate=70_000)
    counting_server.fault(operation="GetObject", times=1, cut=1000)
    assert client.get_object(counting_server.bucket, key).read_all() == DATA


@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_a_body_that_is_always_truncated_raises(counting_server: CountingServer, client: S3Client, key: str) -> None:
    counting_server.put(key, DATA)
    counting_server.fault(operation="GetObject", truncate=1000)
    with pytest.raises(S3ConnectionError, match=f"GET of s3://{counting_server.bucket}/{key} failed") as caught:
        client.get_object(counting_server.bucket, key).read_all()
    assert "Debug source" not in str(caught.value)


@pytest.mark.parametrize("fault", [{"short_range": True}, {"ignore_range": True}])
@pytest.mark.parametrize("key", ["big", "odd//big"])
def test_an_answer_of_another_range_than_asked_for_raises(
    counting_server: CountingServer, client: S3Client, key: str, fault: dict[str, bool]
) -> None:
    counting_server.put(key, DATA)
    counting_server.fault(operation="GetObject", skip=1, **fault)
    with pytest.raises(S3Exception, match=f"GET of s3://{counting_server.bucket}/{key} failed"):
        client.get_object(counting_server.bucket, key).read_all()


@pytest.mark.parametrize("key", ["a", "odd//a"])
def test_a_store_that_asks_to_slow_down_is_asked_again(
    counting_server: CountingServer, client: S3Client, key: str
) -> None:
    counting_server.put(key, b"abc")
    counting_server.fault(operation="GetObject", times=2, status=503, code="SlowDown")
    assert client.get_object(counting_server.bucket, key).read_all() == b"abc"


@pytest.mark.parametrize("key", ["a", "odd//a"])
def test_a_store_that_always_asks_to_slow_down_is_asked_as_often_as_configured(
    counting_server: CountingServer, client: S3Client, key: str
) -> None:
    counting_server.put(key, b"abc")
    counting_server.fault(operation="GetObject", status=503, code="SlowDown")
    with pytest.raises(ThrottledError, match="max_concurrency"):
        client.get_object(counting_server.bucket, key).read_all()
    assert counting_server.operations() == ["GetObject"] * 3


def test_an_archived_object_raises_with_the_remedy(counting_server: CountingServer, client: S3Client) -> None:
    counting_server.put("cold", b"abc", headers={"x-amz-storage-class": "GLACIER"})
    with pytest.raises(ArchivedObjectError, match="restore it"):
        client.get_object(counting_server.bucket, "cold").read_all()


@pytest.mark.parametrize("key", ["none", "odd//none", "status: 503 x", "HTTP error: 403 x"])
def test_a_missing_object_is_missing_whatever_its_key_says(
    counting_server: CountingServer, client: S3Client, key: str
) -> None:
    with pytest.raises(NoSuchKeyError, match=f"s3://{counting_server.bucket}/{key}"):
        client.get_object(counting_server.bucket, key).read_all()


def test_a_stream_that_failed_once_goes_on_where_it_was(
    counting_server: CountingServer, client: S3Client, big: str
) -> None:
    with client.get_object(counting_server.bucket, big) as stream:
        came = bytearray(next(stream))
        counting_server.fault(operation="GetObject", times=2, status=403, code="AccessDenied")
        try:
            for chunk in stream:
                came += chunk
            pytest.fail("no error was raised")
        except PermissionError:
            pass
        assert stream.tell() == len(came)
        for chunk in stream:
            came += chunk
    assert came == DATA
    assert used(client) == 0


@pytest.mark.parametrize("way", ["read_into", "read_all"])
@pytest.mark.parametrize("has_read", [False, True], ids=["from the start", "after a chunk"])
def test_a_read_that_failed_once_leaves_the_stream_where_it_was(
    counting_server: CountingServer, client: S3Client, big: str, way: str, has_read: bool
) -> None:
    with client.get_object(counting_server.bucket, big) as stream:
        stream.prefetch()  # is drained before the rest fails
        came = bytes(next(stream)) if has_read else b""
        counting_server.fault(operation="GetObject", skip=1, times=1, status=403, code="AccessDenied")
        with pytest.raises(PermissionError):
            stream.read_all() if way == "read_all" else stream.read_into(bytearray(len(DATA)))
        assert stream.tell() == len(came)
        assert used(client) == 0
        counting_server.faults_clear()
        rest = bytearray(len(DATA) - len(came))
        if way == "read_all":
            rest[:] = stream.read_all()
        else:
            assert stream.read_into(rest) == len(rest)
    assert came + rest == DATA
    assert used(client) == 0


def test_a_first_fill_that_failed_once_does_not_skip_bytes(
    counting_server: CountingServer, client: S3Client, big: str
) -> None:
    stream = client.get_object(counting_server.bucket, big)
    counting_server.fault(operation="GetObject", skip=1, times=1, status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        stream.read_into(bytearray(len(DATA)))
    assert stream.tell() == 0
    assert b"".join(map(bytes, stream)) == DATA


def test_the_object_is_described_by_the_first_answer(
    counting_server: CountingServer, client: S3Client, big: str
) -> None:
    etag = counting_server.put(big, DATA)
    info = client.get_object(counting_server.bucket, big).object_info
    assert (info.key, info.size, info.etag) == (big, len(DATA), etag)
    assert info.last_modified is not None
    assert info.last_modified.tzinfo is not None


def test_an_empty_range_does_not_make_up_an_object(counting_server: CountingServer, client: S3Client, big: str) -> None:
    stream = client.get_object(counting_server.bucket, big, start=5, end=5)
    assert stream.read_all() == b""
    assert stream.object_info.size == len(DATA)
    with pytest.raises(NoSuchKeyError):
        _ = client.get_object(counting_server.bucket, "none", start=5, end=5).object_info


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4), (None, -1)])
def test_a_range_that_runs_backwards_is_refused(client: S3Client, start: int | None, end: int | None) -> None:
    with pytest.raises(ValueError, match="s3://a-bucket/key"):
        client.get_object("a-bucket", "key", start=start, end=end)


def test_a_buffer_that_cannot_be_filled_is_refused(counting_server: CountingServer, client: S3Client, big: str) -> None:
    stream = client.get_object(counting_server.bucket, big)
    with pytest.raises(TypeError, match="writable"):
        stream.read_into(bytes(10))
    with pytest.raises(TypeError, match="contiguous"):
        stream.read_into(memoryview(bytearray(10))[::2])
    assert counting_server.requests == []


def test_a_buffer_is_free_again_when_the_read_returns(
    counting_server: CountingServer, client: S3Client, big: str
) -> None:
    for _ in range(30):
        buffer = bytearray(len(DATA))
        client.get_object(counting_server.bucket, big).read_into(buffer)
        buffer.append(0)  # BufferError while anything still looks at it


def test_a_buffer_is_free_again_when_the_read_fails(
    counting_server: CountingServer, client: S3Client, big: str
) -> None:
    counting_server.fault(operation="GetObject", skip=1, times=1, status=403, code="AccessDenied")
    buffer = bytearray(len(DATA))
    try:
        client.get_object(counting_server.bucket, big).read_into(buffer)
    except PermissionError:
        buffer.append(0)
    else:
        pytest.fail("the read did not fail")


def test_no_byte_is_written_after_a_failed_read(counting_server: CountingServer, client: S3Client, big: str) -> None:
    counting_server.fault(operation="GetObject", range=f"bytes={PART}-{2 * PART - 1}", status=403, code="AccessDenied")
    counting_server.fault(operation="GetObject", range=f"bytes={2 * PART}-{len(DATA) - 1}", hold=True)
    buffer = bytearray(len(DATA))
    with pytest.raises(PermissionError):
        client.get_object(counting_server.bucket, big).read_into(buffer)
    before = bytes(buffer)
    counting_server.release()
    client.head_object(counting_server.bucket, big)
    assert buffer == before


def test_an_early_close_stops_the_transfers(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("huge", bytes(64 * MiB))
    counting_server.fault(operation="GetObject", pace_bytes_per_second=4 * MiB)
    client = make_client(counting_server, max_concurrency=4)
    stream = client.get_object(counting_server.bucket, "huge")
    for _ in range(3):
        next(stream)
    stream.close()
    # All four threads are free at once; a transfer that went on would hold one for two seconds.
    counting_server.faults_clear()
    for _ in range(4):
        client.head_object(counting_server.bucket, "huge")
    assert sum(request.bytes_sent for request in counting_server.requests) < 32 * MiB
    assert used(client) == 0
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_a_slow_reader_makes_the_fetcher_wait(
    counting_server: CountingServer, make_client: Callable[..., S3Client]
) -> None:
    counting_server.put("huge", bytes(128 * MiB))
    client = make_client(counting_server, part_size=PART, memory_limit=4 * PART)
    total = 0
    with client.get_object(counting_server.bucket, "huge") as stream:
        for chunk in stream:
            total += len(chunk)
            assert used(client) <= 4 * PART
    assert total == 128 * MiB
    assert used(client) == 0


def test_many_streams_share_one_bound_and_none_starves(
    counting_server: CountingServer, make_client: Callable[..., S3Client], big: str
) -> None:
    client = make_client(counting_server, part_size=PART, memory_limit=PART, max_concurrency=2)
    streams = [client.get_object(counting_server.bucket, big) for _ in range(8)]
    came = [bytearray() for _ in streams]
    while any(len(data) < len(DATA) for data in came):
        for stream, data in zip(streams, came, strict=True):
            data += next(stream, b"")
    assert all(data == DATA for data in came)
    assert used(client) == 0


def test_a_dropped_stream_frees_what_it_held(counting_server: CountingServer, client: S3Client, big: str) -> None:
    stream = client.get_object(counting_server.bucket, big)
    next(stream)
    next(stream)
    del stream
    assert used(client) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory in /proc")
def test_the_memory_of_a_process_is_bounded_while_it_reads(
    counting_server: CountingServer, run_program: Callable[..., str]
) -> None:
    counting_server.put("huge", bytes(400 * MiB))
    output = run_program(
        """
        client = make_client(memory_limit=32 * 2**20)
        client.get_object(bucket, "huge", end=1).read_all()
        before = peak_kib()
        print(sum(len(chunk) for chunk in client.get_object(bucket, "huge")))
        print((peak_kib() - before) // 1024)
        """,
        counting_server,
        counting_server.bucket,
    )
    size, grown = map(int, output.split())
    assert size == 400 * MiB
    assert grown < 110


def test_an_overwritten_object_is_never_mixed(s3_server: S3Server, make_client: Callable[..., S3Client]) -> None:
    bucket = s3_server.create_bucket()
    client = make_client(s3_server, part_size=PART)
    with client.put_object(bucket, "key") as target:
        target.write(DATA)
    stream = client.get_object(bucket, "key")
    next(stream)
    with client.put_object(bucket, "key") as target:
        target.write(DATA[::-1])
    with pytest.raises(ObjectChangedError):
        stream.read_all()
    assert client.get_object(bucket, "key").read_all() == DATA[::-1]
